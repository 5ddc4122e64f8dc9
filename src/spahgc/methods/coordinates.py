"""Control: where on the slide a spot is, and nothing else."""

from __future__ import annotations

import numpy as np

from .._slides import Float32, Slide
from .base import register
from .ridge import Ridge

GRID = 6
"""Bumps along each axis."""
REACH = 2.0
"""The bumps' centres span the mean position plus and minus this many standard deviations."""


@register
class Coordinates(Ridge):
    """Ridge regression from the position of a spot, on a smooth basis.

    Positions are centred and scaled to standard deviation 1 per slide and axis; the basis is a 6 x 6 grid of Gaussian
    bumps over two standard deviations on each side, as wide as they are apart. What this reaches needs no image: slides
    of one block have been cut alike, so that a place on one predicts the same place on the next.

    Parameters
    ----------
    relative, l2, size
        As for :class:`~spahgc.methods.ridge.Ridge`.
    """

    name = "coordinates"
    needs = frozenset({"coordinates"})

    def _features(self, slide: Slide) -> Float32:
        centred = slide.coordinates - slide.coordinates.mean(axis=0)
        spread = centred.std(axis=0)
        # A slide of one row of spots has no second axis.
        flat = spread <= 1e-9 * max(float(spread.max()), 1e-300)
        position = np.where(flat, 0.0, centred / np.where(flat, 1.0, spread))
        centres = np.linspace(-REACH, REACH, GRID)
        width = centres[1] - centres[0]
        x, y = (np.exp(-0.5 * ((axis[:, None] - centres) / width) ** 2) for axis in position.T)
        return np.einsum("ni,nj->nij", x, y).reshape(len(position), -1).astype(np.float32)
