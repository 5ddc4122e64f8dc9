"""Control: ridge regression on principal components of the embedding, the method to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .._run import Progress, no_progress, with_progress
from .._slides import Cohort, Float32, Slide
from ._linear import LinearFit, RowValues, pooled_expression, relative_expression, tune
from .base import Method, Output, Run, State, register

if TYPE_CHECKING:
    from ._context import ContextRows


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
    l2
        Penalty on the squared coefficients, as scikit-learn's ``Ridge`` counts it, for the features' principal
        components. With it nothing is tuned; `None` tunes.
    size
        Number of principal components that goes with `l2`.
    """

    name = "ridge"
    reads_rows = True
    reads_reference = True

    def __init__(self, relative: bool = False, l2: float | None = None, size: int = 256) -> None:
        if l2 is not None and l2 < 0:
            raise ValueError(f"l2 is at least 0, not {l2}.")
        self.relative, self.l2, self.size = relative, l2, size

    def fit(self, cohort: Cohort, run: Run, *, hyperparameters: tuple[float, int] | None = None) -> Self:
        """Fit on reference slides; with `hyperparameters` (penalty, size) nothing is tuned."""
        if self.relative:
            values, self._level, self._spread = relative_expression(cohort)
        else:
            values = pooled_expression(cohort)
            self._level, self._spread = np.zeros(len(cohort.genes)), np.ones(len(cohort.genes))
        self._fit_features(cohort)
        features = {slide.name: np.asarray(self._features(slide)) for slide in cohort}
        if hyperparameters is None and self.l2 is not None:
            variance = np.concatenate(list(features.values())).astype(np.float64).var(axis=0).sum()
            hyperparameters = self.l2 / (cohort.n_spots * max(float(variance), 1e-300)), self.size
        self.hyperparameters = self._tuned(cohort, features, values, run, hyperparameters)
        names = [slide.name for slide in cohort]
        self._fit = LinearFit.fit(
            np.concatenate([features[n] for n in names]),
            np.concatenate([values[n] for n in names]),
            *self.hyperparameters,
        )
        return self

    def predict(self, slide: Slide) -> Float32:
        out = np.empty((len(slide), len(self._level)), np.float32)
        Ridge.predict_into(self, slide, out)  # that of a subclass may be made of this method
        return out

    def predict_into(self, slide: Slide, out: Output, *, progress: Progress = no_progress) -> None:
        values = self.relative_values(slide)
        for rows in with_progress(len(slide), progress):
            out[rows] = values(rows) * self._spread + self._level

    def relative_values(self, slide: Slide) -> RowValues:
        """Prediction before it is scaled back, for the rows that are asked for."""
        features = self._features(slide)
        return lambda rows: self._fit(features[rows])

    def params(self) -> dict[str, Any]:
        return {"relative": self.relative, "l2": self.l2, "size": self.size}

    def state(self) -> State:
        return {**self._fit.arrays(), "level": self._level, "spread": self._spread}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._fit = LinearFit.from_arrays(state)
        self._level, self._spread = state["level"], state["spread"]
        return self

    def _tuned(
        self,
        cohort: Cohort,
        features: Mapping[str, np.ndarray],
        values: Mapping[str, np.ndarray],
        run: Run,
        fixed: tuple[float, int] | None,
    ) -> tuple[float, int]:
        """Penalty and number of components: `fixed`, or tuned."""
        return tune(cohort, features, values, split_by=run.split_by) if fixed is None else fixed

    def _fit_features(self, cohort: Cohort) -> None:
        """Prepare what :meth:`_features` needs."""

    def _features(self, slide: Slide) -> Float32 | ContextRows:
        """What is regressed on, (n_spots, d)."""
        return slide.embedding
