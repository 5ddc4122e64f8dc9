"""THItoGene in compact form: a transformer, then graph attention."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch_geometric.nn import GATConv

from .._checks import at_least
from .._geometry import spatial_knn
from .._slides import Cohort, Slide
from .base import parameters
from .histogene import HisToGeneNetwork
from .network import HEADS, ExpressionScale, NetworkMethod, edge_index, grid_positions


class THItoGeneNetwork(HisToGeneNetwork):
    """Transformer, two layers of graph attention on the nearest spots, and a linear head."""

    def __init__(self, n_features: int, n_genes: int, *, hidden: int, dropout: float) -> None:
        super().__init__(n_features, n_genes, hidden=hidden, dropout=dropout)
        self.graph = nn.ModuleList(GATConv(hidden, hidden // HEADS, HEADS) for _ in range(2))
        self.between = nn.Dropout(dropout)

    def states(self, embedding: Tensor, position: Tensor, neighbors: Tensor) -> Tensor:  # type: ignore[override]
        """Tokens after the graph attention, (n_spots, hidden)."""
        states, edges = super().states(embedding, position), edge_index(neighbors)
        for layer in self.graph:
            states = nn.functional.elu(layer(self.between(states), edges))
        return states


@parameters(n_neighbors=at_least(1))
class THItoGene(NetworkMethod):
    """THItoGene (Jia et al., Briefings in Bioinformatics 2023): a transformer, then graph attention (GAT).

    The transformer over the spots of a slide, with learned x and y positions, is followed by two layers of graph
    attention on the graph of the nearest spots.

    The compact form leaves out the dynamic convolutions and the capsules that turn pixels into tokens. Further
    parameters are those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_neighbors
        Nearest spots in the graph.
    """

    n_neighbors: int = 4

    name: ClassVar[str] = "thitogene"
    source: ClassVar[str] = (
        "Jia et al. THItoGene: a deep learning method for predicting spatial transcriptomics from histological images. "
        "Briefings in Bioinformatics 2023. doi:10.1093/bib/bbad464"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def _network(self, n_features: int, scale: ExpressionScale) -> THItoGeneNetwork:
        return THItoGeneNetwork(n_features, len(scale.mean), hidden=self.hidden, dropout=self.dropout)

    def _inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        return slide.embedding, grid_positions(slide.coordinates), spatial_knn(slide.coordinates, self.n_neighbors)
