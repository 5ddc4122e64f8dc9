"""Spatial blocks of a slide that is too large to be trained on as a whole."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import matrix, positive
from .._geometry import SpatialNeighbors


class Block(NamedTuple):
    """Some spots of a slide, with their surroundings."""

    rows: NDArray[np.intp]
    """The spots of the block and of its surroundings, ascending, (n,)."""
    core: NDArray[np.intp]
    """Which of `rows` are the block's own, (n_core,)."""


def spatial_blocks(coordinates: ArrayLike, max_spots: int, *, n_near: int, hops: int) -> list[Block]:
    """Cut a slide into blocks of at most `max_spots` spots, each with its surroundings.

    The slide is halved at the median of its longer side until every part is small enough. To each part come the spots
    that can be reached in `hops` steps to spatial neighbours: with as many as the network has layers, what a spot of
    the block gathers over the slide is what it would gather on the whole slide.

    Parameters
    ----------
    coordinates
        Positions, (n, 2), in any unit.
    max_spots
        Most spots of a block, surroundings not counted.
    n_near
        Spatial neighbours per spot (Q).
    hops
        Steps that the surroundings reach.

    Returns
    -------
    The blocks; every spot is in the core of exactly one. A slide that is small enough is one block.
    """
    xy = matrix(coordinates, "coordinates", dtype=np.float64)
    max_spots = positive(max_spots, "max_spots")
    parts, small = [np.arange(len(xy))], []
    while parts:
        part = parts.pop()
        if len(part) <= max_spots:
            small.append(part)
            continue
        axis = int(np.ptp(xy[part], axis=0).argmax())
        # A stable order: spots at one place go to either side by their number.
        order = part[np.argsort(xy[part, axis], kind="stable")]
        parts += [order[len(order) // 2 :], order[: len(order) // 2]]
    if len(small) == 1:
        return [Block(small[0], np.arange(len(small[0])))]
    near = SpatialNeighbors(xy)(n_near)
    blocks = []
    for part in small:
        rows = np.sort(part)
        for _ in range(hops):
            rows = np.union1d(rows, near[rows])
        blocks.append(Block(rows, np.searchsorted(rows, np.sort(part))))
    return blocks
