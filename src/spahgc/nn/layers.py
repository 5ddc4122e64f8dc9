"""Building blocks of the networks: attention and means over lists of edges, and dropout.

On the CPU, attention is compiled. Written with tensor operations, attention over K edges per spot reads and writes
every gathered key and value some ten times; the sums themselves are a fraction of that. The compiled kernels read each
once forward and twice backward, and store nothing as large as the edges times the width.
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
from torch import Tensor, nn
from torch.nn.functional import dropout

from .._settings import compiled
from .._slides import Float32

Int64 = NDArray[np.int64]
_FLAGS = {"reassoc", "contract", "nsz"}
_SMALL = 2_000_000  # edges times width below which a second thread does not pay
_STEPS = 2**16


class Edges(NamedTuple):
    """Edges ordered by receiver, and how to read them by sender; int64 tensors.

    Receiver i has the edges ``start[i]`` to ``start[i + 1]``; ``sender`` and ``receiver`` are the nodes of each edge.
    Sender j has the edges ``sent[sent_start[j] : sent_start[j + 1]]``.
    """

    start: Tensor
    sender: Tensor
    receiver: Tensor
    sent_start: Tensor
    sent: Tensor

    @classmethod
    def of(cls, senders: Tensor, n_senders: int) -> Edges:
        """Edges from the senders of each receiver, (n_receivers, k), to it."""
        n, k = senders.shape
        sender = senders.reshape(-1).to(torch.int64)
        counts = torch.bincount(sender, minlength=n_senders)
        return cls(
            torch.arange(n + 1, device=sender.device) * k,
            sender,
            torch.arange(n, device=sender.device).repeat_interleave(k),
            torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            torch.argsort(sender, stable=True),
        )

    def reversed(self) -> Edges:
        """The same edges in the opposite direction."""
        # In the order of the senders, edge i of the new list is edge sent[i] of the old one.
        position = torch.empty_like(self.sent)
        position[self.sent] = torch.arange(len(self.sent), device=self.sent.device)
        return Edges(self.sent_start, self.receiver[self.sent], self.sender[self.sent], self.start, position)

    def to(self, device: str | torch.device) -> Edges:
        """The edges on a device."""
        return Edges._make(tensor.to(device) for tensor in self)


def attend(query: Tensor, keys_and_values: Tensor, edges: Edges, heads: int) -> Tensor:
    """Multi-head attention of each receiver over its senders, (n_receivers, width); zeros for one without senders.

    Queries of the receivers are (n_receivers, width), heads side by side; keys and values of the senders are
    (n_senders, 2 width).
    """
    if _compiled(query):
        return _Attention.apply(query.contiguous(), keys_and_values.contiguous(), edges, heads)
    attention = RunningAttention(query, heads)
    attention.add(keys_and_values, edges.sender, edges.receiver)
    return attention.result()


def _compiled(states: Tensor) -> bool:
    return states.device.type == "cpu" and states.dtype == torch.float32


class RunningAttention:
    """:func:`attend` by tensor operations, with the edges in one part or in many.

    Kept are the largest score of each receiver so far, and the sums of weights and of weighted values relative to it
    (Milakov & Gimelshein 2018).
    """

    def __init__(self, query: Tensor, heads: int) -> None:
        dtype = torch.promote_types(query.dtype, torch.float32)
        self._query = query.view(len(query), heads, -1)
        self._largest = query.new_full((len(query), heads), -torch.inf, dtype=dtype)
        self._total = torch.zeros_like(self._largest)
        self._values = torch.zeros_like(self._query, dtype=dtype)

    def add(self, keys_and_values: Tensor, sender: Tensor, receiver: Tensor) -> None:
        """Add edges from some senders, whose keys and values are (n_senders, 2 width)."""
        _, heads, size = self._query.shape
        key, value = keys_and_values.view(-1, 2, heads, size).unbind(dim=1)
        # index_select rather than [] for its gradient, an index_add.
        products = self._query.index_select(0, receiver) * key.index_select(0, sender)
        scores = products.sum(dim=2).to(self._total.dtype) * size**-0.5
        with torch.no_grad():
            largest = self._largest.scatter_reduce(0, receiver[:, None].expand_as(scores), scores, "amax")
            # Both are -inf for receivers that no edge has reached: no change then.
            rescale = (self._largest - largest).nan_to_num(nan=0.0, neginf=-torch.inf).exp()
        weights = (scores - largest.index_select(0, receiver)).exp()
        weighted = weights[:, :, None] * value.index_select(0, sender)
        self._total = (self._total * rescale).index_add(0, receiver, weights)
        self._values = (self._values * rescale[:, :, None]).index_add(0, receiver, weighted)
        self._largest = largest

    def result(self) -> Tensor:
        """Attention over all edges so far, (n_receivers, width)."""
        return (self._values / self._total.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]).flatten(1)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys_and_values: Tensor, edges: Edges, heads: int) -> Tensor:
        weights, out = query.new_empty(len(edges.sender), heads), torch.empty_like(query)
        arrays = [t.detach().numpy() for t in (query, keys_and_values, edges.start, edges.sender, out, weights)]
        _split(_forward, arrays, len(query), len(weights) * out.shape[1])
        ctx.save_for_backward(query, keys_and_values, weights)
        ctx.edges = edges
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        query, keys_and_values, weights = ctx.saved_tensors
        to_query, to_both, to_scores = map(torch.empty_like, (query, keys_and_values, weights))
        tensors = (query, keys_and_values, weights, gradient.contiguous(), to_scores)
        q, both, w, g, scores = (tensor.detach().numpy() for tensor in tensors)
        start, sender, receiver, sent_start, sent = (tensor.numpy() for tensor in ctx.edges)
        work = len(w) * q.shape[1]
        _split(_to_receivers, [both, start, sender, w, g, scores, to_query.numpy()], len(q), work)
        _split(_to_senders, [q, sent_start, sent, receiver, w, g, scores, to_both.numpy()], len(both), work)
        return to_query, to_both, None, None


def neighbor_mean(states: Tensor, edges: Edges) -> Tensor:
    """Mean of the states of each receiver's senders, (n_receivers, width), if all have the same number of senders."""
    n = len(edges.start) - 1
    degree = max(len(edges.sender) // max(n, 1), 1)
    if _compiled(states):
        return _Mean.apply(states.contiguous(), edges, degree)
    sums = states.new_zeros(n, states.shape[1])
    return sums.index_add(0, edges.receiver, states.index_select(0, edges.sender)) / degree


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, edges: Edges, degree: int) -> Tensor:
        ctx.edges, ctx.degree = edges, degree
        return _summed(states, edges.start, edges.sender, degree)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        edges: Edges = ctx.edges
        return _summed(gradient.contiguous(), edges.sent_start, edges.receiver[edges.sent], ctx.degree), None, None


def _summed(values: Tensor, start: Tensor, rows: Tensor, divisor: int) -> Tensor:
    """Sums of lists of rows, divided by one number: list i is rows[start[i] : start[i + 1]]."""
    out = values.new_empty(len(start) - 1, values.shape[1])
    arrays = [values.detach().numpy(), start.numpy(), rows.numpy(), np.float32(1 / divisor), out.numpy()]
    _split(_sums, arrays, len(out), len(rows) * out.shape[1])
    return out


@numba.njit(nogil=True, fastmath=_FLAGS, inline="always")
def _dot(a: Any, i: Any, a_low: Any, b: Any, j: Any, b_low: Any, size: Any) -> np.float32:
    """Product of a[i, a_low:] and b[j, b_low:] over `size` columns."""
    # Unsigned: with a signed index the loop is not vectorized, because it may count from the end.
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


@compiled(fastmath=_FLAGS)
def _forward(
    query: Float32, both: Float32, start: Int64, sender: Int64, out: Float32, weights: Float32, first: int, last: int
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


@compiled(fastmath=_FLAGS)
def _to_receivers(
    both: Float32,
    start: Int64,
    sender: Int64,
    weights: Float32,
    gradient: Float32,
    to_scores: Float32,
    to_query: Float32,
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


@compiled(fastmath=_FLAGS)
def _to_senders(
    query: Float32,
    sent_start: Int64,
    sent: Int64,
    receiver: Int64,
    weights: Float32,
    gradient: Float32,
    to_scores: Float32,
    to_both: Float32,
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


@compiled(fastmath=_FLAGS)
def _sums(values: Float32, start: Int64, rows: Int64, factor: np.float32, out: Float32, first: int, last: int) -> None:
    """Sums of the lists of rows first..last - 1, times `factor`."""
    for i in range(first, last):
        out[i] = 0
        for e in range(start[i], start[i + 1]):
            _add(out, i, 0, factor, values, rows[e], 0, out.shape[1])


def _split(kernel: Callable[..., None], arrays: list[Any], n: int, work: int) -> None:
    """Run a kernel over n nodes, on torch's number of threads if they pay."""
    threads = torch.get_num_threads()
    if threads == 1 or work < _SMALL:
        kernel(*arrays, 0, n)
        return
    ends = np.linspace(0, n, 4 * threads + 1).astype(int).tolist()
    parts = zip(ends[:-1], ends[1:], strict=True)
    list(_pool(threads).map(lambda part: kernel(*arrays, *part), parts))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="spahgc-attention")


def draw(shape: tuple[int, ...], share: float, generator: torch.Generator | None = None) -> Tensor:
    """Random boolean mask in which each element is true with probability `share` (to 1 / 65536).

    On the CPU, one random number of 64 bits gives four elements; `torch.bernoulli` draws one for each.
    """
    if generator is not None and generator.device.type != "cpu":
        return torch.rand(shape, generator=generator, device=generator.device) < share
    n, below = torch.Size(shape).numel(), round(share * _STEPS) - _STEPS // 2
    if below == _STEPS // 2:  # one more than the largest number
        return torch.ones(shape, dtype=torch.bool)
    numbers = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    return (numbers.view(torch.int16)[:n] < below).view(shape)


class FastDropout(nn.Module):
    """`torch.nn.Dropout` with :func:`draw` on the CPU, where its own draws take longer than a matrix product."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, states: Tensor) -> Tensor:
        """States with a random part of them zero, and the rest scaled up."""
        if not self.training or self.p == 0 or states.device.type != "cpu":
            return dropout(states, self.p, self.training)
        return states * draw(tuple(states.shape), 1 - self.p).to(states.dtype).div_(1 - self.p)
