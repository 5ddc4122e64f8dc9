"""M2OST and TRIPLEX on embeddings: a spot, its surroundings and its slide."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ..attention import ReferenceAttention
from .layers import FeedForward, Head, PositionEmbedding, Stem, TransformerLayer
from .network import Inputs, Network


class M2OST(Network):
    """Several fields of view of each spot, one token each, mixed to one prediction.

    A layer mixes the views of each channel, by a small net that all channels share, and then the channels of all views.

    Parameters
    ----------
    n_features, n_genes
        Widths of embedding and expression.
    n_views
        Fields of view.
    hidden
        Width of the tokens.
    n_layers
        Layers of the mixing.
    dropout
        On embeddings and in the layers.
    """

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        n_views: int = 3,
        hidden: int = 64,
        n_layers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.stems = nn.ModuleList(Stem(n_features, hidden, dropout) for _ in range(n_views))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(n_layers))
        self.across = nn.ModuleList(
            nn.Sequential(nn.Linear(n_views, 4 * n_views), nn.GELU(), nn.Linear(4 * n_views, n_views))
            for _ in range(n_layers)
        )
        self.channels = nn.ModuleList(FeedForward(n_views * hidden, dropout) for _ in range(n_layers))
        self.head = Head(n_views * hidden, n_genes)

    def forward(self, inputs: Inputs) -> Tensor:
        """Expression, (n, g); it reads ``views``, (n, n_views, d)."""
        views = inputs["views"].unbind(dim=1)
        tokens = torch.stack([stem(view) for stem, view in zip(self.stems, views, strict=True)], dim=1)
        for norm, across, channels in zip(self.norms, self.across, self.channels, strict=True):
            flat = (tokens + across(norm(tokens).mT).mT).flatten(1)
            tokens = (flat + channels(flat)).view_as(tokens)
        return self.head(tokens.flatten(1))


class TRIPLEX(Network):
    r"""Tokens of spot, neighbourhood and slide, fused by cross-attention, each with a prediction of its own.

    The slide's token of a spot is what a transformer over all spots gives for it; it asks the spot's own token and
    those of the neighbours, and the answer is added to it. While training, spot, mean neighbourhood and slide each
    predict as well; the loss is the MSE of the fused prediction plus, for each of the three,
    :math:`(1 - \alpha) MSE(y) + \alpha MSE(fused)`.

    Parameters
    ----------
    n_features, n_genes
        Widths of embedding and expression.
    hidden
        Width of the tokens.
    n_positions
        Columns, and rows, of the grid.
    n_layers, heads
        Of the transformer.
    alpha
        How far the three follow the fused prediction, 0 to 1.
    dropout
        On embeddings and in the layers.
    """

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        hidden: int = 64,
        n_positions: int = 128,
        n_layers: int = 1,
        heads: int = 4,
        alpha: float = 0.3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.stem, self.position = Stem(n_features, 3 * hidden, dropout), PositionEmbedding(n_positions, hidden)
        self.transformer = nn.Sequential(*(TransformerLayer(hidden, heads, dropout) for _ in range(n_layers)))
        self.query_norm, self.answer_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention = ReferenceAttention(hidden, hidden, heads)
        self.feed_forward = FeedForward(hidden, dropout)
        self.head = Head(hidden, n_genes)
        self.heads = nn.ModuleDict({name: Head(hidden, n_genes) for name in ("spot", "neighborhood", "slide")})

    def tokens(self, inputs: Inputs) -> dict[str, Tensor]:
        """Tokens of ``spot``, ``neighborhood`` and ``slide``, and ``fused``, each (n, hidden)."""
        neighbors = inputs["neighbors"]
        n, k = neighbors.shape
        spot, neighbor, slide = self.stem(inputs["embedding"]).chunk(3, dim=1)
        slide = self.transformer(slide + self.position(inputs["position"]))
        # The first n answers are the spots themselves, the others their tokens as neighbours.
        members = torch.cat([torch.arange(n, device=neighbors.device)[:, None], n + neighbors], dim=1)
        answer = self.answer_norm(torch.cat([spot, neighbor]))
        fused = slide + self.attention(self.query_norm(slide), answer, members)
        around = neighbor.index_select(0, neighbors.reshape(-1)).view(n, k, -1).mean(dim=1) if k else neighbor
        return {"spot": spot, "neighborhood": around, "slide": slide, "fused": fused + self.feed_forward(fused)}

    def forward(self, inputs: Inputs) -> Tensor:
        """Expression, (n, g); beside ``embedding`` it reads ``position`` and ``neighbors``, int64 (n, k)."""
        return self.head(self.tokens(inputs)["fused"])

    def losses(self, inputs: Inputs, expression: Tensor) -> dict[str, Tensor]:
        """MSE of the fused prediction, and the loss of each of the three."""
        tokens = self.tokens(inputs)
        fused = self.head(tokens["fused"])
        terms = {"mse": mse_loss(fused, expression)}
        for name, head in self.heads.items():
            found = head(tokens[name])
            terms[name] = (1 - self.alpha) * mse_loss(found, expression) + self.alpha * mse_loss(found, fused.detach())
        return terms
