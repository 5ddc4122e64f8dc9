"""Positions of spots as plain arrays: nearest spots, pitch, micrometers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import Delaunay, QhullError, cKDTree

from . import _keys as keys
from ._checks import matrix, positive
from ._settings import logger

Float64 = NDArray[np.float64]
_DECIMALS = 9
_MARGIN = 16


class SpatialNeighbors:
    """Nearest other spots of each spot of a slide, reproducible on a grid.

    Distances that agree to nine decimals of the slide's extent are ties, and the lower index wins.

    Parameters
    ----------
    coordinates
        Positions, (n, 2) or (n, 3), in any unit.

    Raises
    ------
    ValueError
        If coordinates are not finite or have another number of dimensions.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.nn.SpatialNeighbors([[0, 0], [1, 0], [3, 0]])(1).ravel()
    array([1, 0, 1])
    """

    def __init__(self, coordinates: ArrayLike) -> None:
        self.coordinates = xy = matrix(coordinates, "coordinates", dtype=np.float64)
        if xy.shape[1] not in (2, 3):
            raise ValueError(f"`coordinates` must have 2 or 3 columns (x, y, z), got {xy.shape[1]}.")
        self._tree = cKDTree(xy)
        # Distances are rounded relative to the extent of the slide.
        self._unit = float(np.ptp(xy, axis=0).max()) or 1.0 if len(xy) else 1.0

    def __call__(self, k: int, rows: slice | None = None) -> NDArray[np.int64]:
        """Indices of the `k` nearest other spots of the given rows, nearest first, int64 (n_rows, min(k, n - 1))."""
        xy, unit = self.coordinates, self._unit
        rows = slice(0, len(xy)) if rows is None else rows
        k = min(positive(k, "k"), len(xy) - 1)
        own = np.arange(len(xy))[rows, None]
        if k < 1:
            return np.empty((len(own), 0), dtype=np.int64)
        width = min(k + 1 + _MARGIN, len(xy))
        distances, candidates = self._tree.query(xy[rows], k=width)
        # Among spots at the same position, the tree may return any first and may omit the spot itself.
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
    """Indices of the nearest other spots of each spot, nearest first: int64 (n, min(k, n - 1)).

    Parameters
    ----------
    coordinates
        Positions, (n, 2) or (n, 3), in any unit.
    k
        Number of neighbors.

    Raises
    ------
    ValueError
        If coordinates are not finite or have another number of dimensions.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.nn.spatial_knn([[0, 0], [1, 0], [3, 0]], 1).ravel()
    array([1, 0, 1])
    """
    return SpatialNeighbors(coordinates)(k)


PLAUSIBLE_MPP = (0.05, 20.0)
"""Plausible range of micrometers per pixel of an H&E image."""
VISIUM_PITCH_UM = 100.0
"""Center-to-center distance of neighboring Visium spots in micrometers."""
VISIUM_SPOT_UM = 65.0
"""Spot diameter in micrometers that Space Ranger's ``spot_diameter_fullres`` represents (55 um plus diffusion)."""
DIFFERS = 0.1
"""Relative difference between two estimates of the scale that triggers a warning."""
_MIN_PAIRS = 10  # neighbor pairs needed for a reliable distance


def side_of(shapes: Any) -> float:
    """Side length of square bins, given as polygons or as circles of that diameter."""
    if "radius" in shapes:
        return 2 * float(np.median(shapes["radius"]))
    return float(np.sqrt(np.median(shapes.geometry.area)))


def legacy_pitch(array: NDArray[Any], xy: Float64) -> float:
    """Distance of neighboring spots of a legacy array: the scale of the affine map from array to pixel positions.

    The median distance to the nearest neighbor is too small where positions scatter (by 6 % on her2st).
    """
    design = np.column_stack([array - array.mean(axis=0), np.ones(len(array))])
    if np.linalg.matrix_rank(design) < 3:
        raise ValueError(f"The spot pitch cannot be measured: {len(design)} spots do not span rows and columns.")
    affine = np.linalg.lstsq(design, xy, rcond=None)[0]
    pitch = float(np.sqrt(abs(np.linalg.det(affine[:2]))))
    residual = float(np.median(np.linalg.norm(design @ affine - xy, axis=1)))
    if not pitch > 0 or residual > 0.5 * pitch:
        raise ValueError(
            f"The pixel positions do not follow the array: the median spot is {residual:.0f} pixels off a grid with a "
            f"pitch of {pitch:.0f} pixels. Check that pixel_x, pixel_y belong to x, y."
        )
    straight, crossed = abs(affine[0, 0]) + abs(affine[1, 1]), abs(affine[0, 1]) + abs(affine[1, 0])
    if straight < crossed and np.linalg.det(affine[:2]) < 0:
        logger.warning(
            "pixel_x follows the array's y and pixel_y its x: x and y may be swapped in one of them. If they are "
            "swapped in the pixel positions, tiles are cut in the wrong places."
        )
    return pitch


def visium_pitch(obs: pd.DataFrame, centers: Float64) -> float | None:
    """Spot distance of a Visium array in units of `centers`, or `None` if the spots are not on such an array.

    Neighbors lie two columns apart, or one column and one row.
    """
    # Grids made by spahgc may have any pitch.
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
        distances.append(np.linalg.norm(centers[here] - centers[other[here]], axis=1))
    medians = [float(np.median(part)) for part in distances if len(part) >= _MIN_PAIRS]
    # A hexagonal array has the same pitch in all three directions.
    if not medians or min(medians) <= 0 or max(medians) > 1.05 * min(medians):
        return None
    return float(np.median(np.concatenate(distances)))


def transformed(affine: NDArray[np.floating[Any]], points: NDArray[np.floating[Any]]) -> Float64:
    """Points (x, y), shape (n, 2), under an affine map (3, 3)."""
    return np.asarray(points @ affine[:2, :2].T + affine[:2, 2])


def scale_of(affine: NDArray[np.floating[Any]]) -> float:
    """Factor by which an affine map (3, 3) scales lengths, from its determinant."""
    return float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))


def neighbor_distance(points: Float64, k: int = 1) -> float:
    """Median distance of points (n, 2) to their k nearest other points.

    With k=4, scatter of the positions hardly shortens it, in contrast to the distance to the nearest point alone.
    """
    distances, _ = cKDTree(points).query(points, k=k + 1)
    return float(np.median(np.asarray(distances)[:, 1:]))


def lattice(points: Float64, most: int = 20_000) -> tuple[float, float]:
    """Area per point, and neighbor distance on the regular lattice (hexagonal or square) of that area."""
    if len(points) > most:  # a region, not a sample, so that neighbors stay neighbors
        points = points[np.argsort(np.abs(points - np.median(points, axis=0)).max(axis=1))[:most]]
    try:
        corners = points[Delaunay(points, qhull_options="QJ").simplices]
    except QhullError as error:
        raise ValueError(f"The {len(points)} positions of the spots are (nearly) one point or one line.") from error
    (ax, ay), (bx, by) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
    area = float(np.median(np.abs(ax * by - ay * bx)))
    # A hexagonal lattice has 0.866 squared distances per point, a square one 1, and more with scatter.
    hexagonal = area < 0.93 * neighbor_distance(points) ** 2
    return area, float(np.sqrt(area / 0.866 if hexagonal else area))
