"""The network: hyperparameters, heterogeneous encoder, attention pooling and output layer (DESIGN section 2)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from .._checks import Range, above, at_least, between, check_argument
from .attention import CrossNodeAttentionPooling, CrossNodeDualAttention
from .graph import GraphTensors
from .layers import FastDropout, draw, neighbor_mean
from .loss import contrastive_loss

SLOPE = 0.2
_RANGES: dict[str, Range] = {
    **dict.fromkeys(("hidden", "n_layers", "heads", "n_references", "n_near", "n_close", "epochs"), at_least(1)),
    **dict.fromkeys(("mask_target", "mask_reference", "ema_decay"), between(0, 1)),
    **dict.fromkeys(("weight_pearson", "weight_target", "weight_reference", "weight_decay"), at_least(0)),
    "dropout": Range("of at least 0 and less than 1", lambda value: 0 <= value < 1),
    "learning_rate": above(0),
}


@dataclass(frozen=True)
class Config:
    """Hyperparameters; the defaults are the paper's, except `dropout` and `ema_decay`, which it does not give.

    The fields are plain numbers and booleans, so that they can be stored as JSON.

    Parameters
    ----------
    hidden, n_layers, heads
        Width of the node states, layers of the encoder, and attention heads, which divide `hidden`.
    dropout
        Dropout in the input maps.
    n_references, n_near, n_close
        As for :func:`slide_graph` (K, Q, and k).
    use_near, use_close, use_refer, use_pooling
        Switches for ablations: spatial neighbors of target spots; neighbors of reference spots; attention between
        target and reference spots in the layers; attention of target over reference spots after the last layer. A spot
        always keeps its own state. With `use_refer` and `use_pooling` off, the reference plays no part in a prediction.
    mask_target, mask_reference
        Share of a node type's features that is masked in view 1 (and kept in view 2).
    ema_decay
        Share of itself that the target encoder keeps per step. 0.99 is our choice: in the few hundred steps of a small
        cohort, 0.999 would stay near the random start.
    weight_pearson, weight_target, weight_reference
        Weights of 1 - mean per-gene Pearson, and of the contrastive terms, relative to the mean squared error.
    learning_rate, weight_decay, epochs
        Parameters of AdamW, and passes over the slides.

    Examples
    --------
    >>> from spahgc.nn import Config
    >>> Config(hidden=128, n_layers=2).hidden
    128
    """

    hidden: int = 256
    n_layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    n_references: int = 7
    n_near: int = 5
    n_close: int = 3
    use_near: bool = True
    use_close: bool = True
    use_refer: bool = True
    use_pooling: bool = True
    mask_target: float = 0.1
    mask_reference: float = 0.9
    ema_decay: float = 0.99
    weight_pearson: float = 0.5
    weight_target: float = 0.2
    weight_reference: float = 0.1
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    epochs: int = 200

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            check_argument(name, getattr(self, name), hint, _RANGES.get(name))
        if self.hidden % self.heads:
            raise ValueError(f"`hidden` ({self.hidden}) must be a multiple of `heads` ({self.heads}).")


class NeighborMean(nn.Module):
    """GraphSAGE with mean aggregation (Hamilton et al. 2017), with the names of weights of PyG's `SAGEConv`.

    Without `use_neighbors`, it is a linear map of the node's own state.
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
    """Input maps per node type, then layers (DESIGN section 2.2), for embeddings of width `n_features`."""

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

    It runs without dropout, takes part in training only, and is not saved with the network. `decay` is the share of
    itself that it keeps at each :meth:`update`.
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


class SpaHGCNetwork(nn.Module):
    """Predict the expression of a slide's spots from its heterogeneous graph.

    :meth:`forward` uses the unmasked graph, in training and in use. The masked views serve the contrastive terms alone
    (:meth:`contrast`): a network trained on view 1, which holds one tenth of the reference features, would meet inputs
    of another distribution in use, and predictions from a masked view would be random. The price is one more pass of
    the encoder per step.

    Parameters
    ----------
    n_features
        Width of the embeddings.
    n_genes
        Number of genes.
    config
        Hyperparameters; the paper's by default.
    components
        Fixed components of the output, (n_components, n_genes): the output layer gives their weights, and the
        prediction is the product of both. `None`: the output layer gives the genes.

    Examples
    --------
    >>> import numpy as np
    >>> from spahgc.nn import Config, SpaHGCNetwork, slide_graph
    >>> rng = np.random.default_rng(0)
    >>> graph = slide_graph(rng.random((9, 8)), rng.random((9, 2)), rng.random((20, 8)), rng.random((20, 3)))
    >>> SpaHGCNetwork(8, 3, Config(hidden=16))(graph.tensors()).shape
    torch.Size([9, 3])
    """

    components: Tensor | None

    def __init__(
        self, n_features: int, n_genes: int, config: Config | None = None, *, components: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config = Config() if config is None else config
        self.n_features, self.n_genes = n_features, n_genes
        if components is not None and (components.ndim != 2 or components.shape[1] != n_genes):
            raise ValueError(
                f"components must be (n_components, {n_genes}), one column per gene, got {tuple(components.shape)}."
            )
        self.register_buffer("components", None if components is None else components.detach().float().clone())
        self.encoder = HeteroEncoder(n_features, n_genes, config)
        self.pooling = CrossNodeAttentionPooling(config.hidden, config.heads, use_attention=config.use_pooling)
        self.head = nn.Linear(config.hidden, n_genes if components is None else components.shape[0])

    def forward(self, graph: GraphTensors) -> Tensor:
        """Prediction for the target spots, float32 (n_spots, n_genes)."""
        return self.output(self.pooled(graph))

    def pooled(self, graph: GraphTensors) -> Tensor:
        """Pooled states of the target spots, (n_spots, hidden)."""
        found = (graph.target.shape[1], graph.reference.shape[1])
        if found != (self.n_features, self.n_features + self.n_genes):
            raise ValueError(
                f"The graph has {found[0]} target and {found[1]} reference features, but this network takes "
                f"{self.n_features} and {self.n_features + self.n_genes} "
                f"({self.n_features} of the embedding, {self.n_genes} genes)."
            )
        target, reference = self.encoder(graph)
        return self.pooling(target, self.pooling.answer(reference), graph.refer)

    def output(self, pooled: Tensor, *, genes: bool = True) -> Tensor:
        """Prediction, float32 (n_spots, n_genes), or the output of the last layer, from pooled states."""
        # In full precision: the error of a bfloat16 product would be of the size of what is learned last.
        with torch.autocast(pooled.device.type, enabled=False):
            output = self.head(pooled.float())
            return output @ self.components if genes and self.components is not None else output

    def contrast(
        self, graph: GraphTensors, target_encoder: TargetEncoder, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Contrastive terms of target and reference spots: 2 - 2 cos(view 1, view 2), scalars.

        View 1 goes through the encoder, view 2 through the target encoder, which gets no gradient.
        """
        view_1, view_2 = complementary_views(graph, self.config, generator)
        target_1, reference_1 = self.encoder(view_1)
        target_2, reference_2 = target_encoder(view_2)
        return contrastive_loss(target_1, target_2), contrastive_loss(reference_1, reference_2)
