"""Layers that the baseline networks are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, leaky_relu, scaled_dot_product_attention

from ..attention import head_width


class Dropout(nn.Module):
    """As :class:`torch.nn.Dropout`, whose draws on the CPU take as long as the rest of a small network.

    There, one draw of 64 bits serves eight values, and the share that is dropped is rounded to 1/256.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.kept = share, max(1, round((1 - share) * 256))

    def forward(self, values: Tensor) -> Tensor:
        """Any shape, to the same shape."""
        if not self.training or self.kept >= 256:
            return values
        if values.device.type != "cpu":
            return nn.functional.dropout(values, self.share)
        draws = torch.empty(-(-values.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        mask = draws.view(torch.uint8)[: values.numel()].view(values.shape) < self.kept
        return values * mask.to(values.dtype).mul_(256 / self.kept)


class Stem(nn.Sequential):
    """Dropout of the embedding, and a linear map to the width of the network."""

    def __init__(self, n_features: int, hidden: int, dropout: float) -> None:
        super().__init__(Dropout(dropout), nn.Linear(n_features, hidden))


class Head(nn.Sequential):
    """LayerNorm and linear map to the genes, which starts close to 0, the mean of every gene."""

    def __init__(self, hidden: int, n_genes: int) -> None:
        output = nn.Linear(hidden, n_genes)
        nn.init.normal_(output.weight, std=0.02)
        nn.init.zeros_(output.bias)
        super().__init__(nn.LayerNorm(hidden), output)


class FeedForward(nn.Sequential):
    """LayerNorm, then two linear maps with GELU in between and dropout."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(hidden),
            nn.Linear(hidden, 2 * hidden),
            nn.GELU(),
            nn.Linear(2 * hidden, hidden),
            Dropout(dropout),
        )


class TransformerLayer(nn.Module):
    """Self-attention over tokens, then a feed-forward net; both normalise first and add to what came in.

    Attention is computed in blocks (:func:`~torch.nn.functional.scaled_dot_product_attention`), so that memory grows
    with the number of tokens and not with its square.

    Parameters
    ----------
    hidden
        Width of the tokens.
    heads
        Number of heads; divides `hidden`.
    dropout
        On what is added.
    """

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width(hidden, heads)
        self.norm = nn.LayerNorm(hidden)
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.output = nn.Linear(hidden, hidden)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(hidden, dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (n, hidden) to the same shape."""
        parts = self.query_key_value(self.norm(tokens)).unflatten(-1, (3, self.heads, self.head_width))
        query, key, value = (part.transpose(-3, -2) for part in parts.unbind(dim=-3))
        # With a first dimension of 1: the blockwise kernels ask for four.
        attended = scaled_dot_product_attention(query[None], key[None], value[None])[0].transpose(-3, -2).flatten(-2)
        tokens = tokens + self.dropout(self.output(attended))
        return tokens + self.feed_forward(tokens)


class PositionEmbedding(nn.Module):
    """A learned vector per column of the grid plus one per row.

    Parameters
    ----------
    n_positions
        Columns, and rows.
    hidden
        Width of the vectors.
    """

    def __init__(self, n_positions: int, hidden: int) -> None:
        super().__init__()
        self.x, self.y = nn.Embedding(n_positions, hidden), nn.Embedding(n_positions, hidden)
        for table in (self.x, self.y):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, position: Tensor) -> Tensor:
        """Column and row of each spot, int64 (n, 2), to (n, hidden)."""
        return self.x(position[:, 0]) + self.y(position[:, 1])


class SageLayer(nn.Module):
    r"""GraphSAGE with the mean: :math:`ReLU(W h_i + U \, mean_{j \in N(i)} h_j)`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden, bias=False)

    def forward(self, states: Tensor, neighbors: Tensor) -> Tensor:
        """States (n, hidden) and neighbours int64 (n, k), k may be 0, to (n, hidden)."""
        n, k = neighbors.shape
        gathered = states.index_select(0, neighbors.reshape(-1)).view(n, k, states.shape[1])
        return (self.own(states) + self.other(gathered.sum(dim=1) / max(k, 1))).relu()


class GatLayer(nn.Module):
    r"""Graph attention over a spot and its neighbours.

    .. math::
        h_i' = ELU(\sum_j A_{ij} W h_j), \quad A_{ij} = softmax_j LeakyReLU(a \cdot W h_i + b \cdot W h_j)

    with W, a, b per head, and heads concatenated.

    Parameters
    ----------
    hidden
        Width of the states.
    heads
        Number of heads; divides `hidden`.
    """

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width(hidden, heads)
        self.map = nn.Linear(hidden, hidden, bias=False)
        self.receiver = nn.Parameter(torch.empty(heads, self.head_width))
        self.sender = nn.Parameter(torch.empty(heads, self.head_width))
        nn.init.xavier_uniform_(self.receiver)
        nn.init.xavier_uniform_(self.sender)

    def forward(self, states: Tensor, neighbors: Tensor) -> Tensor:
        """States (n, hidden) and neighbours int64 (n, k), k may be 0, to (n, hidden)."""
        n = len(states)
        members = torch.cat([torch.arange(n, device=states.device)[:, None], neighbors], dim=1)
        mapped = self.map(states).view(n, self.heads, self.head_width)
        asked, offered = (mapped * self.receiver).sum(dim=2), (mapped * self.sender).sum(dim=2)
        flat = members.reshape(-1)
        scores = leaky_relu(asked[:, None] + offered.index_select(0, flat).view(*members.shape, self.heads), 0.2)
        weights = scores.softmax(dim=1).unsqueeze(3)
        values = mapped.index_select(0, flat).view(*members.shape, self.heads, self.head_width)
        return elu((weights * values).sum(dim=1).flatten(1))


class Projection(nn.Module):
    """Projection to the space of a contrast: linear, GELU, linear and dropout added to the first map, LayerNorm.

    Parameters
    ----------
    width
        Width of what comes in.
    hidden
        Width of the space.
    dropout
        On what is added.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, hidden)
        self.activation, self.dropout, self.norm = nn.GELU(), Dropout(dropout), nn.LayerNorm(hidden)

    def forward(self, values: Tensor) -> Tensor:
        """(n, width) to (n, hidden)."""
        mapped = self.first(values)
        return self.norm(mapped + self.dropout(self.second(self.activation(mapped))))
