"""What the presets of SpaHGC set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """What a preset sets.

    Parameters
    ----------
    network
        Fields of :class:`spahgc.nn.Config` that differ from the paper's.
    relative
        Train on expression scaled to mean 0 and variance 1 per gene and slide, instead of expression as it is.
    views
        What the nodes carry, in turn for the networks that are averaged: ``"spot"``, the embedding; ``"components"``,
        its 128 leading components; or ``"context"``, the components of the spot and of its surroundings
        (:class:`~spahgc.methods.ContextKernel`).
    kernel
        Share of kernel ridge regression over the reference spots (:class:`~spahgc.methods.ContextKernel`) in the
        average with the networks, 0 to 1. Above 0 it needs `relative`.
    linear_for_new
        Average further with ridge and context ridge, a third each, where targets are of new patients
        (``Run.split_by="patient"``): what bends less carries over better. Needs `relative`.
    n_components
        Leading components of the reference expression that the network's output is a combination of; `None`: the genes.
    n_seeds
        Networks that are trained and averaged; 0, with a `kernel`, for the kernel alone.
    """

    network: Mapping[str, Any] = field(default_factory=dict)
    relative: bool = False
    views: tuple[str, ...] = ("spot",)
    kernel: float = 0.0
    linear_for_new: bool = False
    n_components: int | None = None
    n_seeds: int = 1


VIEWS = ("spot", "components", "context")

PRESETS: dict[str, Preset] = {
    "paper": Preset(),
    "default": Preset(
        network={
            "hidden": 128,
            "n_layers": 2,
            "dropout": 0.4,
            "n_references": 15,
            "n_near": 12,
            "learning_rate": 1.5e-3,
            "epochs": 30,
            "weight_target": 0.0,
            "weight_reference": 0.0,
        },
        relative=True,
        views=("context", "components"),
        kernel=1 / 3,
        linear_for_new=True,
        n_components=32,
        n_seeds=4,
    ),
}
