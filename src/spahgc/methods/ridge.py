"""Control: ridge regression on principal components of the embedding, the method to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from .._slides import Cohort, Float32, Float64, Slide
from ._linear import LinearFit, pooled_expression, relative_expression, tune
from .base import Method, Run, State, register


@register
class Ridge(Method):
    """Ridge regression from the standardised embedding.

    Penalty and number of components are tuned on held-out reference patients or slides (:class:`Run`); with a single
    reference slide they are fixed (:data:`~spahgc.methods._linear.UNTUNED`).

    Parameters
    ----------
    relative
        Fit expression scaled to mean 0 and variance 1 per gene and slide, and scale the prediction back to the mean
        level and spread of the reference slides.
    """

    name = "ridge"

    def __init__(self, relative: bool = False) -> None:
        self.relative = relative

    def fit(self, cohort: Cohort, run: Run, *, hyperparameters: tuple[float, int] | None = None) -> Self:
        """Fit on reference slides; with `hyperparameters` (penalty, size) nothing is tuned."""
        if self.relative:
            values, self._level, self._spread = relative_expression(cohort)
        else:
            values = pooled_expression(cohort)
            self._level, self._spread = np.zeros(len(cohort.genes)), np.ones(len(cohort.genes))
        self._fit_features(cohort)
        features = {slide.name: self._features(slide) for slide in cohort}
        if hyperparameters is None:
            hyperparameters = tune(cohort, features, values, split_by=run.split_by)
        self.hyperparameters = hyperparameters
        names = [slide.name for slide in cohort]
        self._fit = LinearFit.fit(
            np.concatenate([features[n] for n in names]), np.concatenate([values[n] for n in names]), *hyperparameters
        )
        return self

    def predict(self, slide: Slide) -> Float32:
        return (self.relative_values(slide) * self._spread + self._level).astype(np.float32)

    def relative_values(self, slide: Slide) -> Float64:
        """Prediction before it is scaled back, float64 (n_spots, n_genes)."""
        return self._fit(self._features(slide))

    def params(self) -> dict[str, Any]:
        return {"relative": self.relative}

    def state(self) -> State:
        return {**self._fit.arrays(), "level": self._level, "spread": self._spread}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._fit = LinearFit.from_arrays(state)
        self._level, self._spread = state["level"], state["spread"]
        return self

    def _fit_features(self, cohort: Cohort) -> None:
        """Prepare what :meth:`_features` needs."""

    def _features(self, slide: Slide) -> Float32:
        """What is regressed on, (n_spots, d)."""
        return slide.embedding
