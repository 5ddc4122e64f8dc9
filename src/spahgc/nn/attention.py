"""Cross-node dual attention (CNDA): target and reference spots attend to each other (DESIGN section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch_geometric.utils import softmax

from ._fused import Edges, attention, both_ways, edges_of, in_one_pass


def head_width(hidden: int, heads: int) -> int:
    """Width of one head, or an error."""
    if heads < 1 or hidden % heads:
        raise ValueError(f"hidden ({hidden}) is not a multiple of heads ({heads}).")
    return hidden // heads


class ReferenceAttention(nn.Module):
    r"""Multi-head attention of each target spot over its K reference spots.

    .. math::
        o_t = \sum_{r \in R(t)} A_{tr} W_v c_r, \quad
        A_{tr} = softmax_{r \in R(t)} (W_q h_t \cdot W_k c_r / \sqrt{d})

    with one set of maps per head, heads concatenated. Keys have no bias: it would change no weight.

    Every map is applied once per node; per edge there are only products of what the maps gave.

    Parameters
    ----------
    hidden
        Width of the target states and of the result.
    width
        Width of what the reference spots answer with, c.
    heads
        Number of heads; divides `hidden`.
    """

    def __init__(self, hidden: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width(hidden, heads)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(width, hidden, bias=False)
        self.value = nn.Linear(width, hidden)

    def forward(self, target: Tensor, answer: Tensor, references: Tensor, edges: Edges | None = None) -> Tensor:
        """Attend.

        Parameters
        ----------
        target
            States of the target spots, (n, hidden).
        answer
            What the reference spots answer with, (m, width).
        references
            Reference spots of each target spot, int64 (n, K).
        edges
            The same, as :func:`~spahgc.nn._fused.edges_of` makes them; made where needed if they are not given.

        Returns
        -------
        (n, hidden).
        """
        return self.attend(target, self.keys_and_values(answer), references, edges)

    def keys_and_values(self, answer: Tensor) -> Tensor:
        """Keys and values of the reference spots, by one product, (m, 2 hidden)."""
        return linear(answer, torch.cat([self.key.weight, self.value.weight]))

    def attend(self, target: Tensor, keys_and_values: Tensor, references: Tensor, edges: Edges | None = None) -> Tensor:
        """:meth:`forward` for some of the target spots, with the keys and values made before."""
        if in_one_pass(keys_and_values):
            edges = edges_of(references, len(keys_and_values)) if edges is None else edges
            return attention(self.query(target), keys_and_values, edges, self.heads) + self.value.bias
        n, k = references.shape
        query = self.query(target).view(n, 1, self.heads, self.head_width)
        # Keys and values in one gather. index_select rather than [] for its gradient, an index_add.
        gathered = keys_and_values.index_select(0, references.reshape(-1))
        key, value = gathered.view(n, k, 2, self.heads, self.head_width).unbind(dim=2)
        scores = (query * key).sum(dim=3).float() * self.head_width**-0.5
        weights = scores.softmax(dim=1).unsqueeze(3)
        # The weights of a spot add up to 1, so the values' bias can be added after the sum.
        return (weights * value).sum(dim=1).reshape(n, -1) + self.value.bias

    def weights(self, target: Tensor, keys_and_values: Tensor, references: Tensor) -> Tensor:
        """How much some target spots attend to each of their references, mean over heads, (n, K); rows sum to 1."""
        (n, k), per_head = references.shape, (self.heads, self.head_width)
        keys = keys_and_values[:, : self.heads * self.head_width].index_select(0, references.reshape(-1))
        scores = (self.query(target).view(n, 1, *per_head) * keys.view(n, k, *per_head)).sum(dim=3)
        return (scores.float() * self.head_width**-0.5).softmax(dim=1).mean(dim=2)


class CrossNodeDualAttention(nn.Module):
    r"""Multi-head attention over the edges between target and reference spots, in both directions.

    Target spots attend to their references, which answer with :math:`c_r = [x_r | LayerNorm(y_r)]`
    (:class:`ReferenceAttention`). Reference spots attend back to the target spots that retrieved them:

    .. math::
        o_r = \sum_{t: r \in R(t)} B_{rt} U_v h_t, \quad
        B_{rt} = softmax_{t: r \in R(t)} (U_q x_r \cdot U_k h_t / \sqrt{d})

    with one set of maps per head, heads concatenated. Where the paper is silent, our choice: each side asks with its
    own state, and no map follows the heads.

    Parameters
    ----------
    hidden
        Width of all states.
    heads
        Number of heads; divides `hidden`.
    """

    def __init__(self, hidden: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width(hidden, heads)
        self.norm = nn.LayerNorm(hidden)
        self.to_target = ReferenceAttention(hidden, 2 * hidden, heads)
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden)

    def forward(
        self,
        target: Tensor,
        reference: Tensor,
        expression: Tensor,
        references: Tensor,
        edges: tuple[Edges, Edges] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend in both directions.

        Parameters
        ----------
        target
            States of the target spots, (n, hidden).
        reference
            States of the reference spots, (m, hidden).
        expression
            Mapped expression of the reference spots, (m, hidden).
        references
            Reference spots of each target spot, int64 (n, K).
        edges
            The same in both directions, as :class:`~spahgc.nn.GraphTensors` keeps them; made if they are not given.

        Returns
        -------
        Messages to target, (n, hidden), and to reference spots, (m, hidden). A reference spot that no target spot
        retrieves gets zeros.
        """
        answer = self.answer(reference, expression)
        if in_one_pass(answer):
            there, back = both_ways(references, len(reference)) if edges is None else edges
            to_target = self.to_target.attend(target, answer, references, there)
            weight = torch.cat([self.key.weight, self.value.weight])
            # Keys have no bias: it would change no weight.
            bias = torch.cat([torch.zeros_like(self.value.bias), self.value.bias])
            return to_target, attention(self.query(reference), linear(target, weight, bias), back, self.heads)
        return self.to_target.attend(target, answer, references), self._by_operations(target, reference, references)

    def _by_operations(self, target: Tensor, reference: Tensor, references: Tensor) -> Tensor:
        """Messages to reference spots, by tensor operations."""
        (n, k), m = references.shape, reference.shape[0]
        edges = references.reshape(-1)
        per_head = (self.heads, self.head_width)
        query = self.query(reference).index_select(0, edges).view(n, k, *per_head)
        key, value = self.key(target).view(n, 1, *per_head), self.value(target).view(n, 1, *per_head)
        scores = (query * key).sum(dim=3).float().view(n * k, self.heads) * self.head_width**-0.5
        # The edges of one receiver are scattered over the target spots: a grouped softmax, then a grouped sum.
        weights = softmax(scores, edges, num_nodes=m).view(n, k, self.heads, 1)
        messages = (weights * value).view(n * k, -1)
        return messages.new_zeros(m, messages.shape[1]).index_add(0, edges, messages)

    def answer(self, reference: Tensor, expression: Tensor) -> Tensor:
        """Keys and values of the reference spots for the target spots, (m, 2 hidden)."""
        asks, hidden = self.to_target, reference.shape[1]
        weight = torch.cat([asks.key.weight, asks.value.weight])
        # Two products instead of one of both side by side: these would have to be copied there first.
        return torch.addmm(linear(reference, weight[:, :hidden]), self.norm(expression), weight[:, hidden:].T)
