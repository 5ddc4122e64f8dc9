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

KEPT = (
    "`tl.cross_validate` keeps which spots are most alike, of two slides and within a graph, in a folder that goes "
    "away when it ends (in `resume`, if that is given). Other folds, methods and seeds take it from there, in all "
    "worker processes that see the folder. Files are named by the content that they were computed from, and one "
    "that is damaged is computed again; the scores are the same to the last bit. From `benchmarks/pairs.py`:"
)
INDEX = (
    "From `spahgc.settings.approximate_from` reference spots on ({least:,}), SpaHGC on the CPU finds the reference "
    "spots of a spot with an index that misses a few, if faiss is installed (`pip install 'spahgc[ann]'`). The "
    "index keeps centres, and a byte per feature of each spot; what it comes up with is compared exactly. When it "
    "is built, it is searched for spots of some reference slides among those of the others, as is done for each "
    "spot without it, and as many of its lists are looked into as give a recall of 0.99. Where these are too many, "
    "and where fewer than {queries:,} spots are searched for, as on most slides that are predicted, the search is "
    "exact. The same reference gives the same index, with any number of threads. How was searched while training, "
    'and with which recall, is in `model.params["searches"]` and in `uns["spahgc"]["params"]` of a prediction. '
    "`spahgc.settings.approximate_from = None` asks for the exact search always. From `benchmarks/approximate.py` "
    "(*fields* and *clusters* are made, *real* are the slides of the other benchmarks):"
)


def speed_page(repository: Path) -> str:
    """What the speed benchmark found."""
    sys.path.insert(0, str(repository / "benchmarks"))
    from _search_tables import approximate_table, pairs_table
    from _speed_table import speed_table

    from spahgc import settings
    from spahgc.methods._references import FEWEST_QUERIES

    results = repository / "benchmarks" / "results"
    speed, pairs, approximate = (
        json.loads((results / f"{name}.json").read_text()) for name in ("speed", "pairs", "approximate")
    )
    index = INDEX.format(least=settings.approximate_from, queries=FEWEST_QUERIES)
    parts = [
        "# How fast, how large",
        INTRO,
        speed_table(speed),
        "## Searches that are kept",
        KEPT,
        pairs_table(pairs, speed),
        "## An index for large references",
        index,
        approximate_table(approximate),
    ]
    return "\n\n".join(parts) + "\n"
