"""Nearest neighbours by cosine over a bank of embeddings, exact and reproducible, in bounded memory.

Ties are common (duplicated tiles, background), so it is stated who wins one: the lower index. Neither the size of a
block, nor the threads, nor the device has a say in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._checks import finite, positive, real
from .._slides import Rows, blocks

_DECIMALS = 9
MARGIN = 9
"""Members of a shortlist beyond the k that are asked for."""
_BLOCK = 16384
"""Rows of the bank that are scored at once."""
_GROUP = 64
"""Columns of a score matrix that a group takes; only groups whose best belongs to the shortlist are looked into."""
# Rounding of the factors of a float32 product under torch.set_float32_matmul_precision, relative to unit vectors.
_FACTOR_ERROR = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}


def cosine_topk(
    query: ArrayLike,
    bank: ArrayLike | Rows,
    k: int,
    *,
    exclude_self: bool = False,
    chunk: int = 256,
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` rows of a bank that are most similar to each query by cosine.

    A float32 matrix product per block of queries and bank gives a running shortlist; its members are scored again in
    float64, rounded to nine decimals, and ordered by similarity, then index. The shortlist holds every row that can
    belong to the answer, given the error bound of the product, so the result is that of a full float64 search. A row
    of zeros has similarity 0 to all.

    Parameters
    ----------
    query
        (n, d).
    bank
        (m, d), float32 or float16; it may be memory-mapped (:func:`numpy.memmap`), or be made of such arrays when it is
        read (:class:`~spahgc._slides.Rows`), and is read block by block.
    k
        Neighbours per query, at most m (m - 1 with `exclude_self`).
    exclude_self
        `query` and `bank` are the same rows; leave row i out of the answer for query i.
    chunk
        Queries per matrix product. Beyond the inputs it takes about ``65536 * (d + chunk)`` bytes. Changes no result.
    device
        Torch device of the matrix products.

    Returns
    -------
    Row numbers of the bank, int64 (n, k), most similar first, and their cosine similarities, float32 (n, k).

    Raises
    ------
    ValueError
        For NaN or infinite values, different widths, or a bank with fewer than `k` rows.
    """
    indices, similarities = exact_topk(
        real(query, "query"),
        bank if isinstance(bank, Rows) else real(bank, "bank"),
        positive(k, "k"),
        exclude_self=exclude_self,
        chunk=positive(chunk, "chunk"),
        device=device,
    )
    return indices, similarities.astype(np.float32)


def exact_topk(
    query: NDArray,
    bank: NDArray | Rows,
    k: int,
    *,
    exclude_self: bool = False,
    chunk: int = 256,
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What :func:`cosine_topk` gives, with the similarities as they were compared: float64, to nine decimals."""
    if query.shape[1] != bank.shape[1]:
        raise ValueError(f"query has {query.shape[1]} features and bank has {bank.shape[1]}; they are of one encoder.")
    if exclude_self and len(query) != len(bank):
        raise ValueError(f"exclude_self needs query and bank to be the same rows, not {len(query)} and {len(bank)}.")
    available = len(bank) - exclude_self
    if available < k:
        raise ValueError(f"The bank has {available} spots to choose from, fewer than the {k} neighbours asked for.")
    finite(query, "query")

    slack = 2 * (_FACTOR_ERROR[torch.get_float32_matmul_precision()] + (bank.shape[1] + 4) * 2.0**-23)
    values, candidates = _shortlists(query, bank, min(k + MARGIN, available), exclude_self, chunk, device)
    indices = np.empty((len(query), k), dtype=np.int64)
    similarities = np.empty((len(query), k), dtype=np.float64)
    for rows in blocks(len(query), chunk):
        indices[rows], similarities[rows] = best_of(query[rows], bank, candidates[rows], k)
    if candidates.shape[1] < available:
        # Where the shortlist may end inside a tie, every row that could still belong to the answer is looked at.
        least = values[:, k - 1] - slack
        undecided = np.flatnonzero(values[:, -1] >= least)
        for i, every in _every_above(query, bank, undecided, least, exclude_self, chunk, device):
            indices[i : i + 1], similarities[i : i + 1] = best_of(query[i : i + 1], bank, every[None], k)
    return indices, similarities


def best_of(
    query: NDArray, bank: NDArray | Rows, candidates: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The `k` best of the candidates of each query, (n, c), and their similarities: most similar, then lower index."""
    exact = _similarity(query, bank, candidates)
    order = np.lexsort((candidates, -exact), axis=1)[:, :k]
    return np.take_along_axis(candidates, order, axis=1), np.take_along_axis(exact, order, axis=1)


def _shortlists(
    query: NDArray, bank: NDArray | Rows, size: int, exclude_self: bool, chunk: int, device: str | torch.device
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `size` highest float32 scores of each query, descending, and their rows of the bank, (n, size) each."""
    values = torch.full((len(query), size), -torch.inf, device=device)
    indices = torch.zeros((len(query), size), dtype=torch.int64, device=device)
    for block in blocks(len(bank), _BLOCK):
        unit_bank = units(bank[block], "bank", block.start, device).T
        for rows in blocks(len(query), chunk):
            scores = _scores(query, rows, unit_bank, block, exclude_self, device)
            found, at = _highest(scores, min(size, scores.shape[1]))
            found, at = torch.cat([values[rows], found], dim=1), torch.cat([indices[rows], at + block.start], dim=1)
            values[rows], order = found.topk(size, dim=1)
            indices[rows] = at.gather(1, order)
    return values.cpu().numpy(), indices.cpu().numpy()


def _highest(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` highest of each row, and their columns.

    A full search of a wide row costs as much as a good part of the product that made it. So the row is cut into groups,
    the groups with the highest maxima are found, which hold the answer, and only they are searched.
    """
    n, m = scores.shape
    groups = m // _GROUP
    if groups <= 2 * size:
        return scores.topk(size, dim=1)
    # Group g holds the columns g, g + groups, g + 2 groups, ...: their maximum is one of whole rows of memory.
    whole = scores[:, : groups * _GROUP].view(n, _GROUP, groups)
    best = whole.amax(dim=1).topk(size, dim=1).indices
    columns = (best[:, None, :] + torch.arange(_GROUP, device=scores.device)[None, :, None] * groups).flatten(1)
    rest = torch.arange(groups * _GROUP, m, device=scores.device).expand(n, -1)
    columns = torch.cat([columns, rest], dim=1)
    found, at = scores.gather(1, columns).topk(size, dim=1)
    return found, columns.gather(1, at)


def _every_above(
    query: NDArray,
    bank: NDArray | Rows,
    undecided: NDArray[np.intp],
    least: NDArray[np.float32],
    exclude_self: bool,
    chunk: int,
    device: str | torch.device,
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """For each of some queries, all rows of the bank with a score of at least its `least`."""
    for some in blocks(len(undecided), chunk):
        rows = undecided[some]
        found: list[NDArray[np.int64]] = []
        for block in blocks(len(bank), _BLOCK):
            unit_bank = units(bank[block], "bank", block.start, device).T
            scores = _scores(query, rows, unit_bank, block, exclude_self, device)
            above = scores >= torch.from_numpy(least[rows]).to(device)[:, None]
            found.append((above.nonzero() + torch.tensor([0, block.start], device=device)).cpu().numpy())
        row, column = np.concatenate(found).T
        order = np.argsort(row, kind="stable")
        ends = np.searchsorted(row[order], np.arange(1, len(rows)))
        yield from zip(rows.tolist(), np.split(column[order], ends), strict=True)


def _scores(
    query: NDArray,
    rows: slice | NDArray[np.intp],
    unit_bank: Tensor,
    block: slice,
    exclude_self: bool,
    device: str | torch.device,
) -> Tensor:
    scores = units(query[rows], "query", 0, device) @ unit_bank
    if exclude_self:
        own = torch.from_numpy(np.arange(len(query))[rows] - block.start).to(device)
        inside = ((own >= 0) & (own < scores.shape[1])).nonzero()[:, 0]
        scores[inside, own[inside]] = -torch.inf
    return scores


def units(values: NDArray, what: str, first_row: int, device: str | torch.device) -> Tensor:
    """Rows at length 1, float32, on a device; a row of zeros stays one."""
    rows = np.ascontiguousarray(values, dtype=np.float32)
    finite(rows, what, first_row=first_row)
    return torch.from_numpy(rows / _norms(rows)[:, None].astype(np.float32)).to(device)


def _norms(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean norm of each row; 1 for a row of zeros."""
    norms = np.sqrt(np.einsum("...d,...d->...", values, values, dtype=np.float64))
    return np.where(norms > 0, norms, 1.0)


def _similarity(query: NDArray, bank: NDArray | Rows, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
    """Cosine of each query, (n, d), to its candidates, (n, c), in float64.

    Rounded, so that the order of summation cannot decide a tie.
    """
    query = query.astype(np.float64)
    rows = bank[candidates].astype(np.float64)
    dot = (rows @ query[:, :, None])[:, :, 0]
    norms = _norms64(rows) * _norms64(query)[:, None]
    # Adding 0.0 turns -0.0 into 0.0.
    return np.round(dot / norms, _DECIMALS) + 0.0


def _norms64(values: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.sqrt((values[..., None, :] @ values[..., :, None])[..., 0, 0])
    return np.where(norms > 0, norms, 1.0)
