"""THItoGene in compact form: a transformer, then graph attention."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from torch_geometric.nn import GATConv

from .._checks import at_least
from .._geometry import spatial_knn
from .._slides import Cohort, Slide
from .base import parameters
from .histogene import HisToGene
from .network import HEADS, ExpressionScale, edge_index


@parameters(n_neighbors=at_least(1))
class THItoGene(HisToGene):
    """THItoGene (Jia et al., Briefings in Bioinformatics 2023): a transformer, then graph attention (GAT).

    The transformer over the spots of a slide, with learned x and y positions, is followed by two layers of graph
    attention on the graph of the nearest spots.

    Source: doi:10.1093/bib/bbad464. The compact form leaves out the dynamic convolutions and the capsules that turn
    pixels into tokens. Further parameters are those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_layers
        Layers of the transformer.
    n_neighbors
        Nearest spots in the graph.
    """

    n_layers: int = 1
    n_neighbors: int = 4

    name: ClassVar[str] = "thitogene"

    def inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        return *super().inputs(slide, references, scale), spatial_knn(slide.coordinates, self.n_neighbors)

    def layers(self, n_features: int, scale: ExpressionScale) -> dict[str, nn.Module | nn.Parameter]:
        graph = nn.ModuleList(GATConv(self.hidden, self.hidden // HEADS, HEADS) for _ in range(2))
        return {**super().layers(n_features, scale), "graph": graph, "between": nn.Dropout(self.dropout)}

    def states(self, net: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        states, edges = super().states(net, embedding, *inputs), edge_index(inputs[1])
        for layer in net.graph:
            states = nn.functional.elu(layer(net.between(states), edges))
        return states
