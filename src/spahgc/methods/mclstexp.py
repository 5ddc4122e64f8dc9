"""mclSTExp in compact form: BLEEP with a transformer over the spots on the expression side."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .._checks import at_least
from .._slides import Cohort, Slide
from .base import parameters
from .bleep import BLEEP, Projection
from .network import ExpressionScale, PositionEmbedding, Transformer, grid_positions


@parameters(n_layers=at_least(1))
class MclSTExp(BLEEP):
    """mclSTExp (Min et al., Briefings in Bioinformatics 2024): a contrast with spots in view of each other.

    As :class:`BLEEP`, but the expression of a spot, with its learned x and y position, goes through a transformer over
    the spots of its slide before it is projected, and each spot is its own only positive.

    Source: arXiv:2407.08216. The compact form leaves out the DenseNet-121 that is trained on the tiles. The spots of
    one slide are contrasted with each other, instead of those of a random batch. Further parameters are those of
    :class:`NetworkMethod`.

    Parameters
    ----------
    n_neighbors
        Reference spots that are averaged, or all if they are fewer.
    n_layers
        Layers of the transformer.
    """

    n_layers: int = 2

    name: ClassVar[str] = "mclstexp"
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        return slide.embedding, grid_positions(slide.coordinates)

    def layers(self, n_features: int, scale: ExpressionScale) -> dict[str, nn.Module | nn.Parameter]:
        return {
            **super().layers(n_features, scale),
            "token": nn.Linear(len(scale.mean), self.hidden),
            "position": PositionEmbedding(self.hidden),
            "transformer": Transformer(self.hidden, self.n_layers, self.dropout),
            "expression": Projection(self.hidden, self.hidden, self.dropout),
        }

    def express(self, net: Any, expression: Tensor, *inputs: Tensor) -> Tensor:
        return net.expression(net.transformer(net.token(expression) + net.position(inputs[1])))

    def targets(self, images: Tensor, expressions: Tensor) -> Tensor:
        return torch.eye(len(images), dtype=images.dtype, device=images.device)
