"""The heterogeneous encoder: input maps and layers (DESIGN section 2.2)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import embedding_bag, leaky_relu

from ._draws import Dropout
from ._fused import Edges, in_one_pass, mean
from .attention import CrossNodeDualAttention
from .config import Config
from .graph import GraphTensors

SLOPE = 0.2


class _OwnState(nn.Module):
    """What GraphSAGE is without neighbours: a linear map of the node's own state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.state = nn.Linear(width, width)

    def forward(self, own: Tensor, _states: Tensor, _neighbours: Tensor, _edges: Edges | None = None) -> Tensor:
        return self.state(own)


class NeighbourMean(nn.Module):
    """GraphSAGE with mean aggregation (Hamilton et al. 2017), for nodes that all have the same number of neighbours.

    What `torch_geometric.nn.SAGEConv` computes, with its names of the weights; but as a table of neighbours is read, no
    sum is scattered, and the nodes can be worked on a few at a time.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin_l = nn.Linear(width, width)
        self.lin_r = nn.Linear(width, width, bias=False)

    def forward(self, own: Tensor, states: Tensor, neighbours: Tensor, edges: Edges | None = None) -> Tensor:
        """New states of nodes, (n, width).

        Parameters
        ----------
        own
            Their states, (n, width).
        states
            States of all nodes of the type.
        neighbours
            Rows of `states`, (n, k); with k = 0 the mean counts as zero.
        edges
            The same, as :class:`~spahgc.nn.GraphTensors` keeps them, for a gradient that sorts nothing.
        """
        if neighbours.shape[1] == 0:
            return self.lin_r(own) + self.lin_l.bias
        around = (
            embedding_bag(neighbours, states, mode="mean")
            if edges is None or not in_one_pass(states)
            else mean(states, edges, neighbours.shape[1])
        )
        return self.lin_l(around) + self.lin_r(own)


class HeteroLayer(nn.Module):
    """One layer: GraphSAGE on `near` and `close`, dual attention on `refer`, mean over edge types, LeakyReLU(0.2)."""

    near: NeighbourMean | _OwnState
    close: NeighbourMean | _OwnState
    refer: CrossNodeDualAttention | None

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.hidden
        self.near = NeighbourMean(width) if config.use_near else _OwnState(width)
        self.close = NeighbourMean(width) if config.use_close else _OwnState(width)
        self.refer = CrossNodeDualAttention(width, config.heads) if config.use_refer else None

    def forward(
        self, target: Tensor, reference: Tensor, expression: Tensor, graph: GraphTensors
    ) -> tuple[Tensor, Tensor]:
        """New states of target, (n, hidden), and reference spots, (m, hidden)."""
        edges = graph.edges
        to_target = self.near(target, target, graph.near, edges and edges.near)
        to_reference = self.close(reference, reference, graph.close, edges and edges.close)
        if self.refer is not None:
            from_reference, from_target = self.refer(
                target, reference, expression, graph.references, edges and (edges.there, edges.back)
            )
            to_target, to_reference = (to_target + from_reference) / 2, (to_reference + from_target) / 2
        return leaky_relu(to_target, SLOPE), leaky_relu(to_reference, SLOPE)


class HeteroEncoder(nn.Module):
    """Input maps per node type, then layers.

    Parameters
    ----------
    n_features
        Width of the embeddings (d).
    n_genes
        Number of genes (g).
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
        """States of the target, (n, hidden), and reference spots, (m, hidden), after the last layer.

        Expression is read from the joint features, so that where these are masked, it is masked everywhere.
        """
        graph = graph.with_edges()
        target, reference = self.target(graph.target), self.reference(graph.reference)
        expression = self.expression(graph.reference[:, self.n_features :])
        for layer in self.layers:
            target, reference = layer(target, reference, expression, graph)
        return target, reference


def _input_map(n_inputs: int, config: Config) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_inputs, config.hidden),
        nn.LeakyReLU(SLOPE),
        Dropout(config.dropout),
        nn.Linear(config.hidden, config.hidden),
        nn.LayerNorm(config.hidden),
    )
