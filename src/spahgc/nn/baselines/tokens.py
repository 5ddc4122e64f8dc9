"""HisToGene, Hist2ST and THItoGene on embeddings: the spots of a slide as tokens with a position."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus

from .layers import Dropout, GatLayer, Head, PositionEmbedding, SageLayer, Stem, TransformerLayer
from .network import Inputs, Network

LARGEST_COUNT = 1e4
"""Counts per 10,000 do not exceed it."""


class HisToGene(Network):
    """Embedding and learned position of each spot, a transformer over all spots of the slide, and a linear head.

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
    dropout
        On the embedding and in the transformer.
    """

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        hidden: int = 64,
        n_positions: int = 128,
        n_layers: int = 2,
        heads: int = 4,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.stem, self.position = Stem(n_features, hidden, dropout), PositionEmbedding(n_positions, hidden)
        self.transformer = nn.Sequential(*(TransformerLayer(hidden, heads, dropout) for _ in range(n_layers)))
        self.head = Head(hidden, n_genes)

    def states(self, inputs: Inputs) -> Tensor:
        """Tokens after the transformer, (n, hidden)."""
        return self.transformer(self.stem(inputs["embedding"]) + self.position(inputs["position"]))

    def forward(self, inputs: Inputs) -> Tensor:
        """Expression, (n, g)."""
        return self.head(self.states(inputs))


class Hist2ST(HisToGene):
    r"""The transformer, then GraphSAGE on the nearest spots; beside the mean a zero-inflated negative binomial.

    The states after the transformer and after each GraphSAGE layer are averaged. Two maps of the result give the
    mean :math:`\mu` and the logit of the zero inflation :math:`\pi` of each count; the dispersion :math:`\theta` is
    one per gene. The loss is MSE + `weight` times the negative log likelihood (:func:`zinb_loss`).

    Parameters
    ----------
    n_features, n_genes, hidden, n_positions, n_layers, heads, dropout
        As for :class:`HisToGene`.
    n_graph_layers
        GraphSAGE layers.
    mean, spread
        Of each gene, (g,): what undoes the standardisation, so that the likelihood sees counts.
    weight
        Weight of the likelihood.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        mean: Tensor,
        spread: Tensor,
        hidden: int = 64,
        n_positions: int = 128,
        n_layers: int = 1,
        n_graph_layers: int = 2,
        heads: int = 4,
        weight: float = 0.25,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(
            n_features,
            n_genes,
            hidden=hidden,
            n_positions=n_positions,
            n_layers=n_layers,
            heads=heads,
            dropout=dropout,
        )
        self.weight = weight
        self.graph = nn.ModuleList(SageLayer(hidden) for _ in range(n_graph_layers))
        self.log_mean, self.inflation = Head(hidden, n_genes), Head(hidden, n_genes)
        self.dispersion = nn.Parameter(torch.zeros(n_genes))
        # Known from the scale of the reference, and no weights.
        self.register_buffer("mean", mean.float(), persistent=False)
        self.register_buffer("spread", spread.float(), persistent=False)

    def states(self, inputs: Inputs) -> Tensor:
        """Mean of the tokens after the transformer and each graph layer, (n, hidden)."""
        layers = [super().states(inputs)]
        for layer in self.graph:
            layers.append(layer(layers[-1], inputs["neighbors"]))
        return torch.stack(layers).mean(dim=0)

    def losses(self, inputs: Inputs, expression: Tensor) -> dict[str, Tensor]:
        """MSE and weighted likelihood."""
        states = self.states(inputs)
        counts = to_counts(expression * self.spread + self.mean)
        # The head starts at the gene's level: it learns the deviation from it.
        log_mean = self.log_mean(states) + to_counts(self.mean).add(1e-2).log()
        likelihood = zinb_loss(counts, log_mean, self.dispersion, self.inflation(states))
        return {"mse": mse_loss(self.head(states), expression), "likelihood": self.weight * likelihood}


class THItoGene(HisToGene):
    """The transformer, then two layers of graph attention on the nearest spots, and a linear head.

    Parameters
    ----------
    n_features, n_genes, hidden, n_positions, n_layers, heads, dropout
        As for :class:`HisToGene`.
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
        dropout: float = 0.2,
    ) -> None:
        super().__init__(
            n_features,
            n_genes,
            hidden=hidden,
            n_positions=n_positions,
            n_layers=n_layers,
            heads=heads,
            dropout=dropout,
        )
        self.graph = nn.ModuleList(GatLayer(hidden, heads) for _ in range(2))
        self.between = Dropout(dropout)

    def states(self, inputs: Inputs) -> Tensor:
        """Tokens after the graph attention, (n, hidden)."""
        states = super().states(inputs)
        for layer in self.graph:
            states = layer(self.between(states), inputs["neighbors"])
        return states


def to_counts(expression: Tensor) -> Tensor:
    """Counts of log1p expression, cut at 0 and :data:`LARGEST_COUNT`, so that any unit gives finite ones."""
    return expression.clamp(0.0, float(torch.tensor(LARGEST_COUNT).log1p())).expm1()


def zinb_loss(counts: Tensor, log_mean: Tensor, log_dispersion: Tensor, inflation: Tensor) -> Tensor:
    r"""Mean negative log likelihood of a zero-inflated negative binomial, for counts that need not be whole.

    .. math::
        p(c) = \pi [c = 0] + (1 - \pi) NB(c; \mu, \theta), \quad
        NB(c; \mu, \theta) = \frac{\Gamma(c + \theta)}{\Gamma(\theta) \Gamma(c + 1)}
        (\frac{\theta}{\theta + \mu})^\theta (\frac{\mu}{\theta + \mu})^c,

    less the term :math:`\log \Gamma(c + 1)`, which depends on no parameter. All is computed from logarithms, never from
    :math:`\mu` itself; :math:`\theta` is kept between exp(-6) and exp(6).

    Parameters
    ----------
    counts
        (n, g), at least 0.
    log_mean, inflation
        :math:`\log \mu` and :math:`logit \pi`, (n, g).
    log_dispersion
        :math:`\log \theta`, (g,).

    Returns
    -------
    Scalar.
    """
    log_theta = log_dispersion.clamp(-6.0, 6.0)
    theta = log_theta.exp()
    difference = log_mean - log_theta
    log_rest = -softplus(difference)  # of theta / (theta + mu)
    zero = theta * log_rest  # of NB(0)
    # log(pi + (1 - pi) NB(0)) = log(1 - pi) + log NB(0) + softplus(logit pi - log NB(0)); the last for zeros only.
    present = counts > 0
    common = zero - softplus(inflation) + softplus(inflation - zero) * ~present
    # The gamma functions take long, and cancel where the count is zero.
    at = present.flatten().nonzero()[:, 0]
    found, genes = counts.flatten()[at], at % counts.shape[1]
    log_share = (log_rest + difference).flatten().index_select(0, at)  # of mu / (theta + mu)
    positive = torch.lgamma(found + theta.index_select(0, genes)) + found * log_share
    constant = torch.lgamma(theta) * present.sum(dim=0)
    return -(common.sum() + positive.sum() - constant.sum()) / counts.numel()
