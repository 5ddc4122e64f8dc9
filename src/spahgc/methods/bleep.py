"""BLEEP in compact form: image and expression in one space, prediction by retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from .._checks import at_least
from .base import parameters
from .network import ExpressionScale, NetworkMethod, SlideNetwork, Step

_CHUNK = 1024


class Projection(nn.Module):
    """Projection to the common space: linear map, plus GELU, linear map, and dropout of it, and LayerNorm."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(width, hidden), nn.LayerNorm(hidden)
        self.second = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.Dropout(dropout))

    def forward(self, values: Tensor) -> Tensor:
        """(n, width) to (n, hidden)."""
        mapped = self.first(values)
        return self.norm(mapped + self.second(mapped))


class BLEEPNetwork(SlideNetwork):
    r"""Projections of embedding and expression, contrasted within a slide; prediction by retrieval.

    With the projections I and E, (n_spots, hidden), the logits are :math:`I E^T`, and the targets of the cross-entropy
    in both directions are :math:`softmax((I I^T + E E^T) / 2)`, taken as constants, so that spots that look or express
    alike are not pushed apart. A spot is predicted as the mean expression of the reference spots whose E is most
    similar by cosine to its I.
    """

    recalls = True
    keys: Tensor
    values: Tensor

    def __init__(self, n_features: int, n_genes: int, *, hidden: int, dropout: float, n_neighbors: int) -> None:
        super().__init__()
        self.n_neighbors = n_neighbors
        self.image = Projection(n_features, hidden, dropout)
        self.expression = Projection(n_genes, hidden, dropout)
        # The reference spots are not weights: they come back with the reference.
        self.register_buffer("keys", torch.empty(0, hidden), persistent=False)
        self.register_buffer("values", torch.empty(0, n_genes), persistent=False)

    def express(self, expression: Tensor, *inputs: Tensor) -> Tensor:
        """Expression of the spots of a slide in the common space, (n_spots, hidden)."""
        return self.expression(expression)

    def losses(self, expression: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """Contrast of the spots of a slide."""
        images, expressions = self.image(inputs[0]), self.express(expression, *inputs)
        logits = images @ expressions.T
        targets = self.targets(images.detach(), expressions.detach())
        return {"contrast": (cross_entropy(logits, targets) + cross_entropy(logits.T, targets.T)) / 2}

    def targets(self, images: Tensor, expressions: Tensor) -> Tensor:
        """Target distribution of each image over the expressions, (n_spots, n_spots)."""
        return ((images @ images.T + expressions @ expressions.T) / 2).softmax(dim=1)

    def recall(self, references: Sequence[Step]) -> None:
        """Project the expression of the reference slides."""
        self.keys = torch.cat([normalize(self.express(*reference), dim=1) for reference in references])
        self.values = torch.cat([expression for expression, *_ in references])

    def forward(self, embedding: Tensor, *_: Tensor) -> Tensor:
        """Expression, (n_spots, n_genes)."""
        k = min(self.n_neighbors, len(self.keys))
        predicted = []
        for images in normalize(self.image(embedding), dim=1).split(_CHUNK):
            index = (images @ self.keys.T).topk(k, dim=1).indices
            weights = images.new_zeros(len(images), len(self.keys)).scatter_(1, index, 1.0 / k)
            predicted.append(weights @ self.values)
        return torch.cat(predicted)


@parameters(n_neighbors=at_least(1))
class BLEEP(NetworkMethod):
    """BLEEP (Xie et al., NeurIPS 2023): mean expression of the reference spots retrieved in a common space.

    Projections of embedding and expression are trained by a contrast with soft targets. The prediction is the mean
    expression of the reference spots whose projected expression is nearest by cosine to the spot's projected embedding.

    The compact form leaves out the ResNet-50 that is trained on the tiles, and the batch correction of the expression.
    The spots of one slide are contrasted with each other, instead of those of a random batch. Further parameters are
    those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_neighbors
        Reference spots that are averaged, or all if they are fewer.
    """

    n_neighbors: int = 50
    hidden: int = 128
    dropout: float = 0.1

    name: ClassVar[str] = "bleep"
    source: ClassVar[str] = (
        "Xie et al. Spatially resolved gene expression prediction from H&E histology images via bi-modal contrastive "
        "learning. NeurIPS 2023. arXiv:2306.01859"
    )

    def _network(self, n_features: int, scale: ExpressionScale) -> BLEEPNetwork:
        return BLEEPNetwork(
            n_features, len(scale.mean), hidden=self.hidden, dropout=self.dropout, n_neighbors=self.n_neighbors
        )
