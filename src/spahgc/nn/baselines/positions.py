"""Positions of spots as columns and rows of a grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from ..._checks import matrix


def grid_positions(coordinates: ArrayLike, n_positions: int) -> NDArray[np.int64]:
    """Column and row of each spot on a square grid whose pitch is the spots' median distance to the nearest other.

    The grid starts at the slide's own left and upper edge. A slide that is wider or higher than `n_positions` pitches
    has its grid widened until it fits.

    Parameters
    ----------
    coordinates
        Positions (x, y), (n, 2), in any unit.
    n_positions
        Columns, and rows, that there are.

    Returns
    -------
    int64 (n, 2), from 0 to ``n_positions - 1``.
    """
    xy = matrix(coordinates, "coordinates", dtype=np.float64)
    if n_positions < 1:
        raise ValueError(f"n_positions is at least 1, not {n_positions}.")
    places = np.unique(xy, axis=0)  # several spots at one place say nothing about the pitch
    if len(places) < 2:
        return np.zeros(xy.shape, dtype=np.int64)
    pitch = float(np.median(np.asarray(cKDTree(places).query(places, k=2)[0])[:, 1]))
    offset = xy - xy.min(axis=0)
    pitch = max(pitch, float(offset.max()) / max(n_positions - 1, 0.5))
    # A little less than the sum decides halves alike on every machine.
    return np.minimum(np.floor(offset / pitch + 0.5 + 1e-9), n_positions - 1).astype(np.int64)
