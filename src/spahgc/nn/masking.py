"""Two complementary views of a graph, and the encoder of the second (DESIGN section 2.5)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ._draws import chosen
from .graph import GraphTensors


def complementary_masks(
    shape: tuple[int, ...], ratio: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw a mask per element, and its complement.

    Parameters
    ----------
    shape
        Shape of the features.
    ratio
        Share of elements that view 1 **loses** (mask 0 in M1) and view 2 keeps. So with the paper's 0.1 for target and
        0.9 for reference spots, view 1 sees nine tenths of the target and one tenth of the reference features.
    generator
        Where the randomness comes from; the masks are on its device.

    Returns
    -------
    M1 and M2, boolean, of `shape`: each element is in exactly one of them.

    Raises
    ------
    ValueError
        If `ratio` is not between 0 and 1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio is a share between 0 and 1, not {ratio}.")
    kept = chosen(shape, 1 - ratio, generator)
    return kept, ~kept


def complementary_views(
    graph: GraphTensors, mask_target: float, mask_reference: float, generator: torch.Generator | None = None
) -> tuple[GraphTensors, GraphTensors]:
    """The graph with its features masked, and with the rest of them; edges are shared. Masked features are zero."""
    target_1, target_2 = _views(graph.target, mask_target, generator)
    reference_1, reference_2 = _views(graph.reference, mask_reference, generator)
    return (
        graph._replace(target=target_1, reference=reference_1),
        graph._replace(target=target_2, reference=reference_2),
    )


def _views(features: Tensor, ratio: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    kept, _ = complementary_masks(tuple(features.shape), ratio, generator)
    first = features.where(kept, 0.0)
    # What the first view lacks; exact, as each element is in one of them. Cheaper than products with masks.
    return first, features - first


class TargetEncoder:
    """A copy of an encoder that gets no gradient and follows it by exponential moving average.

    It runs without dropout: it is the side that the other is compared to. It takes part in training only, so it is no
    module of the network and is not saved with it.

    Parameters
    ----------
    encoder
        The encoder to follow; the copy starts equal to it.
    decay
        Share of itself that the copy keeps at each :meth:`update`. The paper's value is not known to us; 0.99 is our
        choice: in the few hundred steps of a small cohort, 0.999 would stay near the random start.
    """

    def __init__(self, encoder: nn.Module, decay: float = 0.99) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay is a share between 0 and 1, not {decay}.")
        self.decay = decay
        self.module = copy.deepcopy(encoder).requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(self, graph: GraphTensors) -> tuple[Tensor, Tensor]:
        """States of target and reference spots, without gradient."""
        return self.module(graph)

    @torch.no_grad()
    def update(self, encoder: nn.Module) -> None:
        """Move towards the encoder: ``own = decay * own + (1 - decay) * encoder``."""
        for own, other in zip(self.module.parameters(), encoder.parameters(), strict=True):
            own.lerp_(other, 1 - self.decay)
