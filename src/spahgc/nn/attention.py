"""Attention between target and reference spots: in the layers (CNDA), and after the last one (CNAP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from .layers import Edges, attend


class EdgeAttention(nn.Module):
    r"""Multi-head attention of receivers over the senders of their edges.

    .. math::
        o_i = \sum_{j \in N(i)} A_{ij} W_v c_j, \quad A_{ij} = softmax_{j \in N(i)} (W_q h_i \cdot W_k c_j / \sqrt{d})

    with one set of maps per head, heads concatenated. Keys have no bias, which would change no weight. Each map is
    applied once per node; per edge there are only products of its results.

    Parameters
    ----------
    hidden
        Width of the receivers' states and of the result.
    width
        Width of the senders' states.
    heads
        Number of heads; divides `hidden`.
    """

    def __init__(self, hidden: int, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or hidden % heads:
            raise ValueError(f"hidden ({hidden}) is not a multiple of heads ({heads}).")
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(width, hidden, bias=False)
        self.value = nn.Linear(width, hidden)

    def keys_and_values(self, senders: Tensor, more: Tensor | None = None) -> Tensor:
        """Keys and values of senders by one product, (m, 2 hidden); their states are [`senders` | `more`]."""
        weight = torch.cat([self.key.weight, self.value.weight])
        bias = torch.cat([torch.zeros_like(self.value.bias), self.value.bias])
        if more is None:
            return linear(senders, weight, bias)
        # Two products, because concatenated states would have to be copied first.
        width = senders.shape[1]
        return torch.addmm(linear(senders, weight[:, :width], bias), more, weight[:, width:].T)

    def forward(self, receivers: Tensor, keys_and_values: Tensor, edges: Edges) -> Tensor:
        """Attention of each receiver over its senders, (n, hidden); zeros for a receiver without senders."""
        return attend(self.query(receivers), keys_and_values, edges, self.heads)

    def weights(self, receivers: Tensor, keys_and_values: Tensor, senders: Tensor) -> Tensor:
        """Attention of receivers to each of their senders, (n, k), averaged over heads; rows sum to 1."""
        keys = keys_and_values[:, : keys_and_values.shape[1] // 2].index_select(0, senders.reshape(-1))
        per_head = (len(senders), -1, self.heads, self.query.out_features // self.heads)
        scores = (self.query(receivers).view(per_head) * keys.view(per_head)).sum(dim=3)
        return (scores.float() * per_head[3] ** -0.5).softmax(dim=1).mean(dim=2)


class CrossNodeDualAttention(nn.Module):
    """Attention between target and reference spots in both directions (DESIGN section 2.3).

    Target spots attend to their references, whose keys and values come from [x_r | LayerNorm(y_r)]. Reference spots
    attend back to the target spots that retrieved them. Where the paper is silent, our choice: each side queries with
    its own state, and no map follows the heads. All states have the width `hidden`, a multiple of `heads`.
    """

    def __init__(self, hidden: int, heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.to_target = EdgeAttention(hidden, 2 * hidden, heads)
        self.to_reference = EdgeAttention(hidden, hidden, heads)

    def forward(
        self, target: Tensor, reference: Tensor, expression: Tensor, refer: Edges, back: Edges
    ) -> tuple[Tensor, Tensor]:
        """Messages to target, (n, hidden), and to reference spots, (m, hidden).

        `expression` is the mapped expression of the reference spots, (m, hidden); `back` is `refer` reversed.
        """
        to_target = self.to_target(target, self.answer(reference, expression), refer)
        return to_target, self.to_reference(reference, self.to_reference.keys_and_values(target), back)

    def answer(self, reference: Tensor, expression: Tensor) -> Tensor:
        """Keys and values of the reference spots for the target spots, (m, 2 hidden)."""
        return self.to_target.keys_and_values(reference, self.norm(expression))


class CrossNodeAttentionPooling(nn.Module):
    """Linear map of each target spot's state, plus its attention over its reference spots (DESIGN section 2.4).

    All states have the width `hidden`, a multiple of `heads`. Without `use_attention`, it is the linear map alone.
    """

    def __init__(self, hidden: int, heads: int = 4, *, use_attention: bool = True) -> None:
        super().__init__()
        self.state = nn.Linear(hidden, hidden)
        self.attention = EdgeAttention(hidden, hidden, heads) if use_attention else None

    def forward(self, target: Tensor, answer: Tensor | None, refer: Edges) -> Tensor:
        """Pooled states of target spots, (n, hidden); `answer` is from :meth:`answer`."""
        pooled = self.state(target)
        return pooled if self.attention is None else pooled + self.attention(target, answer, refer)

    def answer(self, reference: Tensor) -> Tensor | None:
        """Keys and values of the reference spots, (m, 2 hidden), if they are attended to."""
        return None if self.attention is None else self.attention.keys_and_values(reference)
