"""BLEEP in compact form: image and expression in one space, prediction by retrieval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from .._checks import at_least
from .base import parameters
from .network import ExpressionScale, NetworkMethod, Step

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


@parameters(n_neighbors=at_least(1))
class BLEEP(NetworkMethod):
    r"""BLEEP (Xie et al., NeurIPS 2023): mean expression of the reference spots retrieved in a common space.

    Projections of embedding and expression, I and E, are trained by a contrast within each slide. The logits are
    :math:`I E^T`, and the targets of the cross-entropy in both directions are :math:`softmax((I I^T + E E^T) / 2)`,
    taken as constants, so that spots that look or express alike are not pushed apart. The prediction is the mean
    expression of the reference spots whose E is most similar by cosine to the I of the spot.

    Source: arXiv:2306.01859. The compact form leaves out the ResNet-50 that is trained on the tiles, and the batch
    correction of the expression. The spots of one slide are contrasted with each other, instead of those of a random
    batch. Further parameters are those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_neighbors
        Reference spots that are averaged, or all if they are fewer.
    """

    n_neighbors: int = 50
    hidden: int = 128
    dropout: float = 0.1

    name: ClassVar[str] = "bleep"

    def layers(self, n_features: int, scale: ExpressionScale) -> dict[str, nn.Module | nn.Parameter]:
        widths = {"image": n_features, "expression": len(scale.mean)}
        return {name: Projection(width, self.hidden, self.dropout) for name, width in widths.items()}

    def express(self, net: Any, expression: Tensor, *inputs: Tensor) -> Tensor:
        """Expression of the spots of a slide in the common space, (n_spots, hidden)."""
        return net.expression(expression)

    def targets(self, images: Tensor, expressions: Tensor) -> Tensor:
        """Target distribution of each image over the expressions, (n_spots, n_spots)."""
        return ((images @ images.T + expressions @ expressions.T) / 2).softmax(dim=1)

    def losses(self, net: Any, expression: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        images, expressions = net.image(inputs[0]), self.express(net, expression, *inputs)
        logits = images @ expressions.T
        targets = self.targets(images.detach(), expressions.detach())
        return {"contrast": (cross_entropy(logits, targets) + cross_entropy(logits.T, targets.T)) / 2}

    def recall(self, net: Any, references: Callable[[], Sequence[Step]]) -> None:
        steps = references()
        keys = torch.cat([normalize(self.express(net, *step), dim=1) for step in steps])
        # Not weights: the reference spots are saved with the reference.
        net.register_buffer("keys", keys, persistent=False)
        net.register_buffer("values", torch.cat([expression for expression, *_ in steps]), persistent=False)

    def forward(self, net: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        k = min(self.n_neighbors, len(net.keys))
        predicted = []
        for images in normalize(net.image(embedding), dim=1).split(_CHUNK):
            index = (images @ net.keys.T).topk(k, dim=1).indices
            weights = images.new_zeros(len(images), len(net.keys)).scatter_(1, index, 1.0 / k)
            predicted.append(weights @ net.values)
        return torch.cat(predicted)
