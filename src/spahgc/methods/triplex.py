"""TRIPLEX in compact form: spot, neighborhood and slide, fused by cross-attention."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from .._checks import at_least, between
from .._geometry import spatial_knn
from .._slides import Cohort, Slide
from ..nn.attention import EdgeAttention
from ..nn.layers import Edges
from .base import parameters
from .network import (
    HEADS,
    ExpressionScale,
    FeedForward,
    Head,
    NetworkMethod,
    PositionEmbedding,
    Stem,
    Transformer,
    grid_positions,
)


@parameters(n_neighbors=at_least(1), alpha=between(0, 1))
class TRIPLEX(NetworkMethod):
    r"""TRIPLEX (Chung et al., CVPR 2024): tokens of spot, neighborhood and slide, fused by cross-attention.

    The tokens of the slide come from a transformer over all its spots. Each attends to its spot's own token and those
    of the nearest spots, and the result is added to it. Spot, mean neighborhood, and slide also predict on their own
    during training: the loss is the MSE of the fused prediction plus, for each of the three,
    :math:`(1 - \alpha) MSE(y) + \alpha MSE(fused)`.

    Source: arXiv:2403.07592. The compact form leaves out the network that is trained on the spot's tile, so that the
    spot is one token; the outer ring of the 5 x 5 neighbors and the self-attention among them; and the convolutional
    encoding of positions, which learned x and y positions replace. Further parameters are those of
    :class:`NetworkMethod`.

    Parameters
    ----------
    n_neighbors
        Nearest spots in the neighborhood.
    alpha
        Weight of the fused prediction in the targets of the three predictions.
    """

    n_neighbors: int = 8
    alpha: float = 0.3

    name: ClassVar[str] = "triplex"
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        return slide.embedding, grid_positions(slide.coordinates), spatial_knn(slide.coordinates, self.n_neighbors)

    def layers(self, n_features: int, scale: ExpressionScale) -> dict[str, nn.Module | nn.Parameter]:
        hidden, dropout, n_genes = self.hidden, self.dropout, len(scale.mean)
        return {
            "stem": Stem(n_features, 3 * hidden, dropout),
            "position": PositionEmbedding(hidden),
            "transformer": Transformer(hidden, 1, dropout),
            "query_norm": nn.LayerNorm(hidden),
            "answer_norm": nn.LayerNorm(hidden),
            "attention": EdgeAttention(hidden, hidden, HEADS),
            "feed_forward": FeedForward(hidden, dropout),
            "head": Head(hidden, n_genes),
            "heads": nn.ModuleDict({name: Head(hidden, n_genes) for name in ("spot", "neighborhood", "slide")}),
        }

    def tokens(self, net: Any, embedding: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """Tokens of ``spot``, ``neighborhood`` and ``slide``, and ``fused``, each (n_spots, hidden)."""
        position, neighbors = inputs
        n, k = neighbors.shape
        spot, neighbor, slide = net.stem(embedding).chunk(3, dim=1)
        slide = net.transformer(slide + net.position(position))
        # The first n answers are the spots themselves, the others their tokens as neighbors.
        members = torch.cat([torch.arange(n, device=neighbors.device)[:, None], n + neighbors], dim=1)
        answer = net.answer_norm(torch.cat([spot, neighbor]))
        fused = slide + net.attention(
            net.query_norm(slide), net.attention.keys_and_values(answer), Edges.of(members, 2 * n)
        )
        around = neighbor.index_select(0, neighbors.reshape(-1)).view(n, k, -1).mean(dim=1) if k else neighbor
        return {"spot": spot, "neighborhood": around, "slide": slide, "fused": fused + net.feed_forward(fused)}

    def forward(self, net: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        return net.head(self.tokens(net, embedding, *inputs)["fused"])

    def losses(self, net: Any, expression: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        tokens = self.tokens(net, *inputs)
        fused = net.head(tokens["fused"])
        terms = {"mse": mse_loss(fused, expression)}
        for name, head in net.heads.items():
            predicted = head(tokens[name])
            own, distilled = mse_loss(predicted, expression), mse_loss(predicted, fused.detach())
            terms[name] = (1 - self.alpha) * own + self.alpha * distilled
        return terms
