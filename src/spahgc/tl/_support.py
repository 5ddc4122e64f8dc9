"""How well the reference covers a spot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._slides import Cohort, Float64

N_NEIGHBORS = 7
"""Reference spots whose distance counts."""
N_COMPONENTS = 32
"""Principal components of the raw embedding in which distances are taken."""
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Support:
    r"""Support of a spot: the share of reference spots that are at least as far from the other reference slides.

    The distance of a spot is its mean Euclidean distance to the 7 nearest reference spots, in the leading 32
    principal components of the embedding. The embedding is taken **as the encoder gave it**, scaled by the reference
    as a whole and not by slide, so that another stain, tissue or species shows. For a reference spot only spots of
    *other* slides count (with one slide: all other spots). Then

    .. math:: support(x) = \frac{1 + |\{i : d_i \ge d(x)\}|}{1 + n}

    over the n reference spots: 0.5 for a spot as close to the reference as its own spots are to each other across
    slides, near 0 for a spot that is farther than any of them.
    """

    mean: Float64
    scale: Float64
    axes: Float64
    bank: Float64
    """Reference spots in the components, (n, r)."""
    distances: Float64
    """Distance of each reference spot, ascending, (n,)."""

    @classmethod
    def fit(cls, reference: Cohort) -> Self:
        """From the reference slides, embeddings as the encoder gave them."""
        from ..methods._linear import PCA

        raw = reference.embedding().astype(np.float64)
        mean, scale = raw.mean(axis=0), raw.std(axis=0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        pca = PCA.fit((raw - mean) / scale, N_COMPONENTS)
        bank = pca((raw - mean) / scale)
        slide = reference.slide_index()
        if len(reference) == 1:
            slide = np.arange(len(bank))
        distances = np.concatenate(
            [
                mean_distance(bank[slide == index], bank[slide != index], chunk=_CHUNK)
                for index in range(slide.max() + 1)
                if (slide != index).any()
            ]
        )
        return cls(mean, scale, pca.axes, bank, np.sort(distances))

    def __call__(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """Support of spots, float32 (n_spots,), over 0 to 1, from embeddings as the encoder gave them."""
        scores = ((embedding.astype(np.float64) - self.mean) / self.scale) @ self.axes
        distance = mean_distance(scores, self.bank, chunk=_CHUNK)
        # The tolerance keeps a reference spot's own distance from counting as smaller by rounding.
        below = np.searchsorted(self.distances, distance * (1 - 1e-9), side="left")
        n = len(self.distances)
        return ((1 + n - below) / (1 + n)).astype(np.float32)


def mean_distance(query: Float64, bank: Float64, *, chunk: int) -> Float64:
    """Mean Euclidean distance of each query to its nearest rows of the bank, float64 (n_query,)."""
    from scipy.spatial.distance import cdist

    k = min(N_NEIGHBORS, len(bank))
    rows = max(1, chunk * 2048 // max(1, len(bank)))
    nearest = [
        np.partition(cdist(query[start : start + rows], bank), k - 1, axis=1)[:, :k].mean(axis=1)
        for start in range(0, len(query), rows)
    ]
    return np.concatenate(nearest) if nearest else np.empty(0)
