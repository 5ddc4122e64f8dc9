"""Nearest neighbours, exact and reproducible: cosine over a bank of embeddings, Euclidean over spot positions.

Ties are common here (spots on a grid, duplicated tiles), so both functions state who wins one: the lower index. Neither
the size of a chunk, nor the threads, nor the inner order of a search tree has a say in it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

_SIMILARITY_DECIMALS = 9
_DISTANCE_DECIMALS = 9
_MARGIN = 16
# Rounding of the factors of a float32 product under torch.set_float32_matmul_precision, relative to unit vectors.
_FACTOR_ERROR = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}


def matrix(values: ArrayLike, what: str, *, dtype: type = np.float32) -> NDArray:
    """`values` as a finite two-dimensional array, or an error that names `what`."""
    array = np.asarray(values)
    if array.ndim != 2:
        raise ValueError(f"{what} has shape {array.shape}; it is a matrix with one row per spot.")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise TypeError(f"{what} has dtype {array.dtype}; it holds real numbers.")
    array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        where = f"{len(rows)} of {len(array)} rows, first in row {rows[0]}"
        raise ValueError(f"{what} has NaN or infinite values in {where}.")
    return array


def _positive(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is a whole number, not {value!r}.")
    if value < 1:
        raise ValueError(f"{name} is at least 1, not {value}.")
    return int(value)


def cosine_topk(
    query: ArrayLike,
    bank: ArrayLike,
    k: int,
    *,
    exclude_self: bool = False,
    chunk: int = 256,
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` rows of a bank that are most similar to each query by cosine.

    A float32 matrix product per chunk of queries gives a shortlist; its members are scored again in float64, rounded to
    nine decimals, and ordered by similarity, then index. The shortlist holds every row that can belong to the answer,
    given the error bound of the product, so the result is that of a full float64 search. A row of zeros has similarity
    0 to all.

    Parameters
    ----------
    query
        (n, d).
    bank
        (m, d).
    k
        Neighbours per query, at most m (m - 1 with `exclude_self`).
    exclude_self
        `query` and `bank` are the same rows; leave row i out of the answer for query i.
    chunk
        Queries per matrix product; memory is ``4 * chunk * m`` bytes. Changes no result.
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
    query, bank = matrix(query, "query"), matrix(bank, "bank")
    k, chunk = _positive(k, "k"), _positive(chunk, "chunk")
    if query.shape[1] != bank.shape[1]:
        raise ValueError(f"query has {query.shape[1]} features and bank has {bank.shape[1]}; they are of one encoder.")
    if exclude_self and len(query) != len(bank):
        raise ValueError(f"exclude_self needs query and bank to be the same rows, not {len(query)} and {len(bank)}.")
    available = len(bank) - exclude_self
    if available < k:
        raise ValueError(f"The bank has {available} spots to choose from, fewer than the {k} neighbours asked for.")

    query_norm, bank_norm = _norms(query), _norms(bank)
    unit_bank = torch.from_numpy(bank / bank_norm[:, None].astype(np.float32)).to(device)
    slack = 2 * (_FACTOR_ERROR[torch.get_float32_matmul_precision()] + (bank.shape[1] + 4) * 2.0**-23)
    shortlist = min(k + _MARGIN, available)
    indices = np.empty((len(query), k), dtype=np.int64)
    similarities = np.empty((len(query), k), dtype=np.float32)
    for start in range(0, len(query), chunk):
        rows = np.arange(start, min(start + chunk, len(query)))
        unit = torch.from_numpy(query[rows] / query_norm[rows, None].astype(np.float32)).to(device)
        scores = unit @ unit_bank.T
        if exclude_self:
            scores[torch.arange(len(rows)), torch.from_numpy(rows)] = -torch.inf
        top = scores.topk(shortlist, dim=1)
        candidates = top.indices.cpu().numpy()
        exact = _similarity(query[rows, None], bank[candidates], query_norm[rows, None], bank_norm[candidates])
        order = np.lexsort((candidates, -exact), axis=1)[:, :k]
        indices[rows] = np.take_along_axis(candidates, order, axis=1)
        similarities[rows] = np.take_along_axis(exact, order, axis=1)
        if shortlist == available:
            continue
        # Where the shortlist may end inside a tie, every row that could still belong to the answer is looked at.
        undecided = (top.values[:, -1] >= top.values[:, k - 1] - slack).nonzero()[:, 0].cpu().numpy()
        for i in undecided:
            row = rows[i]
            every = (scores[i] >= top.values[i, k - 1] - slack).nonzero()[:, 0].cpu().numpy()
            exact = _similarity(query[row], bank[every], query_norm[row], bank_norm[every])
            first = np.lexsort((every, -exact))[:k]
            indices[row], similarities[row] = every[first], exact[first]
    return indices, similarities


def _norms(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean norm of each row; 1 for a row of zeros."""
    norms = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    return np.where(norms > 0, norms, 1.0)


def _similarity(query: NDArray, bank: NDArray, query_norm: NDArray, bank_norm: NDArray) -> NDArray[np.float64]:
    """Cosine of pairs of rows in float64, rounded so that the order of summation cannot decide a tie."""
    dot = np.einsum("...d,...d->...", query, bank, dtype=np.float64)
    # Adding 0.0 turns -0.0 into 0.0.
    return np.round(dot / (query_norm * bank_norm), _SIMILARITY_DECIMALS) + 0.0


def spatial_knn(coordinates: ArrayLike, k: int) -> NDArray[np.int64]:
    """The `k` nearest other spots of each spot.

    Distances that agree to nine decimals of the largest one in question are ties; the lower index wins.

    Parameters
    ----------
    coordinates
        Positions, (n, 2) or (n, 3), in any unit.
    k
        Neighbours per spot; where a slide has only n <= k spots, each gets the n - 1 others.

    Returns
    -------
    Row numbers, int64 (n, min(k, n - 1)), nearest first.

    Raises
    ------
    ValueError
        For NaN or infinite coordinates, or another number of dimensions.
    """
    xy = matrix(coordinates, "coordinates", dtype=np.float64)
    k = _positive(k, "k")
    if xy.shape[1] not in (2, 3):
        raise ValueError(f"coordinates has {xy.shape[1]} columns; it has x, y (and z).")
    n = len(xy)
    k = min(k, n - 1)
    if k < 1:
        return np.empty((n, 0), dtype=np.int64)
    tree = cKDTree(xy)
    width = min(k + 1 + _MARGIN, n)
    distances, candidates = tree.query(xy, k=width)
    own = np.arange(n)[:, None]
    # Spots at one place: the tree may return any of them first, and may leave out the spot itself.
    distances = np.where(candidates == own, np.inf, distances)
    kth = np.partition(distances, k - 1, axis=1)[:, k - 1]
    unit = kth.max() or 1.0
    order = np.lexsort((candidates, np.round(distances / unit, _DISTANCE_DECIMALS)), axis=1)[:, :k]
    result = np.take_along_axis(candidates, order, axis=1).astype(np.int64)
    if width == n:
        return result
    reach = kth + unit * 10.0 ** (1 - _DISTANCE_DECIMALS)
    farthest = np.where(np.isinf(distances), -np.inf, distances).max(axis=1)
    for i in np.flatnonzero(farthest <= reach):
        every = np.array(tree.query_ball_point(xy[i], reach[i]))
        every = every[every != i]
        rounded = np.round(np.linalg.norm(xy[every] - xy[i], axis=1) / unit, _DISTANCE_DECIMALS)
        result[i] = every[np.lexsort((every, rounded))[:k]]
    return result
