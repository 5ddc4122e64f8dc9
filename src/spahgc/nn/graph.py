"""The heterogeneous graph of a target slide and its reference (DESIGN section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch_geometric.data import HeteroData

from .._checks import at_least, checked, matrix, real
from .._geometry import SpatialNeighbors
from .._run import Progress, no_progress, with_progress
from .._slides import Float32, Rows
from .layers import Edges
from .retrieval import cosine_topk

Search = Callable[..., tuple[NDArray[np.int64], Float32]]  # with the parameters of `cosine_topk`


class GraphTensors(NamedTuple):
    """Tensors of a graph that the network reads; see :meth:`of`."""

    target: Tensor
    reference: Tensor
    near: Edges
    close: Edges
    refer: Edges
    back: Edges
    core: Tensor | None = None

    @classmethod
    def of(
        cls,
        target: Tensor,
        reference: Tensor,
        *,
        near: Tensor,
        close: Tensor,
        references: Tensor,
        core: Tensor | None = None,
    ) -> GraphTensors:
        """Make them from tables of neighbors.

        Parameters
        ----------
        target
            Embeddings of the target spots, (n, n_features).
        reference
            Joint features [z_r | y_r] of the reference nodes, (m, n_features + n_genes).
        near, close, references
            Spatial neighbors of each target spot, (n, Q); neighbors of each reference node among the reference nodes,
            (m, k); reference nodes of each target spot, (n, K).
        core
            Target spots for the supervised loss, int64 (n_core,); `None` for all. In a slide that is trained in blocks
            (:func:`spatial_blocks`), the others surround the block.
        """
        n, m = len(target), len(reference)
        refer = Edges.of(references, m)
        return cls(target, reference, Edges.of(near, n), Edges.of(close, m), refer, refer.reversed(), core)

    def to(self, device: str | torch.device) -> GraphTensors:
        """The same graph on a device; tensors that are there already are shared."""
        return GraphTensors._make(None if part is None else part.to(device) for part in self)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        parts = (part if isinstance(part, Edges) else [part] for part in self)
        return sum(tensor.nbytes for part in parts for tensor in part if tensor is not None)


class SlideGraph(NamedTuple):
    """Graph of a slide as arrays; features are read when they are needed. See :func:`slide_graph`.

    Parameters
    ----------
    features
        Embeddings of the target spots, (n, n_features), as they were given.
    near
        Spatial neighbors of each target spot, (n, Q).
    references
        Reference nodes of each target spot, (n, K).
    nodes
        Row of each reference node among all reference spots, (m,).
    close
        Neighbors of each reference node, (m, k).
    embedding, expression
        Embeddings, (n_reference, n_features), and expression, (n_reference, n_genes), of all reference spots.
    """

    features: Any
    near: NDArray[np.integer]
    references: NDArray[np.integer]
    nodes: NDArray[np.int64]
    close: NDArray[np.int64]
    embedding: NDArray | Rows
    expression: NDArray | Rows

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
        topk: Search = cosine_topk,
    ) -> SlideGraph:
        """Connect the reference spots that were retrieved for each target spot, (n, K), with their nearest."""
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
        near, close, references = map(torch.from_numpy, (self.near, self.close, self.references))
        features = torch.from_numpy(np.array(self.features[:], dtype=np.float32))
        return GraphTensors.of(features, self.joint, near=near, close=close, references=references, core=core)


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
    topk: Search = cosine_topk,
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
    reference_embedding
        Embeddings of all spots of all reference slides, (n_reference, n_features), an array or
        :class:`~spahgc._slides.Rows`; read block by block.
    reference_expression
        Their expression, (n_reference, n_genes); only spots that are retrieved are read.
    n_references
        Reference spots per target spot (K), by cosine of the embeddings.
    n_near
        Spatial neighbors per target spot (Q); fewer on a slide with fewer other spots.
    n_close
        Neighbors per reference spot (k) among the retrieved ones, by cosine of the joint features.
    device
        Torch device of the matrix products.
    search
        Finds the reference spots of some target spots, (n_some, K), from their features; exact search by default.
    topk
        Search among the reference nodes, with the parameters of :func:`cosine_topk`.
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
        retrieved[rows] = search(some) if search else cosine_topk(some, z_r, n_references, device=device)[0]
    return SlideGraph.of(target, near, retrieved, z_r, y_r, n_close, device=device, topk=topk)


def _matrix_or_rows(values: ArrayLike | Rows, name: str) -> NDArray | Rows:
    return values if isinstance(values, Rows) else matrix(values, name)


def build_graph(
    target_embedding: ArrayLike,
    target_coordinates: ArrayLike,
    reference_embedding: ArrayLike,
    reference_expression: ArrayLike,
    *,
    n_references: int = 7,
    n_near: int = 5,
    n_close: int = 3,
) -> HeteroData:
    """Build the graph of one target slide for PyTorch Geometric.

    An edge runs from a neighbor or reference to the spot that receives its message.

    Parameters
    ----------
    target_embedding, target_coordinates, reference_embedding, reference_expression, n_references, n_near, n_close
        As the parameters of :func:`slide_graph`, in its order.

    Returns
    -------
    ``data["target"].x`` holds the embeddings, ``data["reference"].x`` and ``.y`` the joint features and expression of
    the retrieved reference spots, and ``.index`` their rows. Edge types are ``("target", "near", "target")``,
    ``("reference", "refer", "target")`` and ``("reference", "close", "reference")``.

    Examples
    --------
    >>> import numpy as np
    >>> from spahgc.nn import build_graph
    >>> rng = np.random.default_rng(0)
    >>> build_graph(rng.random((9, 8)), rng.random((9, 2)), rng.random((20, 8)), rng.random((20, 3))).node_types
    ['target', 'reference']
    """
    arrays = target_embedding, target_coordinates, reference_embedding, reference_expression
    graph = slide_graph(*arrays, n_references=n_references, n_near=n_near, n_close=n_close)
    data, tensors = HeteroData(), graph.tensors()
    data["target"].x, data["reference"].x = tensors.target, tensors.reference
    data["reference"].y = tensors.reference[:, tensors.target.shape[1] :]
    data["reference"].index = torch.from_numpy(graph.nodes)
    for source, kind, receiver, edges in (
        ("target", "near", "target", tensors.near),
        ("reference", "refer", "target", tensors.refer),
        ("reference", "close", "reference", tensors.close),
    ):
        data[source, kind, receiver].edge_index = torch.stack([edges.sender, edges.receiver])
    return data


class Block(NamedTuple):
    """Some spots of a slide with their surroundings, ascending, (n,), and the positions of its own among them."""

    rows: NDArray[np.intp]
    core: NDArray[np.intp]


@checked(max_spots=at_least(1))
def spatial_blocks(coordinates: ArrayLike, max_spots: int, *, n_near: int, hops: int) -> list[Block]:
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
    The blocks; every spot is in the core of exactly one. A slide that is small enough is one block.

    Examples
    --------
    >>> from spahgc.nn import spatial_blocks
    >>> [len(block.core) for block in spatial_blocks([[0, 0], [1, 0], [2, 0], [3, 0]], 2, n_near=1, hops=1)]
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
        return [Block(small[0], np.arange(len(small[0])))]
    near, blocks = SpatialNeighbors(xy)(n_near), []
    for part in small:
        rows = np.sort(part)
        for _ in range(hops):
            rows = np.union1d(rows, near[rows])
        blocks.append(Block(rows, np.searchsorted(rows, np.sort(part))))
    return blocks
