"""Control: the mean of each gene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from .._slides import Cohort, Float32, Slide, expression_of
from .base import Method, Run, State, register


@register
class GeneMean(Method):
    """Predicts the mean of each gene over the reference slides (each slide counts the same) for every spot.

    Its correlation within a slide is not defined; it says what RMSE and MAE are worth.
    """

    name = "gene_mean"
    reads_reference = True
    needs = frozenset()

    def fit(self, cohort: Cohort, run: Run) -> Self:
        self._mean = np.mean([expression_of(slide).mean(axis=0, dtype=np.float64) for slide in cohort], axis=0)
        return self

    def predict(self, slide: Slide) -> Float32:
        return np.tile(self._mean.astype(np.float32), (len(slide), 1))

    def params(self) -> dict[str, Any]:
        return {}

    def state(self) -> State:
        return {"mean": self._mean}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._mean = state["mean"]
        return self
