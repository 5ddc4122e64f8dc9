"""Lattices of spots over points: squares in rows and columns, or circles on a hexagonal array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._slides import Float64

LAYOUTS = ("grid", "hex")


@dataclass(frozen=True, eq=False)
class Lattice:
    """Spots of a lattice that hold points."""

    spot: NDArray[np.intp]
    """Spot of each point, (n,); -1 between the spots."""
    centres: Float64
    """Centres of the spots, (m, 2), in the unit of the points."""
    row: NDArray[np.int64]
    column: NDArray[np.int64]


def make_lattice(points: Float64, spot: float, pitch: float, layout: str) -> Lattice:
    """The spots of a lattice that hold points, and the spot of each point.

    Parameters
    ----------
    points
        Points (x, y), (n, 2), from 0 on.
    spot, pitch
        Size and distance of the spots, in the unit of the points.
    layout
        ``"grid"`` (squares) or ``"hex"`` (circles).
    """
    if layout == "grid":
        column, row = np.floor(points / pitch).astype(np.int64).T
        centres = (np.column_stack([column, row]) + 0.5) * pitch
        inside = (np.abs(points - centres) <= spot / 2).all(axis=1)
    else:
        # A hexagonal lattice is two rectangular ones, even rows and odd rows: the nearer point of the two.
        height = pitch * np.sqrt(3) / 2
        cell = np.array([pitch, 2 * height])
        points = points - spot / 2  # the first spots touch the border of the tissue, as those of a grid do
        shift = np.array([pitch / 2, height])
        even, odd = np.round(points / cell), np.round((points - shift) / cell)
        far = [((points - (place * cell + by)) ** 2).sum(axis=1) for place, by in ((even, 0), (odd, shift))]
        nearer = far[1] < far[0]
        place = np.where(nearer[:, None], odd, even)
        column, row = place[:, 0].astype(np.int64), (2 * place[:, 1] + nearer).astype(np.int64)
        centres = place * cell + nearer[:, None] * shift + spot / 2
        inside = np.minimum(*far) <= (spot / 2) ** 2
    column, row = column - column.min(), row - row.min()
    code = row * (column.max() + 1) + column
    _, first, of_point = np.unique(code[inside], return_index=True, return_inverse=True)
    index = np.full(len(points), -1, dtype=np.intp)
    index[inside] = of_point
    return Lattice(index, centres[inside][first], row[inside][first], column[inside][first])


def with_many(lattice: Lattice, min_bins: int) -> Lattice:
    """The spots with at least `min_bins` points."""
    kept = np.bincount(lattice.spot[lattice.spot >= 0], minlength=len(lattice.centres)) >= min_bins
    new = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last one is that of points in no spot
    return Lattice(new[lattice.spot], lattice.centres[kept], lattice.row[kept], lattice.column[kept])
