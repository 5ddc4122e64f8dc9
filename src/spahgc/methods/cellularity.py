"""Control: how densely a tile is stained, and nothing else."""

from __future__ import annotations

import numpy as np

from .._slides import Float32, Slide
from .base import check_needs, register
from .ridge import Ridge


@register
class Cellularity(Ridge):
    """Ridge regression from the haematoxylin density of a spot's tile, and its square.

    Both are standardised per slide. What this reaches, an embedding reaches by seeing how many nuclei there are.

    Parameters
    ----------
    relative, l2, size
        As for :class:`~spahgc.methods.ridge.Ridge`.
    """

    name = "cellularity"
    needs = frozenset({"cellularity"})

    def _features(self, slide: Slide) -> Float32:
        check_needs(self, slide)
        density = _standardized(np.asarray(slide.cellularity, dtype=np.float64)[:, None])
        return np.hstack([density, _standardized(density**2)]).astype(np.float32)


def _standardized(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    return np.where(spread > 1e-9, centred / np.where(spread > 1e-9, spread, 1.0), 0.0)
