"""Control: ridge regression whose predictions are averaged over neighbouring spots."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import numpy as np

from .._slides import Cohort, Float64, Slide
from ._linear import PENALTIES, SIZES, UNTUNED, best, tuning_scores
from .base import Run, State, register
from .ridge import Ridge

NEIGHBORS = (0, 6, 18)
"""Numbers of neighbours that are tried."""
UNTUNED_NEIGHBORS = 6
"""Number of neighbours where nothing can be held out."""


@register
class SmoothedRidge(Ridge):
    """Ridge regression from the standardised embedding, averaged over a spot and its nearest spots.

    The number of neighbours (0, 6 or 18) is tuned together with penalty and number of components, on the same held-out
    slides as in :class:`~spahgc.methods.ridge.Ridge`. It says what a method that looks at neighbours gains by averaging
    noise away.

    Parameters
    ----------
    relative, l2, size
        As for :class:`~spahgc.methods.ridge.Ridge`; with `l2` the number of neighbours alone is tuned.
    n_neighbors
        Neighbours to average over; `None` tunes.
    """

    name = "smoothed_ridge"
    needs = frozenset({"embedding", "coordinates"})

    def __init__(
        self, relative: bool = False, l2: float | None = None, size: int = 256, n_neighbors: int | None = None
    ) -> None:
        super().__init__(relative, l2, size)
        if n_neighbors is not None and n_neighbors < 0:
            raise ValueError(f"n_neighbors is at least 0, not {n_neighbors}.")
        self.n_neighbors = n_neighbors

    def params(self) -> dict[str, Any]:
        return {**super().params(), "n_neighbors": self.n_neighbors}

    def relative_values(self, slide: Slide) -> Float64:
        return smoothed(super().relative_values(slide), slide, self.chosen_neighbors)

    def state(self) -> State:
        return {**super().state(), "n_neighbors": np.array([self.chosen_neighbors])}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self.chosen_neighbors = int(state["n_neighbors"][0])
        return super().restore(state, cohort)

    def _tuned(
        self,
        cohort: Cohort,
        features: Mapping[str, np.ndarray],
        values: Mapping[str, np.ndarray],
        run: Run,
        fixed: tuple[float, int] | None,
    ) -> tuple[float, int]:
        tried = NEIGHBORS if self.n_neighbors is None else (self.n_neighbors,)
        penalties, sizes = (PENALTIES, SIZES) if fixed is None else ((fixed[0],), (fixed[1],))
        # Averaging what a linear function gives is averaging what goes into it.
        variants = [partial(smoothed, n_neighbors=k) for k in tried]
        scores = tuning_scores(
            cohort, features, values, variants=variants, split_by=run.split_by, penalties=penalties, sizes=sizes
        )
        if scores is None:
            self.chosen_neighbors = UNTUNED_NEIGHBORS if self.n_neighbors is None else self.n_neighbors
            return UNTUNED if fixed is None else fixed
        k, i, j = best(scores)
        self.chosen_neighbors = tried[k]
        return penalties[i], sizes[j]


def smoothed(values: np.ndarray, slide: Slide, n_neighbors: int) -> Float64:
    """Mean of the values (n_spots, ...) of each spot and its nearest spots on the slide."""
    from ..nn.neighbors import spatial_knn

    total = values.astype(np.float64)
    if n_neighbors == 0:
        return total
    nearest = spatial_knn(slide.coordinates, n_neighbors)
    for members in nearest.T:
        total += values[members]
    return total / (1 + nearest.shape[1])
