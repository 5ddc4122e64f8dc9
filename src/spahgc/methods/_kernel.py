"""Kernel ridge regression over the reference spots: every reference spot gives to a target spot what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._slides import Float64

PENALTY = 1.0
"""Ridge penalty; a spot's kernel with itself is 1, so this takes as much noise as signal."""
MAX_EXACT = 4096
"""Reference spots up to which each is a centre of the kernel; beyond, as many of them, evenly over the slides."""
_MEDIAN_SPOTS = 1024
_ROWS = 2048


@dataclass(frozen=True, eq=False)
class KernelFit:
    r"""Kernel ridge regression with the Laplace kernel.

    .. math:: \hat y(x) = \mu + \sum_r k(x, x_r) \alpha_r, \quad k(x, x') = \exp(-\lVert x - x' \rVert / s)

    with s the median distance of reference spots. With more than 4096 reference spots the sum runs over 4096 of them,
    and :math:`\alpha` is fitted to all (subset of regressors).
    """

    centres: Float64
    """Features of the spots that the sum runs over, (m, d)."""
    index: NDArray[np.int64]
    """Their rows among the reference spots, (m,)."""
    coefficients: Float64
    """(m, n_genes)"""
    intercept: Float64
    """(n_genes,)"""
    scale: float

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, *, penalty: float = PENALTY) -> Self:
        """Fit `values` (n, n_genes) on `features` (n, d)."""
        from scipy.linalg import cho_factor, cho_solve

        x, intercept = features.astype(np.float64), values.mean(axis=0, dtype=np.float64)
        y = values - intercept
        index = evenly(len(x), MAX_EXACT)
        centres = x[index]
        some = x[evenly(len(x), _MEDIAN_SPOTS)]
        distances = _distances(some)[np.triu_indices(len(some), 1)]
        median = float(np.median(distances)) if len(distances) else 0.0
        scale = median if median > 0 else 1.0
        among = np.exp(_distances(centres) / -scale)
        if len(index) == len(x):
            system, right = among + penalty * np.eye(len(x)), y
        else:
            system = penalty * among + 1e-8 * len(x) * np.eye(len(index))
            right = np.zeros((len(index), y.shape[1]))
            for start in range(0, len(x), _ROWS):
                rows = slice(start, start + _ROWS)
                kernel = np.exp(_distances(x[rows], centres) / -scale)
                system += kernel.T @ kernel
                right += kernel.T @ y[rows]
        return cls(centres, index, cho_solve(cho_factor(system, lower=True), right), intercept, scale)

    def __call__(self, features: np.ndarray) -> Float64:
        """Predicted values, (n, n_genes)."""
        parts = [
            np.exp(_distances(features[start : start + _ROWS].astype(np.float64), self.centres) / -self.scale)
            @ self.coefficients
            for start in range(0, len(features), _ROWS)
        ]
        return np.concatenate(parts) + self.intercept

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """As named arrays, without the centres."""
        parts = {
            "index": self.index,
            "coefficients": self.coefficients,
            "intercept": self.intercept,
            "scale": np.array([self.scale]),
        }
        return {f"{prefix}{name}": np.ascontiguousarray(array) for name, array in parts.items()}

    @classmethod
    def from_arrays(cls, state: Mapping[str, np.ndarray], centres: np.ndarray, prefix: str = "") -> Self:
        """Inverse of :meth:`arrays`."""
        return cls(
            centres.astype(np.float64),
            state[f"{prefix}index"],
            state[f"{prefix}coefficients"],
            state[f"{prefix}intercept"],
            float(state[f"{prefix}scale"][0]),
        )


def evenly(n: int, most: int) -> NDArray[np.int64]:
    """At most `most` of n rows, evenly spread over them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _distances(a: np.ndarray, b: np.ndarray | None = None) -> Float64:
    """Euclidean distances by a matrix product; of rows to themselves they are exactly 0 where `b` is left out."""
    from sklearn.metrics.pairwise import euclidean_distances

    return np.asarray(euclidean_distances(a, b))
