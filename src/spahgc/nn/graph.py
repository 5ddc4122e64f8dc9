"""Plain arrays of a target slide and its reference to a heterogeneous graph (DESIGN section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch_geometric.data import HeteroData

from .._checks import matrix
from .._disk import cached, digest
from .._geometry import spatial_knn
from .._slides import Rows
from ._fused import Edges, both_ways, edges_of
from .retrieval import cosine_topk

NEAR = ("target", "near", "target")
REFER = ("reference", "refer", "target")
CLOSE = ("reference", "close", "reference")


class GraphEdges(NamedTuple):
    """The edges of a graph as the compiled kernels of the CPU read them."""

    there: Edges
    """``refer``: from the references to the target spots."""
    back: Edges
    """The same the other way round."""
    near: Edges
    close: Edges


class GraphTensors(NamedTuple):
    """What the network reads of a graph, checked once; see :func:`graph_tensors`."""

    target: Tensor
    """Embeddings of the target spots, (n, d)."""
    reference: Tensor
    """Joint features [z_r | y_r] of the reference spots, (m, d + g)."""
    near: Tensor
    """Neighbours of each target spot on the slide, (n, Q)."""
    close: Tensor
    """Neighbours of each reference spot among the reference spots, (m, k)."""
    references: Tensor
    """Reference nodes of each target spot, (n, K)."""
    base: Tensor | None = None
    """Prediction that the network adds to, (n, g), or `None`."""
    core: Tensor | None = None
    """Target spots that the supervised loss is taken over, int64 (n_core,); `None` for all. Of a slide that is trained
    in blocks (:func:`spatial_blocks`) the rest is the block's surroundings."""

    edges: GraphEdges | None = None
    """All edges, for the CPU; see :meth:`with_edges`."""

    def to(self, device: str | torch.device) -> GraphTensors:
        """The same on a device; tensors that are there already are shared."""
        return GraphTensors._make(tensor.to(device) if isinstance(tensor, Tensor) else None for tensor in self)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = [*self, *(tensor for edges in self.edges or () for tensor in edges)]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))

    def with_edges(self) -> GraphTensors:
        """The same, with :attr:`edges` if they are lacking and the graph is on the CPU: made once, they serve often."""
        if self.edges is not None or self.references.device.type != "cpu":
            return self
        there, back = both_ways(self.references, len(self.reference))
        near, close = edges_of(self.near, len(self.target)), edges_of(self.close, len(self.reference))
        return self._replace(edges=GraphEdges(there, back, near, close))


def build_graph(
    target_embedding: ArrayLike,
    target_coordinates: ArrayLike,
    reference_embedding: ArrayLike,
    reference_expression: ArrayLike,
    *,
    n_references: int = 7,
    n_near: int = 5,
    n_close: int = 3,
    chunk: int = 256,
    device: str | torch.device = "cpu",
) -> HeteroData:
    """Build the graph of one target slide.

    An edge runs from a neighbour or reference (source) to the spot that receives its message.

    Parameters
    ----------
    target_embedding
        Embeddings of the target slide's spots, (n, d).
    target_coordinates
        Their positions, (n, 2), in any unit.
    reference_embedding
        Embeddings of all spots of all reference slides, (n_reference, d).
    reference_expression
        Their expression, (n_reference, g).
    n_references
        Reference spots per target spot (K), by cosine of the embeddings.
    n_near
        Spatial neighbours per target spot (Q); fewer on a slide with fewer other spots.
    n_close
        Neighbours per reference spot (k) among the retrieved ones, by cosine of the joint features; fewer where
        fewer are retrieved.
    chunk, device
        Passed to :func:`cosine_topk`; change no result.

    Returns
    -------
    `HeteroData` on the CPU, float32 and int64:

    ``data["target"].x``
        (n, d).
    ``data["reference"].x``, ``.y``, ``.index``
        Joint features [z_r | y_r], (m, d + g), and expression, (m, g), of the m reference spots that some target spot
        retrieves; their row numbers in `reference_embedding`, ascending, (m,).
    ``data["target", "near", "target"].edge_index``
        (2, n Q).
    ``data["reference", "refer", "target"].edge_index``, ``.similarity``
        (2, n K), the K edges of target spot 0 first, most similar first; cosine of each edge, (n K,).
    ``data["reference", "close", "reference"].edge_index``
        (2, m k).

    Raises
    ------
    ValueError
        If there are fewer reference spots than `n_references`, or shapes do not fit, or values are not finite.
    """
    z_t = matrix(target_embedding, "target_embedding")
    xy = matrix(target_coordinates, "target_coordinates", dtype=np.float64)
    z_r = matrix(reference_embedding, "reference_embedding")
    y_r = matrix(reference_expression, "reference_expression")
    _check_shapes(z_t, xy, z_r, y_r)
    if len(z_r) < n_references:
        raise ValueError(
            f"The reference has {len(z_r)} spots, fewer than the {n_references} that each target spot refers to. "
            f"Add reference slides, or take n_references <= {len(z_r)}."
        )
    retrieved, similarity = cosine_topk(z_t, z_r, n_references, chunk=chunk, device=device)
    nodes = reference_nodes(retrieved, z_r, y_r, n_close, device=device)

    data = HeteroData()
    data["target"].x = torch.from_numpy(z_t.copy())
    data["reference"].x = torch.from_numpy(nodes.joint)
    data["reference"].y = data["reference"].x[:, z_r.shape[1] :]
    data["reference"].index = torch.from_numpy(nodes.index)
    data[NEAR].edge_index = _edges(spatial_knn(xy, n_near))
    data[REFER].edge_index = _edges(nodes.references)
    data[REFER].similarity = torch.from_numpy(similarity.reshape(-1))
    data[CLOSE].edge_index = _edges(nodes.close)
    return data


@dataclass(frozen=True, eq=False)
class ReferenceNodes:
    """The reference spots that some target spot retrieves."""

    index: NDArray[np.int64]
    """Their rows in the reference, ascending, (m,)."""
    joint: NDArray[np.float32]
    """Joint features [z_r | y_r], (m, d + g)."""
    references: NDArray[np.integer]
    """Reference nodes of each target spot, (n, K)."""
    close: NDArray[np.int64]
    """Neighbours of each reference node among them, (m, k)."""


def reference_nodes(
    retrieved: NDArray[np.integer],
    z_r: NDArray[np.float32] | Rows,
    y_r: NDArray[np.float32] | Rows,
    n_close: int,
    *,
    device: str | torch.device = "cpu",
) -> ReferenceNodes:
    """The reference side of a graph.

    Parameters
    ----------
    retrieved
        Rows of the reference that each target spot retrieves, (n, K).
    z_r, y_r
        Embeddings, (n_reference, d), and expression, (n_reference, g), of all reference spots; the rows that are
        retrieved are read.
    n_close
        Neighbours per reference node; fewer where fewer are retrieved.
    device
        Of the matrix products.
    """
    # By a table of all reference spots rather than by sorting the edges: there may be many millions of these.
    used = np.zeros(len(z_r), dtype=bool)
    used[retrieved.reshape(-1)] = True
    index = np.flatnonzero(used)
    references = (np.cumsum(used, dtype=retrieved.dtype) - 1)[retrieved]
    joint = np.concatenate([z_r[index], y_r[index]], axis=1)
    k = min(n_close, len(index) - 1)
    empty = np.empty((len(index), 0), dtype=np.int64)
    close = _closest(joint, k, device) if k > 0 else empty
    return ReferenceNodes(index, joint, references, close)


def _closest(joint: NDArray[np.float32], k: int, device: str | torch.device) -> NDArray[np.int64]:
    """Neighbours of each node among the others, (m, k); in a run that keeps what it computes, found once."""

    def search() -> dict[str, NDArray]:
        return {"index": cosine_topk(joint, joint, k, exclude_self=True, device=device)[0]}

    return cached(lambda: digest("close", joint, k), search)["index"]


def _check_shapes(z_t: NDArray, xy: NDArray, z_r: NDArray, y_r: NDArray) -> None:
    for name, array in (("target_embedding", z_t), ("reference_embedding", z_r)):
        if not array.size:
            raise ValueError(f"{name} is empty: its shape is {array.shape}.")
    if len(xy) != len(z_t):
        raise ValueError(f"target_coordinates has {len(xy)} rows and target_embedding has {len(z_t)}.")
    if len(y_r) != len(z_r):
        raise ValueError(f"reference_expression has {len(y_r)} rows and reference_embedding has {len(z_r)}.")
    if z_t.shape[1] != z_r.shape[1]:
        raise ValueError(
            f"target_embedding has {z_t.shape[1]} features and reference_embedding has {z_r.shape[1]}; "
            "both come from one encoder."
        )


def _edges(neighbours: NDArray[np.integer]) -> Tensor:
    """Edges (2, n k) from each of the neighbours (n, k) to the row they are listed in."""
    n, k = neighbours.shape
    receivers = np.repeat(np.arange(n), k)
    return torch.from_numpy(np.stack([neighbours.reshape(-1), receivers]).astype(np.int64))


def graph_tensors(data: HeteroData) -> GraphTensors:
    """Check a graph and take from it what the network reads; tensors are shared, not copied.

    Parameters
    ----------
    data
        As from :func:`build_graph`; ``data["target"].base``, (n, g), is optional.

    Raises
    ------
    ValueError
        If the edges of some type are not the same number for every receiver, in the order of the receivers.
    """
    target, reference = data["target"].x, data["reference"].x
    references = _table(data, REFER, target.shape[0])
    if references.shape[1] == 0:
        raise ValueError("The graph has no refer edges; each target spot has K of them. Make graphs with build_graph.")
    base = data["target"].base if "base" in data["target"] else None
    near, close = _table(data, NEAR, target.shape[0]), _table(data, CLOSE, reference.shape[0])
    return GraphTensors(target, reference, near, close, references, base)


def _table(data: HeteroData, kind: tuple[str, str, str], n: int) -> Tensor:
    """Sources of the edges of each receiver, (n, K): all have as many, and the edges come in the receivers' order."""
    source, receiver = data[kind].edge_index
    each = source.numel() // max(n, 1)
    if not torch.equal(receiver, torch.arange(n, device=receiver.device).repeat_interleave(each)):
        raise ValueError(
            f"The {kind[1]} edges are not the same number per {kind[2]} spot, in the order of the spots. Make graphs "
            f"with build_graph."
        )
    return source.view(n, each)
