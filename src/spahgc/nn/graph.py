"""The heterogeneous graph of a target slide and its reference (DESIGN section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._checks import at_least, checked, matrix, real
from .._geometry import SpatialNeighbors
from .._run import Progress, no_progress, with_progress
from .._slides import Float32, Rows
from .layers import Edges
from .retrieval import cosine_topk

Index = NDArray[np.intp]


class GraphTensors(NamedTuple):
    """Tensors of a graph that the network reads."""

    target: Tensor  # embeddings of the target spots, (n, n_features)
    reference: Tensor  # joint features [z_r | y_r] of the reference nodes, (m, n_features + n_genes)
    near: Edges
    close: Edges
    refer: Edges
    back: Edges  # `refer` reversed
    core: Tensor | None = None  # target spots for the supervised loss (the others surround a block), None for all

    def to(self, device: str | torch.device) -> GraphTensors:
        """The same graph on a device; tensors that are there already are shared."""
        return GraphTensors._make(None if part is None else part.to(device) for part in self)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        parts = (part if isinstance(part, Edges) else [part] for part in self)
        return sum(tensor.nbytes for part in parts for tensor in part if tensor is not None)


class SlideGraph(NamedTuple):
    """Graph of a slide as arrays; features are read when they are needed. See :func:`slide_graph`."""

    features: Any  # embeddings of the target spots, (n, n_features), as they were given
    near: NDArray[np.integer]  # spatial neighbors of each target spot, (n, Q)
    references: NDArray[np.integer]  # reference nodes of each target spot, (n, K)
    nodes: NDArray[np.int64]  # row of each reference node among all reference spots, (m,)
    close: NDArray[np.int64]  # neighbors of each reference node, (m, k)
    embedding: NDArray | Rows  # of all reference spots, (n_reference, n_features)
    expression: NDArray | Rows  # (n_reference, n_genes)

    @classmethod
    def of(
        cls,
        features: Any,
        near: NDArray[np.integer],
        retrieved: NDArray[np.integer],
        embedding: NDArray | Rows,
        expression: NDArray | Rows,
        n_close: int,
        *,
        device: str | torch.device = "cpu",
        topk: Callable[..., Any] = cosine_topk,
    ) -> SlideGraph:
        """Connect the reference spots that were retrieved for each target spot, (n, K)."""
        # By a table of all reference spots rather than by sorting the edges, of which there may be many millions.
        used = np.zeros(len(embedding), dtype=bool)
        used[retrieved.reshape(-1)] = True
        nodes = np.flatnonzero(used)
        references = (np.cumsum(used, dtype=retrieved.dtype) - 1)[retrieved]
        k, close = min(n_close, len(nodes) - 1), np.empty((len(nodes), 0), np.int64)
        graph = cls(features, near, references, nodes, close, embedding, expression)
        if k < 1:
            return graph
        joint = graph.joint.numpy()
        return graph._replace(close=topk(joint, joint, k, exclude_self=True, device=device)[0])

    @property
    def joint(self) -> Tensor:
        """Joint features [z_r | y_r] of the reference nodes, (m, n_features + n_genes)."""
        features = self.embedding[self.nodes], self.expression[self.nodes]
        return torch.from_numpy(np.concatenate(features, axis=1, dtype=np.float32))

    def tensors(self, core: Tensor | None = None) -> GraphTensors:
        """The graph as tensors, with all features read."""
        target, reference = torch.from_numpy(np.array(self.features[:], dtype=np.float32)), self.joint
        near, close, refer = (
            Edges.of(torch.from_numpy(table), len(senders))
            for table, senders in ((self.near, target), (self.close, reference), (self.references, reference))
        )
        return GraphTensors(target, reference, near, close, refer, refer.reversed(), core)


@checked(n_references=at_least(1), n_near=at_least(1), n_close=at_least(1))
def slide_graph(
    features: Any,
    coordinates: ArrayLike,
    reference_embedding: ArrayLike | Rows,
    reference_expression: ArrayLike | Rows,
    *,
    n_references: int = 7,
    n_near: int = 5,
    n_close: int = 3,
    device: str | torch.device = "cpu",
    search: Callable[[Float32], NDArray[np.integer]] | None = None,
    topk: Callable[..., Any] = cosine_topk,
    progress: Progress = no_progress,
) -> SlideGraph:
    """Build the graph of one target slide, of any size.

    Parameters
    ----------
    features
        Embeddings of the target slide's spots, (n, n_features): an array, or an object with a shape that computes the
        rows that are read. Its method ``forget``, if any, is called to free memory when all rows have been read.
    coordinates
        Their positions, (n, 2), in any unit.
    reference_embedding, reference_expression
        Embeddings of all spots of all reference slides, (n_reference, n_features), read block by block, and their
        expression, (n_reference, n_genes), of which only spots that are retrieved are read.
    n_references, n_near, n_close
        Reference spots per target spot (K), by cosine of the embeddings; spatial neighbors per target spot (Q), or all
        others if they are fewer; and neighbors per reference spot (k) among the retrieved ones, by cosine of the joint
        features.
    device
        Torch device of the matrix products.
    search
        Finds the reference spots of some target spots, (n_some, K), from their features; `topk` by default.
    topk
        Search for similar spots, called as :func:`cosine_topk`.
    progress
        Called with the share of the spots that was processed, each time some were.

    Raises
    ------
    ValueError
        If there are fewer reference spots than `n_references`, or shapes do not fit, or values are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from spahgc.nn import slide_graph
    >>> rng = np.random.default_rng(0)
    >>> slide_graph(rng.random((9, 8)), rng.random((9, 2)), rng.random((20, 8)), rng.random((20, 3))).references.shape
    (9, 7)
    """
    target: Any = real(features, "features") if isinstance(features, np.ndarray | Sequence) else features
    z_r = _matrix_or_rows(reference_embedding, "reference_embedding")
    y_r = _matrix_or_rows(reference_expression, "reference_expression")
    neighbors, n = SpatialNeighbors(coordinates), target.shape[0]
    if not n:
        raise ValueError(f"features is empty: its shape is {target.shape}.")
    if len(neighbors.coordinates) != n:
        raise ValueError(f"coordinates has {len(neighbors.coordinates)} rows, but there are {n} embeddings.")
    if len(y_r) != len(z_r):
        raise ValueError(f"reference_expression has {len(y_r)} rows, but there are {len(z_r)} embeddings.")
    near = np.empty((n, min(n_near, n - 1)), np.int32)
    retrieved = np.empty((n, n_references), np.int32)
    for rows in with_progress(n, progress):
        near[rows] = neighbors(n_near, rows)
        some = target[rows]
        retrieved[rows] = search(some) if search else topk(some, z_r, n_references, device=device)[0]
    return SlideGraph.of(target, near, retrieved, z_r, y_r, n_close, device=device, topk=topk)


def _matrix_or_rows(values: ArrayLike | Rows, name: str) -> NDArray | Rows:
    return values if isinstance(values, Rows) else matrix(values, name)


@checked(max_spots=at_least(1))
def spatial_blocks(coordinates: ArrayLike, max_spots: int, *, n_near: int, hops: int) -> list[tuple[Index, Index]]:
    """Cut a slide into blocks of at most `max_spots` spots, each with its surroundings.

    The slide is halved at the median of its longer side until every part is small enough. Each part gets the spots
    that can be reached in `hops` steps to `n_near` spatial neighbors: with as many as the network has layers, a spot of
    the block gathers over the block what it would gather over the whole slide.

    Parameters
    ----------
    coordinates
        Positions, (n_spots, 2), in any unit.
    max_spots
        Most spots of a block, surroundings not counted.
    n_near, hops
        Spatial neighbors per spot (Q), and steps that the surroundings reach.

    Returns
    -------
    For each block, the rows of its spots and surroundings, ascending, and the positions of its own spots among them.
    Each spot is one block's own. A slide that is small enough is one block.

    Examples
    --------
    >>> from spahgc.nn import spatial_blocks
    >>> [len(core) for _, core in spatial_blocks([[0, 0], [1, 0], [2, 0], [3, 0]], 2, n_near=1, hops=1)]
    [2, 2]
    """
    xy = matrix(coordinates, "coordinates", dtype=np.float64)
    parts, small = [np.arange(len(xy))], []
    while parts:
        part = parts.pop()
        if len(part) <= max_spots:
            small.append(part)
            continue
        axis = int(np.ptp(xy[part], axis=0).argmax())
        # A stable order: spots at one place go to either side by their number.
        order = part[np.argsort(xy[part, axis], kind="stable")]
        parts += [order[len(order) // 2 :], order[: len(order) // 2]]
    if len(small) == 1:
        return [(small[0], np.arange(len(small[0])))]
    near, blocks = SpatialNeighbors(xy)(n_near), []
    for part in small:
        rows = np.sort(part)
        for _ in range(hops):
            rows = np.union1d(rows, near[rows])
        blocks.append((rows, np.searchsorted(rows, np.sort(part))))
    return blocks
