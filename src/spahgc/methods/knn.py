"""Control: the mean expression of the most similar reference spots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from .._checks import at_least
from .._slides import Cohort, Float32, Rows, Slide, Stack, expression_of
from .base import Evidence, Method, Run, State, parameters


@parameters(n_neighbors=at_least(1))
class KNN(Method):
    """Mean expression of the reference spots with the most similar standardized embedding (cosine).

    Parameters
    ----------
    n_neighbors
        Reference spots per target spot.
    """

    n_neighbors: int = 15

    name: ClassVar[str] = "knn"
    reads_reference: ClassVar[bool] = True

    def fit(self, cohort: Cohort, run: Run) -> Self:
        if cohort.n_spots < self.n_neighbors:
            raise ValueError(
                f"knn averages {self.n_neighbors} reference spots (`n_neighbors`), but the reference has only "
                f"{cohort.n_spots}. Lower `n_neighbors`."
            )
        return self.restore({}, cohort)

    def predict(self, slide: Slide) -> Float32:
        index = nearest_by_cosine(slide.embedding, self._embeddings, self.n_neighbors)
        return self._expression[index].mean(axis=1, dtype=np.float64).astype(np.float32)

    def evidence(self, slide: Slide) -> Evidence:
        index = nearest_by_cosine(slide.embedding, self._embeddings, self.n_neighbors)
        return Evidence.merged([(index, np.full(index.shape, 1 / index.shape[1]))])

    def state(self) -> State:
        return {}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._embeddings = [slide.embedding for slide in cohort]
        self._expression = Stack([expression_of(slide) for slide in cohort])
        return self


def nearest_by_cosine(query: NDArray, slides: Sequence[NDArray | Rows], n_neighbors: int) -> NDArray[np.int64]:
    """Row numbers of the most similar reference spots by cosine, most similar first, (n, n_neighbors).

    One reference slide at a time is in memory. If there are fewer spots than `n_neighbors`, all are returned.
    """
    query, first = normalize(query), 0
    index, distance = np.empty((len(query), 0), np.int64), np.empty((len(query), 0))
    for slide in slides:
        search = NearestNeighbors(n_neighbors=min(n_neighbors, len(slide)), algorithm="brute")
        # On vectors of length 1, Euclidean distance ranks as cosine similarity does.
        distances, rows = search.fit(normalize(np.asarray(slide))).kneighbors(query)
        index, distance = np.hstack([index, rows + first]), np.hstack([distance, distances])
        best = np.argsort(distance, axis=1, kind="stable")[:, :n_neighbors]
        index, distance = np.take_along_axis(index, best, axis=1), np.take_along_axis(distance, best, axis=1)
        first += len(slide)
    return index
