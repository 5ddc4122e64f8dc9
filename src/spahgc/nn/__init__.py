"""The network: torch modules, tensors in, tensors out; plain arrays of slides to PyG graphs; the training loop.

Nothing here knows AnnData. The method is SpaHGC (Shi, Wang, Wan, Min; CVPR 2026; arXiv 2603.22821).
"""

from __future__ import annotations

from .._geometry import SpatialNeighbors, spatial_knn
from .approximate import ApproximateIndex
from .attention import CrossNodeDualAttention
from .blocks import Block, spatial_blocks
from .config import Config
from .encoder import HeteroEncoder
from .graph import GraphTensors, ReferenceNodes, build_graph, graph_tensors, reference_nodes
from .inference import LargeGraph, large_graph, predict
from .loss import contrastive_loss, pearson_loss, pearson_per_gene
from .masking import TargetEncoder, complementary_masks
from .model import SpaHGC
from .pooling import CrossNodeAttentionPooling
from .retrieval import cosine_topk
from .training import fit, train

__all__ = [
    "ApproximateIndex",
    "Block",
    "Config",
    "CrossNodeAttentionPooling",
    "CrossNodeDualAttention",
    "GraphTensors",
    "HeteroEncoder",
    "LargeGraph",
    "ReferenceNodes",
    "SpaHGC",
    "SpatialNeighbors",
    "TargetEncoder",
    "build_graph",
    "complementary_masks",
    "contrastive_loss",
    "cosine_topk",
    "fit",
    "graph_tensors",
    "large_graph",
    "pearson_loss",
    "pearson_per_gene",
    "predict",
    "reference_nodes",
    "spatial_blocks",
    "spatial_knn",
    "train",
]
