"""Train on reference slides, predict target slides, score the prediction."""

from __future__ import annotations

from ._evaluate import evaluate
from ._model import Model
from ._predict import predict
from ._train import train

__all__ = ["Model", "evaluate", "predict", "train"]
