"""How well the reference covers a spot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._slides import Cohort, Float64, blocks

N_NEIGHBORS = 7
"""Reference spots whose distance counts."""
N_COMPONENTS = 32
"""Principal components of the raw embedding in which distances are taken."""
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Support:
    r"""Support of a spot: the share of reference spots that are no closer to the other reference slides than it is.

    The distance of a spot to some slides is its mean Euclidean distance to the 7 nearest of their spots, in the
    leading 32 principal components of the embedding. The embedding is taken **as the encoder gave it**, scaled by the
    reference as a whole and not by slide, so that another stain, tissue or species shows. Each reference spot i, of
    slide s(i), is compared on equal terms: its distance :math:`d_i` to the slides other than s(i), and that of the
    spot x in question, :math:`d_{-s(i)}(x)`, to the same slides (with one slide: both to its other spots). Then

    .. math:: support(x) = \frac{1 + |\{i : d_i \ge d_{-s(i)}(x)\}|}{1 + n}

    over the n reference spots. It is spread about evenly over 0 to 1, with a median of 0.5, for a slide that differs
    from the reference slides as these differ from each other (it is the p-value of a leave-one-slide-out conformal
    test), and near 0 for a spot that is farther than any of them. A reference of slides that are far from each other
    therefore also covers what lies far from all.
    """

    mean: Float64
    scale: Float64
    axes: Float64
    banks: tuple[Float64, ...]
    """Spots of each reference slide in the components, (n_spots, r)."""
    distances: tuple[Float64, ...]
    """Distances of the spots of each slide to the other slides, ascending, (n_spots,)."""

    @classmethod
    def fit(cls, reference: Cohort) -> Self:
        """From the reference slides, embeddings as the encoder gave them."""
        from ..methods._linear import PCA

        raw = reference.embedding().astype(np.float64)
        mean, scale = raw.mean(axis=0), raw.std(axis=0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        pca = PCA.fit((raw - mean) / scale, N_COMPONENTS)
        bank, slide = pca((raw - mean) / scale), reference.slide_index()
        banks = tuple(bank[slide == index] for index in range(len(reference)))
        distances = []
        for index, own in enumerate(banks):
            nearest = (
                [_nearest(own, own, exclude_self=True)]
                if len(banks) == 1
                else [_nearest(own, other) for other in banks[:index] + banks[index + 1 :]]
            )
            distances.append(np.sort(_mean_of_nearest(nearest)))
        return cls(mean, scale, pca.axes, banks, tuple(distances))

    def __call__(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """Support of spots, float32 (n_spots,), over 0 to 1, from embeddings as the encoder gave them."""
        parts = [self._block(embedding[rows]) for rows in blocks(len(embedding))]
        return np.concatenate(parts)

    def _block(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = ((embedding.astype(np.float64) - self.mean) / self.scale) @ self.axes
        nearest = [_nearest(scores, bank) for bank in self.banks]
        n_farther = np.zeros(len(scores))
        for index, distances in enumerate(self.distances):
            others = nearest if len(nearest) == 1 else nearest[:index] + nearest[index + 1 :]
            # The tolerance keeps a distance that is equal but for rounding from counting as smaller.
            limit = _mean_of_nearest(others) * (1 - 1e-9)
            n_farther += len(distances) - np.searchsorted(distances, limit, side="left")
        n = sum(len(bank) for bank in self.banks)
        return ((1 + n_farther) / (1 + n)).astype(np.float32)


def _mean_of_nearest(distances: list[Float64]) -> Float64:
    """Mean of the smallest distances of each row over several slides, (n,)."""
    joined = np.concatenate(distances, axis=1)
    k = min(N_NEIGHBORS, joined.shape[1])
    if k == 0:
        return np.zeros(len(joined))
    return np.asarray(np.partition(joined, k - 1, axis=1)[:, :k].mean(axis=1))


def _nearest(query: Float64, bank: Float64, *, exclude_self: bool = False) -> Float64:
    """Euclidean distances of each query to its nearest rows of the bank, in no order, float64 (n_query, at most 7)."""
    from scipy.spatial.distance import cdist

    k = min(N_NEIGHBORS, len(bank) - exclude_self)
    rows = max(1, _CHUNK * 2048 // max(1, len(bank)))
    nearest = [np.empty((0, k))]
    for start in range(0, len(query), rows):
        distances = cdist(query[start : start + rows], bank)
        if exclude_self:
            np.fill_diagonal(distances[:, start:], np.inf)
        nearest.append(np.partition(distances, max(k - 1, 0), axis=1)[:, :k])
    return np.concatenate(nearest)
