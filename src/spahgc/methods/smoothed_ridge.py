"""Control: ridge regression whose predictions are averaged over neighbouring spots."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import numpy as np

from .._slides import Cohort, Float64, Slide, blocks
from ._linear import PENALTIES, SIZES, UNTUNED, RowValues, best, tuning_scores
from .base import Run, State, register
from .ridge import Ridge

SMOOTHINGS = ((0, 0.0), (6, 0.25), (6, 0.5), (18, 0.25), (18, 0.5))
"""Numbers of neighbours, and the weight of their mean, that are tried.

A plain mean over a spot and its neighbours (weight 6 / 7) was worse than none on Visium and on legacy arrays."""
UNTUNED_SMOOTHING = (6, 0.5)
"""Where nothing can be held out."""


@register
class SmoothedRidge(Ridge):
    """Ridge regression from the standardised embedding, averaged with the predictions of the nearest spots.

    The number of neighbours (0, 6 or 18) and their weight are tuned together with penalty and number of components, on
    the same held-out slides as in :class:`~spahgc.methods.ridge.Ridge`. It says what a method that looks at neighbours
    gains by averaging noise away.

    Parameters
    ----------
    relative, l2, size
        As for :class:`~spahgc.methods.ridge.Ridge`; with `l2` the smoothing alone is tuned.
    n_neighbors
        Neighbours to average over; `None` tunes.
    weight
        Weight of the neighbours' mean that goes with `n_neighbors`, 0 to 1; the spot's own prediction has the rest.
    """

    name = "smoothed_ridge"
    needs = frozenset({"embedding", "coordinates"})

    def __init__(
        self,
        relative: bool = False,
        l2: float | None = None,
        size: int = 256,
        n_neighbors: int | None = None,
        weight: float = 0.5,
    ) -> None:
        super().__init__(relative, l2, size)
        if n_neighbors is not None and n_neighbors < 0:
            raise ValueError(f"n_neighbors is at least 0, not {n_neighbors}.")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight is 0 to 1, not {weight}.")
        self.n_neighbors, self.weight = n_neighbors, weight

    def params(self) -> dict[str, Any]:
        return {**super().params(), "n_neighbors": self.n_neighbors, "weight": self.weight}

    def relative_values(self, slide: Slide) -> RowValues:
        values = super().relative_values(slide)
        whole = smoothed(np.concatenate([values(rows) for rows in blocks(len(slide))]), slide, *self.smoothing)
        return lambda rows: whole[rows]

    def state(self) -> State:
        return {**super().state(), "smoothing": np.array(self.smoothing, dtype=np.float64)}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        n_neighbors, weight = state["smoothing"].tolist()
        self.smoothing = int(n_neighbors), weight
        return super().restore(state, cohort)

    def _tuned(
        self,
        cohort: Cohort,
        features: Mapping[str, np.ndarray],
        values: Mapping[str, np.ndarray],
        run: Run,
        fixed: tuple[float, int] | None,
    ) -> tuple[float, int]:
        tried = SMOOTHINGS if self.n_neighbors is None else ((self.n_neighbors, self.weight),)
        penalties, sizes = (PENALTIES, SIZES) if fixed is None else ((fixed[0],), (fixed[1],))
        # Averaging what a linear function gives is averaging what goes into it.
        variants = [partial(smoothed, n_neighbors=n, weight=weight) for n, weight in tried]
        scores = tuning_scores(
            cohort, features, values, variants=variants, split_by=run.split_by, penalties=penalties, sizes=sizes
        )
        if scores is None:
            self.smoothing = UNTUNED_SMOOTHING if self.n_neighbors is None else tried[0]
            return UNTUNED if fixed is None else fixed
        k, i, j = best(scores)
        self.smoothing = tried[k]
        return penalties[i], sizes[j]


def smoothed(values: np.ndarray, slide: Slide, n_neighbors: int, weight: float) -> Float64:
    """Values (n_spots, ...) of each spot, averaged with the mean over its nearest spots, which has `weight`."""
    from .._geometry import spatial_knn

    own = values.astype(np.float64)
    if n_neighbors == 0 or len(own) < 2:
        return own
    nearest = spatial_knn(slide.coordinates, n_neighbors)
    # One neighbour at a time: all together would be n_neighbors copies of the slide.
    total = np.zeros_like(own)
    for members in nearest.T:
        total += own[members]
    return (1 - weight) * own + weight / nearest.shape[1] * total
