"""The benchmark of searches that are kept as Markdown: what the script prints, and what the documentation shows."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any


def pairs_table(content: Mapping[str, Any], speed: Mapping[str, Any]) -> str:
    """Graphs of a cross-validation, anew or kept (``pairs.py``); `speed` has the time of a whole fold."""
    kept, n_folds = content["kept"], content["folds"]
    anew, spent, first = n_folds * len(kept) * content["anew"], sum(map(sum, kept)), sum(kept[0])
    whole = n_folds * len(kept) * median(speed["stages"]["fold visium"]["seconds"])
    return (
        "**Graphs of a cross-validation**: the default preset of `spahgc` on four slides of Visium's size, one held "
        f"out in turn; seconds of one core for all folds and {len(kept)} seeds.\n\n"
        "| anew, s | kept, s | of it the first seed, s |\n|---|---|---|\n"
        f"| {anew:.0f} | {spent:.1f} | {first:.1f} |\n\n"
        f"The other seeds are spared {anew - spent:.0f} s of about {whole:.0f} s."
    )
