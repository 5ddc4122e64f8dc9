"""Control: the mean expression of the most similar reference spots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from .._slides import Cohort, Float32, Slide, Stack, expression_of
from ._evidence import Evidence
from ._references import References
from .base import Method, Run, State, register


@register
class KNN(Method):
    """Mean expression of the reference spots most similar by cosine of the standardised embedding.

    Parameters
    ----------
    n_neighbors
        Reference spots per target spot.
    """

    name = "knn"
    reads_reference = True

    def __init__(self, n_neighbors: int = 15) -> None:
        if n_neighbors < 1:
            raise ValueError(f"n_neighbors is at least 1, not {n_neighbors}.")
        self.n_neighbors = n_neighbors

    def fit(self, cohort: Cohort, run: Run) -> Self:
        if cohort.n_spots < self.n_neighbors:
            raise ValueError(
                f"knn needs {self.n_neighbors} reference spots (n_neighbors); the reference has {cohort.n_spots}."
            )
        return self.restore({}, cohort)

    def predict(self, slide: Slide) -> Float32:
        index = self._references.search(slide.embedding)
        return self._expression[index].mean(axis=1, dtype=np.float64).astype(np.float32)

    def evidence(self, slide: Slide) -> Evidence:
        index = self._references.search(slide.embedding)
        return Evidence.merged([(index, np.full(index.shape, 1 / index.shape[1]))])

    def params(self) -> dict[str, Any]:
        return {"n_neighbors": self.n_neighbors}

    def state(self) -> State:
        return {}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._references = References([slide.embedding for slide in cohort], self.n_neighbors)
        self._expression = Stack([expression_of(slide) for slide in cohort])
        return self
