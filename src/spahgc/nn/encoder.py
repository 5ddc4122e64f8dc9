"""The heterogeneous encoder (DESIGN section 2.2), and the two masked views of the contrastive loss (2.5)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from .attention import CrossNodeDualAttention
from .config import Config
from .graph import GraphTensors
from .layers import FastDropout, draw, neighbor_mean

SLOPE = 0.2


class NeighborMean(nn.Module):
    """GraphSAGE with mean aggregation (Hamilton et al. 2017), with the names of weights of PyG's `SAGEConv`.

    Parameters
    ----------
    width
        Width of the states.
    use_neighbors
        Without it, a linear map of the node's own state.
    """

    def __init__(self, width: int, *, use_neighbors: bool = True) -> None:
        super().__init__()
        self.lin_l = nn.Linear(width, width) if use_neighbors else None
        self.lin_r = nn.Linear(width, width, bias=not use_neighbors)

    def forward(self, own: Tensor, around: Tensor) -> Tensor:
        """New states of nodes from their own states and the mean states of their neighbors, (n, width) each."""
        return self.lin_r(own) if self.lin_l is None else self.lin_l(around) + self.lin_r(own)


class HeteroLayer(nn.Module):
    """One layer: GraphSAGE on `near` and `close`, dual attention on `refer`, mean over edge types, LeakyReLU(0.2)."""

    refer: CrossNodeDualAttention | None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.near = NeighborMean(config.hidden, use_neighbors=config.use_near)
        self.close = NeighborMean(config.hidden, use_neighbors=config.use_close)
        self.refer = CrossNodeDualAttention(config.hidden, config.heads) if config.use_refer else None

    def forward(
        self, target: Tensor, reference: Tensor, expression: Tensor, graph: GraphTensors
    ) -> tuple[Tensor, Tensor]:
        """New states of target, (n, hidden), and reference spots, (m, hidden)."""
        messages = None
        if self.refer is not None:
            messages = self.refer(target, reference, expression, graph.refer, graph.back)
        target = self.near(target, neighbor_mean(target, graph.near))
        reference = self.close(reference, neighbor_mean(reference, graph.close))
        if messages is not None:
            target, reference = (target + messages[0]) / 2, (reference + messages[1]) / 2
        return leaky_relu(target, SLOPE), leaky_relu(reference, SLOPE)


class HeteroEncoder(nn.Module):
    """Input maps per node type, then layers.

    Parameters
    ----------
    n_features
        Width of the embeddings.
    n_genes
        Number of genes.
    config
        Width, depth, heads, dropout and switches.
    """

    def __init__(self, n_features: int, n_genes: int, config: Config) -> None:
        super().__init__()
        self.n_features = n_features
        self.target = _input_map(n_features, config)
        self.reference = _input_map(n_features + n_genes, config)
        self.expression = nn.Linear(n_genes, config.hidden)
        self.layers = nn.ModuleList(HeteroLayer(config) for _ in range(config.n_layers))

    def forward(self, graph: GraphTensors) -> tuple[Tensor, Tensor]:
        """States of target, (n, hidden), and reference spots, (m, hidden), after the last layer.

        Expression is read from the joint features, so that where these are masked, it is masked everywhere.
        """
        target, reference = self.target(graph.target), self.reference(graph.reference)
        expression = self.expression(graph.reference[:, self.n_features :])
        for layer in self.layers:
            target, reference = layer(target, reference, expression, graph)
        return target, reference


def _input_map(n_inputs: int, config: Config) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_inputs, config.hidden),
        nn.LeakyReLU(SLOPE),
        FastDropout(config.dropout),
        nn.Linear(config.hidden, config.hidden),
        nn.LayerNorm(config.hidden),
    )


def complementary_views(
    graph: GraphTensors, config: Config, generator: torch.Generator | None = None
) -> tuple[GraphTensors, GraphTensors]:
    """The graph with a random part of its features, and with the rest; other features are zero, and edges are shared.

    ``mask_target`` and ``mask_reference`` are the shares of elements that the first view **loses** and the second
    keeps: with the paper's 0.1 and 0.9, the first sees nine tenths of the target and one tenth of the reference.
    """
    target = graph.target.where(draw(tuple(graph.target.shape), 1 - config.mask_target, generator), 0.0)
    reference = graph.reference.where(draw(tuple(graph.reference.shape), 1 - config.mask_reference, generator), 0.0)
    # The rest is exact, because each element is in one view; the difference is cheaper than products with masks.
    rest = graph._replace(target=graph.target - target, reference=graph.reference - reference)
    return graph._replace(target=target, reference=reference), rest


class TargetEncoder:
    """Copy of an encoder that gets no gradient and follows it by exponential moving average.

    It runs without dropout, takes part in training only, and is not saved with the network.

    Parameters
    ----------
    encoder
        The encoder to follow; the copy starts equal to it.
    decay
        Share of itself that the copy keeps at each :meth:`update`. The paper's value is not known to us; 0.99 is our
        choice: in the few hundred steps of a small cohort, 0.999 would stay near the random start.
    """

    def __init__(self, encoder: nn.Module, decay: float = 0.99) -> None:
        self.decay = decay
        self.module = copy.deepcopy(encoder).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, graph: GraphTensors) -> tuple[Tensor, Tensor]:
        """States of target and reference spots, without gradient."""
        return self.module(graph)

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """Move towards the encoder: ``own = decay * own + (1 - decay) * encoder``."""
        for own, other in zip(self.module.parameters(), encoder.parameters(), strict=True):
            own.lerp_(other, 1 - self.decay)
