"""Count tables: a file or a data frame, spots x genes, to a checked sparse matrix."""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from .._validate import listed

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
    if not path.is_file():
        raise FileNotFoundError(f"counts: no file {str(path)!r}.")
    sep = separator(path)
    # pandas renames duplicate columns ("A", "A.1") when it reads a header itself, so the header is read as data
    try:
        head = pd.read_csv(path, sep=sep, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0].tolist()
        body = pd.read_csv(path, sep=sep, header=None, skiprows=1, index_col=0, dtype={0: str}, low_memory=False)
    except pd.errors.EmptyDataError:
        raise ValueError(f"counts ({path.name}) is empty: expected one row a spot and one column a gene.") from None
    # R writes a header without a name for the column of row names
    genes = head if len(head) == body.shape[1] else head[1:]
    if len(genes) != body.shape[1]:
        raise ValueError(
            f"counts ({path.name}): the header names {len(genes)} genes, the rows hold {body.shape[1]} values. "
            f"Expected fields separated by {'a comma' if sep == ',' else 'a tab'}."
        )
    body.columns = pd.Index(genes)
    return body


def _check_names(spots: pd.Index, genes: pd.Index, source: str) -> None:
    if not len(spots) or not len(genes):
        raise ValueError(
            f"{source} is empty: {len(spots)} spots x {len(genes)} genes. For a slide with H&E only pass counts=None."
        )
    are_spots = [bool(SPOT_NAME.fullmatch(name)) for name in spots]
    if not any(are_spots):
        if np.mean([bool(SPOT_NAME.fullmatch(name)) for name in genes]) > 0.5:
            raise ValueError(
                f"{source} is genes x spots: rows are named {listed(spots, most=3)}, columns {listed(genes, most=3)}. "
                "Expected spots x genes: transpose it (counts.T)."
            )
        raise ValueError(f"{source}: spots are named {listed(spots, most=3)}; expected '{{x}}x{{y}}' such as '10x14'.")
    if not all(are_spots):
        bad = [name for name, good in zip(spots, are_spots, strict=True) if not good]
        raise ValueError(f"{source}: {len(bad)} rows are not named '{{x}}x{{y}}', for instance {listed(bad, most=3)}.")
    for what, names in (("spot", spots), ("gene", genes)):
        if names.has_duplicates:
            twice = names[names.duplicated()].unique()
            raise ValueError(
                f"{source} has {len(twice)} duplicate {what} names, for instance {listed(twice, most=3)}. "
                + ("Sum or rename them first." if what == "gene" else "Every spot must be there once.")
            )


def _to_matrix(frame: pd.DataFrame, source: str) -> sparse.csr_matrix:
    try:
        values = frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        other = [str(name) for name, dtype in zip(frame.columns, frame.dtypes, strict=True) if dtype.kind not in "iufb"]
        raise ValueError(
            f"{source} holds values that are not numbers, in the columns {listed(other, most=3)}."
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
