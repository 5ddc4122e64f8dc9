"""The benchmarks of searches as Markdown: what the scripts print, and what the documentation shows."""

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


def approximate_table(content: Mapping[str, Any]) -> str:
    """Exact search against an index (``approximate.py``)."""
    rows = [
        "| bank | spots | recall | lists looked into | exact, s per 1,000 spots | index, s per 1,000 spots | "
        "to build, s | pays from | MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for bank in content["banks"]:
        gain = bank["exact_seconds"] - bank["index_seconds"]
        pays = f"{1000 * bank['build_seconds'] / gain:,.0f} spots" if gain > 0 else "never"
        rows.append(
            f"| {bank['name']} | {bank['rows']:,} | {bank['recall']:.4f} | {bank['n_probed']} of {bank['n_lists']} | "
            f"{bank['exact_seconds']:.2f} | {bank['index_seconds']:.2f} | {bank['build_seconds']:.1f} | {pays} | "
            f"{bank['megabytes']:.0f} |"
        )
    return (
        f"**An approximate index** against the exact search, the {content['k']} most similar, seconds of one core. The "
        "recall is the one that the index measures when it is built. It *pays from* as many spots to search for as "
        "make up for building it.\n\n" + "\n".join(rows)
    )
