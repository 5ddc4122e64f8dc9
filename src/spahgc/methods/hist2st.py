"""Hist2ST in compact form: a transformer, then GraphSAGE, with a count likelihood beside the mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .._slides import Cohort, Slide
from ._neural import N_POSITIONS, Neural, Scale, at_least_one
from .base import register

if TYPE_CHECKING:
    from ..nn.baselines import Network


@register
class Hist2ST(Neural):
    """Hist2ST (Zeng et al., Briefings in Bioinformatics 2022): a transformer, GraphSAGE, and a ZINB likelihood.

    The transformer over the spots of a slide, with learned x and y positions, is followed by two layers of GraphSAGE
    on the graph of the nearest spots. Beside the head for the expression, two more give the parameters of a
    zero-inflated negative binomial, whose likelihood is added to the loss.

    Methods see no counts, only expression. The likelihood takes exp(expression) - 1, which are counts per 10,000 in the
    default unit and need not be whole: the gamma functions of the likelihood do not ask for that, and zeros stay zeros.
    Values are cut at 0 and 10,000, so that in other units, where these are no counts, it stays finite.

    The compact form leaves out the convolutions that mix pixels (ConvMixer), the LSTM that weighs the graph layers
    (they are averaged), the dispersion of each spot (it is one per gene), and self-distillation from augmented tiles.

    Parameters
    ----------
    n_neighbors
        Nearest spots in the graph.
    weight
        Weight of the likelihood beside the MSE.
    hidden
        Width of the tokens, a multiple of 4.
    epochs
        Most epochs that are trained.
    learning_rate
        Of AdamW.
    dropout
        Share of values that are dropped while training.
    """

    name: ClassVar[str] = "hist2st"
    source: ClassVar[str] = (
        "Zeng et al. Spatial transcriptomics prediction from histology jointly through transformer and graph neural "
        "networks. Briefings in Bioinformatics 2022. doi:10.1093/bib/bbac297"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def __init__(
        self,
        n_neighbors: int = 4,
        weight: float = 0.25,
        hidden: int = 64,
        epochs: int = 60,
        learning_rate: float = 1e-3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(hidden, epochs, learning_rate, dropout)
        at_least_one(n_neighbors=n_neighbors)
        if weight < 0:
            raise ValueError(f"weight is at least 0, not {weight}.")
        self.n_neighbors, self.weight = n_neighbors, weight

    def _network(self, n_features: int, scale: Scale) -> Network:
        import torch

        from ..nn.baselines import Hist2ST as Net

        return Net(
            n_features,
            len(scale.mean),
            mean=torch.from_numpy(scale.mean),
            spread=torch.from_numpy(scale.spread),
            hidden=self.hidden,
            n_positions=N_POSITIONS,
            weight=self.weight,
            dropout=self.dropout,
        )

    def _inputs(self, slide: Slide, references: Cohort, scale: Scale) -> dict[str, np.ndarray]:
        from ..nn import spatial_knn
        from ..nn.baselines import grid_positions

        return {
            "embedding": slide.embedding,
            "position": grid_positions(slide.coordinates, N_POSITIONS),
            "neighbors": spatial_knn(slide.coordinates, self.n_neighbors),
        }
