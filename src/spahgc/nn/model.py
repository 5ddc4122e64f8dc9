"""The network: encoder, attention pooling, output layer (DESIGN section 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from ._fused import Edges
from .config import Config
from .encoder import HeteroEncoder
from .graph import GraphTensors, graph_tensors
from .loss import contrastive_loss
from .masking import TargetEncoder, complementary_views
from .pooling import CrossNodeAttentionPooling


class _OwnState(nn.Module):
    """Pooling that is switched off: the linear map of the target state alone."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.state = nn.Linear(hidden, hidden)

    def forward(self, target: Tensor, _reference: Tensor, _references: Tensor, _edges: Edges | None = None) -> Tensor:
        return self.state(target)

    def answer(self, reference: Tensor) -> Tensor:
        return reference

    def pool(self, target: Tensor, _answer: Tensor, _references: Tensor, _edges: Edges | None = None) -> Tensor:
        return self.state(target)


class SpaHGC(nn.Module):
    """Predict the expression of a slide's spots from its heterogeneous graph.

    :meth:`forward` works on the unmasked graph, in training and in use: the network is fitted on what it will be given.
    The masked views feed the contrastive terms alone (:meth:`contrast`). Trained on view 1 instead, which holds one
    tenth of the reference features, it would meet an input of another distribution whenever it is used; predicting from
    a masked view to match that makes predictions random. The price is one more pass of the encoder per step.

    Parameters
    ----------
    n_features
        Width of the embeddings (d).
    n_genes
        Number of genes (g).
    config
        Hyperparameters; the default is the paper's.
    components
        Rows span the space of outputs, (r, g): the output layer gives r weights per spot, and the prediction is their
        product with these fixed components. `None`: the output layer gives the g genes.
    """

    components: Tensor | None

    def __init__(
        self, n_features: int, n_genes: int, config: Config | None = None, *, components: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = Config() if config is None else config
        self.n_features, self.n_genes = n_features, n_genes
        if components is not None and (components.ndim != 2 or components.shape[1] != n_genes):
            raise ValueError(f"components is {tuple(components.shape)}; it is (r, {n_genes}): one column per gene.")
        self.register_buffer("components", None if components is None else components.detach().float().clone())
        hidden = self.config.hidden
        self.encoder = HeteroEncoder(n_features, n_genes, self.config)
        self.pooling = (
            CrossNodeAttentionPooling(hidden, self.config.heads) if self.config.use_pooling else _OwnState(hidden)
        )
        self.head = nn.Linear(hidden, n_genes if components is None else components.shape[0])
        if self.config.zero_init_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, data: HeteroData | GraphTensors) -> Tensor:
        """Prediction for the target spots, (n, g), float32, with ``data["target"].base`` added if there is one.

        A `HeteroData` may lie on another device than the network; a graph that is read often is best given as
        ``graph_tensors(data).to(device)``.
        """
        graph = self._tensors(data)
        output = self._genes(self.head_output(graph))
        return output if graph.base is None else output + graph.base

    def head_output(self, graph: GraphTensors) -> Tensor:
        """What the output layer gives: weights of the components, (n, r), or values of the genes, (n, g); float32."""
        graph = graph.with_edges()
        target, reference = self.encoder(graph)
        return self._head(self.pooling(target, reference, graph.references, graph.edges and graph.edges.there))

    def output(self, pooled: Tensor) -> Tensor:
        """Values of the genes, (n, g), float32, from what is pooled, (n, hidden)."""
        return self._genes(self._head(pooled))

    def _head(self, pooled: Tensor) -> Tensor:
        # In full precision: the error of a bfloat16 product would be of the size of what is learnt last.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled.float())

    def _genes(self, output: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            return output if self.components is None else output @ self.components

    def contrast(
        self,
        data: HeteroData | GraphTensors,
        target_encoder: TargetEncoder,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Contrastive terms of the target and of the reference spots: 2 - 2 cos(view 1, view 2), scalars.

        View 1 goes through the encoder, view 2 through the target encoder, which gets no gradient.
        """
        config = self.config
        views = complementary_views(self._tensors(data), config.mask_target, config.mask_reference, generator)
        target_1, reference_1 = self.encoder(views[0])
        target_2, reference_2 = target_encoder(views[1])
        return contrastive_loss(target_1, target_2), contrastive_loss(reference_1, reference_2)

    def _tensors(self, data: HeteroData | GraphTensors) -> GraphTensors:
        graph = data if isinstance(data, GraphTensors) else graph_tensors(data).to(self.head.weight.device)
        found = (graph.target.shape[1], graph.reference.shape[1])
        if found != (self.n_features, self.n_features + self.n_genes):
            raise ValueError(
                f"The graph has {found[0]} target and {found[1]} reference features; this network takes "
                f"{self.n_features} and {self.n_features + self.n_genes} "
                f"({self.n_features} of the embedding, {self.n_genes} genes)."
            )
        if graph.base is not None and graph.base.shape != (graph.target.shape[0], self.n_genes):
            raise ValueError(f"base is {tuple(graph.base.shape)}, not {(graph.target.shape[0], self.n_genes)}.")
        return graph
