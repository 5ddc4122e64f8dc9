"""ST-Net in compact form: a head on the embedding of each spot."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from .base import parameters
from .network import ExpressionScale, Head, NetworkMethod, Stem


@parameters()
class STNet(NetworkMethod):
    """ST-Net (He et al., Nature Biomedical Engineering 2020): each spot alone, embedding to expression.

    Source: doi:10.1038/s41551-020-0578-x. The compact form leaves out the DenseNet-121 that is fine-tuned on the tiles.
    Embeddings are given, and a hidden layer makes up for the missing fine-tuning. Further parameters are those of
    :class:`NetworkMethod`.

    Parameters
    ----------
    hidden
        Width of the hidden layer.
    """

    hidden: int = 128

    name: ClassVar[str] = "stnet"

    def layers(self, n_features: int, scale: ExpressionScale) -> dict[str, nn.Module | nn.Parameter]:
        stem, head = Stem(n_features, self.hidden, self.dropout), Head(self.hidden, len(scale.mean))
        return {"all": nn.Sequential(stem, nn.GELU(), nn.Dropout(self.dropout), head)}

    def forward(self, net: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        return net.all(embedding)
