"""M2OST in compact form: several fields of view mixed to one prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .._slides import Cohort, Slide
from ._neural import Neural, Scale, at_least_one
from .base import register

if TYPE_CHECKING:
    from ..nn.baselines import Network

RINGS = (6, 18)
"""Nearest spots up to which each ring of neighbours reaches."""


@register
class M2OST(Neural):
    """M2OST (Wang et al., 2024): a spot seen at several fields of view, mixed to one prediction.

    The views are the embedding of the spot, and the means over its 6 nearest spots and over the 12 next ones. Views
    attend to each other, and all their channels are mixed.

    The compact form leaves out the tiles of several magnifications, for which the means stand in, and with them the
    mixing of patches within one view.

    Parameters
    ----------
    n_layers
        Layers of the mixing.
    hidden
        Width of the tokens, a multiple of 4.
    epochs
        Most epochs that are trained.
    learning_rate
        Of AdamW.
    dropout
        Share of values that are dropped while training.
    """

    name: ClassVar[str] = "m2ost"
    source: ClassVar[str] = (
        "Wang et al. M2OST: many-to-one regression for predicting spatial transcriptomics from digital pathology "
        "images. arXiv:2409.15092, 2024 (AAAI 2025)"
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
        from ..nn.baselines import M2OST as Net

        return Net(
            n_features,
            len(scale.mean),
            hidden=self.hidden,
            n_views=1 + len(RINGS),
            n_layers=self.n_layers,
            dropout=self.dropout,
        )

    def _inputs(self, slide: Slide, references: Cohort, scale: Scale) -> dict[str, np.ndarray]:
        from ..nn import spatial_knn

        nearest = spatial_knn(slide.coordinates, RINGS[-1])
        views, start = [slide.embedding], 0
        for end in RINGS:
            ring = nearest[:, start:end]
            # A slide too small for a ring repeats the view inside it.
            views.append(slide.embedding[ring].mean(axis=1) if ring.shape[1] else views[-1])
            start = end
        return {"embedding": slide.embedding, "views": np.stack(views, axis=1)}
