"""Which reference spots a method looks at when it predicts a spot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from .._slides import Float32


@dataclass(frozen=True, eq=False)
class Evidence:
    """Reference spots that a method looks at for each spot of a slide, and how much."""

    index: NDArray[np.int64]
    """Rows of the reference slides, one after the other, (n_spots, k); those with most weight first."""
    weight: Float32
    """(n_spots, k), summing to 1; 0 where fewer than k are looked at."""

    @classmethod
    def merged(cls, parts: Sequence[tuple[NDArray[np.integer], NDArray[np.floating]]]) -> Self:
        """Of several tables of rows and weights, each (n_spots, k_i); a row that is in several has their sum."""
        index = np.concatenate([rows.astype(np.int64) for rows, _ in parts], axis=1)
        weight = np.concatenate([weights.astype(np.float64) for _, weights in parts], axis=1)
        order = np.argsort(index, axis=1, kind="stable")
        index, weight = np.take_along_axis(index, order, axis=1), np.take_along_axis(weight, order, axis=1)
        for j in range(1, index.shape[1]):
            same = index[:, j] == index[:, j - 1]
            weight[same, j] += weight[same, j - 1]
            weight[same, j - 1] = 0
        order = np.argsort(-weight, axis=1, kind="stable")
        index, weight = np.take_along_axis(index, order, axis=1), np.take_along_axis(weight, order, axis=1)
        return cls(index, (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32))
