"""Count and spot tables of legacy arrays: files or data frames to checked data frames, and what joins them."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .._checks import format_names
from .._geometry import PLAUSIBLE_MPP, Float64, legacy_pitch

logger = logging.getLogger("spahgc")

SPOT_NAME = r"\s*(-?\d+(?:\.\d+)?)x(-?\d+(?:\.\d+)?)\s*"
"""Pattern of the name of a spot on a legacy array: ``{x}x{y}``, integers or real numbers."""

_REQUIRED = ["x", "y", "pixel_x", "pixel_y"]


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


def read_spots(spots: str | PathLike[str] | pd.DataFrame) -> pd.DataFrame:
    """Selected spots of a spot table, with unique integer array positions and numeric pixel positions."""
    source = source_of(spots, "spots")
    if isinstance(spots, pd.DataFrame):
        frame = spots
    elif Path(spots).is_file():
        frame = pd.read_csv(spots, sep=separator(Path(spots)))
    else:
        raise FileNotFoundError(f"spots: no file {str(spots)!r}.")
    missing = [name for name in _REQUIRED if name not in frame.columns]
    if missing:
        raise KeyError(
            f"{source} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}. Required: "
            "x, y (position on the array) and pixel_x, pixel_y (position in the image)."
        )
    if "selected" in frame.columns:
        frame = frame[frame["selected"].astype(float) != 0]
    if frame.empty:
        raise ValueError(f"{source} has no spots, or none that are selected (column 'selected').")
    try:
        frame = frame.astype(dict.fromkeys(_REQUIRED, np.float64)).reset_index(drop=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: x, y, pixel_x and pixel_y must be numbers: {error}.") from None
    array = frame[["x", "y"]].to_numpy()
    if not np.array_equal(array, np.round(array)):
        raise ValueError(
            f"{source}: x and y must be integer positions on the array. Adjusted positions belong into new_x, new_y."
        )
    duplicates = spot_names(array)[frame.duplicated(["x", "y"]).to_numpy()]
    if len(duplicates):
        raise ValueError(
            f"{source} has {len(duplicates)} duplicate spots, for instance {format_names(duplicates, most=3)}."
        )
    return frame


def spot_names(array: NDArray[Any]) -> pd.Index:
    """Names ``{x}x{y}`` of array positions."""
    return pd.Index([f"{x:g}x{y:g}" for x, y in array], dtype=object)


def match_spots(names: pd.Index, frame: pd.DataFrame, source: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of a count table and of a spot table with the same spots.

    Names are compared with array positions, adjusted positions, and rounded positions; the most matches win.
    """
    named = names.str.extract(SPOT_NAME).astype(np.float64).to_numpy()
    array = frame[["x", "y"]].to_numpy()
    found = {"x, y": _pairs(named, array)}
    if {"new_x", "new_y"} <= set(frame.columns):
        # Adjusted positions are printed with a few digits only.
        found["new_x, new_y"] = _pairs(named.round(3), frame[["new_x", "new_y"]].to_numpy(np.float64).round(3))
    found["rounded x, y"] = _pairs(np.floor(named + 0.5), array)
    best = max(found, key=lambda way: len(found[way]))
    pairs = found[best]
    tally = "; ".join(f"{len(rows)} by {way}" for way, rows in found.items())
    if not len(pairs):
        raise ValueError(
            f"{source} and the spots have no spot in common (matched of {len(names)}: {tally}). Spots of the counts: "
            f"{format_names(names, most=3)}; of the spot table: {format_names(spot_names(array), most=3)}. Do they "
            "belong to the same slide?"
        )
    if len(pairs) < max(len(names), len(array)):
        logger.log(
            logging.WARNING if len(pairs) < 0.5 * len(names) else logging.INFO,
            "%s: %d of %d spots matched to %d spots of the spot table by %s (%s). The others are left out.",
            source, len(pairs), len(names), len(array), best, tally,
        )  # fmt: skip
    return pairs[:, 0], pairs[:, 1]


def _pairs(left: Float64, right: Float64) -> NDArray[np.intp]:
    """Pairs of rows with the same position, (n, 2); a position that several rows share matches nothing."""
    unique = [
        pd.DataFrame(positions, columns=["x", "y"]).drop_duplicates(keep=False).reset_index()
        for positions in (left, right)
    ]
    return unique[0].merge(unique[1], on=["x", "y"])[["index_x", "index_y"]].to_numpy(np.intp)


def check_inside(xy: Float64, names: pd.Index, size: tuple[int, int], what: str) -> None:
    """Raise if positions (x, y) are missing or lie outside an image of `size` (width, height)."""
    unknown = names[np.flatnonzero(~np.isfinite(xy).all(axis=1))]
    if len(unknown):
        raise ValueError(
            f"{what} is missing or infinite for {len(unknown)} spots, for instance {format_names(unknown, most=3)}."
        )
    outside = np.flatnonzero(((xy < 0) | (xy >= size)).any(axis=1))
    if not len(outside):
        return
    (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
    swapped = ((xy[:, ::-1] >= 0) & (xy[:, ::-1] < size)).all()
    advice = (
        "With x and y swapped all of them lie inside: swap the two columns."
        if swapped
        else "Are the positions those of this image, at its full resolution?"
    )
    raise ValueError(
        f"{len(outside)} of {len(xy)} spots lie outside the image of {size[0]} x {size[1]} pixels (width x "
        f"height), for instance {format_names(names[outside], most=3)}. In {what}, x ranges from {x0:.0f} to {x1:.0f} "
        f"and y from {y0:.0f} to {y1:.0f}. {advice}"
    )


def scale_from_pitch(array: Float64, pixel: Float64, pitch_um: float) -> float:
    """Micrometers per pixel from the spot pitch."""
    pitch = legacy_pitch(array, pixel)
    mpp = pitch_um / pitch
    if not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        raise ValueError(
            f"The spot pitch ({pitch:.1f} pixels for {pitch_um:g} um) implies {mpp:.3g} um per pixel, outside the "
            f"plausible range of {PLAUSIBLE_MPP[0]:g} to {PLAUSIBLE_MPP[1]:g}. Are the pixel positions those of the "
            "full-resolution image? Otherwise pass `pitch_um` or `microns_per_pixel`."
        )
    return mpp
