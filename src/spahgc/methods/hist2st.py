"""Hist2ST in compact form: a transformer, then GraphSAGE, with a count likelihood beside the mean."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import NegativeBinomial
from torch.nn.functional import logsigmoid, mse_loss
from torch_geometric.nn import SAGEConv

from .._checks import at_least
from .._geometry import spatial_knn
from .._slides import Cohort, Slide
from .base import parameters
from .histogene import HisToGene
from .network import ExpressionScale, Head, edge_index

LARGEST_COUNT = 1e4  # counts per 10,000


def to_counts(expression: Tensor) -> Tensor:
    """Counts of log1p expression, clipped at 0 and 10,000 so that they are finite in any unit."""
    return expression.clamp(0.0, float(np.log1p(LARGEST_COUNT))).expm1()


def zinb_loss(counts: Tensor, log_mean: Tensor, log_dispersion: Tensor, inflation: Tensor) -> Tensor:
    r"""Mean negative log likelihood of a zero-inflated negative binomial, for counts that need not be integers.

    .. math:: p(c) = \pi [c = 0] + (1 - \pi) NB(c; \mu, \theta)

    from counts c, :math:`\log \mu` and :math:`logit \pi`, (n_spots, n_genes), and :math:`\log \theta`, (n_genes,),
    which is clipped at -6 and 6.
    """
    log_theta = log_dispersion.clamp(-6.0, 6.0)
    binomial = NegativeBinomial(log_theta.exp(), logits=log_mean - log_theta, validate_args=False)
    present = logsigmoid(-inflation) + binomial.log_prob(counts)
    return -torch.where(counts > 0, present, torch.logaddexp(logsigmoid(inflation), present)).mean()


@parameters(n_neighbors=at_least(1), likelihood_weight=at_least(0))
class Hist2ST(HisToGene):
    """Hist2ST (Zeng et al., Briefings in Bioinformatics 2022): a transformer, GraphSAGE, and a ZINB likelihood.

    The transformer over the spots of a slide, with learned x and y positions, is followed by two layers of GraphSAGE
    on the graph of the nearest spots. The states after the transformer and after each GraphSAGE layer are averaged.
    Beside the head for the expression, two more give the mean and the zero inflation of a zero-inflated negative
    binomial with one dispersion per gene, whose negative log likelihood is added to the loss.

    The likelihood uses exp(expression) - 1, which are counts per 10,000 in the default unit and need not be integers,
    clipped at 0 and 10,000 so that it is finite in other units.

    Source: doi:10.1093/bib/bbac297. The compact form leaves out the convolutions that mix pixels (ConvMixer), the LSTM
    that weighs the graph layers (they are averaged), the dispersion of each spot (it is one per gene), and
    self-distillation from augmented tiles. Further parameters are those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_layers
        Layers of the transformer.
    n_neighbors
        Nearest spots in the graph.
    likelihood_weight
        Weight of the likelihood relative to the MSE.
    """

    n_layers: int = 1
    n_neighbors: int = 4
    likelihood_weight: float = 0.25

    name: ClassVar[str] = "hist2st"

    def inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        return *super().inputs(slide, references, scale), spatial_knn(slide.coordinates, self.n_neighbors)

    def layers(self, n_features: int, scale: ExpressionScale) -> dict[str, nn.Module | nn.Parameter]:
        n_genes = len(scale.mean)
        return {
            **super().layers(n_features, scale),
            "graph": nn.ModuleList(SAGEConv(self.hidden, self.hidden) for _ in range(2)),
            "log_mean": Head(self.hidden, n_genes),
            "inflation": Head(self.hidden, n_genes),
            "dispersion": nn.Parameter(torch.zeros(n_genes)),
            # Constants that recover counts for the likelihood.
            "mean": nn.Parameter(torch.tensor(scale.mean, dtype=torch.float32), requires_grad=False),
            "std": nn.Parameter(torch.tensor(scale.std, dtype=torch.float32), requires_grad=False),
        }

    def states(self, net: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        states, edges = [super().states(net, embedding, *inputs)], edge_index(inputs[1])
        for layer in net.graph:
            states.append(layer(states[-1], edges).relu())
        return torch.stack(states).mean(dim=0)

    def losses(self, net: Any, expression: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        states = self.states(net, *inputs)
        counts = to_counts(expression * net.std + net.mean)
        # The head learns the deviation from the mean count of the gene.
        log_mean = net.log_mean(states) + to_counts(net.mean).add(1e-2).log()
        likelihood = zinb_loss(counts, log_mean, net.dispersion, net.inflation(states))
        return {"mse": mse_loss(net.head(states), expression), "likelihood": self.likelihood_weight * likelihood}
