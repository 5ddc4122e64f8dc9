"""BLEEP in compact form: image and expression in one space, prediction by retrieval."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ._neural import Neural, Scale, at_least_one
from .base import register

if TYPE_CHECKING:
    from ..nn.baselines import Network


@register
class BLEEP(Neural):
    """BLEEP (Xie et al., NeurIPS 2023): mean expression of the reference spots that a spot finds in a common space.

    Projections of embedding and expression are trained by a contrast with soft targets. The prediction is the mean
    expression of the reference spots whose projected expression is nearest by cosine to the spot's projected embedding.

    The compact form leaves out the ResNet-50 that is trained on the tiles, and the batch correction of the expression;
    the spots of one slide are contrasted with each other, and not those of a random batch.

    Parameters
    ----------
    n_retrieved
        Reference spots that are averaged (all, where there are fewer).
    hidden
        Width of the common space.
    epochs
        Most epochs that are trained.
    learning_rate
        Of AdamW.
    dropout
        Share of values that are dropped in the projections while training.
    """

    name: ClassVar[str] = "bleep"
    source: ClassVar[str] = (
        "Xie et al. Spatially resolved gene expression prediction from H&E histology images via bi-modal contrastive "
        "learning. NeurIPS 2023. arXiv:2306.01859"
    )

    def __init__(
        self,
        n_retrieved: int = 50,
        hidden: int = 128,
        epochs: int = 60,
        learning_rate: float = 1e-3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(hidden, epochs, learning_rate, dropout)
        at_least_one(n_retrieved=n_retrieved)
        self.n_retrieved = n_retrieved

    def _network(self, n_features: int, scale: Scale) -> Network:
        from ..nn.baselines import BLEEP as Net

        return Net(n_features, len(scale.mean), hidden=self.hidden, n_retrieved=self.n_retrieved, dropout=self.dropout)
