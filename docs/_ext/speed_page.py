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
INDEX = (
    "From `spahgc.settings.approximate_from` reference spots on ({least:,}), SpaHGC on the CPU searches similar "
    "reference spots with an approximate index if faiss is installed (`pip install 'spahgc[ann]'`). The index stores "
    "centers and one byte per feature of each spot; its candidates are compared exactly. When it is built, spots of "
    "some reference slides are searched among the others, and the number of lists to search is increased until recall "
    "reaches 0.99. If that takes too many lists, or for fewer than {queries:,} query spots, as on most predicted "
    "slides, the search is exact. The index depends only on the reference, not on the number of threads. The search "
    'method and its recall are recorded in `model.params["searches"]` and in `uns["spahgc"]["params"]` of a '
    "prediction. `spahgc.settings.approximate_from = None` always searches exactly. From `benchmarks/approximate.py` "
    "(*fields* and *clusters* are simulated, *real* are the slides of the other benchmarks):"
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
