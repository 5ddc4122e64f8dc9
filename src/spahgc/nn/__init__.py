"""The network: torch modules on tensors, graphs of arrays of slides, nearest neighbors, training and prediction.

Nothing here knows AnnData. The method is SpaHGC (Shi, Wang, Wan, Min; CVPR 2026; arXiv 2603.22821).
"""

from __future__ import annotations

from .._geometry import SpatialNeighbors, spatial_knn
from .attention import CrossNodeAttentionPooling, CrossNodeDualAttention
from .graph import GraphTensors, SlideGraph, slide_graph, spatial_blocks
from .inference import predict
from .layers import Edges
from .loss import contrastive_loss, pearson_loss, pearson_per_gene
from .model import Config, HeteroEncoder, SpaHGCNetwork, TargetEncoder
from .retrieval import cosine_topk
from .training import fit, train

__all__ = [
    "Config",
    "CrossNodeAttentionPooling",
    "CrossNodeDualAttention",
    "Edges",
    "GraphTensors",
    "HeteroEncoder",
    "SlideGraph",
    "SpaHGCNetwork",
    "SpatialNeighbors",
    "TargetEncoder",
    "contrastive_loss",
    "cosine_topk",
    "fit",
    "pearson_loss",
    "pearson_per_gene",
    "predict",
    "slide_graph",
    "spatial_blocks",
    "spatial_knn",
    "train",
]
