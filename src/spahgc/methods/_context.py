"""A spot's embedding and the mean embeddings of its surroundings: the features of the context methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .._slides import BLOCK, Float32, Float64, Moments, Slide, blocks
from ._linear import PCA

RINGS = (6, 18, 60)
"""Numbers of nearest spots whose mean embedding describes a spot's surroundings."""


@dataclass(frozen=True)
class Context:
    """A spot's embedding beside the mean embeddings of its 6, 18 and 60 nearest spots, on leading components.

    Each of the four parts is standardised per slide and then weighs as the embedding itself does, times its weight.
    """

    pca: PCA
    spread: Float64
    weights: tuple[float, ...]

    @classmethod
    def fit(cls, slides: Sequence[Slide], size: int = 128, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Self:
        """Components of the slides' standardised embeddings; a weight for the spot, and one for each ring."""
        pca = PCA.fit(np.concatenate([slide.embedding for slide in slides]), size)
        return cls(pca, np.sqrt(pca.variance), tuple(weights))

    def of_spot(self) -> Self:
        """The part that describes the spot alone."""
        return replace(self, weights=self.weights[:1])

    @property
    def scale(self) -> Float64:
        """Standard deviation of each feature, (4 r,)."""
        return np.concatenate([weight * self.spread for weight in self.weights])

    def __call__(self, slide: Slide) -> Float32:
        """Features of a slide's spots, (n_spots, 4 r)."""
        return np.asarray(ContextRows(self, slide))

    def arrays(self, prefix: str = "context.") -> dict[str, np.ndarray]:
        """As named arrays."""
        parts = {
            "mean": self.pca.mean,
            "axes": self.pca.axes,
            "spread": self.spread,
            "weights": np.array(self.weights),
        }
        return {f"{prefix}{name}": np.ascontiguousarray(array) for name, array in parts.items()}

    @classmethod
    def from_arrays(cls, state: Mapping[str, np.ndarray], prefix: str = "context.") -> Self:
        """Inverse of :meth:`arrays`."""
        spread = state[f"{prefix}spread"]
        pca = PCA(state[f"{prefix}mean"], state[f"{prefix}axes"], spread**2, float("nan"))
        return cls(pca, spread, tuple(state[f"{prefix}weights"].tolist()))


class ContextRows:
    """Features (:class:`Context`) of a slide's spots, made for the rows that are asked for.

    What is kept of a slide are the search tree of its positions and, until :meth:`forget`, the components of its
    embeddings, float32 (n_spots, r).

    Parameters
    ----------
    context
        The fitted components and weights.
    slide
        The slide, with its standardised embedding.
    divisor
        What the features are divided by.
    """

    def __init__(self, context: Context, slide: Slide, *, divisor: float = 1.0) -> None:
        from .._geometry import SpatialNeighbors

        self._rings = RINGS[: len(context.weights) - 1]
        self._neighbors = SpatialNeighbors(slide.coordinates)
        self._pca, self._embedding = context.pca, slide.embedding
        self._scores: Float32 | None = None
        self.shape = (len(slide), len(context.scale))
        self._kept: tuple[slice, Float64] | None = None
        moments = Moments()
        for rows in blocks(len(slide)):
            moments.add(self._unscaled(rows))
        self._mean = moments.mean
        self._factor = context.scale / np.where(moments.std > 1e-9, moments.std, 1.0) / divisor

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Float32:
        return ((self._unscaled(rows) - self._mean) * self._factor).astype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = np.empty(self.shape, np.float32)
        for rows in blocks(len(self)):
            whole[rows] = self[rows]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def forget(self) -> None:
        """Give back the memory of the components of a large slide; they are made again when rows are asked for."""
        if len(self) > BLOCK:
            self._scores = self._kept = None

    def _components(self) -> Float32:
        if self._scores is None:
            self._scores = np.empty((len(self), self._pca.axes.shape[1]), np.float32)
            for rows in blocks(len(self)):
                self._scores[rows] = self._pca(self._embedding[rows])
        return self._scores

    def _unscaled(self, rows: slice) -> Float64:
        """Components of the spots, and their means over each ring; the last block is kept, it is often the only one."""
        if self._kept is None or self._kept[0] != rows:
            scores = self._components()
            own = scores[rows].astype(np.float64)
            if not self._rings:
                return own
            nearest = self._neighbors(max(self._rings), rows)
            # One neighbour after another: all together would be 60 copies of the block. The rings lie in each other.
            total, parts, n = np.zeros_like(own), [own], nearest.shape[1]
            for k in range(n):
                total += scores[nearest[:, k]]
                parts += [total / (k + 1)] * sum(min(ring, n) == k + 1 for ring in self._rings)
            self._kept = rows, np.concatenate(parts if n else [own] * (1 + len(self._rings)), axis=1)
        return self._kept[1]
