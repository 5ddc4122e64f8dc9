"""Attention and means over lists of edges on the CPU in one pass: compiled kernels, and their gradient.

Written with tensor operations, attention over K edges a spot reads and writes every gathered key and value some ten
times; the sums themselves are a fraction of that. Here each is read once forwards and twice backwards, and nothing as
large as the edges times the width is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FLAGS = {"reassoc", "contract", "nsz"}
_SMALL = 2_000_000
"""Edges times width below which a second thread does not pay."""


class Edges(NamedTuple):
    """Edges by the node that receives, and by the node that sends; int64."""

    start: Tensor
    """First edge of each receiver, and their number at the end, (n_receivers + 1,)."""
    sender: Tensor
    """Sender of each edge, in the receivers' order, (n_edges,)."""
    sent_start: Tensor
    """First edge of each sender in the senders' order, (n_senders + 1,)."""
    sent: Tensor
    """The edges in the senders' order, (n_edges,)."""
    receiver: Tensor
    """Receiver of each edge, in the receivers' order, (n_edges,)."""

    def reversed(self) -> Edges:
        """The same edges the other way round."""
        # In the senders' order, edge i of the new list is edge sent[i] of the old one.
        position = torch.empty_like(self.sent)
        position[self.sent] = torch.arange(len(self.sent), device=self.sent.device)
        return Edges(self.sent_start, self.receiver[self.sent], self.start, position, self.sender[self.sent])


def edges_of(references: Tensor, n_senders: int) -> Edges:
    """Edges from the reference nodes of each target spot, (n, K), to it."""
    n, k = references.shape
    sender = references.reshape(-1).to(torch.int64)
    device = sender.device
    counts = torch.bincount(sender, minlength=n_senders)
    sent_start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Edges(
        torch.arange(n + 1, device=device) * k,
        sender,
        sent_start,
        torch.argsort(sender, stable=True),
        torch.arange(n, device=device).repeat_interleave(k),
    )


def both_ways(references: Tensor, n_senders: int) -> tuple[Edges, Edges]:
    """Edges from the reference nodes to the target spots, and the same from the target spots to the references."""
    there = edges_of(references, n_senders)
    return there, there.reversed()


def in_one_pass(states: Tensor) -> bool:
    """Whether :func:`attention` takes these states; others go through tensor operations."""
    return states.device.type == "cpu" and states.dtype == torch.float32


def attention(query: Tensor, keys_and_values: Tensor, edges: Edges, heads: int) -> Tensor:
    """Multi-head attention of each receiver over its senders; float32 on the CPU.

    Parameters
    ----------
    query
        Of the receivers, (n_receivers, width), heads side by side.
    keys_and_values
        Of the senders, (n_senders, 2 width).
    edges
        Who sends to whom.
    heads
        Number of heads.

    Returns
    -------
    (n_receivers, width), zeros for a receiver without senders.
    """
    return _Attention.apply(query.contiguous(), keys_and_values.contiguous(), edges, heads)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys_and_values: Tensor, edges: Edges, heads: int) -> Tensor:
        weights = query.new_empty(len(edges.sender), heads)
        out = torch.empty_like(query)
        start, sender = edges.start.numpy(), edges.sender.numpy()
        arrays = (query.detach().numpy(), keys_and_values.detach().numpy(), start, sender)
        _split(
            lambda a, b: _forward(*arrays, out.numpy(), weights.numpy(), a, b),
            len(query),
            weights.shape[0] * out.shape[1],
        )
        ctx.save_for_backward(query, keys_and_values, weights)
        ctx.edges, ctx.heads = edges, heads
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query, keys_and_values, weights = ctx.saved_tensors
        edges: Edges = ctx.edges
        gradient = gradient.contiguous()
        to_query, to_both = torch.empty_like(query), torch.empty_like(keys_and_values)
        to_scores = torch.empty_like(weights)
        q, kv, w, g, s = (t.detach().numpy() for t in (query, keys_and_values, weights, gradient, to_scores))
        start, sender = edges.start.numpy(), edges.sender.numpy()
        work = weights.shape[0] * query.shape[1]
        _split(lambda a, b: _to_receivers(kv, start, sender, w, g, s, to_query.numpy(), a, b), len(q), work)
        lists = edges.sent_start.numpy(), edges.sent.numpy(), edges.receiver.numpy()
        _split(lambda a, b: _to_senders(q, *lists, w, g, s, to_both.numpy(), a, b), len(kv), work)
        return to_query, to_both, None, None


def mean(states: Tensor, edges: Edges, degree: int) -> Tensor:
    """Mean of the states of each receiver's senders, `degree` of them each; float32 on the CPU.

    Parameters
    ----------
    states
        Of the senders, (n_senders, width).
    edges
        Who sends to whom.
    degree
        Senders of each receiver.

    Returns
    -------
    (n_receivers, width).
    """
    return _Mean.apply(states.contiguous(), edges, degree)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, edges: Edges, degree: int) -> Tensor:
        ctx.edges, ctx.degree = edges, degree
        return _summed(states, edges.start, edges.sender, degree)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        edges: Edges = ctx.edges
        return _summed(gradient, edges.sent_start, edges.receiver[edges.sent], ctx.degree), None, None


def _summed(values: Tensor, start: Tensor, rows: Tensor, divisor: int) -> Tensor:
    """Sums of lists of rows of `values`, divided by one number: list i is rows[start[i] : start[i + 1]]."""
    out = values.new_empty(len(start) - 1, values.shape[1])
    arrays = (values.detach().contiguous().numpy(), start.numpy(), rows.numpy(), np.float32(1 / divisor), out.numpy())
    _split(lambda a, b: _sums(*arrays, a, b), len(out), len(rows) * out.shape[1])
    return out


@numba.njit(nogil=True, fastmath=_FLAGS, inline="always")
def _dot(a: Any, i: Any, a_low: Any, b: Any, j: Any, b_low: Any, size: Any) -> np.float32:
    """Product of a[i, a_low:] and b[j, b_low:] over `size` columns."""
    # Unsigned: a signed index is asked whether it counts from the end, and the loop is not vectorised.
    i, a_low, j, b_low = np.uintp(i), np.uintp(a_low), np.uintp(j), np.uintp(b_low)
    total = np.float32(0)
    for d in range(np.uintp(size)):
        total += a[i, a_low + d] * b[j, b_low + d]
    return total


@numba.njit(nogil=True, fastmath=_FLAGS, inline="always")
def _add(out: Any, i: Any, out_low: Any, factor: Any, b: Any, j: Any, b_low: Any, size: Any) -> None:
    """Add factor * b[j, b_low:] to out[i, out_low:] over `size` columns."""
    i, out_low, j, b_low = np.uintp(i), np.uintp(out_low), np.uintp(j), np.uintp(b_low)
    for d in range(np.uintp(size)):
        out[i, out_low + d] += factor * b[j, b_low + d]


@numba.njit(nogil=True, cache=True, fastmath=_FLAGS)
def _forward(
    query: NDArray[np.float32],
    both: NDArray[np.float32],
    start: NDArray[np.int64],
    sender: NDArray[np.int64],
    out: NDArray[np.float32],
    weights: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """Attention of the receivers first..last - 1 into `out`, and the weights of their edges, (n_edges, heads)."""
    width, heads = query.shape[1], weights.shape[1]
    size = width // heads
    scale = np.float32(1 / np.sqrt(size))
    largest, total = np.empty(heads, np.float32), np.empty(heads, np.float32)
    for r in range(first, last):
        largest[:], total[:] = -np.inf, 0
        # Edge by edge, each row from its beginning to its end, as it lies in memory.
        for e in range(start[r], start[r + 1]):
            s = sender[e]
            for h in range(heads):
                score = _dot(query, r, h * size, both, s, h * size, size) * scale
                weights[e, h] = score
                largest[h] = max(largest[h], score)
        for e in range(start[r], start[r + 1]):
            for h in range(heads):
                weights[e, h] = np.exp(weights[e, h] - largest[h])
                total[h] += weights[e, h]
        out[r] = 0
        for e in range(start[r], start[r + 1]):
            s = sender[e]
            for h in range(heads):
                weight = weights[e, h] / total[h]
                weights[e, h] = weight
                _add(out, r, h * size, weight, both, s, width + h * size, size)


@numba.njit(nogil=True, cache=True, fastmath=_FLAGS)
def _to_receivers(
    both: NDArray[np.float32],
    start: NDArray[np.int64],
    sender: NDArray[np.int64],
    weights: NDArray[np.float32],
    gradient: NDArray[np.float32],
    to_scores: NDArray[np.float32],
    to_query: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """Gradient of the queries of the receivers first..last - 1, and of the scores (times the scale) of their edges."""
    width, heads = gradient.shape[1], weights.shape[1]
    size = width // heads
    scale = np.float32(1 / np.sqrt(size))
    mean = np.empty(heads, np.float32)
    for r in range(first, last):
        mean[:] = 0
        for e in range(start[r], start[r + 1]):
            s = sender[e]
            for h in range(heads):
                product = _dot(gradient, r, h * size, both, s, width + h * size, size)
                to_scores[e, h] = product
                mean[h] += weights[e, h] * product
        to_query[r] = 0
        for e in range(start[r], start[r + 1]):
            s = sender[e]
            for h in range(heads):
                value = weights[e, h] * (to_scores[e, h] - mean[h]) * scale
                to_scores[e, h] = value
                _add(to_query, r, h * size, value, both, s, h * size, size)


@numba.njit(nogil=True, cache=True, fastmath=_FLAGS)
def _to_senders(
    query: NDArray[np.float32],
    sent_start: NDArray[np.int64],
    sent: NDArray[np.int64],
    receiver: NDArray[np.int64],
    weights: NDArray[np.float32],
    gradient: NDArray[np.float32],
    to_scores: NDArray[np.float32],
    to_both: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """Gradient of keys and values of the senders first..last - 1."""
    width, heads = query.shape[1], weights.shape[1]
    size = width // heads
    for s in range(first, last):
        to_both[s] = 0
        for i in range(sent_start[s], sent_start[s + 1]):
            e = sent[i]
            r = receiver[e]
            for h in range(heads):
                value, weight = to_scores[e, h], weights[e, h]
                _add(to_both, s, h * size, value, query, r, h * size, size)
                _add(to_both, s, width + h * size, weight, gradient, r, h * size, size)


@numba.njit(nogil=True, cache=True, fastmath=_FLAGS)
def _sums(
    values: NDArray[np.float32],
    start: NDArray[np.int64],
    rows: NDArray[np.int64],
    factor: np.float32,
    out: NDArray[np.float32],
    first: int,
    last: int,
) -> None:
    """Sums of the lists of rows first..last - 1, times `factor`."""
    for i in range(first, last):
        out[i] = 0
        for e in range(start[i], start[i + 1]):
            _add(out, i, 0, factor, values, rows[e], 0, out.shape[1])


def _split(kernel: Callable[[int, int], None], n: int, work: int) -> None:
    """Run a kernel over n nodes, on torch's number of threads where that pays."""
    threads = torch.get_num_threads()
    if threads == 1 or work < _SMALL:
        kernel(0, n)
        return
    ends = np.linspace(0, n, 4 * threads + 1).astype(int).tolist()
    list(_pool(threads).map(kernel, ends[:-1], ends[1:]))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="spahgc-attention")
