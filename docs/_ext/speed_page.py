"""The page on speed and memory, from the committed output of ``benchmarks/speed.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

INTRO = (
    "Generated from the committed output of `benchmarks/speed.py`. Each stage ran in its own process, on one core "
    "unless stated otherwise. Ratios are within one run; values are medians of five (three for folds and reference "
    "banks; one run for predictions of more than 50,000 spots). The *plain reference* is a direct implementation of "
    "the same method without optimization (`benchmarks/_plain.py`): heaps for retrieval, attention by gathering and "
    "scattering, a loop over genes in the loss. It has the same weights and gives the same numbers."
)

KEPT = (
    "`tl.cross_validate` caches the nearest reference spots of each slide and within graphs in a folder that is "
    "removed at the end (or kept in `resume`). Other seeds and variants of SpaHGC reuse them, in all worker processes "
    "that see the folder; other folds have other components and search anew. Files are named by the content they were "
    "computed from, damaged files are recomputed, and scores are identical to the last bit. From `benchmarks/pairs.py`:"
)


def speed_page(repository: Path) -> str:
    """What the speed benchmark found."""
    sys.path.insert(0, str(repository / "benchmarks"))
    from _search_tables import pairs_table
    from _speed_table import speed_table

    results = repository / "benchmarks" / "results"
    speed, pairs = (json.loads((results / f"{name}.json").read_text()) for name in ("speed", "pairs"))
    parts = [
        "# How fast, how large",
        INTRO,
        speed_table(speed),
        "## Searches that are kept",
        KEPT,
        pairs_table(pairs, speed),
    ]
    return "\n\n".join(parts) + "\n"
