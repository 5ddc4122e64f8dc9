"""Hist2ST in compact form: a transformer, then GraphSAGE, with a count likelihood beside the mean."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus
from torch_geometric.nn import SAGEConv

from .._checks import at_least
from .._geometry import spatial_knn
from .._slides import Cohort, Slide
from .base import parameters
from .histogene import HisToGeneNetwork
from .network import ExpressionScale, Head, NetworkMethod, edge_index, grid_positions

LARGEST_COUNT = 1e4
"""Upper limit of counts per 10,000."""


class Hist2STNetwork(HisToGeneNetwork):
    r"""Transformer, then GraphSAGE on the nearest spots; a zero-inflated negative binomial beside the mean.

    The states after the transformer and after each GraphSAGE layer are averaged. Two maps of the result give the mean
    :math:`\mu` and the logit of the zero inflation :math:`\pi` of each count; the dispersion :math:`\theta` is one per
    gene. The loss is the MSE plus the weighted negative log likelihood (:func:`zinb_loss`).

    Parameters
    ----------
    n_features, n_genes, hidden, dropout
        As for :class:`~spahgc.methods.histogene.HisToGeneNetwork`.
    mean, std
        Mean and standard deviation of each gene, (n_genes,), to recover counts for the likelihood.
    likelihood_weight
        Weight of the likelihood.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        hidden: int,
        dropout: float,
        mean: Tensor,
        std: Tensor,
        likelihood_weight: float,
    ) -> None:
        super().__init__(n_features, n_genes, hidden=hidden, dropout=dropout)
        self.likelihood_weight = likelihood_weight
        self.graph = nn.ModuleList(SAGEConv(hidden, hidden) for _ in range(2))
        self.log_mean, self.inflation = Head(hidden, n_genes), Head(hidden, n_genes)
        self.dispersion = nn.Parameter(torch.zeros(n_genes))
        # Constants of the reference, not weights.
        self.register_buffer("mean", mean.float(), persistent=False)
        self.register_buffer("std", std.float(), persistent=False)

    def states(self, embedding: Tensor, position: Tensor, neighbors: Tensor) -> Tensor:  # type: ignore[override]
        """Mean of the tokens after the transformer and each graph layer, (n_spots, hidden)."""
        layers, edges = [super().states(embedding, position)], edge_index(neighbors)
        for layer in self.graph:
            layers.append(layer(layers[-1], edges).relu())
        return torch.stack(layers).mean(dim=0)

    def losses(self, expression: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """MSE and weighted likelihood."""
        states = self.states(*inputs)
        counts = to_counts(expression * self.std + self.mean)
        # The head learns the deviation from the mean count of the gene.
        log_mean = self.log_mean(states) + to_counts(self.mean).add(1e-2).log()
        likelihood = zinb_loss(counts, log_mean, self.dispersion, self.inflation(states))
        return {"mse": mse_loss(self.head(states), expression), "likelihood": self.likelihood_weight * likelihood}


def to_counts(expression: Tensor) -> Tensor:
    """Counts of log1p expression, clipped at 0 and :data:`LARGEST_COUNT` so that they are finite in any unit."""
    return expression.clamp(0.0, float(np.log1p(LARGEST_COUNT))).expm1()


def zinb_loss(counts: Tensor, log_mean: Tensor, log_dispersion: Tensor, inflation: Tensor) -> Tensor:
    r"""Mean negative log likelihood of a zero-inflated negative binomial, for counts that need not be integers.

    .. math::
        p(c) = \pi [c = 0] + (1 - \pi) NB(c; \mu, \theta), \quad
        NB(c; \mu, \theta) = \frac{\Gamma(c + \theta)}{\Gamma(\theta) \Gamma(c + 1)}
        (\frac{\theta}{\theta + \mu})^\theta (\frac{\mu}{\theta + \mu})^c,

    without the term :math:`\log \Gamma(c + 1)`, which depends on no parameter. All terms are computed in logarithms;
    :math:`\theta` is kept between exp(-6) and exp(6).

    Parameters
    ----------
    counts
        Nonnegative counts, (n, g).
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
    # The gamma functions are slow, and cancel where the count is zero.
    at = present.flatten().nonzero()[:, 0]
    positive, genes = counts.flatten()[at], at % counts.shape[1]
    log_share = (log_rest + difference).flatten().index_select(0, at)  # of mu / (theta + mu)
    gamma = torch.lgamma(positive + theta.index_select(0, genes)) + positive * log_share
    constant = torch.lgamma(theta) * present.sum(dim=0)
    return -(common.sum() + gamma.sum() - constant.sum()) / counts.numel()


@parameters(n_neighbors=at_least(1), likelihood_weight=at_least(0))
class Hist2ST(NetworkMethod):
    """Hist2ST (Zeng et al., Briefings in Bioinformatics 2022): a transformer, GraphSAGE, and a ZINB likelihood.

    The transformer over the spots of a slide, with learned x and y positions, is followed by two layers of GraphSAGE
    on the graph of the nearest spots. Beside the head for the expression, two more give the parameters of a
    zero-inflated negative binomial, whose likelihood is added to the loss.

    Methods see expression, not counts. The likelihood uses exp(expression) - 1, which are counts per 10,000 in the
    default unit. They need not be integers. Values are clipped at 0 and 10,000, so that the likelihood is finite in
    other units.

    The compact form leaves out the convolutions that mix pixels (ConvMixer), the LSTM that weighs the graph layers
    (they are averaged), the dispersion of each spot (it is one per gene), and self-distillation from augmented tiles.
    Further parameters are those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_neighbors
        Nearest spots in the graph.
    likelihood_weight
        Weight of the likelihood relative to the MSE.
    """

    n_neighbors: int = 4
    likelihood_weight: float = 0.25

    name: ClassVar[str] = "hist2st"
    source: ClassVar[str] = (
        "Zeng et al. Spatial transcriptomics prediction from histology jointly through transformer and graph neural "
        "networks. Briefings in Bioinformatics 2022. doi:10.1093/bib/bbac297"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def _network(self, n_features: int, scale: ExpressionScale) -> Hist2STNetwork:
        return Hist2STNetwork(
            n_features,
            len(scale.mean),
            hidden=self.hidden,
            dropout=self.dropout,
            mean=torch.from_numpy(scale.mean),
            std=torch.from_numpy(scale.std),
            likelihood_weight=self.likelihood_weight,
        )

    def _inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        return slide.embedding, grid_positions(slide.coordinates), spatial_knn(slide.coordinates, self.n_neighbors)
