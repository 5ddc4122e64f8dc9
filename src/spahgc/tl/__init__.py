"""Train on reference slides, predict target slides, explain and score the prediction, cross-validate."""

from __future__ import annotations

from ._cross_validate import cross_validate
from ._evaluate import evaluate, explain
from ._model import Model
from ._train import predict, train

__all__ = ["Model", "cross_validate", "evaluate", "explain", "predict", "train"]
