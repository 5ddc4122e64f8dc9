"""mclSTExp in compact form: BLEEP with a transformer over the spots on the expression side."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .._checks import at_least
from .._slides import Cohort, Slide
from .base import parameters
from .bleep import BLEEP, BLEEPNetwork, Projection
from .network import ExpressionScale, PositionEmbedding, Transformer, grid_positions


class MclSTExpNetwork(BLEEPNetwork):
    """BLEEP whose expression side is a transformer over the spots of a slide, with learned positions.

    Each spot is its own only positive; all other spots of the slide are negatives.
    """

    def __init__(
        self, n_features: int, n_genes: int, *, hidden: int, dropout: float, n_neighbors: int, n_layers: int
    ) -> None:
        super().__init__(n_features, n_genes, hidden=hidden, dropout=dropout, n_neighbors=n_neighbors)
        self.token, self.position = nn.Linear(n_genes, hidden), PositionEmbedding(hidden)
        self.transformer = Transformer(hidden, n_layers, dropout)
        self.expression = Projection(hidden, hidden, dropout)

    def express(self, expression: Tensor, *inputs: Tensor) -> Tensor:
        """Expression of the spots of a slide, in view of each other, in the common space, (n_spots, hidden)."""
        _, position = inputs
        return self.expression(self.transformer(self.token(expression) + self.position(position)))

    def targets(self, images: Tensor, expressions: Tensor) -> Tensor:
        """Identity: each image should find its own expression, (n_spots, n_spots)."""
        return torch.eye(len(images), dtype=images.dtype, device=images.device)


@parameters(n_layers=at_least(1))
class MclSTExp(BLEEP):
    """mclSTExp (Min et al., Briefings in Bioinformatics 2024): a contrast with spots in view of each other.

    As :class:`BLEEP`, but the expression of a spot, with its learned x and y position, goes through a transformer over
    the spots of its slide before it is projected, and each spot is its own only positive.

    The compact form leaves out the DenseNet-121 that is trained on the tiles. The spots of one slide are contrasted
    with each other, instead of those of a random batch. Further parameters are those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_neighbors
        Reference spots that are averaged, or all if they are fewer.
    n_layers
        Layers of the transformer.
    """

    n_layers: int = 2

    name: ClassVar[str] = "mclstexp"
    source: ClassVar[str] = (
        "Min et al. Multimodal contrastive learning for spatial gene expression prediction using histology images. "
        "Briefings in Bioinformatics 2024. arXiv:2407.08216"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def _network(self, n_features: int, scale: ExpressionScale) -> MclSTExpNetwork:
        return MclSTExpNetwork(
            n_features,
            len(scale.mean),
            hidden=self.hidden,
            dropout=self.dropout,
            n_neighbors=self.n_neighbors,
            n_layers=self.n_layers,
        )

    def _inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        return slide.embedding, grid_positions(slide.coordinates)
