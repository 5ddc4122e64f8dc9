"""BLEEP and mclSTExp on embeddings: one space for image and expression, and retrieval in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from .layers import PositionEmbedding, Projection, TransformerLayer
from .network import Inputs, Network, Step

_CHUNK = 1024


class BLEEP(Network):
    r"""Projections of embedding and expression, contrasted within a slide; prediction by retrieval.

    With the projections I and E, (n, hidden), the logits are :math:`I E^T / \tau`, and the targets of the cross-entropy
    in both directions :math:`softmax((I I^T + E E^T) / 2 \cdot \tau)`, taken as constants: spots that look or express
    alike are not pushed apart. A spot is predicted as the mean expression of the reference spots whose E is most
    similar by cosine to its I.

    Parameters
    ----------
    n_features, n_genes
        Widths of embedding and expression.
    hidden
        Width of the common space.
    n_retrieved
        Reference spots that are averaged (all, where there are fewer).
    temperature
        :math:`\tau`.
    dropout
        In the projections.
    """

    recalls = True
    keys: Tensor
    values: Tensor

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        hidden: int = 128,
        n_retrieved: int = 50,
        temperature: float = 1.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.n_retrieved, self.temperature = n_retrieved, temperature
        self.image = Projection(n_features, hidden, dropout)
        self.expression = Projection(n_genes, hidden, dropout)
        # The reference spots are not weights: they come back with the reference.
        self.register_buffer("keys", torch.empty(0, hidden), persistent=False)
        self.register_buffer("values", torch.empty(0, n_genes), persistent=False)

    def express(self, inputs: Inputs, expression: Tensor) -> Tensor:
        """Expression of a slide's spots in the common space, (n, hidden)."""
        return self.expression(expression)

    def losses(self, inputs: Inputs, expression: Tensor) -> dict[str, Tensor]:
        """The contrast of a slide's spots."""
        images, expressions = self.image(inputs["embedding"]), self.express(inputs, expression)
        logits = images @ expressions.T / self.temperature
        targets = self.targets(images.detach(), expressions.detach())
        return {"contrast": (cross_entropy(logits, targets) + cross_entropy(logits.T, targets.T)) / 2}

    def targets(self, images: Tensor, expressions: Tensor) -> Tensor:
        """What each image should find among the expressions, (n, n), rows add up to 1."""
        similarity = (images @ images.T + expressions @ expressions.T) / 2
        return (similarity * self.temperature).softmax(dim=1)

    def recall(self, references: Sequence[Step]) -> None:
        """Project the expression of the reference slides."""
        self.keys = torch.cat([normalize(self.express(*reference), dim=1) for reference in references])
        self.values = torch.cat([expression for _, expression in references])

    def forward(self, inputs: Inputs) -> Tensor:
        """Expression, (n, g)."""
        images = normalize(self.image(inputs["embedding"]), dim=1)
        k = min(self.n_retrieved, len(self.keys))
        found = []
        for part in images.split(_CHUNK):
            index = (part @ self.keys.T).topk(k, dim=1).indices
            weights = part.new_zeros(len(part), len(self.keys)).scatter_(1, index, 1.0 / k)
            found.append(weights @ self.values)
        return torch.cat(found)


class MclSTExp(BLEEP):
    """BLEEP whose expression side is a transformer over the spots of a slide, with learned positions.

    Each spot is its own positive and all other spots of the slide are negatives.

    Parameters
    ----------
    n_features, n_genes, hidden, n_retrieved, temperature, dropout
        As for :class:`BLEEP`.
    n_positions
        Columns, and rows, of the grid.
    n_layers, heads
        Of the transformer.
    """

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        hidden: int = 128,
        n_positions: int = 128,
        n_layers: int = 2,
        heads: int = 4,
        n_retrieved: int = 50,
        temperature: float = 1.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            n_features, n_genes, hidden=hidden, n_retrieved=n_retrieved, temperature=temperature, dropout=dropout
        )
        self.token, self.position = nn.Linear(n_genes, hidden), PositionEmbedding(n_positions, hidden)
        self.transformer = nn.Sequential(*(TransformerLayer(hidden, heads, dropout) for _ in range(n_layers)))
        self.expression = Projection(hidden, hidden, dropout)

    def express(self, inputs: Inputs, expression: Tensor) -> Tensor:
        """Expression of a slide's spots, in view of each other, in the common space, (n, hidden)."""
        return self.expression(self.transformer(self.token(expression) + self.position(inputs["position"])))

    def targets(self, images: Tensor, expressions: Tensor) -> Tensor:
        """Each image should find its own expression: the identity, (n, n)."""
        return torch.eye(len(images), dtype=images.dtype, device=images.device)
