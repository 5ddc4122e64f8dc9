"""M2OST in compact form: several fields of view mixed to one prediction."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .._checks import at_least
from .._geometry import spatial_knn
from .._slides import Cohort, Slide
from .base import parameters
from .network import ExpressionScale, FeedForward, Head, NetworkMethod, Stem

RINGS = (6, 18)  # numbers of nearest spots at which each ring of neighbors ends
N_VIEWS = 1 + len(RINGS)


@parameters(n_layers=at_least(1))
class M2OST(NetworkMethod):
    """M2OST (Wang et al., 2024): a spot seen at several fields of view, mixed to one prediction.

    The views are the embedding of the spot and the means over its 6 nearest spots and over the next 12. Views attend to
    each other, and all their channels are mixed.

    Source: arXiv:2409.15092. The compact form leaves out the tiles of several magnifications, which the means replace,
    and with them the mixing of patches within one view. Further parameters are those of :class:`NetworkMethod`.

    Parameters
    ----------
    n_layers
        Layers of the mixing.
    """

    n_layers: int = 2

    name: ClassVar[str] = "m2ost"
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        nearest = spatial_knn(slide.coordinates, RINGS[-1])
        views, start = [slide.embedding], 0
        for end in RINGS:
            ring = nearest[:, start:end]
            # A slide too small for a ring repeats the view inside it.
            views.append(slide.embedding[ring].mean(axis=1) if ring.shape[1] else views[-1])
            start = end
        return tuple(views)

    def layers(self, n_features: int, scale: ExpressionScale) -> dict[str, nn.Module | nn.Parameter]:
        width, layers = N_VIEWS * self.hidden, range(self.n_layers)
        mixers = [
            nn.Sequential(nn.Linear(N_VIEWS, 4 * N_VIEWS), nn.GELU(), nn.Linear(4 * N_VIEWS, N_VIEWS)) for _ in layers
        ]
        return {
            "stems": nn.ModuleList(Stem(n_features, self.hidden, self.dropout) for _ in range(N_VIEWS)),
            "norms": nn.ModuleList(nn.LayerNorm(self.hidden) for _ in layers),
            "across": nn.ModuleList(mixers),
            "channels": nn.ModuleList(FeedForward(width, self.dropout) for _ in layers),
            "head": Head(width, len(scale.mean)),
        }

    def forward(self, net: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        views = zip(net.stems, (embedding, *inputs), strict=True)
        tokens = torch.stack([stem(view) for stem, view in views], dim=1)
        for norm, across, channels in zip(net.norms, net.across, net.channels, strict=True):
            # The views of each channel by a small network that all channels share, then the channels of all views.
            flat = (tokens + across(norm(tokens).mT).mT).flatten(1)
            tokens = (flat + channels(flat)).view_as(tokens)
        return net.head(tokens.flatten(1))
