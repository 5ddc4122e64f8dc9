"""Nearest neighbors by cosine over a bank of embeddings: exact in blocks, or by an index that misses few."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._checks import at_least, checked, finite, real
from .._slides import Rows, Stack, blocks

_DECIMALS = 9
_MARGIN = 9  # candidates beyond the k nearest that are compared exactly
_BLOCK, _CHUNK = 16384, 256  # rows of the bank, and queries, per matrix product
_PER_LIST, _ROUNDS, _FEWEST_PROBED = 32, 10, 8  # rows per list for its center, rounds of k-means, lists to start from
_SLIDES, _SPOTS = 8, 64  # slides, and spots of each, to measure the recall with


@checked(k=at_least(1))
def cosine_topk(
    query: ArrayLike,
    bank: ArrayLike | Rows,
    k: int,
    *,
    exclude_self: bool = False,
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the `k` rows of a bank that are most similar to each query by cosine.

    Matrix products in float32 give k + 9 candidates, which are compared in float64, rounded to nine decimals; of equal
    ones the lower row comes first. A row of zeros has similarity 0 to all.

    Parameters
    ----------
    query
        (n_queries, n_features).
    bank
        (n_rows, n_features); read block by block, so that it may be memory-mapped or computed on access.
    k
        Neighbors per query.
    exclude_self
        `query` and `bank` are the same rows; exclude row i for query i.
    device
        Torch device of the matrix products.

    Returns
    -------
    index
        Rows of the bank, int64 (n_queries, k), most similar first.
    similarity
        Their cosine similarities, float32 (n_queries, k).

    Raises
    ------
    ValueError
        If values are not finite, widths differ, or the bank has fewer than `k` rows.

    Examples
    --------
    >>> from spahgc.nn import cosine_topk
    >>> index, similarity = cosine_topk([[1.0, 1.0]], [[0.0, 2.0], [3.0, 3.0], [-1.0, -1.0]], k=2)
    >>> index
    array([[1, 0]])
    """
    query, bank = real(query, "query"), bank if isinstance(bank, Rows) else real(bank, "bank")
    if query.shape[1] != bank.shape[1]:
        raise ValueError(f"query has {query.shape[1]} features and bank has {bank.shape[1]}. Use one encoder for both.")
    if exclude_self and len(query) != len(bank):
        raise ValueError(f"exclude_self needs equal query and bank, got {len(query)} and {len(bank)} rows.")
    available = len(bank) - exclude_self
    _check_enough(available, k)
    n, size = len(query), min(k + _MARGIN, available)
    units = _units(query, "query", 0).to(device)
    best = torch.full((n, size), -torch.inf, device=device)
    candidates = torch.zeros((n, size), dtype=torch.int64, device=device)
    for block in blocks(len(bank), _BLOCK):
        part = _units(bank[block], "bank", block.start).to(device).T
        for rows in blocks(n, _CHUNK):
            scores = units[rows] @ part
            if exclude_self:
                own = torch.arange(rows.start, rows.stop, device=device)
                own = own[(own >= block.start) & (own < block.stop)]
                scores[own - rows.start, own - block.start] = -torch.inf
            found, at = scores.topk(min(size, scores.shape[1]), dim=1)
            best[rows], order = torch.cat([best[rows], found], dim=1).topk(size, dim=1)
            candidates[rows] = torch.cat([candidates[rows], at + block.start], dim=1).gather(1, order)
    nearest = candidates.cpu().numpy()
    # All rows tie for a query of zeros: the first ones, whatever the device takes.
    for i in np.flatnonzero(~query.any(axis=1)):
        nearest[i] = np.delete(np.arange(size + 1), i if exclude_self and i <= size else size)
    return _best_of(query, bank, nearest, k)


def _best_of(
    query: NDArray, bank: NDArray | Rows, candidates: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` best candidates of each query: most similar first, then lower row; and their similarities."""
    index, similarity = np.empty((len(query), k), np.int64), np.empty((len(query), k), np.float32)
    for rows in blocks(len(query), _CHUNK):
        own, found = query[rows].astype(np.float64), bank[candidates[rows]].astype(np.float64)
        products = np.einsum("ncd,nd->nc", found, own) / (_norms(found) * _norms(own)[:, None])
        # Rounded, so that the order of summation cannot decide between equal ones; + 0.0 turns -0.0 into 0.0.
        cosine = np.round(products, _DECIMALS) + 0.0
        order = np.lexsort((candidates[rows], -cosine), axis=1)[:, :k]
        index[rows] = np.take_along_axis(candidates[rows], order, axis=1)
        similarity[rows] = np.take_along_axis(cosine, order, axis=1)
    return index, similarity


def _units(values: NDArray, name: str, first_row: int) -> Tensor:
    """Rows scaled to length 1, float32; a row of zeros stays one."""
    rows = np.ascontiguousarray(values, dtype=np.float32)
    finite(rows, name, first_row=first_row)
    return torch.from_numpy(rows / _norms(rows)[:, None].astype(np.float32))


def _norms(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Euclidean norm of each row; 1 for a row of zeros."""
    norms = np.sqrt(np.einsum("...d,...d->...", values, values, dtype=np.float64))
    return np.where(norms > 0, norms, 1.0)


def _check_enough(available: int, k: int) -> None:
    if available < k:
        raise ValueError(f"The reference has {available} spots to choose from, but k = {k} are needed per spot.")


class ApproximateIndex:
    """Index of the spots of several slides that finds nearly all of the nearest ones in a fraction of the time.

    An inverted file of faiss with a byte per feature: spots lie in lists around k-means centers, and a query is
    compared with the lists nearest to it. What it returns is compared exactly, as by :func:`cosine_topk`.

    Parameters
    ----------
    slides
        Features of each slide's spots, (n_spots, n_features), two slides or more; read block by block.
    k
        Neighbors per query.
    seed
        Seed of k-means and of the spots that the recall is measured with.
    least_recall
        The number of lists to look into (``n_probed`` of ``n_lists``) is doubled until ``recall`` reaches this: the
        share of the `k` nearest neighbors in other slides that are found, for ``n_queries`` spots, up to 64 of up to 8
        slides.

    Raises
    ------
    ImportError
        If faiss is not installed.
    """

    @checked(k=at_least(1))
    def __init__(self, slides: Sequence[NDArray | Rows], k: int, *, seed: int = 0, least_recall: float = 0.99) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ImportError(f"An approximate index needs faiss ({error}). Run: pip install 'spahgc[ann]'") from error
        if len(slides) < 2:
            raise ValueError("An approximate index needs at least two slides, to measure its recall between them.")
        self._faiss, self._slides, self._bank, self._k = faiss, slides, Stack(slides), k
        self._starts: list[int] = np.cumsum([0, *map(len, slides)]).tolist()
        (n, d), rng = self._bank.shape, np.random.default_rng(seed)
        self.n_lists = max(1, int(2 * n**0.5))
        self.n_probed = min(_FEWEST_PROBED, self.n_lists)
        self._index = faiss.index_factory(d, f"IVF{self.n_lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        clustering = self._index.cp
        clustering.niter, clustering.seed, clustering.min_points_per_centroid = _ROUNDS, seed, 1
        rows = np.sort(rng.choice(n, min(n, _PER_LIST * self.n_lists), replace=False))
        self._index.train(_units(self._bank[rows], "slides", 0).numpy())
        for block in blocks(n, _BLOCK):
            self._index.add(_units(self._bank[block], "slides", block.start).numpy())
        cases = []
        for i in np.sort(rng.choice(len(slides), min(_SLIDES, len(slides)), replace=False)).tolist():
            rows = np.sort(rng.choice(len(slides[i]), min(_SPOTS, len(slides[i])), replace=False))
            query = np.asarray(slides[i][rows], dtype=np.float32)
            # A spot as similar as the last of the nearest counts as one of them.
            cases.append((i, query, cosine_topk(query, self._others(i), k)[1][:, -1:]))
        self.n_queries = sum(len(query) for _, query, _ in cases)
        while True:
            found = [self.search(query, without=i)[1] >= least for i, query, least in cases]
            self.recall = float(np.concatenate(found).mean())
            if self.recall >= least_recall or self.n_probed == self.n_lists:
                break
            self.n_probed = min(2 * self.n_probed, self.n_lists)

    def search(self, query: NDArray, *, without: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows over all slides but one, and their similarities, (n_queries, k), as :func:`cosine_topk` gives them."""
        start, stop = (0, 0) if without is None else self._starts[without : without + 2]
        left = len(self._bank) - (stop - start)
        _check_enough(left, self._k)
        size = min(2 * self._k + _MARGIN, left)
        selected = self._faiss.IDSelectorNot(self._faiss.IDSelectorRange(start, stop))
        parameters = self._faiss.SearchParametersIVF(nprobe=self.n_probed, sel=selected)
        candidates = self._index.search(_units(query, "query", 0).numpy(), size, params=parameters)[1]
        # Lists that hold fewer than `size` spots, or a query of zeros, which is as near to all: compare with all.
        few = np.flatnonzero((candidates.min(axis=1, initial=0) < 0) | ~query.any(axis=1))
        candidates[few] = 0
        index, similarity = _best_of(query, self._bank, candidates, self._k)
        if len(few):
            index[few], similarity[few] = cosine_topk(query[few], self._others(without), self._k)
            index[few] += (stop - start) * (index[few] >= start)
        return index, similarity

    def _others(self, without: int | None) -> Stack:
        return Stack([slide for i, slide in enumerate(self._slides) if i != without])
