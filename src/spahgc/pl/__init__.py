"""Figures: predictions on tissue, scores, training curves."""

from __future__ import annotations

from ._expression import expression
from ._scores import gene_scores
from ._support import support
from ._training import training

__all__ = ["expression", "gene_scores", "support", "training"]
