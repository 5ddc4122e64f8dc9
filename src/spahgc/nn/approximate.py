"""Nearest neighbours by cosine over a very large bank: nearly all of them, in a fraction of the time.

The bank is cut into lists around k-means centres (an inverted file, by faiss). A query is compared with the rows of the
lists nearest to it, at a byte per feature, and the best of these are scored again as the exact search scores its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .._checks import positive, real
from .._slides import Rows, Stack, blocks
from .retrieval import MARGIN, best_of, exact_topk, units

_LISTS = 2
"""Lists per square root of the rows of the bank."""
_POINTS = 32
"""Rows per list that the centres are computed from."""
_ROUNDS = 10
_FEWEST_PROBED = 8
_SLIDES, _SPOTS = 8, 64
"""Slides, and spots of each, that the recall is measured with."""
_BLOCK = 16384


@dataclass(frozen=True)
class Measured:
    """How an index was built, and how much it finds."""

    n_lists: int
    n_probed: int
    """Lists that are looked into for a query."""
    largest: float
    """Value, in a row of length 1, that a byte holds at most."""
    k: int
    """Neighbours that the recall was measured for."""
    recall: float
    """Share of the `k` nearest neighbours that are found, for spots of some slides among those of the other slides. A
    spot as similar as the last of the nearest counts as one of them."""
    n_queries: int
    seed: int


class ApproximateIndex:
    """Index of the spots of several slides; made by :meth:`build`.

    Parameters
    ----------
    index
        The inverted file, of faiss.
    slides
        Features of each slide's spots, (n_spots, d), arrays or :class:`~spahgc._slides.Rows`.
    measured
        How it was built.
    """

    def __init__(self, index: Any, slides: Sequence[NDArray | Rows], measured: Measured) -> None:
        self._index, self._bank, self.measured = index, Stack(slides), measured
        self._starts = np.cumsum([0, *map(len, slides)]).tolist()

    @classmethod
    def build(
        cls, slides: Sequence[NDArray | Rows], k: int, *, seed: int = 0, least_recall: float = 0.99
    ) -> ApproximateIndex:
        """Build an index that looks into as few lists as give the recall that is asked for.

        The same slides and seed give the same index, with any number of threads. It takes a byte per feature and row;
        while it is built, also a sample of at most 64 rows per square root of their number, float32.

        Parameters
        ----------
        slides
            Features of each slide's spots, (n_spots, d), two slides or more; they are read block by block.
        k
            Neighbours that the recall is measured for.
        seed
            Seed of the sample, of k-means, and of the spots that the recall is measured with.
        least_recall
            The number of lists that are looked into is doubled until the recall is at least this, or all are.

        Raises
        ------
        ImportError
            If faiss is not installed.
        ValueError
            For fewer than two slides, fewer than `k` spots beside some slide, or values that are not finite.
        """
        faiss, k = import_faiss(), positive(k, "k")
        if len(slides) < 2:
            raise ValueError(
                "An index is built over two slides or more: its recall is measured from one to the others."
            )
        bank, rng = Stack(slides), np.random.default_rng(seed)
        n, d = bank.shape
        n_lists = max(1, int(_LISTS * n**0.5))
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(d),
            d,
            n_lists,
            faiss.ScalarQuantizer.QT_8bit_direct_signed,
            faiss.METRIC_INNER_PRODUCT,
            False,
        )
        index.cp.niter, index.cp.seed, index.cp.min_points_per_centroid = _ROUNDS, seed, 1
        points = np.sort(rng.choice(n, min(n, _POINTS * n_lists), replace=False))
        sample = units(bank[points], "slides", 0, "cpu").numpy()
        # A byte holds -127 to 127. The few values that are larger are cut off, so that the others keep their precision.
        largest = float(np.quantile(np.abs(sample[:: -(-len(sample) // 4096)]), 0.9999)) or 1.0
        with _reproducible(faiss):
            index.train(sample)
            for rows in blocks(n, _BLOCK):
                index.add(_bytes(bank[rows], "slides", rows.start, largest))
        made = cls(index, slides, Measured(n_lists, min(_FEWEST_PROBED, n_lists), largest, k, 0.0, 0, seed))
        made._measure(slides, rng, least_recall)
        return made

    def _measure(self, slides: Sequence[NDArray | Rows], rng: np.random.Generator, least_recall: float) -> None:
        """Choose how many lists are looked into, by the recall from some slides to the others."""
        k, n_lists, cases = self.measured.k, self.measured.n_lists, []
        for i in np.sort(rng.choice(len(slides), min(_SLIDES, len(slides)), replace=False)).tolist():
            rows = np.sort(rng.choice(len(slides[i]), min(_SPOTS, len(slides[i])), replace=False))
            query = np.asarray(slides[i][rows], dtype=np.float32)
            nearest = exact_topk(query, Stack([*slides[:i], *slides[i + 1 :]]), k)[1]
            cases.append((i, query, nearest[:, -1:]))
        n_queries = sum(len(query) for _, query, _ in cases)
        while True:
            found = [self._search(query, k, i)[1] >= least for i, query, least in cases]
            recall = float(np.concatenate(found).mean())
            self.measured = replace(self.measured, recall=recall, n_queries=n_queries)
            if recall >= least_recall or self.measured.n_probed == n_lists:
                return
            self.measured = replace(self.measured, n_probed=min(2 * self.measured.n_probed, n_lists))

    def search(
        self, query: ArrayLike, k: int, *, without: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Nearest neighbours, as :func:`cosine_topk` gives them, but for the few that are missed.

        Parameters
        ----------
        query
            (n, d).
        k
            Neighbours per query.
        without
            Number of a slide whose spots are left out.

        Returns
        -------
        Row numbers over all slides, int64 (n, k), most similar first (of equally similar ones the lower number), and
        their cosine similarities, float32 (n, k).

        Raises
        ------
        ValueError
            For values that are not finite, or fewer than `k` spots.
        """
        indices, similarities = self._search(real(query, "query"), positive(k, "k"), without)
        return indices, similarities.astype(np.float32)

    def _search(self, query: NDArray, k: int, without: int | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        faiss, n = import_faiss(), len(self._bank)
        start, stop = (0, 0) if without is None else (self._starts[without], self._starts[without + 1])
        left = n - (stop - start)
        if left < k:
            raise ValueError(f"The bank has {left} spots to choose from, fewer than the {k} neighbours asked for.")
        options = {"sel": faiss.IDSelectorNot(faiss.IDSelectorRange(start, stop))} if stop else {}
        parameters = faiss.SearchParametersIVF(nprobe=self.measured.n_probed, **options)
        indices = np.empty((len(query), k), dtype=np.int64)
        similarities = np.empty((len(query), k), dtype=np.float64)
        for rows in blocks(len(query), _BLOCK):
            rounded = _bytes(query[rows], "query", rows.start, self.measured.largest)
            with _reproducible(faiss):
                candidates = self._index.search(rounded, min(2 * k + MARGIN, left), params=parameters)[1]
            # The lists that are looked into may hold too few: then candidates are -1.
            enough = candidates.min(axis=1) >= 0
            for some in blocks(len(rounded), 256):
                here = rows.start + some.start + np.flatnonzero(enough[some])
                found = candidates[some][enough[some]]
                indices[here], similarities[here] = best_of(query[here], self._bank, found, k)
            if not enough.all():
                here, others = rows.start + np.flatnonzero(~enough), np.r_[:start, stop:n]
                among, similarities[here] = exact_topk(query[here], Rows(self._bank, others), k)
                indices[here] = others[among]
        return indices, similarities


def import_faiss() -> Any:
    """The module, or an error that names the extra."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(f"An approximate index needs faiss ({error}). Run: pip install 'spahgc[ann]'") from error
    return faiss


def _bytes(rows: NDArray, what: str, first_row: int, largest: float) -> NDArray[np.float32]:
    """Rows at length 1 in whole numbers from -127 to 127, which stand for `largest`; faiss keeps a byte of each."""
    unit = units(rows, what, first_row, "cpu").numpy()
    return np.rint(unit * (127 / largest)).clip(-127, 127).astype(np.float32)


@contextmanager
def _reproducible(faiss: Any) -> Iterator[None]:
    """As many threads as torch has, and no BLAS: its sums may depend on the number of threads."""
    threads, threshold = faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold
    faiss.omp_set_num_threads(torch.get_num_threads())
    faiss.cvar.distance_compute_blas_threshold = 2**31 - 1
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
        faiss.cvar.distance_compute_blas_threshold = threshold
