"""Figures: predictions on tissue, trust per gene, scores, methods beside each other, training curves."""

from __future__ import annotations

from ._alignment import alignment
from ._benchmark import benchmark
from ._evidence import evidence
from ._expression import expression, support, tile_quality
from ._genes import gene_scores, trust
from ._training import training

__all__ = [
    "alignment",
    "benchmark",
    "evidence",
    "expression",
    "gene_scores",
    "support",
    "tile_quality",
    "training",
    "trust",
]
