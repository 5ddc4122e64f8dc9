"""The network: encoder, attention pooling, output layer (DESIGN section 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import CrossNodeAttentionPooling
from .config import Config
from .encoder import HeteroEncoder, TargetEncoder, complementary_views
from .graph import GraphTensors
from .loss import contrastive_loss


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
        return self._genes(self.head_output(graph))

    def head_output(self, graph: GraphTensors) -> Tensor:
        """Output of the last layer: weights of the components, (n_spots, n_components), or the genes; float32."""
        found = (graph.target.shape[1], graph.reference.shape[1])
        if found != (self.n_features, self.n_features + self.n_genes):
            raise ValueError(
                f"The graph has {found[0]} target and {found[1]} reference features, but this network takes "
                f"{self.n_features} and {self.n_features + self.n_genes} "
                f"({self.n_features} of the embedding, {self.n_genes} genes)."
            )
        target, reference = self.encoder(graph)
        return self._head(self.pooling(target, self.pooling.answer(reference), graph.refer))

    def output(self, pooled: Tensor) -> Tensor:
        """Prediction, float32 (n_spots, n_genes), from pooled states, (n_spots, hidden)."""
        return self._genes(self._head(pooled))

    def _head(self, pooled: Tensor) -> Tensor:
        # In full precision: the error of a bfloat16 product would be of the size of what is learned last.
        with torch.autocast(pooled.device.type, enabled=False):
            return self.head(pooled.float())

    def _genes(self, output: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            return output if self.components is None else output @ self.components

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
