"""The page on speed and memory, from the committed output of ``benchmarks/speed.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

INTRO = (
    "Made from the committed output of `benchmarks/speed.py`, which prints it. Every stage ran in a process of "
    "its own, on one core unless it says otherwise; ratios are of one run, figures are medians of five (of three "
    "for folds and the bank; one run for predictions of more than 50,000 spots). The *plain reference* is the "
    "same method written from its description without thinking of cost (`benchmarks/_plain.py`): heaps for the "
    "retrieval, attention by gathering and scattering, a loop over genes in the loss. It has the same weights and "
    "gives the same numbers."
)


def speed_page(repository: Path) -> str:
    """What the speed benchmark found."""
    sys.path.insert(0, str(repository / "benchmarks"))
    from _speed_table import speed_table

    content = json.loads((repository / "benchmarks" / "results" / "speed.json").read_text())
    return f"# How fast, how large\n\n{INTRO}\n\n{speed_table(content)}\n"
