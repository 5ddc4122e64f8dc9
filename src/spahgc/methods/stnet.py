"""ST-Net in compact form: a head on the embedding of each spot."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ._neural import Neural, Scale
from .base import register

if TYPE_CHECKING:
    from ..nn.baselines import Network


@register
class STNet(Neural):
    """ST-Net (He et al., Nature Biomedical Engineering 2020): each spot alone, embedding to expression.

    The compact form leaves out the DenseNet-121 that is fine-tuned on the tiles: embeddings are given, and a hidden
    layer makes up for the lack of fine-tuning. ``hidden=0`` is the paper's linear head.

    Parameters
    ----------
    hidden
        Width of the hidden layer; 0: none.
    epochs
        Most epochs that are trained.
    learning_rate
        Of AdamW.
    dropout
        Share of values that are dropped while training.
    """

    name: ClassVar[str] = "stnet"
    source: ClassVar[str] = (
        "He et al. Integrating spatial gene expression and breast tumour morphology via deep learning. "
        "Nature Biomedical Engineering 2020. doi:10.1038/s41551-020-0578-x"
    )
    _least_hidden = 0

    def __init__(self, hidden: int = 128, epochs: int = 60, learning_rate: float = 1e-3, dropout: float = 0.2) -> None:
        super().__init__(hidden, epochs, learning_rate, dropout)

    def _network(self, n_features: int, scale: Scale) -> Network:
        from ..nn.baselines import STNet as Net

        return Net(n_features, len(scale.mean), hidden=self.hidden, dropout=self.dropout)
