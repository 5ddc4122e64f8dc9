"""Positions of spots as plain arrays: nearest spots, pitch, micrometers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from . import _keys as keys
from ._checks import matrix, positive

Float64 = NDArray[np.float64]


_DECIMALS = 9


_MARGIN = 16


class SpatialNeighbors:
    """Nearest other spots on a slide, for any of its spots.

    Distances that agree to nine decimals of the slide's extent are ties; the lower index wins.

    Parameters
    ----------
    coordinates
        Positions, (n, 2) or (n, 3), in any unit.

    Raises
    ------
    ValueError
        For NaN or infinite coordinates, or another number of dimensions.
    """

    def __init__(self, coordinates: ArrayLike) -> None:
        self.coordinates = xy = matrix(coordinates, "coordinates", dtype=np.float64)
        if xy.shape[1] not in (2, 3):
            raise ValueError(f"coordinates has {xy.shape[1]} columns; it has x, y (and z).")
        self._tree = cKDTree(xy)
        # What a distance is rounded in proportion to.
        self._unit = float(np.ptp(xy, axis=0).max()) or 1.0 if len(xy) else 1.0

    def __call__(self, k: int, rows: slice | None = None) -> NDArray[np.int64]:
        """Row numbers of the k nearest other spots of some spots (of all), int64 (n_rows, min(k, n - 1))."""
        xy, unit = self.coordinates, self._unit
        rows = slice(0, len(xy)) if rows is None else rows
        k = min(positive(k, "k"), len(xy) - 1)
        own = np.arange(len(xy))[rows, None]
        if k < 1:
            return np.empty((len(own), 0), dtype=np.int64)
        width = min(k + 1 + _MARGIN, len(xy))
        distances, candidates = self._tree.query(xy[rows], k=width)
        # Spots at one place: the tree may return any of them first, and may leave out the spot itself.
        distances = np.where(candidates == own, np.inf, distances)
        order = np.lexsort((candidates, np.round(distances / unit, _DECIMALS)), axis=1)[:, :k]
        result = np.take_along_axis(candidates, order, axis=1).astype(np.int64)
        if width == len(xy):
            return result
        reach = np.partition(distances, k - 1, axis=1)[:, k - 1] + unit * 10.0 ** (1 - _DECIMALS)
        farthest = np.where(np.isinf(distances), -np.inf, distances).max(axis=1)
        for at in np.flatnonzero(farthest <= reach):
            i = int(own[at, 0])
            every = np.array(self._tree.query_ball_point(xy[i], reach[at]))
            every = every[every != i]
            rounded = np.round(np.linalg.norm(xy[every] - xy[i], axis=1) / unit, _DECIMALS)
            result[at] = every[np.lexsort((every, rounded))[:k]]
        return result


def spatial_knn(coordinates: ArrayLike, k: int) -> NDArray[np.int64]:
    """The `k` nearest other spots of each spot; see :class:`SpatialNeighbors`.

    Parameters
    ----------
    coordinates
        Positions, (n, 2) or (n, 3), in any unit.
    k
        Neighbours per spot; where a slide has only n <= k spots, each gets the n - 1 others.

    Returns
    -------
    Row numbers, int64 (n, min(k, n - 1)), nearest first.

    Raises
    ------
    ValueError
        For NaN or infinite coordinates, or another number of dimensions.
    """
    k = positive(k, "k")
    return SpatialNeighbors(coordinates)(k)


PLAUSIBLE_MPP = (0.05, 20.0)
"""Micrometres per pixel of an H&E image; beyond, a cell is smaller than a pixel or a tile larger than memory."""


VISIUM_PITCH_UM = 100.0
"""Distance of neighbouring spots of a Visium array, centre to centre."""


VISIUM_SPOT_UM = 65.0
"""What Space Ranger's ``spot_diameter_fullres`` stands for: the printed spot of 55 um and what diffuses."""


DIFFERS = 0.1
"""Share by which two ways to the scale may differ before a warning."""


_MANY = 10  # pairs of neighbours from which on their distance is believed


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
