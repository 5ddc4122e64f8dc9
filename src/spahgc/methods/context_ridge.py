"""Control: ridge regression on the embeddings of a spot and of its surroundings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from .._slides import Cohort, Slide
from ._context import Context, ContextRows
from .base import State, register
from .ridge import Ridge


@register
class ContextRidge(Ridge):
    """Ridge regression from the embedding of a spot and the mean embeddings of its 6, 18 and 60 nearest spots.

    Tuned as :class:`~spahgc.methods.ridge.Ridge` is.

    Parameters
    ----------
    relative, l2, size
        As for :class:`~spahgc.methods.ridge.Ridge`.
    """

    name = "context_ridge"
    needs = frozenset({"embedding", "coordinates"})

    def state(self) -> State:
        return {**super().state(), **self._context.arrays()}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._context = Context.from_arrays(state)
        return super().restore(state, cohort)

    def _fit_features(self, cohort: Cohort) -> None:
        self._context = Context.fit(cohort.slides)

    def _features(self, slide: Slide) -> ContextRows:
        return ContextRows(self._context, slide)
