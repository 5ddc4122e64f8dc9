"""Count tables: a file or a data frame, spots x genes, to a checked sparse matrix."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .._checks import format_names

SPOT_NAME = re.compile(r"\s*(-?\d+(?:\.\d+)?)x(-?\d+(?:\.\d+)?)\s*")
"""A spot of a legacy array: ``{x}x{y}``, integers or real numbers."""


@dataclass(frozen=True)
class Counts:
    """A checked count table: CSR float32 (n_spots, n_genes) of whole numbers, with unique names."""

    matrix: sparse.csr_matrix
    spots: pd.Index
    genes: pd.Index
    source: str


def separator(path: Path) -> str:
    """The column separator of a text table, from its name: comma for ``.csv`` (``.gz``), tab otherwise."""
    return "," if ".csv" in [suffix.lower() for suffix in path.suffixes] else "\t"


def read_counts(counts: str | PathLike[str] | pd.DataFrame) -> Counts:
    """Read and check a count table (spots x genes).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If `counts` is neither a path nor a data frame.
    ValueError
        If the table is empty, transposed, has duplicate names, or holds anything but whole numbers >= 0.
    """
    if isinstance(counts, pd.DataFrame):
        frame, source = counts, "counts (data frame)"
    elif isinstance(counts, str | PathLike):
        frame, source = _read_table(Path(counts)), f"counts ({Path(counts).name})"
    else:
        raise TypeError(f"counts is a path or a pandas.DataFrame (spots x genes), not {type(counts).__name__}.")
    spots, genes = frame.index.astype(str), frame.columns.astype(str)
    _check_names(spots, genes, source)
    return Counts(matrix=_to_matrix(frame, source), spots=spots, genes=genes, source=source)


def _read_table(path: Path) -> pd.DataFrame:
    """A count table from a file; row by row, because pandas takes ten times as long over some 16 000 columns.

    It would also rename duplicate columns ("A", "A.1"), which are to be found.
    """
    if not path.is_file():
        raise FileNotFoundError(f"counts: no file {str(path)!r}.")
    source = f"counts ({path.name})"
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as handle:
            spots, genes, values = _parse(csv.reader(handle, delimiter=separator(path)), source)
    except EOFError:
        raise ValueError(f"{source} is cut off: the compressed file ends too early. Fetch it again.") from None
    if not values:
        raise ValueError(f"{source} is empty: expected one row a spot and one column a gene.")
    return pd.DataFrame(np.stack(values), index=pd.Index(spots, dtype=object), columns=pd.Index(genes, dtype=object))


def _parse(rows: Iterable[list[str]], source: str) -> tuple[list[str], list[str], list[NDArray[np.float64]]]:
    """Names of the rows, names of the columns, and the rows of a table with a header."""
    head: list[str] = []
    genes: list[str] = []
    spots: list[str] = []
    values: list[NDArray[np.float64]] = []
    for row in rows:
        if not row:
            continue
        if not head:
            head = row
            continue
        name, *fields = row
        if not values:
            # R writes a header without a name for the column of row names
            genes = head if len(head) == len(fields) else head[1:]
        if len(fields) != len(genes):
            raise ValueError(
                f"{source}: the header names {len(genes)} genes, row {name!r} has {len(fields)} values. "
                "Expected fields separated by a tab, or by a comma in a file named .csv."
            )
        try:
            values.append(np.array(fields, dtype=np.float64))
        except ValueError:
            gene, value = next(pair for pair in zip(genes, fields, strict=True) if not _is_number(pair[1]))
            raise ValueError(
                f"{source} holds values that are not numbers, the first {value!r} at spot {name!r}, gene {gene!r}."
            ) from None
        spots.append(name)
    return spots, genes, values


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _check_names(spots: pd.Index, genes: pd.Index, source: str) -> None:
    if not len(spots) or not len(genes):
        raise ValueError(
            f"{source} is empty: {len(spots)} spots x {len(genes)} genes. For a slide with H&E only pass counts=None."
        )
    are_spots = [bool(SPOT_NAME.fullmatch(name)) for name in spots]
    if not any(are_spots):
        if np.mean([bool(SPOT_NAME.fullmatch(name)) for name in genes]) > 0.5:
            raise ValueError(
                f"{source} is genes x spots: rows are named {format_names(spots, most=3)}, columns {format_names(genes, most=3)}. "
                "Expected spots x genes: transpose it (counts.T)."
            )
        raise ValueError(
            f"{source}: spots are named {format_names(spots, most=3)}; expected '{{x}}x{{y}}' such as '10x14'."
        )
    if not all(are_spots):
        bad = [name for name, good in zip(spots, are_spots, strict=True) if not good]
        raise ValueError(
            f"{source}: {len(bad)} rows are not named '{{x}}x{{y}}', for instance {format_names(bad, most=3)}."
        )
    for what, names in (("spot", spots), ("gene", genes)):
        if names.has_duplicates:
            twice = names[names.duplicated()].unique()
            raise ValueError(
                f"{source} has {len(twice)} duplicate {what} names, for instance {format_names(twice, most=3)}. "
                + ("Sum or rename them first." if what == "gene" else "Every spot must be there once.")
            )


def _to_matrix(frame: pd.DataFrame, source: str) -> sparse.csr_matrix:
    try:
        values = frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        numbers = frame.apply(pd.to_numeric, errors="coerce")
        other = frame.columns[(numbers.isna() & frame.notna()).any()]
        raise ValueError(
            f"{source} holds values that are not numbers, in the columns {format_names(other, most=3)}."
        ) from None
    for what, wrong in (
        ("missing or infinite", ~np.isfinite(values)),
        ("negative", values < 0),
        ("non-integer", values != np.floor(values)),
    ):
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"{source} holds {int(wrong.sum())} {what} values, the first {values[row, column]:g} at spot "
                f"{str(frame.index[row])!r}, gene {str(frame.columns[column])!r}. Raw counts are needed: whole "
                "numbers >= 0, "
                "neither normalised nor log-transformed."
            )
    return sparse.csr_matrix(values.astype(np.float32))
