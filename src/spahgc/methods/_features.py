"""Features of the linear and kernel methods: principal components, surroundings of a spot, standardized expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.linalg import eigh

from .._geometry import SpatialNeighbors
from .._slides import BLOCK, Cohort, Float32, Float64, Moments, Rows, Slide, blocks, expression_of

RINGS = (6, 18, 60)  # numbers of nearest spots whose mean embedding describes the surroundings of a spot


@dataclass(frozen=True)
class PCA:
    """Principal components of a feature matrix, from the eigenvectors of its covariance."""

    mean: Float64
    axes: Float64  # components as columns, (n_features, r)
    variance: Float64  # along each component, (r,)
    total: float = float("nan")  # summed variance of all features

    @classmethod
    def fit(cls, features: np.ndarray, n_components: int) -> Self:
        """Fit the `n_components` leading components, or fewer if the features have a lower rank."""
        centered = features.astype(np.float64)
        mean = centered.mean(axis=0)
        centered -= mean
        n, d = centered.shape
        wide = d > n  # The n x n products have the same nonzero eigenvalues and are smaller.
        products = (centered @ centered.T if wide else centered.T @ centered) / n
        total = float(np.trace(products))
        n_components = min(n_components, len(products))
        values, vectors = eigh(products, subset_by_index=(len(products) - n_components, len(products) - 1))
        values, vectors = values[::-1], vectors[:, ::-1]
        keep = values > 1e-10 * max(total, 1e-300)
        values, vectors = values[keep], vectors[:, keep]
        if wide:
            vectors = centered.T @ vectors / np.sqrt(n * values)
        # The sign of an eigenvector is arbitrary; fix it so that results do not depend on the linear algebra library.
        signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
        return cls(mean, np.ascontiguousarray(vectors * signs), values, total)

    def __call__(self, features: np.ndarray) -> Float64:
        """Project features onto the components, (n, r)."""
        return np.asarray((features - self.mean) @ self.axes)


@dataclass(frozen=True)
class Context:
    """Leading components of a spot's embedding and of the mean embeddings of its 6, 18, and 60 nearest spots.

    Each of the four parts is standardized per slide, then scaled back to the standard deviations of the components,
    times the weight of the part.
    """

    pca: PCA
    weights: tuple[float, ...]  # of the spot itself and of each ring

    @classmethod
    def fit(
        cls, slides: Sequence[Slide], n_components: int = 128, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
    ) -> Self:
        """Fit the components of the slides' standardized embeddings."""
        return cls(PCA.fit(np.concatenate([slide.embedding for slide in slides]), n_components), tuple(weights))

    @property
    def scale(self) -> Float64:
        """Standard deviation of each feature, (4 r,)."""
        return np.concatenate([weight * np.sqrt(self.pca.variance) for weight in self.weights])

    def __call__(self, slide: Slide) -> Float32:
        """Features of the spots of a slide, (n_spots, 4 r)."""
        return np.asarray(ContextRows(self, slide))

    def arrays(self) -> dict[str, np.ndarray]:
        """Fitted state as named arrays."""
        pca = {"context.mean": self.pca.mean, "context.axes": self.pca.axes, "context.variance": self.pca.variance}
        return {**pca, "context.weights": np.array(self.weights)}

    @classmethod
    def from_arrays(cls, state: Mapping[str, np.ndarray]) -> Self:
        """Inverse of :meth:`arrays`."""
        pca = PCA(state["context.mean"], state["context.axes"], state["context.variance"])
        return cls(pca, tuple(state["context.weights"].tolist()))


class ContextRows(Rows):
    """Context features of a slide with standardized embedding, over a divisor; computed for the rows that are read."""

    def __init__(self, context: Context, slide: Slide, *, divisor: float = 1.0) -> None:
        self._rings = RINGS[: len(context.weights) - 1]
        self._neighbors = SpatialNeighbors(slide.coordinates)
        self._pca, self._embedding = context.pca, slide.embedding
        self._scores: Float32 | None = None
        self.shape = (len(slide), len(context.scale))
        self._last: tuple[slice, Float64] | None = None
        moments = Moments()
        for rows in blocks(len(slide)):
            moments.add(self._unscaled(rows))
        self._center = moments.mean
        self._factor = context.scale / np.where(moments.std > 1e-9, moments.std, 1.0) / divisor

    def __getitem__(self, rows: slice) -> Float32:  # type: ignore[override]
        return ((self._unscaled(rows) - self._center) * self._factor).astype(np.float32)

    def forget(self) -> None:
        """Release the component scores of a large slide; they are recomputed when rows are read again."""
        if len(self) > BLOCK:
            self._scores = self._last = None

    def _unscaled(self, rows: slice) -> Float64:
        """Component scores of spots and their means over each ring; the last block is cached."""
        if self._last is None or self._last[0] != rows:
            if self._scores is None:
                self._scores = np.empty((len(self), self._pca.axes.shape[1]), np.float32)
                for block in blocks(len(self)):
                    self._scores[block] = self._pca(self._embedding[block])
            spot = self._scores[rows].astype(np.float64)
            if not self._rings:
                return spot
            nearest = self._neighbors(max(self._rings), rows)
            # One neighbor at a time: a gather of all 60 would be 60 copies of the block. The rings are nested.
            total, parts, n = np.zeros_like(spot), [spot], nearest.shape[1]
            for k in range(n):
                total += self._scores[nearest[:, k]]
                parts += [total / (k + 1)] * sum(min(ring, n) == k + 1 for ring in self._rings)
            self._last = rows, np.concatenate(parts if n else [spot] * (1 + len(self._rings)), axis=1)
        return self._last[1]


@dataclass(frozen=True)
class GeneScale:
    """Mean and standard deviation of each gene on each slide."""

    mean: Float64  # (n_slides, n_genes)
    std: Float64  # (n_slides, n_genes)

    @classmethod
    def fit(cls, cohort: Cohort) -> Self:
        """Moments of each slide of a cohort, in its order."""
        moments = []
        for slide in cohort:
            values = np.asarray(expression_of(slide), dtype=np.float64)
            moments.append((values.mean(axis=0), values.std(axis=0)))
        return cls(np.array([mean for mean, _ in moments]), np.array([std for _, std in moments]))

    @classmethod
    def identity(cls, cohort: Cohort) -> Self:
        """Scale that leaves expression unchanged."""
        shape = len(cohort), len(cohort.genes)
        return cls(np.zeros(shape), np.ones(shape))

    @property
    def divisor(self) -> Float64:
        """Divisor of each gene, (n_slides, n_genes); infinite for a constant gene, which becomes 0."""
        return np.where(self.std > 1e-9, self.std, np.inf)

    def values(self, cohort: Cohort) -> dict[str, Float64]:
        """Standardized expression of each slide, by slide name."""
        slides = zip(cohort, self.mean, self.divisor, strict=True)
        return {s.name: (expression_of(s).astype(np.float64) - mean) / divisor for s, mean, divisor in slides}

    def rows(self, cohort: Cohort) -> dict[str, Rows]:
        """As :meth:`values`, standardized on access."""
        slides = zip(cohort, self.mean, self.divisor, strict=True)
        return {s.name: Rows(expression_of(s), mean=mean, scale=divisor) for s, mean, divisor in slides}


def leading_axes(values: Float64, n_components: int) -> Float32:
    """Leading right singular vectors of expression with fixed signs, (r, n_genes)."""
    axes = np.linalg.svd(values, full_matrices=False)[2][:n_components]
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    return np.ascontiguousarray(axes * signs[:, None], dtype=np.float32)
