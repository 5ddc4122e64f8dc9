"""EGN in compact form: cross-attention to exemplars from the reference."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from .._checks import at_least
from .._slides import Cohort, Slide
from ..nn.attention import EdgeAttention
from ..nn.layers import Edges
from ..nn.loss import pearson_loss
from .base import parameters
from .knn import nearest_by_cosine
from .network import HEADS, ExpressionScale, FeedForward, Head, NetworkMethod, Stem

N_LAYERS = 2  # of cross-attention


@parameters(n_neighbors=at_least(1), pearson_weight=at_least(0))
class EGN(NetworkMethod):
    """EGN and EGGN (Yang et al., WACV 2023 and Pattern Recognition 2024): attention to exemplars.

    Each spot attends to the reference spots with the most similar embedding (cosine), which carry their embedding and
    their expression. During training, the exemplars of a slide come from the other slides. The loss is the MSE and
    1 - mean per-gene Pearson. The graph of windows and exemplars of EGGN passes the same messages.

    Source: arXiv:2210.16721. The compact form leaves out the extractor that is trained to find exemplars, the vision
    transformer on the tile that exemplars revise layer by layer, and, of EGGN, the edges between the windows of a
    slide. Further parameters are those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_neighbors
        Exemplars of each spot, or all spots of the other slides if they are fewer.
    pearson_weight
        Weight of the Pearson term relative to the MSE.
    """

    n_neighbors: int = 9
    pearson_weight: float = 0.5

    name: ClassVar[str] = "egn"
    min_slides: ClassVar[int] = 2

    def inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        nearest = nearest_by_cosine(slide.embedding, [other.embedding for other in references], self.n_neighbors)
        rows, exemplars = np.unique(nearest, return_inverse=True)
        expressions = scale(references.expression()[rows])
        return slide.embedding, exemplars.reshape(nearest.shape), references.embedding()[rows], expressions

    def layers(self, n_features: int, scale: ExpressionScale) -> dict[str, nn.Module | nn.Parameter]:
        hidden, dropout, n_genes = self.hidden, self.dropout, len(scale.mean)
        return {
            "stem": Stem(n_features, hidden, dropout),
            "exemplar": Stem(n_features, hidden, dropout),
            "expression": nn.Linear(n_genes, hidden),
            "exemplar_norm": nn.LayerNorm(2 * hidden),
            "norms": nn.ModuleList(nn.LayerNorm(hidden) for _ in range(N_LAYERS)),
            "attention": nn.ModuleList(EdgeAttention(hidden, 2 * hidden, HEADS) for _ in range(N_LAYERS)),
            "feed_forward": nn.ModuleList(FeedForward(hidden, dropout) for _ in range(N_LAYERS)),
            "dropout": nn.Dropout(dropout),
            "head": Head(hidden, n_genes),
        }

    def forward(self, net: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        states, (exemplars, embeddings, expressions) = net.stem(embedding), inputs
        answer = net.exemplar_norm(torch.cat([net.exemplar(embeddings), net.expression(expressions)], dim=1))
        edges = Edges.of(exemplars, len(answer))
        for norm, attention, feed_forward in zip(net.norms, net.attention, net.feed_forward, strict=True):
            states = states + net.dropout(attention(norm(states), attention.keys_and_values(answer), edges))
            states = states + feed_forward(states)
        return net.head(states)

    def losses(self, net: Any, expression: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        predicted = self.forward(net, *inputs)
        correlation = self.pearson_weight * pearson_loss(predicted, expression)
        return {"mse": mse_loss(predicted, expression), "correlation": correlation}
