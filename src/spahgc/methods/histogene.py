"""HisToGene in compact form: a transformer over the spots of a slide."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from .._checks import at_least
from .._slides import Cohort, Slide
from .base import parameters
from .network import (
    ExpressionScale,
    Head,
    NetworkMethod,
    PositionEmbedding,
    SlideNetwork,
    Stem,
    Transformer,
    grid_positions,
)


class HisToGeneNetwork(SlideNetwork):
    """Embedding plus learned position of each spot, a transformer over all spots of the slide, and a linear head."""

    def __init__(self, n_features: int, n_genes: int, *, hidden: int, dropout: float, n_layers: int = 1) -> None:
        super().__init__()
        self.stem, self.position = Stem(n_features, hidden, dropout), PositionEmbedding(hidden)
        self.transformer = Transformer(hidden, n_layers, dropout)
        self.head = Head(hidden, n_genes)

    def states(self, embedding: Tensor, position: Tensor) -> Tensor:
        """Tokens after the transformer, (n_spots, hidden)."""
        return self.transformer(self.stem(embedding) + self.position(position))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Expression, (n_spots, n_genes)."""
        return self.head(self.states(*inputs))


@parameters(n_layers=at_least(1))
class HisToGene(NetworkMethod):
    """HisToGene (Pang et al., bioRxiv 2021): the spots of a slide as tokens with learned x and y positions.

    Columns and rows are counted from the edge of the slide's own spots, in spot distances.

    The compact form leaves out the linear map from raw pixels to tokens, which the embedding replaces. It has two
    layers instead of eight and predicts at the spots alone, not between them. Further parameters are those of
    :class:`NetworkMethod`.

    Parameters
    ----------
    n_layers
        Layers of the transformer.
    """

    n_layers: int = 2

    name: ClassVar[str] = "histogene"
    source: ClassVar[str] = (
        "Pang et al. Leveraging information in spatial transcriptomics to predict super-resolution gene expression "
        "from histology images in tumors. bioRxiv 2021. doi:10.1101/2021.11.28.470212"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def _network(self, n_features: int, scale: ExpressionScale) -> HisToGeneNetwork:
        return HisToGeneNetwork(
            n_features, len(scale.mean), hidden=self.hidden, dropout=self.dropout, n_layers=self.n_layers
        )

    def _inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        return slide.embedding, grid_positions(slide.coordinates)
