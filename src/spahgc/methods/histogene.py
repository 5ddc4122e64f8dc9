"""HisToGene in compact form: a transformer over the spots of a slide."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from .._checks import at_least
from .._slides import Cohort, Slide
from .base import parameters
from .network import ExpressionScale, Head, NetworkMethod, PositionEmbedding, Stem, Transformer, grid_positions


@parameters(n_layers=at_least(1))
class HisToGene(NetworkMethod):
    """HisToGene (Pang et al., bioRxiv 2021): the spots of a slide as tokens with learned x and y positions.

    Columns and rows are counted from the edge of the slide's own spots, in spot distances.

    Source: doi:10.1101/2021.11.28.470212. The compact form leaves out the linear map from raw pixels to tokens, which
    the embedding replaces. It has two layers instead of eight and predicts at the spots alone, not between them.
    Further parameters are those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_layers
        Layers of the transformer.
    """

    n_layers: int = 2

    name: ClassVar[str] = "histogene"
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        return slide.embedding, grid_positions(slide.coordinates)

    def layers(self, n_features: int, scale: ExpressionScale) -> dict[str, nn.Module | nn.Parameter]:
        return {
            "stem": Stem(n_features, self.hidden, self.dropout),
            "position": PositionEmbedding(self.hidden),
            "transformer": Transformer(self.hidden, self.n_layers, self.dropout),
            "head": Head(self.hidden, len(scale.mean)),
        }

    def states(self, net: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        """Tokens before the head, (n_spots, hidden)."""
        return net.transformer(net.stem(embedding) + net.position(inputs[0]))

    def forward(self, net: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        return net.head(self.states(net, embedding, *inputs))
