"""TRIPLEX in compact form: spot, neighbourhood and slide, fused by cross-attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .._slides import Cohort, Slide
from ._neural import N_POSITIONS, Neural, Scale, at_least_one
from .base import register

if TYPE_CHECKING:
    from ..nn.baselines import Network


@register
class TRIPLEX(Neural):
    """TRIPLEX (Chung et al., CVPR 2024): tokens of spot, neighbourhood and slide, fused by cross-attention.

    The slide's tokens come from a transformer over all its spots; each asks its spot's own token and those of the
    nearest spots. Spot, neighbourhood and slide also predict on their own while training, and learn from the fused
    prediction as well.

    The compact form leaves out the network that is trained on the spot's tile, so that the spot is one token; the
    outer ring of the 5 x 5 neighbours and the self-attention among them; and the convolutional encoding of positions,
    for which learned x and y positions stand in.

    Parameters
    ----------
    n_neighbors
        Nearest spots in the neighbourhood.
    alpha
        How far the three predictions follow the fused one, 0 to 1.
    hidden
        Width of the tokens, a multiple of 4.
    epochs
        Most epochs that are trained.
    learning_rate
        Of AdamW.
    dropout
        Share of values that are dropped while training.
    """

    name: ClassVar[str] = "triplex"
    source: ClassVar[str] = (
        "Chung et al. Accurate spatial gene expression prediction by integrating multi-resolution features. CVPR 2024. "
        "arXiv:2403.07592"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def __init__(
        self,
        n_neighbors: int = 8,
        alpha: float = 0.3,
        hidden: int = 64,
        epochs: int = 60,
        learning_rate: float = 1e-3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(hidden, epochs, learning_rate, dropout)
        at_least_one(n_neighbors=n_neighbors)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is from 0 to 1, not {alpha}.")
        self.n_neighbors, self.alpha = n_neighbors, alpha

    def _network(self, n_features: int, scale: Scale) -> Network:
        from ..nn.baselines import TRIPLEX as Net

        return Net(
            n_features,
            len(scale.mean),
            hidden=self.hidden,
            n_positions=N_POSITIONS,
            alpha=self.alpha,
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
