"""Micrometres per unit of the spots' coordinates: given, recorded, or measured where the format proves it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import _keys as keys
from ._slides import Float64

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("spahgc")

PLAUSIBLE_MPP = (0.05, 20.0)
"""Micrometres per pixel of an H&E image; beyond, a cell is smaller than a pixel or a tile larger than memory."""
VISIUM_PITCH_UM = 100.0
"""Distance of neighbouring spots of a Visium array, centre to centre."""
VISIUM_SPOT_UM = 65.0
"""What Space Ranger's ``spot_diameter_fullres`` stands for: the printed spot of 55 um and what diffuses."""
DIFFERS = 0.1
"""Share by which two ways to the scale may differ before a warning."""
_MANY = 10  # pairs of neighbours from which on their distance is believed
_BINS = re.compile(r"(?:^|_)square_(\d{3})um(?:$|[_-])")
_XENIUM_COLUMNS = ("cell_area", "nucleus_area", "transcript_counts")


def microns_per_unit(
    table: AnnData,
    name: str,
    rows: NDArray[np.intp],
    shapes: Any,
    centres: Float64,
    *,
    given: float | Mapping[str, float] | None,
    recorded: Sequence[tuple[str, Any, float]] = (),
) -> tuple[float, str]:
    """Micrometres per unit of a slide's spot coordinates, and where that is from.

    Parameters
    ----------
    table, name, rows
        The table, a slide and its rows.
    shapes, centres
        The spots' shapes and their centres, in the order of the rows.
    given
        What the user says, for all slides or by slide; counts before all else.
    recorded
        Images with their own scale: where it is recorded, micrometres per pixel, pixels per unit of the spots'
        coordinates.
    """
    entry = table.uns.get(keys.SPATIAL, {}).get(name, {}).get("scalefactors", {}).get(keys.MPP)
    said: list[tuple[str, Any, float]] = [
        ("microns_per_pixel", given.get(name) if isinstance(given, Mapping) else given, 1.0),
        (f"uns['{keys.SPATIAL}'][{name!r}]['scalefactors']['{keys.MPP}']", entry, 1.0),
        *recorded,
    ]
    measured = _measured(table.obs.iloc[rows], name, shapes, centres)
    for source, value, unit in said:
        if value is None:
            continue
        found = _plausible(value, source, name) * unit
        if measured is not None and abs(found / measured[0] - 1) > DIFFERS:
            logger.warning(
                "%s of slide %r says %.4g um per unit of the spots' coordinates, but %s say %.4g. Which is right?",
                source, name, found, measured[1], measured[0],
            )  # fmt: skip
        return found, source
    if measured is not None:
        return _plausible(*measured, name), measured[1]
    raise ValueError(
        f"How many micrometres a full-resolution pixel of slide {name!r} measures is not known: {said[1][0]} is "
        f"missing. Pass microns_per_pixel=<number>, or a dict by slide: {{{name!r}: <number>}}. On Visium it is "
        f"{VISIUM_SPOT_UM:g} / spot_diameter_fullres; else distance of neighbouring spots in um over the same in "
        "pixels. Where the spots' coordinates are in micrometres, as a Xenium's, it is 1."
    )


def _plausible(value: Any, source: str, name: str) -> float:
    low, high = PLAUSIBLE_MPP
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not low <= float(value) <= high:
        raise ValueError(
            f"{source} of slide {name!r} is {value!r}; an H&E image has between {low:g} and {high:g} um per pixel (a "
            "20x scan about 0.5). Pass microns_per_pixel=<number>."
        )
    return float(value)


def _measured(obs: pd.DataFrame, name: str, shapes: Any, centres: Float64) -> tuple[float, str] | None:
    """The scale that the format proves, and by what; `None` where it proves none."""
    bins = _BINS.search(name)
    if bins:
        size = float(bins[1])
        return size / side_of(shapes), f"the bins of {size:g} um"
    pitch = visium_pitch(obs, centres)
    if pitch is not None:
        found = VISIUM_PITCH_UM / pitch
        if "radius" in shapes:
            other = VISIUM_SPOT_UM / (2 * float(np.median(shapes["radius"])))
            if abs(other / found - 1) > DIFFERS:
                logger.warning(
                    "Slide %r: Visium's pitch of %g um gives %.4g um per pixel, spots of %g um give %.4g. The pitch is "
                    "taken. Are positions and spot diameter those of the same image?",
                    name, VISIUM_PITCH_UM, found, VISIUM_SPOT_UM, other,
                )  # fmt: skip
        return found, f"Visium's spots {VISIUM_PITCH_UM:g} um apart"
    if all(column in obs for column in _XENIUM_COLUMNS):
        # Xenium's table has the area of each cell in um^2. Outlines are simplified, so the match is not exact.
        area = shape_areas(shapes)
        ratio = float(np.sqrt(np.nanmedian(obs["cell_area"].to_numpy(dtype=np.float64) / area)))
        if abs(ratio - 1) <= DIFFERS / 2:
            return 1.0, "Xenium's cell areas in um"
    return None


def shape_areas(shapes: Any) -> Float64:
    """Areas of circles (points with a radius) or polygons."""
    if "radius" in shapes:
        return np.asarray(np.pi * shapes["radius"].to_numpy(dtype=np.float64) ** 2)
    return np.asarray(shapes.geometry.area, dtype=np.float64)


def side_of(shapes: Any) -> float:
    """Side of square bins: of the polygons, or the diameter of the circles that stand for them."""
    if "radius" in shapes:
        return 2 * float(np.median(shapes["radius"]))
    return float(np.sqrt(np.median(shapes.geometry.area)))


def visium_pitch(obs: pd.DataFrame, centres: Float64) -> float | None:
    """Distance of neighbouring spots of a Visium array; `None` where the spots do not lie on one.

    Visium numbers the columns of even rows 0, 2, 4, ... and of odd rows 1, 3, 5, ...; neighbours are two columns apart
    in a row, or one column and one row.
    """
    # A lattice that spahgc laid may have any pitch.
    if not all(key in obs for key in ("array_row", "array_col")) or keys.TISSUE in obs or keys.N_BINS in obs:
        return None
    row, column = (
        pd.to_numeric(obs[key], errors="coerce").to_numpy(dtype=np.float64) for key in ("array_row", "array_col")
    )
    whole = np.isfinite(row) & np.isfinite(column) & (row == np.round(row)) & (column == np.round(column))
    if not len(row) or not whole.all() or ((row + column) % 2).any():
        return None
    width = int(column.max() - column.min()) + 8
    code = ((row - row.min()) * width + column - column.min() + 4).astype(np.int64)
    index = pd.Index(code)
    if not index.is_unique:
        return None
    distances = []
    for step in (2, width + 1, width - 1):
        other = index.get_indexer(code + step)
        here = other >= 0
        distances.append(np.linalg.norm(centres[here] - centres[other[here]], axis=1))
    medians = [float(np.median(part)) for part in distances if len(part) >= _MANY]
    # The three directions of a hexagonal array have one pitch; where they do not, something else is numbered so.
    if not medians or min(medians) <= 0 or max(medians) > 1.05 * min(medians):
        return None
    return float(np.median(np.concatenate(distances)))
