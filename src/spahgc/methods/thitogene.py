"""THItoGene in compact form: a transformer, then graph attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .._slides import Cohort, Slide
from ._neural import N_POSITIONS, Neural, Scale, at_least_one
from .base import register

if TYPE_CHECKING:
    from ..nn.baselines import Network


@register
class THItoGene(Neural):
    """THItoGene (Jia et al., Briefings in Bioinformatics 2023): a transformer, then graph attention (GAT).

    The transformer over the spots of a slide, with learned x and y positions, is followed by two layers of graph
    attention on the graph of the nearest spots.

    The compact form leaves out the dynamic convolutions and the capsules that make the paper's tokens from pixels.

    Parameters
    ----------
    n_neighbors
        Nearest spots in the graph.
    hidden
        Width of the tokens, a multiple of 4.
    epochs
        Most epochs that are trained.
    learning_rate
        Of AdamW.
    dropout
        Share of values that are dropped while training.
    """

    name: ClassVar[str] = "thitogene"
    source: ClassVar[str] = (
        "Jia et al. THItoGene: a deep learning method for predicting spatial transcriptomics from histological images. "
        "Briefings in Bioinformatics 2023. doi:10.1093/bib/bbad464"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def __init__(
        self,
        n_neighbors: int = 4,
        hidden: int = 64,
        epochs: int = 60,
        learning_rate: float = 1e-3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(hidden, epochs, learning_rate, dropout)
        at_least_one(n_neighbors=n_neighbors)
        self.n_neighbors = n_neighbors

    def _network(self, n_features: int, scale: Scale) -> Network:
        from ..nn.baselines import THItoGene as Net

        return Net(n_features, len(scale.mean), hidden=self.hidden, n_positions=N_POSITIONS, dropout=self.dropout)

    def _inputs(self, slide: Slide, references: Cohort, scale: Scale) -> dict[str, np.ndarray]:
        from ..nn import spatial_knn
        from ..nn.baselines import grid_positions

        return {
            "embedding": slide.embedding,
            "position": grid_positions(slide.coordinates, N_POSITIONS),
            "neighbors": spatial_knn(slide.coordinates, self.n_neighbors),
        }
