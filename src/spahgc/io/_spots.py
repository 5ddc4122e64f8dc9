"""Spot tables of legacy arrays: array positions, pixel positions, and the scale of the image."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .._checks import format_names
from ._counts import SPOT_NAME, Counts, separator

logger = logging.getLogger("spahgc")

REQUIRED = ("x", "y", "pixel_x", "pixel_y")
MPP_RANGE = (0.1, 20.0)
"""Micrometres per pixel outside this range are taken for a mistake: 100x objectives give 0.1, thumbnails 20."""


@dataclass(frozen=True)
class Spots:
    """Checked spots: array positions int64 (n, 2) and pixel positions float64 (n, 2), both (x, y)."""

    array: NDArray[np.int64]
    pixel: NDArray[np.float64]


def read_spots(spots: str | PathLike[str] | pd.DataFrame) -> pd.DataFrame:
    """Read a spot table and keep the selected spots.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If a column is missing.
    TypeError
        If `spots` is neither a path nor a data frame.
    ValueError
        If no spot is selected, array positions are no integers, or two spots share one.
    """
    if isinstance(spots, pd.DataFrame):
        frame, source = spots, "spots (data frame)"
    elif isinstance(spots, str | PathLike):
        path = Path(spots)
        if not path.is_file():
            raise FileNotFoundError(f"spots: no file {str(path)!r}.")
        frame, source = pd.read_csv(path, sep=separator(path)), f"spots ({path.name})"
    else:
        raise TypeError(f"spots is a path or a pandas.DataFrame, not {type(spots).__name__}.")
    missing = [name for name in REQUIRED if name not in frame.columns]
    if missing:
        raise KeyError(
            f"{source} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}. "
            "x, y: position on the array; pixel_x, pixel_y: position in the image."
        )
    if "selected" in frame.columns:
        frame = frame[frame["selected"].astype(float) != 0]
    if frame.empty:
        raise ValueError(f"{source} has no spots" + (" that are selected." if "selected" in frame.columns else "."))
    try:
        frame = frame.astype(dict.fromkeys(REQUIRED, np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: x, y, pixel_x and pixel_y are numbers: {error}.") from None
    array = frame[["x", "y"]].to_numpy()
    if not np.array_equal(array, np.round(array)):
        raise ValueError(
            f"{source}: x and y are positions on the array, whole numbers; real-valued ones go to new_x, new_y."
        )
    twice = frame.duplicated(["x", "y"])
    if twice.any():
        names = [f"{x:g}x{y:g}" for x, y in array[twice.to_numpy()]]
        raise ValueError(f"{source} has {len(names)} duplicate spots, for instance {format_names(names, most=3)}.")
    return frame.reset_index(drop=True)


def match(counts: Counts, frame: pd.DataFrame) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match the spots of a count table to those of a spot table: rows of the counts, rows of the spots.

    Names are compared with the array positions, then with the adjusted positions ``new_x``, ``new_y``, then rounded;
    the way that matches most spots is taken, the earlier one on a tie.
    """
    names = np.array([SPOT_NAME.fullmatch(name).groups() for name in counts.spots], dtype=np.float64)  # type: ignore[union-attr]
    array = frame[["x", "y"]].to_numpy(dtype=np.float64)
    ways: dict[str, tuple[NDArray[np.float64], NDArray[np.float64], Callable[[float], float]]] = {
        "x, y": (names, array, lambda value: value)
    }
    if {"new_x", "new_y"} <= set(frame.columns):
        # names are printed with a few digits only
        ways["new_x, new_y"] = (
            names,
            frame[["new_x", "new_y"]].to_numpy(dtype=np.float64),
            lambda value: round(value, 3),
        )
    ways["rounded x, y"] = (names, array, lambda value: float(np.floor(value + 0.5)))
    found = {way: _pairs(*arrays) for way, arrays in ways.items()}
    best = max(found, key=lambda way: len(found[way][0]))
    rows, spots = found[best]
    tally = "; ".join(f"{len(pairs[0])} by {way}" for way, pairs in found.items())
    if not len(rows):
        printed = [f"{x:g}x{y:g}" for x, y in array]
        raise ValueError(
            f"{counts.source} and the spots have no spot in common (matched of {len(names)}: {tally}). Spots of the "
            "counts: "
            f"{format_names(counts.spots, most=3)}; of the spots table: {format_names(printed, most=3)}. Are they "
            "of one slide?"
        )
    level = logging.WARNING if len(rows) < 0.5 * len(names) else logging.INFO
    if len(rows) < max(len(names), len(array)):
        logger.log(
            level, "%s: %d of %d spots matched to %d spots of the spots table by %s (%s); the others are left out.",
            counts.source, len(rows), len(names), len(array), best, tally,
        )  # fmt: skip
    return rows, spots


def _pairs(
    left: NDArray[np.float64], right: NDArray[np.float64], key: Callable[[float], float]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of `left` and of `right` with the same position; a position that several rows share matches nothing."""

    def index(points: NDArray[np.float64]) -> dict[tuple[float, float], int]:
        where: dict[tuple[float, float], list[int]] = {}
        for row, (x, y) in enumerate(points):
            where.setdefault((key(x), key(y)), []).append(row)
        return {position: rows[0] for position, rows in where.items() if len(rows) == 1}

    lookup = index(right)
    pairs = [(row, lookup[position]) for position, row in index(left).items() if position in lookup]
    array = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def check_positions(spots: Spots, size: tuple[int, int], source: str = "spots") -> None:
    """Refuse pixel positions that are missing, outside the image of `size` (width, height), or have x and y swapped."""
    pixel, names = spots.pixel, [f"{x}x{y}" for x, y in spots.array]
    unknown = np.flatnonzero(~np.isfinite(pixel).all(axis=1))
    if unknown.size:
        bad = [names[row] for row in unknown]
        raise ValueError(
            f"{source}: pixel_x or pixel_y is missing or infinite for {len(bad)} spots, for instance "
            f"{format_names(bad, most=3)}."
        )
    width, height = size
    outside = np.flatnonzero(((pixel < 0) | (pixel >= (width, height))).any(axis=1))
    if not outside.size:
        return
    bad = [names[row] for row in outside]
    (x0, y0), (x1, y1) = pixel.min(axis=0), pixel.max(axis=0)
    told = (
        f"{source}: {len(bad)} of {len(names)} spots lie outside the image of {width} x {height} pixels (width x "
        "height), for instance "
        f"{format_names(bad, most=3)}; pixel_x runs from {x0:.0f} to {x1:.0f}, pixel_y from {y0:.0f} to {y1:.0f}."
    )
    if ((pixel[:, ::-1] >= 0) & (pixel[:, ::-1] < (width, height))).all():
        raise ValueError(f"{told} With x and y swapped all of them lie inside: swap pixel_x and pixel_y.")
    raise ValueError(f"{told} Are the positions those of this image, at its full resolution?")


def pitch_in_pixels(spots: Spots) -> float:
    """Distance of neighbouring spots in pixels: the scale of the affine map from array to pixel positions.

    A fit over all spots, because the median distance to the nearest neighbour is too small (by 6 % on her2st) where the
    positions scatter: of four neighbours the nearest is the one that scattered towards the spot.

    Raises
    ------
    ValueError
        If the spots do not span the array, or the pixel positions do not follow it.
    """
    advice = "Give microns_per_pixel."
    design = np.column_stack([spots.array, np.ones(len(spots.array))]).astype(np.float64)
    design[:, :2] -= design[:, :2].mean(axis=0)
    if np.linalg.matrix_rank(design) < 3:
        raise ValueError(
            f"The spot pitch cannot be measured: {len(design)} spots that do not span rows and columns. {advice}"
        )
    linear = np.linalg.lstsq(design, spots.pixel, rcond=None)[0]
    pitch = float(np.sqrt(abs(np.linalg.det(linear[:2]))))
    off = float(np.median(np.linalg.norm(design @ linear - spots.pixel, axis=1)))
    if not pitch > 0 or off > 0.5 * pitch:
        raise ValueError(
            f"The pixel positions do not follow the array: half of the spots are more than {off:.0f} pixels off a "
            f"grid of pitch {pitch:.0f} "
            f"pixels. Check that pixel_x, pixel_y belong to x, y. {advice}"
        )
    if abs(linear[0, 0]) + abs(linear[1, 1]) < abs(linear[0, 1]) + abs(linear[1, 0]) and np.linalg.det(linear[:2]) < 0:
        logger.warning(
            "pixel_x follows the array's y and pixel_y its x: x and y may be swapped in one of them. "
            "If it is in the pixels, the tiles are those of other places."
        )
    return pitch


def scale(spots: Spots, *, microns_per_pixel: float | None, pitch_um: float) -> float:
    """Micrometres per pixel, given or from the spot pitch; an error where it is absurd."""
    low, high = MPP_RANGE
    if microns_per_pixel is not None:
        if not low <= microns_per_pixel <= high:
            raise ValueError(
                f"microns_per_pixel={microns_per_pixel:g} is outside {low:g} to {high:g}: no microscope image has "
                "that scale."
            )
        return float(microns_per_pixel)
    if not pitch_um > 0:
        raise ValueError(f"pitch_um={pitch_um:g} is the distance of neighbouring spots in micrometres, above 0.")
    pitch = pitch_in_pixels(spots)
    found = pitch_um / pitch
    if not low <= found <= high:
        raise ValueError(
            f"{found:.3g} micrometres per pixel follow from the spot pitch ({pitch:.1f} pixels for {pitch_um:g} um), "
            f"outside {low:g} to {high:g}. "
            "Are the pixel positions those of the image at full resolution? Otherwise give pitch_um or "
            "microns_per_pixel."
        )
    return found
