"""ST-Net on embeddings: a head on each spot alone."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import Dropout, Head, Stem
from .network import Inputs, Network


class STNet(Network):
    """A linear map to the genes, or a net with one hidden layer.

    Parameters
    ----------
    n_features, n_genes
        Widths of embedding and expression.
    hidden
        Width of the hidden layer; 0: none.
    dropout
        On the embedding and the hidden layer.
    """

    def __init__(self, n_features: int, n_genes: int, *, hidden: int = 128, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers: nn.Module
        if hidden:
            self.layers = nn.Sequential(
                Stem(n_features, hidden, dropout), nn.GELU(), Dropout(dropout), Head(hidden, n_genes)
            )
        else:
            output = nn.Linear(n_features, n_genes)
            nn.init.normal_(output.weight, std=0.1 * n_features**-0.5)
            nn.init.zeros_(output.bias)
            self.layers = nn.Sequential(Dropout(dropout), output)

    def forward(self, inputs: Inputs) -> Tensor:
        """Expression, (n, g)."""
        return self.layers(inputs["embedding"])
