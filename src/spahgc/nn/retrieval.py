"""Nearest neighbors by cosine over a bank of embeddings, block by block."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._checks import at_least, checked, finite, real
from .._slides import Rows, blocks

_DECIMALS = 9
_MARGIN = 9  # candidates beyond the k nearest that are compared exactly
_BLOCK, _CHUNK = 16384, 256  # rows of the bank, and queries, per matrix product


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
    Rows of the bank, int64 (n_queries, k), most similar first, and their cosine similarities, float32 (n_queries, k).

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
    if available < k:
        raise ValueError(f"The reference has {available} spots to choose from, but k = {k} are needed per spot.")
    n, size = len(query), min(k + _MARGIN, available)
    best = torch.full((n, size), -torch.inf, device=device)
    candidates = torch.zeros((n, size), dtype=torch.int64, device=device)
    for block in blocks(len(bank), _BLOCK):
        part = _units(bank[block], "bank", block.start).to(device).T
        for rows in blocks(n, _CHUNK):
            # Scaled anew for each block of the bank: kept, the scaled queries would take as much memory as the queries.
            scores = _units(query[rows], "query", rows.start).to(device) @ part
            if exclude_self:
                own = torch.arange(rows.start, rows.stop, device=device)
                own = own[(own >= block.start) & (own < block.stop)]
                scores[own - rows.start, own - block.start] = -torch.inf
            found, at = scores.topk(min(size, scores.shape[1]), dim=1)
            best[rows], order = torch.cat([best[rows], found], dim=1).topk(size, dim=1)
            candidates[rows] = torch.cat([candidates[rows], at + block.start], dim=1).gather(1, order)
        del part  # so that two blocks of the bank are never in memory at once
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
