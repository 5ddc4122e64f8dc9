"""Ridge regression on principal components, tuned on inner held-out slides: the kernel of the linear methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from .._slides import Cohort, Float32, Float64, Rows, Slide, SplitBy, expression_of
from ..metrics import pearson

PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""Ridge penalties that are tried, relative to the total variance of the features."""
SIZES = (32, 64, 128, 256)
"""Numbers of principal components that are tried."""
UNTUNED = (3e-2, 64)
"""Penalty and size where nothing can be held out: a single reference slide."""


@dataclass(frozen=True)
class PCA:
    """Principal components of features, by the eigenvectors of their covariance."""

    mean: Float64
    axes: Float64
    """Columns are the components, (n_features, r)."""
    variance: Float64
    """Variance of each component, (r,)."""
    total: float
    """Variance of all features together."""

    @classmethod
    def fit(cls, features: np.ndarray, size: int) -> Self:
        """The `size` leading components (fewer where there are fewer)."""
        from scipy.linalg import eigh

        centred = features.astype(np.float64)
        mean = centred.mean(axis=0)
        centred -= mean
        n, d = centred.shape
        wide = d > n  # Then the n x n products have the same non-zero eigenvalues, and are smaller.
        products = (centred @ centred.T if wide else centred.T @ centred) / n
        total = float(np.trace(products))
        size = min(size, len(products))
        values, vectors = eigh(products, subset_by_index=(len(products) - size, len(products) - 1))
        values, vectors = values[::-1], vectors[:, ::-1]
        keep = values > 1e-10 * max(total, 1e-300)
        values, vectors = values[keep], vectors[:, keep]
        if wide:
            vectors = centred.T @ vectors / np.sqrt(n * values)
        # An eigenvector's sign is arbitrary: fix it, so that results do not depend on the linear algebra library.
        signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
        return cls(mean, vectors * signs, values, total)

    def __call__(self, features: np.ndarray) -> Float64:
        """Scores of features on the components, (n, r)."""
        return np.asarray((features - self.mean) @ self.axes)


@dataclass(frozen=True)
class LinearFit:
    """Ridge coefficients on principal components."""

    pca: PCA
    coefficients: Float64
    """(r, n_genes)"""
    intercept: Float64
    """(n_genes,)"""

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, penalty: float, size: int) -> Self:
        """Fit `values` (n, n_genes) on `features` (n, d)."""
        pca = PCA.fit(features, size)
        intercept = values.mean(axis=0, dtype=np.float64)
        return cls(pca, _coefficients(pca, pca(features), values - intercept, penalty), intercept)

    def __call__(self, features: np.ndarray) -> Float64:
        """Predicted values, (n, n_genes)."""
        return np.asarray(self.pca(features) @ self.coefficients + self.intercept)

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """As named arrays."""
        pca = self.pca
        parts = {"mean": pca.mean, "axes": pca.axes, "coefficients": self.coefficients, "intercept": self.intercept}
        return {f"{prefix}{name}": np.ascontiguousarray(array) for name, array in parts.items()}

    @classmethod
    def from_arrays(cls, state: Mapping[str, np.ndarray], prefix: str = "") -> Self:
        """Inverse of :meth:`arrays`."""
        pca = PCA(state[f"{prefix}mean"], state[f"{prefix}axes"], np.empty(0), float("nan"))
        return cls(pca, state[f"{prefix}coefficients"], state[f"{prefix}intercept"])


def _coefficients(pca: PCA, scores: Float64, values: np.ndarray, penalty: float) -> Float64:
    # The scores are uncorrelated, so every component has its own one-dimensional ridge solution.
    n = len(scores)
    return np.asarray((scores.T @ values) / (n * (pca.variance + penalty * pca.total))[:, None])


def tune(
    cohort: Cohort,
    features: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    *,
    split_by: SplitBy = "patient",
    penalties: Sequence[float] = PENALTIES,
    sizes: Sequence[int] = SIZES,
) -> tuple[float, int]:
    """Penalty and number of components with the best mean per-gene Pearson on held-out groups of reference slides.

    Groups are those of :meth:`Cohort.splits`.

    Parameters
    ----------
    cohort
        The reference slides.
    features, values
        Features and values to fit, by slide name.
    split_by
        What is held out.
    """
    scores = tuning_scores(cohort, features, values, split_by=split_by, penalties=penalties, sizes=sizes)
    if scores is None:
        return UNTUNED
    _, i, j = best(scores)
    return penalties[i], sizes[j]


def tuning_scores(
    cohort: Cohort,
    features: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    *,
    variants: Sequence[Callable[[Float64, Slide], Float64]] = (lambda scores, _: scores,),
    split_by: SplitBy = "patient",
    penalties: Sequence[float] = PENALTIES,
    sizes: Sequence[int] = SIZES,
) -> Float64 | None:
    """Mean per-gene Pearson on held-out groups of reference slides, summed over the groups; `None` with one group.

    Parameters
    ----------
    cohort, features, values, split_by, penalties, sizes
        As for :func:`tune`.
    variants
        What is done to the components (n_spots, r) of a held-out slide before it is predicted; each is scored.

    Returns
    -------
    (n_variants, n_penalties, n_sizes)
    """
    groups = cohort.splits(split_by)
    if len(groups) < 2:
        return None
    totals = np.zeros((len(variants), len(penalties), len(sizes)), dtype=np.float64)
    for held_out in groups:
        train = [slide.name for slide in cohort if slide.name not in held_out]
        stacked, fitted = np.concatenate([features[n] for n in train]), np.concatenate([values[n] for n in train])
        pca, fitted = PCA.fit(stacked, max(sizes)), fitted - fitted.mean(axis=0, dtype=np.float64)
        scores = pca(stacked)
        coefficients = [_coefficients(pca, scores, fitted, penalty) for penalty in penalties]
        for slide in (slide for slide in cohort if slide.name in held_out):
            measured, components = expression_of(slide), pca(features[slide.name])
            for k, variant in enumerate(variants):
                given = variant(components, slide)
                for i, j in np.ndindex(len(penalties), len(sizes)):
                    predicted = given[:, : sizes[j]] @ coefficients[i][: sizes[j]]
                    totals[k, i, j] += mean_pearson(measured, predicted) / len(held_out)
    return totals


def best(scores: Float64) -> tuple[int, int, int]:
    """Variant, penalty and size with the best score, as indices.

    The first variant, the stronger penalty and the smaller size where several are equally good.
    """
    return max(np.ndindex(*scores.shape), key=lambda at: (round(float(scores[at]), 6), -at[0], at[1], -at[2]))


def mean_pearson(measured: Float32, predicted: Float64) -> float:
    """Mean over genes of their Pearson correlation; 0 where no gene has one."""
    scores = pearson(measured, predicted)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0


RowValues = Callable[[slice], Float64]
"""Predicted values of some spots of a slide, float64 (n_rows, n_genes)."""


@dataclass(frozen=True)
class GeneScale:
    """Mean and standard deviation of each gene on each slide."""

    mean: Float64
    """(n_slides, n_genes)"""
    spread: Float64
    """(n_slides, n_genes)"""

    @classmethod
    def fit(cls, cohort: Cohort) -> Self:
        """Of the slides of a cohort, in their order."""
        moments = []
        for slide in cohort:
            values = np.asarray(expression_of(slide), dtype=np.float64)
            moments.append((values.mean(axis=0), values.std(axis=0)))
        return cls(np.array([mean for mean, _ in moments]), np.array([spread for _, spread in moments]))

    @classmethod
    def none(cls, cohort: Cohort) -> Self:
        """What leaves expression as it is."""
        shape = len(cohort), len(cohort.genes)
        return cls(np.zeros(shape), np.ones(shape))

    @property
    def divisor(self) -> Float64:
        """What each gene is divided by, (n_slides, n_genes): infinite for a constant one, which becomes 0."""
        return np.where(self.spread > 1e-9, self.spread, np.inf)

    def values(self, cohort: Cohort) -> dict[str, Float64]:
        """Expression of each slide, scaled, by slide name."""
        values = zip(pooled_expression(cohort).items(), self.mean, self.divisor, strict=True)
        return {name: (expression - mean) / divisor for (name, expression), mean, divisor in values}

    def rows(self, cohort: Cohort) -> dict[str, Rows]:
        """As :meth:`values`, scaled when it is read."""
        slides = zip(cohort, self.mean, self.divisor, strict=True)
        return {slide.name: Rows(expression_of(slide), mean=mean, scale=divisor) for slide, mean, divisor in slides}


def relative_expression(cohort: Cohort) -> tuple[dict[str, Float64], Float64, Float64]:
    """Expression of each slide scaled to mean 0 and variance 1 per gene, and the mean and the spread to scale it back.

    A slide's own level and depth then weigh nothing, and every slide weighs the same. The scale back is the mean over
    slides of the per-slide means and standard deviations.
    """
    scale = GeneScale.fit(cohort)
    return scale.values(cohort), scale.mean.mean(axis=0), scale.spread.mean(axis=0)


def pooled_expression(cohort: Cohort) -> dict[str, Float64]:
    """Expression of each slide as it is, float64, by slide name."""
    return {slide.name: expression_of(slide).astype(np.float64) for slide in cohort}


def leading_axes(values: Float64, size: int) -> Float32:
    """Right singular vectors of expression, (r, n_genes), with their signs fixed."""
    axes = np.linalg.svd(values, full_matrices=False)[2][:size]
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    return np.ascontiguousarray(axes * signs[:, None], dtype=np.float32)
