"""Nearest spots by position, exact and reproducible.

Ties are the rule on a grid, so it is stated who wins one: the lower index. Neither how many spots are asked for at once
nor the inner order of the search tree has a say in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from ._check import matrix, positive

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
