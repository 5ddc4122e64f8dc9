"""Control: ridge regression on the embeddings of a spot and of its surroundings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from .._slides import Cohort, Float32, Float64, Slide
from ._linear import Context, LinearFit, pooled_expression, relative_expression, tune
from .base import Method, Run, State, register


@register
class ContextRidge(Method):
    """Ridge regression from the embedding of a spot and the mean embeddings of its 6, 18 and 60 nearest spots.

    Tuned as :class:`~spahgc.methods.ridge.Ridge` is.

    Parameters
    ----------
    relative
        Fit expression scaled to mean 0 and variance 1 per gene and slide, and scale the prediction back to the mean
        level and spread of the reference slides.
    """

    name = "context_ridge"

    def __init__(self, relative: bool = False) -> None:
        self.relative = relative

    def fit(self, cohort: Cohort, run: Run, *, hyperparameters: tuple[float, int] | None = None) -> Self:
        """Fit on reference slides; with `hyperparameters` (penalty, size) nothing is tuned."""
        if self.relative:
            values, self._level, self._spread = relative_expression(cohort)
        else:
            values = pooled_expression(cohort)
            self._level, self._spread = np.zeros(len(cohort.genes)), np.ones(len(cohort.genes))
        self._context = Context.fit(cohort.slides)
        features = {slide.name: self._context(slide) for slide in cohort}
        self.hyperparameters = (
            tune(cohort, features, values, split_by=run.split_by) if hyperparameters is None else hyperparameters
        )
        stacked = np.concatenate([features[slide.name] for slide in cohort])
        self._fit = LinearFit.fit(
            stacked, np.concatenate([values[slide.name] for slide in cohort]), *self.hyperparameters
        )
        return self

    def predict(self, slide: Slide) -> Float32:
        return (self.relative_values(slide) * self._spread + self._level).astype(np.float32)

    def relative_values(self, slide: Slide) -> Float64:
        """Prediction before it is scaled back, float64 (n_spots, n_genes)."""
        return self._fit(self._context(slide))

    def params(self) -> dict[str, Any]:
        return {"relative": self.relative}

    def state(self) -> State:
        scale = {"level": self._level, "spread": self._spread}
        return {**self._fit.arrays(), **self._context.arrays(), **scale}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._fit, self._context = LinearFit.from_arrays(state), Context.from_arrays(state)
        self._level, self._spread = state["level"], state["spread"]
        return self
