"""Prediction of a slide of any size, layer by layer over all of its spots (DESIGN section 2).

A reference spot attends back to target spots anywhere on the slide, so a slide cannot be cut into pieces that are
predicted one after another. But a layer can be computed a few spots at a time: what grows with the slide are the hidden
states of two layers and the edges. The result is that of the whole graph at once, but for the order of sums.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn.functional import leaky_relu

from .._geometry import SpatialNeighbors
from .._run import Progress, no_progress, weighted, with_progress
from .._slides import Rows
from .attention import CrossNodeDualAttention
from .encoder import SLOPE, HeteroLayer
from .graph import reference_nodes
from .model import SpaHGC
from .pooling import CrossNodeAttentionPooling
from .retrieval import cosine_topk

CHUNK = 8192
"""Target spots that are worked on at once."""
IN_MEMORY = 2**31
"""Bytes of hidden states up to which they are kept in memory; beyond, in a temporary file."""


class Features(Protocol):
    """Embeddings of a slide's spots: an array, or what makes the rows that are asked for.

    What makes them may keep something for it; if it has a method ``forget``, that is called when all rows are read.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, d)"""

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        """Some rows, float32."""


class LargeGraph(NamedTuple):
    """The graph of a slide whose features are read a few rows at a time; see :func:`large_graph`."""

    features: Features
    near: NDArray[np.int32]
    """Neighbours of each target spot on the slide, (n, Q)."""
    references: NDArray[np.int32]
    """Reference nodes of each target spot, (n, K)."""
    nodes: NDArray[np.int64]
    """Row of each reference node among all reference spots, (m,)."""
    joint: Tensor
    """Joint features of the reference nodes, (m, d + g)."""
    close: Tensor
    """Neighbours of each reference node, (m, k)."""


def large_graph(
    features: Features,
    coordinates: ArrayLike,
    reference_embedding: NDArray[np.float32] | Rows,
    reference_expression: NDArray[np.float32] | Rows,
    *,
    n_references: int,
    n_near: int,
    n_close: int,
    device: str | torch.device = "cpu",
    search: Callable[[NDArray[np.float32]], NDArray[np.integer]] | None = None,
    progress: Progress = no_progress,
) -> LargeGraph:
    """The graph that :func:`build_graph` builds, as tables, with the features left where they are.

    Parameters
    ----------
    features
        Embeddings of the target slide's spots, (n, d): an array, or an object that makes rows of one.
    coordinates, n_references, n_near, n_close
        As for :func:`build_graph`.
    reference_embedding, reference_expression
        As for :func:`build_graph`, or :class:`~spahgc._slides.Rows`: the embeddings are read block by block, the
        expression of the spots that are retrieved.
    device
        Of the matrix products.
    search
        Finds the reference spots of some target spots, (n, K), from their features; `None` takes :func:`cosine_topk`.
    progress
        Called with the share of the spots that was done, each time some were.
    """
    if search is None:

        def search(some: NDArray[np.float32]) -> NDArray[np.integer]:
            return cosine_topk(some, reference_embedding, n_references, device=device)[0]

    n = features.shape[0]
    neighbours = SpatialNeighbors(coordinates)
    near = np.empty((n, min(n_near, n - 1)), np.int32)
    retrieved = np.empty((n, n_references), np.int32)
    for rows in with_progress(n, progress, CHUNK):
        near[rows] = neighbours(n_near, rows)
        retrieved[rows] = search(features[rows])
    nodes = reference_nodes(retrieved, reference_embedding, reference_expression, n_close, device=device)
    joint, close = torch.from_numpy(nodes.joint), torch.from_numpy(nodes.close)
    return LargeGraph(features, near, nodes.references.astype(np.int32), nodes.index, joint, close)


@torch.inference_mode()
def predict(
    network: SpaHGC,
    graph: LargeGraph,
    write: Callable[[slice, NDArray[np.float32]], None] | None,
    *,
    attended: Callable[[slice, NDArray[np.float32]], None] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Predict the target spots of a graph.

    Parameters
    ----------
    network
        The trained network, in evaluation mode; the device it is on computes.
    graph
        As from :func:`large_graph`.
    write
        Called with rows and their predicted values, float32 (n_rows, g), until all rows are through; `None` where
        these are not wanted.
    attended
        Called with rows and how much they attend to each of their references, float32 (n_rows, K), summing to 1: once
        for the rows of each layer that attends to references, and once for the pooling.
    progress
        Called with the share of the work that was done, each time some was; the shares sum to 1.
    """
    encoder, n = network.encoder, graph.features.shape[0]
    device, hidden = network.head.weight.device, network.config.hidden
    joint, close = graph.joint.to(device), graph.close.to(device)
    expression = encoder.expression(joint[:, encoder.n_features :])
    reference = encoder.reference(joint)
    once = weighted(progress, 1 / (2 + len(encoder.layers)))
    with ExitStack() as files:
        states = files.enter_context(_states(n, hidden))
        for rows in with_progress(n, once, CHUNK):
            states.write(rows, encoder.target(torch.from_numpy(graph.features[rows]).to(device)))
        # Before there are two states: together they would be the most memory that is needed at a time.
        getattr(graph.features, "forget", _nothing)()
        updated = files.enter_context(_states(n, hidden))
        for layer in cast("list[HeteroLayer]", encoder.layers):
            back = None if layer.refer is None else _AttendBack(layer.refer, reference)
            answer = None if layer.refer is None else layer.refer.answer(reference, expression)
            for rows in with_progress(n, once, CHUNK):
                own, near = states.read(rows, device), torch.from_numpy(graph.near[rows])
                around = states.around(near, device)
                message = layer.near(own, around, torch.arange(near.numel(), device=device).view(near.shape))
                if layer.refer is not None and back is not None and answer is not None:
                    references = _table(graph.references[rows], device)
                    message = (message + layer.refer.to_target.attend(own, answer, references)) / 2
                    if attended is not None:
                        attended(rows, layer.refer.to_target.weights(own, answer, references).cpu().numpy())
                    back.add(own, references)
                updated.write(rows, leaky_relu(message, SLOPE))
            message = layer.close(reference, reference, close)
            reference = leaky_relu(message if back is None else (message + back.message()) / 2, SLOPE)
            states, updated = updated, states
        answer = network.pooling.answer(reference)
        for rows in with_progress(n, once, CHUNK):
            own, references = states.read(rows, device), _table(graph.references[rows], device)
            pooled = network.pooling.pool(own, answer, references)
            if attended is not None and isinstance(network.pooling, CrossNodeAttentionPooling):
                attended(rows, network.pooling.attention.weights(own, answer, references).cpu().numpy())
            if write is not None:
                write(rows, network.output(pooled).cpu().numpy())


class _AttendBack:
    """What reference spots gather from target spots: the softmax over the edges of each, a few edges at a time.

    Kept are the largest score so far, and the sums of weights and of weighted values relative to it (Milakov &
    Gimelshein 2018).
    """

    def __init__(self, attention: CrossNodeDualAttention, reference: Tensor) -> None:
        self._attention = attention
        m, per_head = len(reference), (attention.heads, attention.head_width)
        self._query = attention.query(reference).view(m, *per_head)
        self._largest = reference.new_full((m, attention.heads), -torch.inf)
        self._total = reference.new_zeros(m, attention.heads)
        self._values = reference.new_zeros(m, *per_head)

    def add(self, target: Tensor, references: Tensor) -> None:
        """Take in some target spots, (c, hidden), with their reference nodes, (c, K)."""
        attention, (c, k) = self._attention, references.shape
        per_head = (attention.heads, attention.head_width)
        edges = references.reshape(-1)
        key, value = attention.key(target).view(c, 1, *per_head), attention.value(target).view(c, 1, *per_head)
        query = self._query.index_select(0, edges).view(c, k, *per_head)
        scores = (query * key).sum(dim=3).view(c * k, attention.heads) * attention.head_width**-0.5
        largest = self._largest.scatter_reduce(0, edges[:, None].expand_as(scores), scores, "amax")
        # Of nodes that no edge has reached yet the old largest is -inf, and so is the new one for some: 0 then.
        rescale = (self._largest - largest).nan_to_num(nan=0.0, neginf=-torch.inf).exp()
        weights = (scores - largest.index_select(0, edges)).exp()
        self._total = (self._total * rescale).index_add(0, edges, weights)
        weighted = (weights.view(c, k, -1, 1) * value).view(c * k, *per_head)
        self._values = (self._values * rescale[:, :, None]).index_add(0, edges, weighted)
        self._largest = largest

    def message(self) -> Tensor:
        """(m, hidden)"""
        return (self._values / self._total.clamp(min=torch.finfo(self._total.dtype).tiny)[:, :, None]).flatten(1)


class _States:
    """Hidden states of all target spots, float32 (n, hidden), in memory or in a file."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def read(self, rows: slice, device: torch.device) -> Tensor:
        return self._values[rows].to(device)

    def around(self, neighbours: Tensor, device: torch.device) -> Tensor:
        """States of neighbours, (c, Q), one after another, (c Q, hidden)."""
        return self._values.index_select(0, neighbours.reshape(-1)).to(device)

    def write(self, rows: slice, values: Tensor) -> None:
        self._values[rows] = values.to("cpu", torch.float32)


@contextmanager
def _states(n: int, hidden: int) -> Iterator[_States]:
    if 4 * n * hidden <= IN_MEMORY:
        yield _States(torch.empty(n, hidden))
        return
    with tempfile.TemporaryFile(prefix="spahgc-") as file:
        yield _States(torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(n, hidden))))


def _nothing() -> None:
    """What an array forgets."""


def _table(rows: NDArray[np.int32], device: torch.device) -> Tensor:
    return torch.from_numpy(rows).to(device, torch.int64)
