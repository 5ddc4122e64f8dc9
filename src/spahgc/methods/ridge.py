"""Control: ridge regression on principal components of the embedding, the method to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from .._slides import Cohort, Float32, Slide
from ._linear import LinearFit, pooled_expression, tune
from .base import Method, Run, State, register


@register
class Ridge(Method):
    """Ridge regression from the standardised embedding.

    Penalty and number of components are tuned on held-out reference patients (slides, where there is one patient);
    with a single reference slide they are fixed (:data:`~spahgc.methods._linear.UNTUNED`).
    """

    name = "ridge"

    def fit(self, cohort: Cohort, run: Run) -> Self:
        features = {slide.name: slide.embedding for slide in cohort}
        values = pooled_expression(cohort)
        penalty, size = tune(cohort, features, values, split_by=run.split_by)
        names = [slide.name for slide in cohort]
        self._fit = LinearFit.fit(
            np.concatenate([features[n] for n in names]), np.concatenate([values[n] for n in names]), penalty, size
        )
        return self

    def predict(self, slide: Slide) -> Float32:
        return self._fit(slide.embedding).astype(np.float32)

    def params(self) -> dict[str, Any]:
        return {}

    def state(self) -> State:
        return self._fit.arrays()

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._fit = LinearFit.from_arrays(state)
        return self
