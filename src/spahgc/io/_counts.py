"""Count tables, spots x genes: a file or a data frame to a checked data frame."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._checks import format_names

SPOT_NAME = r"\s*(-?\d+(?:\.\d+)?)x(-?\d+(?:\.\d+)?)\s*"
"""Pattern of the name of a spot on a legacy array: ``{x}x{y}``, integers or real numbers."""


def source_of(table: str | PathLike[str] | pd.DataFrame, parameter: str) -> str:
    """Name of a table in messages."""
    return f"{parameter} ({'data frame' if isinstance(table, pd.DataFrame) else Path(table).name})"


def separator(path: Path) -> str:
    """Column separator of a text table: comma for ``.csv`` (``.gz``), tab otherwise."""
    return "," if ".csv" in [suffix.lower() for suffix in path.suffixes] else "\t"


def read_counts(counts: str | PathLike[str] | pd.DataFrame) -> pd.DataFrame:
    """Raw counts as float32 with unique row names ``{x}x{y}``; raises if they are anything else."""
    source = source_of(counts, "counts")
    frame = counts if isinstance(counts, pd.DataFrame) else _read_table(Path(counts), source)
    spots, genes = frame.index.astype(str), frame.columns.astype(str)
    _check_names(spots, genes, source)
    try:
        values = frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        numbers = frame.apply(pd.to_numeric, errors="coerce")
        text = frame.columns[(numbers.isna() & frame.notna()).any()]
        raise ValueError(f"{source} holds non-numeric values in the columns {format_names(text, most=3)}.") from None
    for problem, wrong in (
        ("missing or infinite", ~np.isfinite(values)),
        ("negative", values < 0),
        ("non-integer", values != np.floor(values)),
    ):
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"{source} holds {int(wrong.sum())} {problem} values, the first {values[row, column]:g} at spot "
                f"{spots[row]!r}, gene {genes[column]!r}. Raw counts are required: integers of at least 0, neither "
                "normalized nor log-transformed."
            )
    return pd.DataFrame(values.astype(np.float32), index=spots, columns=genes)


def _read_table(path: Path, source: str) -> pd.DataFrame:
    """Read without pandas' header, which renames duplicate columns; they must be reported."""
    if not path.is_file():
        raise FileNotFoundError(f"counts: no file {str(path)!r}.")
    options: dict[str, Any] = {"sep": separator(path), "header": None, "encoding": "utf-8-sig"}
    try:
        head = pd.read_csv(path, nrows=1, dtype=str, keep_default_na=False, **options).iloc[0].tolist()
        frame = pd.read_csv(path, skiprows=1, index_col=0, dtype={0: str}, **options)
    except EOFError:
        raise ValueError(f"{source} is truncated: the compressed file ends too early. Fetch it again.") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{source} is empty or not a table: {error}.") from error
    # R writes no name for the column of row names.
    genes = head if len(head) == frame.shape[1] else head[1:]
    if len(genes) != frame.shape[1]:
        raise ValueError(
            f"{source}: the header names {len(genes)} genes, but row {frame.index[0]!r} has {frame.shape[1]} values. "
            "Expected fields separated by a tab, or by a comma in a file named .csv."
        )
    return frame.set_axis(pd.Index(genes, dtype=object), axis=1)


def _check_names(spots: pd.Index, genes: pd.Index, source: str) -> None:
    if not len(spots) or not len(genes):
        raise ValueError(
            f"{source} is empty: {len(spots)} spots x {len(genes)} genes. Pass counts=None for a slide with H&E only."
        )
    if not spots.str.fullmatch(SPOT_NAME).any() and genes.str.fullmatch(SPOT_NAME).mean() > 0.5:
        raise ValueError(
            f"{source} is genes x spots: rows are named {format_names(spots, most=3)}, columns "
            f"{format_names(genes, most=3)}. Expected spots x genes: transpose it (counts.T)."
        )
    other = spots[~spots.str.fullmatch(SPOT_NAME).astype(bool)]
    if len(other):
        raise ValueError(
            f"{source}: {len(other)} of {len(spots)} rows are not named '{{x}}x{{y}}' (such as '10x14'), for instance "
            f"{format_names(other, most=3)}."
        )
    for kind, names in (("spot", spots), ("gene", genes)):
        if names.has_duplicates:
            duplicates = names[names.duplicated()].unique()
            raise ValueError(
                f"{source} has {len(duplicates)} duplicate {kind} names, for instance "
                f"{format_names(duplicates, most=3)}. Sum or rename them first."
            )
