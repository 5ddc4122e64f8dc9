"""Hyperparameters of the network and its training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Config:
    """Hyperparameters; the defaults are the paper's, except the two marked as ours.

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
        Dropout in the input maps. The paper's value is not known to us: our choice.
    n_references
        Reference spots retrieved per target spot (K).
    n_near
        Spatial neighbours per target spot (Q).
    n_close
        Neighbours per reference spot (k).
    use_near, use_close, use_refer, use_pooling
        Switches for ablations: spatial neighbours of target spots; neighbours of reference spots; attention between
        target and reference spots in the layers; attention of target over reference spots after the last layer. A spot
        keeps its own state whatever is off. With `use_refer` and `use_pooling` off the reference plays no part in a
        prediction.
    mask_target, mask_reference
        Share of a node type's features that is masked in view 1 (and kept in view 2).
    ema_decay
        Share of itself that the target encoder keeps per step. The paper's value is not known to us: our choice.
    weight_pearson, weight_target, weight_reference
        Weights of 1 - mean per-gene Pearson, and of the contrastive terms, beside the mean squared error.
    learning_rate, weight_decay
        Of AdamW.
    epochs
        Most epochs; one slide a step.
    zero_init_head
        Start the output layer at zero, so that the first prediction is the base prediction (or zero).
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
    zero_init_head: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden", "n_layers", "heads", "n_references", "n_near", "n_close", "epochs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Config.{name} is a whole number, not {value!r}.")
            if value < 1:
                raise ValueError(f"Config.{name} is at least 1, not {value}.")
        if self.hidden % self.heads:
            raise ValueError(f"Config.hidden ({self.hidden}) is not a multiple of Config.heads ({self.heads}).")
        for name in ("dropout", "mask_target", "mask_reference", "ema_decay"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "dropout" and value == 1):
                raise ValueError(f"Config.{name} is a share between 0 and 1, not {value}.")
        for name in ("weight_pearson", "weight_target", "weight_reference", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Config.{name} is finite and not negative, not {getattr(self, name)}.")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"Config.learning_rate is finite and positive, not {self.learning_rate}.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dict of JSON types."""
        return asdict(self)
