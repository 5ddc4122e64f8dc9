"""Figures: predictions on tissue, trust per gene, scores, methods beside each other, training curves."""

from __future__ import annotations

from ._alignment import alignment
from ._benchmark import benchmark
from ._evidence import evidence
from ._expression import expression
from ._scores import gene_scores
from ._support import support
from ._training import training
from ._trust import trust

__all__ = ["alignment", "benchmark", "evidence", "expression", "gene_scores", "support", "training", "trust"]
