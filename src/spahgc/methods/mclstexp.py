"""mclSTExp in compact form: BLEEP with a transformer over the spots on the expression side."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .._slides import Cohort, Slide
from ._neural import N_POSITIONS, Neural, Scale, at_least_one
from .base import register

if TYPE_CHECKING:
    from ..nn.baselines import Network


@register
class MclSTExp(Neural):
    """mclSTExp (Min et al., Briefings in Bioinformatics 2024): a contrast with spots in view of each other.

    As :class:`~spahgc.methods.bleep.BLEEP`, but the expression of a spot, with its learned x and y position, goes
    through a transformer over the spots of its slide before it is projected, and each spot is its own only positive.

    The compact form leaves out the DenseNet-121 that is trained on the tiles; the spots of one slide are contrasted
    with each other, and not those of a random batch.

    Parameters
    ----------
    n_retrieved
        Reference spots that are averaged (all, where there are fewer).
    n_layers
        Layers of the transformer.
    hidden
        Width of the common space, a multiple of 4.
    epochs
        Most epochs that are trained.
    learning_rate
        Of AdamW.
    dropout
        Share of values that are dropped while training.
    """

    name: ClassVar[str] = "mclstexp"
    source: ClassVar[str] = (
        "Min et al. Multimodal contrastive learning for spatial gene expression prediction using histology images. "
        "Briefings in Bioinformatics 2024. arXiv:2407.08216"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def __init__(
        self,
        n_retrieved: int = 50,
        n_layers: int = 2,
        hidden: int = 128,
        epochs: int = 60,
        learning_rate: float = 1e-3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(hidden, epochs, learning_rate, dropout)
        at_least_one(n_retrieved=n_retrieved, n_layers=n_layers)
        self.n_retrieved, self.n_layers = n_retrieved, n_layers

    def _network(self, n_features: int, scale: Scale) -> Network:
        from ..nn.baselines import MclSTExp as Net

        return Net(
            n_features,
            len(scale.mean),
            hidden=self.hidden,
            n_positions=N_POSITIONS,
            n_layers=self.n_layers,
            n_retrieved=self.n_retrieved,
            dropout=self.dropout,
        )

    def _inputs(self, slide: Slide, references: Cohort, scale: Scale) -> dict[str, np.ndarray]:
        from ..nn.baselines import grid_positions

        return {"embedding": slide.embedding, "position": grid_positions(slide.coordinates, N_POSITIONS)}
