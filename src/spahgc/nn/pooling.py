"""Cross-node attention pooling (CNAP): what the reference says, gathered per target spot (DESIGN section 2.4)."""

from __future__ import annotations

from torch import Tensor, nn

from ._fused import Edges
from .attention import ReferenceAttention


class CrossNodeAttentionPooling(nn.Module):
    r"""Multi-head attention of each target spot over its reference spots, added to a linear map of its own state.

    .. math::
        p_t = W h_t + \sum_{r \in R(t)} softmax_r (W_q h_t \cdot W_k h_r / \sqrt{d}) W_v h_r

    with one set of W_q, W_k, W_v per head, and heads concatenated.

    Parameters
    ----------
    hidden
        Width of all states.
    heads
        Number of heads; divides `hidden`.
    """

    def __init__(self, hidden: int, heads: int = 4) -> None:
        super().__init__()
        self.state = nn.Linear(hidden, hidden)
        self.attention = ReferenceAttention(hidden, hidden, heads)

    def forward(self, target: Tensor, reference: Tensor, references: Tensor, edges: Edges | None = None) -> Tensor:
        """Pool.

        Parameters
        ----------
        target
            States of the target spots, (n, hidden).
        reference
            States of the reference spots, (m, hidden).
        references
            Reference spots of each target spot, int64 (n, K).
        edges
            The same, as :class:`~spahgc.nn.GraphTensors` keeps them; made where needed if they are not given.

        Returns
        -------
        (n, hidden).
        """
        return self.pool(target, self.answer(reference), references, edges)

    def answer(self, reference: Tensor) -> Tensor:
        """Keys and values of the reference spots, (m, 2 hidden)."""
        return self.attention.keys_and_values(reference)

    def pool(self, target: Tensor, answer: Tensor, references: Tensor, edges: Edges | None = None) -> Tensor:
        """:meth:`forward` for some of the target spots, with the keys and values made before."""
        return self.state(target) + self.attention.attend(target, answer, references, edges)
