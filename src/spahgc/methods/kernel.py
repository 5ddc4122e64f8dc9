"""Kernel ridge regression over the reference spots, on the embeddings of a spot and of its surroundings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from sklearn.metrics.pairwise import euclidean_distances

from .._checks import above, at_least
from .._slides import Cohort, Float64, Slide, blocks
from ._features import Context, ContextRows, GeneScale
from .base import BlockwiseMethod, RowValues, Run, State, parameters

WEIGHTS = (1.0, 0.7, 0.5, 0.35)  # of the spot itself and of the means over its 6, 18, and 60 nearest spots
MAX_EXACT = 4096  # kernel centers; a larger reference is represented by as many spots, evenly over the slides
_MEDIAN_SPOTS = 1024
_ROWS = 2048


class KernelFit(NamedTuple):
    r"""Kernel ridge regression with the Laplace kernel.

    .. math:: \hat y(x) = \mu + \sum_r k(x, x_r) \alpha_r, \quad k(x, x') = \exp(-\lVert x - x' \rVert / s)

    with s the median distance between reference spots. With more than 4,096 reference spots, the sum runs over 4,096 of
    them and :math:`\alpha` is fitted to all (subset of regressors).
    """

    centers: Float64  # features of the spots in the sum, (m, d)
    coefficients: Float64  # (m, n_genes)
    intercept: Float64
    scale: Float64  # (1,)

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, *, penalty: float = 1.0) -> Self:
        """Fit `values` (n, n_genes) on `features` (n, d)."""
        x, intercept = features.astype(np.float64), values.mean(axis=0, dtype=np.float64)
        y = values - intercept
        centers = x[evenly(len(x), MAX_EXACT)]
        sample = x[evenly(len(x), _MEDIAN_SPOTS)]
        distances = euclidean_distances(sample)[np.triu_indices(len(sample), 1)]
        scale = (float(np.median(distances)) if len(distances) else 0.0) or 1.0
        among = np.exp(euclidean_distances(centers) / -scale)
        if len(centers) == len(x):
            system, right = among + penalty * np.eye(len(x)), y
        else:
            system = penalty * among + 1e-8 * len(x) * np.eye(len(centers))
            right = np.zeros((len(centers), y.shape[1]))
            for rows in blocks(len(x), _ROWS):
                kernel = np.exp(euclidean_distances(x[rows], centers) / -scale)
                system += kernel.T @ kernel
                right += kernel.T @ y[rows]
        return cls(centers, cho_solve(cho_factor(system, lower=True), right), intercept, np.array([scale]))

    def __call__(self, features: np.ndarray) -> Float64:
        """Predicted values, (n, n_genes)."""
        parts = []
        for rows in blocks(len(features), _ROWS):
            distances = euclidean_distances(features[rows].astype(np.float64), self.centers)
            parts.append(np.exp(distances / -self.scale) @ self.coefficients)
        return np.concatenate(parts) + self.intercept


@parameters(penalty=above(0), rank=at_least(1))
class ContextKernel(BlockwiseMethod):
    """Kernel ridge regression over the reference spots, from the embedding of a spot and of its surroundings.

    Expression is standardized per gene and slide, and predictions are scaled back to the mean level and standard
    deviation of the reference slides. Nothing is tuned. The default preset of :class:`~spahgc.methods.SpaHGC` averages
    its networks with this method.

    Parameters
    ----------
    penalty
        Ridge penalty. The kernel of a spot with itself is 1, so 1 assumes as much noise as signal.
    rank
        Leading components of the reference expression to fit instead of the genes themselves. `None` fits the genes.
    """

    penalty: float = 1.0
    rank: int | None = None

    name: ClassVar[str] = "context_kernel"
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def fit(self, cohort: Cohort, run: Run) -> Self:
        self.context = Context.fit(cohort.slides, weights=WEIGHTS)
        values = self._standardize(cohort, GeneScale.fit(cohort), self.rank)
        features = np.concatenate([self.context(slide) for slide in cohort])
        self._fit = KernelFit.fit(features, np.concatenate(list(values.values())), penalty=self.penalty)
        return self

    def relative_values(self, slide: Slide) -> RowValues:
        features = ContextRows(self.context, slide)
        return lambda rows: self._fit(features[rows])

    def state(self) -> State:
        # Features are float32, so this does not round the centers.
        fit = {**self._fit._asdict(), "centers": self._fit.centers.astype(np.float32)}
        return {**fit, **self.context.arrays(), **super().state()}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self.context = Context.from_arrays(state)
        self._fit = KernelFit(*(state[name].astype(np.float64) for name in KernelFit._fields))
        return super().restore(state, cohort)


def evenly(n: int, most: int) -> NDArray[np.int64]:
    """At most `most` of n row numbers, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
