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
    context
        Nodes carry the embedding of the spot and of its surroundings, as in
        :class:`~spahgc.methods.ContextKernel`, instead of the embedding alone.
    kernel
        Average the networks' prediction with that of kernel ridge regression over the reference spots
        (:class:`~spahgc.methods.ContextKernel`), half and half. Needs `relative`.
    linear_for_new
        Average further with ridge and context ridge, a third each, where targets are of new patients
        (``Run.split_by="patient"``): what bends less carries over better. Needs `relative`.
    n_components
        Leading components of the reference expression that the network's output is a combination of; `None`: the genes.
    n_seeds
        Networks that are trained and averaged; 0, with `kernel`, for the kernel alone.
    """

    network: Mapping[str, Any] = field(default_factory=dict)
    relative: bool = False
    context: bool = False
    kernel: bool = False
    linear_for_new: bool = False
    n_components: int | None = None
    n_seeds: int = 1


PRESETS: dict[str, Preset] = {
    "paper": Preset(),
    "default": Preset(
        network={
            "hidden": 64,
            "n_layers": 1,
            "n_references": 15,
            "learning_rate": 1e-3,
            "epochs": 40,
            "weight_target": 0.0,
            "weight_reference": 0.0,
        },
        relative=True,
        context=True,
        kernel=True,
        linear_for_new=True,
        n_components=32,
        n_seeds=5,
    ),
}
