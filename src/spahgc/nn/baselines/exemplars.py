"""EGN on embeddings: each spot attends to its exemplars, reference spots that look like it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ..attention import ReferenceAttention
from ..loss import pearson_loss
from .layers import Dropout, FeedForward, Head, Stem
from .network import Inputs, Network


class EGN(Network):
    """Cross-attention of each spot to exemplars that carry [embedding | expression].

    Parameters
    ----------
    n_features, n_genes
        Widths of embedding and expression.
    hidden
        Width of the states.
    n_layers, heads
        Of the cross-attention.
    weight
        Weight of the loss 1 - mean per-gene Pearson, beside the MSE.
    dropout
        On embeddings and in the layers.
    """

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        hidden: int = 64,
        n_layers: int = 2,
        heads: int = 4,
        weight: float = 0.5,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.stem, self.exemplar = Stem(n_features, hidden, dropout), Stem(n_features, hidden, dropout)
        self.expression = nn.Linear(n_genes, hidden)
        self.exemplar_norm = nn.LayerNorm(2 * hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(n_layers))
        self.attention = nn.ModuleList(ReferenceAttention(hidden, 2 * hidden, heads) for _ in range(n_layers))
        self.feed_forward = nn.ModuleList(FeedForward(hidden, dropout) for _ in range(n_layers))
        self.dropout, self.head = Dropout(dropout), Head(hidden, n_genes)

    def forward(self, inputs: Inputs) -> Tensor:
        """Expression, (n, g).

        Beside ``embedding`` it reads ``exemplars``, int64 (n, K): rows of ``exemplar_embedding``, (m, d), and
        ``exemplar_expression``, (m, g).
        """
        states = self.stem(inputs["embedding"])
        parts = self.exemplar(inputs["exemplar_embedding"]), self.expression(inputs["exemplar_expression"])
        answer = self.exemplar_norm(torch.cat(parts, dim=1))
        for norm, attention, feed_forward in zip(self.norms, self.attention, self.feed_forward, strict=True):
            states = states + self.dropout(attention(norm(states), answer, inputs["exemplars"]))
            states = states + feed_forward(states)
        return self.head(states)

    def losses(self, inputs: Inputs, expression: Tensor) -> dict[str, Tensor]:
        """MSE and weighted correlation."""
        found = self(inputs)
        return {"mse": mse_loss(found, expression), "correlation": self.weight * pearson_loss(found, expression)}
