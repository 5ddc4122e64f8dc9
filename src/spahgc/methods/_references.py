"""Which reference spots are most similar to a spot: exact, or by an index that misses a few; kept within a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _disk as cache
from .._settings import settings
from .._slides import Rows, Stack, blocks

if TYPE_CHECKING:
    import torch

    from ..nn import ApproximateIndex

logger = logging.getLogger("spahgc")

FEWEST_QUERIES = 30_000
"""Spots to search for from which on an index pays: to build one takes about as long as to search for these."""
_LARGEST_SHARE = 0.2
"""Share of the lists of an index beyond which looking into them takes longer than the exact search."""
_PAIR_SIZE = 16
"""Nearest spots that are kept of a pair of slides, or the next multiple: methods with another k then share them."""


class References:
    """The spots of the reference slides, to be searched.

    Parameters
    ----------
    slides
        What is compared, by slide, float32 (n_spots, d): arrays or :class:`~spahgc._slides.Rows`.
    k
        Spots to find for each spot.
    approximate
        Take an index where it pays and :data:`spahgc.settings` lets it.
    pairs
        In a run that keeps what it computes, keep what is found in each slide, and put it together: for features that
        are the same with other slides in the reference. Else a search is kept as a whole.
    """

    def __init__(
        self, slides: Sequence[NDArray | Rows], k: int, *, approximate: bool = False, pairs: bool = True
    ) -> None:
        self._slides, self._k, self._approximate, self._pairs = list(slides), k, approximate, pairs
        self._starts: list[int] = np.cumsum([0, *map(len, slides)]).tolist()
        self._index: ApproximateIndex | None = None

    def search(
        self,
        query: NDArray,
        *,
        n_queries: int | None = None,
        without: int | None = None,
        device: str | torch.device = "cpu",
    ) -> NDArray[np.int64]:
        """The most similar spots by cosine.

        Parameters
        ----------
        query
            (n, d).
        n_queries
            Spots to search for in all, if `query` is a part of them.
        without
            Number of a slide that is left out.
        device
            Of the matrix products.

        Returns
        -------
        Row numbers over all slides, (n, k), most similar first; of equally similar ones the lower number.

        Raises
        ------
        ValueError
            If there are fewer than `k` spots, or values are not finite.
        """
        left = self._starts[-1] - (0 if without is None else len(self._slides[without]))
        if left < self._k:
            raise ValueError(f"There are {left} reference spots to choose from, fewer than the {self._k} asked for.")
        approximate = self._may_pay(len(query) if n_queries is None else n_queries, device)
        if self._pairs and cache.active() and not approximate:
            return np.concatenate([self._merged(query[rows], without, device) for rows in blocks(len(query))])
        search = self._by_index if approximate else self._exact
        return cache.cached(
            lambda: cache.digest(search.__name__, query, *self._digests, self._k, str(without)),
            lambda: {"rows": search(query, without, device)},
        )["rows"]

    def record(self) -> dict[str, Any]:
        """How was searched: ``"method"``, ``"exact"`` or ``"approximate"``, and of an index its recall and size."""
        if self._index is None or not self._pays:
            return {"method": "exact"}
        found = self._index.measured
        return {
            "method": "approximate",
            "recall": found.recall,
            "recall_queries": found.n_queries,
            "n_lists": found.n_lists,
            "n_probed": found.n_probed,
        }

    def _exact(self, query: NDArray, without: int | None, device: str | torch.device) -> NDArray[np.int64]:
        from ..nn import cosine_topk

        if without is None:
            return cosine_topk(query, Stack(self._slides), self._k, device=device)[0]
        others = Stack(self._slides[:without] + self._slides[without + 1 :])
        found = cosine_topk(query, others, self._k, device=device)[0]
        start, stop = self._starts[without : without + 2]
        return found + (stop - start) * (found >= start)

    def _merged(self, query: NDArray, without: int | None, device: str | torch.device) -> NDArray[np.int64]:
        """The exact answer from those for each slide alone, which are kept: they serve in every fold."""
        name = cache.digest(query)
        index = np.empty((len(query), 0), np.int64)
        similarity = np.empty((len(query), 0))
        for i, slide in enumerate(self._slides):
            if i == without:
                continue
            size = min(-(-self._k // _PAIR_SIZE) * _PAIR_SIZE, len(slide))
            found = cache.cached(
                partial(cache.digest, "pair", name, self._digests[i], size),
                partial(_nearest, query, slide, size, device),
            )
            similarity = np.concatenate([similarity, found["similarity"]], axis=1)
            index = np.concatenate([index, found["index"] + self._starts[i]], axis=1)
            # Stable: of equally similar ones the lower number stays first, as those found before have lower ones.
            best = np.argsort(-similarity, axis=1, kind="stable")[:, : self._k]
            index, similarity = np.take_along_axis(index, best, axis=1), np.take_along_axis(similarity, best, axis=1)
        return index

    @cached_property
    def _digests(self) -> list[str]:
        return [cache.digest(slide) for slide in self._slides]

    def _may_pay(self, n_queries: int, device: str | torch.device) -> bool:
        """Whether the sizes are such that an index pays; of the machine and the data only what is always the same."""
        least, n = settings.approximate_from, self._starts[-1]
        # A GPU multiplies matrices faster than a CPU looks into lists.
        if not self._approximate or least is None or n < least or n_queries < FEWEST_QUERIES or str(device) != "cpu":
            return False
        return self._has_faiss

    @cached_property
    def _has_faiss(self) -> bool:
        found = find_spec("faiss") is not None
        if not found:
            logger.info(
                "All %d reference spots are searched, one by one. An approximate index is faster: pip install "
                "'spahgc[ann]'",
                self._starts[-1],
            )
        return found

    def _by_index(self, query: NDArray, without: int | None, device: str | torch.device) -> NDArray[np.int64]:
        from ..nn import ApproximateIndex

        if self._index is None:
            self._index = ApproximateIndex.build(self._slides, self._k)
            found = self._index.measured
            logger.info(
                "Index of %d reference spots: recall %.4f, looking into %d of %d lists; %s.",
                self._starts[-1],
                found.recall,
                found.n_probed,
                found.n_lists,
                "it is used" if self._pays else "the exact search is faster, and used",
            )
        return (
            self._index.search(query, self._k, without=without)[0]
            if self._pays
            else self._exact(query, without, device)
        )

    @property
    def _pays(self) -> bool:
        """Whether the index that was built finds what it should in few enough lists."""
        found = None if self._index is None else self._index.measured
        return found is not None and found.n_probed <= _LARGEST_SHARE * found.n_lists


def _nearest(query: NDArray, slide: NDArray | Rows, k: int, device: str | torch.device) -> cache.Arrays:
    from ..nn.retrieval import exact_topk

    index, similarity = exact_topk(query, slide, k, device=device)
    return {"index": index.astype(np.int32), "similarity": similarity}
