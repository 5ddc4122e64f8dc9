"""M2OST in compact form: several fields of view mixed to one prediction."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .._checks import at_least
from .._geometry import spatial_knn
from .._slides import Cohort, Slide
from .base import parameters
from .network import ExpressionScale, FeedForward, Head, NetworkMethod, SlideNetwork, Stem

RINGS = (6, 18)
"""Number of nearest spots at which each ring of neighbors ends."""
N_VIEWS = 1 + len(RINGS)


class M2OSTNetwork(SlideNetwork):
    """Several fields of view of each spot, one token each, mixed to one prediction.

    Each layer mixes the views of each channel, by a small network that all channels share, and then the channels of all
    views.
    """

    def __init__(self, n_features: int, n_genes: int, *, hidden: int, dropout: float, n_layers: int) -> None:
        super().__init__()
        self.stems = nn.ModuleList(Stem(n_features, hidden, dropout) for _ in range(N_VIEWS))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(n_layers))
        self.across = nn.ModuleList(
            nn.Sequential(nn.Linear(N_VIEWS, 4 * N_VIEWS), nn.GELU(), nn.Linear(4 * N_VIEWS, N_VIEWS))
            for _ in range(n_layers)
        )
        self.channels = nn.ModuleList(FeedForward(N_VIEWS * hidden, dropout) for _ in range(n_layers))
        self.head = Head(N_VIEWS * hidden, n_genes)

    def forward(self, *views: Tensor) -> Tensor:
        """Expression, (n_spots, n_genes), from the embedding at each field of view, (n_spots, n_features)."""
        tokens = torch.stack([stem(view) for stem, view in zip(self.stems, views, strict=True)], dim=1)
        for norm, across, channels in zip(self.norms, self.across, self.channels, strict=True):
            flat = (tokens + across(norm(tokens).mT).mT).flatten(1)
            tokens = (flat + channels(flat)).view_as(tokens)
        return self.head(tokens.flatten(1))


@parameters(n_layers=at_least(1))
class M2OST(NetworkMethod):
    """M2OST (Wang et al., 2024): a spot seen at several fields of view, mixed to one prediction.

    The views are the embedding of the spot and the means over its 6 nearest spots and over the next 12. Views attend to
    each other, and all their channels are mixed.

    The compact form leaves out the tiles of several magnifications, which the means replace, and with them the mixing
    of patches within one view. Further parameters are those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_layers
        Layers of the mixing.
    """

    n_layers: int = 2

    name: ClassVar[str] = "m2ost"
    source: ClassVar[str] = (
        "Wang et al. M2OST: many-to-one regression for predicting spatial transcriptomics from digital pathology "
        "images. arXiv:2409.15092, 2024 (AAAI 2025)"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def _network(self, n_features: int, scale: ExpressionScale) -> M2OSTNetwork:
        return M2OSTNetwork(
            n_features, len(scale.mean), hidden=self.hidden, dropout=self.dropout, n_layers=self.n_layers
        )

    def _inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        nearest = spatial_knn(slide.coordinates, RINGS[-1])
        views, start = [slide.embedding], 0
        for end in RINGS:
            ring = nearest[:, start:end]
            # A slide too small for a ring repeats the view inside it.
            views.append(slide.embedding[ring].mean(axis=1) if ring.shape[1] else views[-1])
            start = end
        return tuple(views)
