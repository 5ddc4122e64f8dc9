"""Hyperparameters of the network and its training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_type_hints

from .._checks import Range, above, at_least, between, check_argument

_SHARE, _WEIGHT = between(0, 1), at_least(0)
_RANGES: dict[str, Range] = {
    **dict.fromkeys(("hidden", "n_layers", "heads", "n_references", "n_near", "n_close", "epochs"), at_least(1)),
    **dict.fromkeys(("mask_target", "mask_reference", "ema_decay"), _SHARE),
    **dict.fromkeys(("weight_pearson", "weight_target", "weight_reference", "weight_decay"), _WEIGHT),
    "dropout": Range("of at least 0 and less than 1", lambda value: 0 <= value < 1),
    "learning_rate": above(0),
}


@dataclass(frozen=True)
class Config:
    """Hyperparameters; the defaults are the paper's, except `dropout` and `ema_decay`, which it does not give.

    The fields are plain numbers and booleans: ``Config(**config.to_dict())`` is the same configuration after a trip
    through JSON.

    Parameters
    ----------
    hidden
        Width of the node states.
    n_layers
        Layers of the encoder.
    heads
        Attention heads; divides `hidden`.
    dropout
        Dropout in the input maps.
    n_references
        Reference spots retrieved per target spot (K).
    n_near
        Spatial neighbors per target spot (Q).
    n_close
        Neighbors per reference spot (k).
    use_near, use_close, use_refer, use_pooling
        Switches for ablations: spatial neighbors of target spots; neighbors of reference spots; attention between
        target and reference spots in the layers; attention of target over reference spots after the last layer. A spot
        always keeps its own state. With `use_refer` and `use_pooling` off, the reference plays no part in a prediction.
    mask_target, mask_reference
        Share of a node type's features that is masked in view 1 (and kept in view 2).
    ema_decay
        Share of itself that the target encoder keeps per step.
    weight_pearson, weight_target, weight_reference
        Weights of 1 - mean per-gene Pearson, and of the contrastive terms, relative to the mean squared error.
    learning_rate, weight_decay
        Of AdamW.
    epochs
        Passes over the slides.

    Examples
    --------
    >>> from spahgc.nn import Config
    >>> Config(hidden=128, n_layers=2).hidden
    128
    """

    hidden: int = 256
    n_layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    n_references: int = 7
    n_near: int = 5
    n_close: int = 3
    use_near: bool = True
    use_close: bool = True
    use_refer: bool = True
    use_pooling: bool = True
    mask_target: float = 0.1
    mask_reference: float = 0.9
    ema_decay: float = 0.99
    weight_pearson: float = 0.5
    weight_target: float = 0.2
    weight_reference: float = 0.1
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    epochs: int = 200

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            check_argument(name, getattr(self, name), hint, _RANGES.get(name))
        if self.hidden % self.heads:
            raise ValueError(f"`hidden` ({self.hidden}) must be a multiple of `heads` ({self.heads}).")

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict of JSON types."""
        return asdict(self)
