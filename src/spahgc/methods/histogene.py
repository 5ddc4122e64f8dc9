"""HisToGene in compact form: a transformer over the spots of a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .._slides import Cohort, Slide
from ._neural import N_POSITIONS, Neural, Scale, at_least_one
from .base import register

if TYPE_CHECKING:
    from ..nn.baselines import Network


@register
class HisToGene(Neural):
    """HisToGene (Pang et al., bioRxiv 2021): the spots of a slide as tokens with learned x and y positions.

    Columns and rows are counted from the edge of the slide's own spots, in spot distances.

    The compact form leaves out the linear map of raw pixels that makes the paper's tokens, in whose place the embedding
    stands, has two layers where the paper has eight, and predicts at the spots alone, not between them.

    Parameters
    ----------
    n_layers
        Layers of the transformer.
    hidden
        Width of the tokens, a multiple of 4.
    epochs
        Most epochs that are trained.
    learning_rate
        Of AdamW.
    dropout
        Share of values that are dropped while training.
    """

    name: ClassVar[str] = "histogene"
    source: ClassVar[str] = (
        "Pang et al. Leveraging information in spatial transcriptomics to predict super-resolution gene expression "
        "from histology images in tumors. bioRxiv 2021. doi:10.1101/2021.11.28.470212"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def __init__(
        self,
        n_layers: int = 2,
        hidden: int = 64,
        epochs: int = 60,
        learning_rate: float = 1e-3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(hidden, epochs, learning_rate, dropout)
        at_least_one(n_layers=n_layers)
        self.n_layers = n_layers

    def _network(self, n_features: int, scale: Scale) -> Network:
        from ..nn.baselines import HisToGene as Net

        return Net(
            n_features,
            len(scale.mean),
            hidden=self.hidden,
            n_positions=N_POSITIONS,
            n_layers=self.n_layers,
            dropout=self.dropout,
        )

    def _inputs(self, slide: Slide, references: Cohort, scale: Scale) -> dict[str, np.ndarray]:
        from ..nn.baselines import grid_positions

        return {"embedding": slide.embedding, "position": grid_positions(slide.coordinates, N_POSITIONS)}
