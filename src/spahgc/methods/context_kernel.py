"""Control: kernel ridge regression on the embeddings of a spot and of its surroundings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from .._run import Progress, no_progress, with_progress
from .._slides import Cohort, Float32, Slide
from ._context import Context, ContextRows
from ._kernel import PENALTY, KernelFit
from ._linear import RowValues, relative_expression
from .base import Method, Output, Run, State, register

WEIGHTS = (1.0, 0.7, 0.5, 0.35)
"""Weights of the spot itself and of the means over its 6, 18 and 60 nearest spots."""


@register
class ContextKernel(Method):
    """Kernel ridge regression over the reference spots, from the embedding of a spot and of its surroundings.

    Expression is scaled to mean 0 and variance 1 per gene and slide, and scaled back to the mean level and spread of
    the reference slides. Nothing is tuned. It is what the default of :class:`~spahgc.methods.SpaHGC` averages its
    networks with, so it says what these add.

    Parameters
    ----------
    penalty
        Ridge penalty; the kernel of a spot with itself is 1.
    """

    name: ClassVar[str] = "context_kernel"
    reads_rows: ClassVar[bool] = True
    reads_reference: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def __init__(self, penalty: float = PENALTY) -> None:
        if not penalty > 0:
            raise ValueError(f"penalty is above 0, not {penalty}.")
        self.penalty = penalty

    def fit(self, cohort: Cohort, run: Run) -> Self:
        values, self._level, self._spread = relative_expression(cohort)
        self.context = Context.fit(cohort.slides, weights=WEIGHTS)
        self._fit = KernelFit.fit(
            self._bank(cohort), np.concatenate([values[slide.name] for slide in cohort]), penalty=self.penalty
        )
        return self

    def predict(self, slide: Slide) -> Float32:
        out = np.empty((len(slide), len(self._level)), np.float32)
        ContextKernel.predict_into(self, slide, out)  # that of a subclass may be made of this method
        return out

    def predict_into(self, slide: Slide, out: Output, *, progress: Progress = no_progress) -> None:
        values = self.relative_values(slide)
        for rows in with_progress(len(slide), progress):
            out[rows] = values(rows) * self._spread + self._level

    def relative_values(self, slide: Slide) -> RowValues:
        """Prediction before it is scaled back, for the rows that are asked for."""
        features = ContextRows(self.context, slide)
        return lambda rows: self._fit(features[rows])

    def params(self) -> dict[str, Any]:
        return {"penalty": self.penalty}

    def state(self) -> State:
        # Features are float32, so the centres are not rounded.
        centres = self._fit.centres.astype(np.float32)
        scale_back = {"level": self._level, "spread": self._spread}
        return {**self._fit.arrays(), "centres": centres, **self.context.arrays(), **scale_back}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._level, self._spread = state["level"], state["spread"]
        self.context = Context.from_arrays(state)
        # Models of format 1 were saved without the centres.
        centres = state["centres"] if "centres" in state else self._bank(cohort)[state["index"]]
        self._fit = KernelFit.from_arrays(state, centres)
        return self

    def _bank(self, cohort: Cohort) -> Float32:
        return np.concatenate([self.context(slide) for slide in cohort])
