"""The benchmarks of searches as Markdown: what the scripts print, and what the documentation shows."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any


def pairs_table(content: Mapping[str, Any], speed: Mapping[str, Any]) -> str:
    """Searches of a cross-validation, anew or kept (``pairs.py``); `speed` has the time of a whole fold."""
    n_folds = content["folds"]
    rows = [
        "| method | seeds | anew, s | kept, s | of it the first seed, s |",
        "|---|---|---|---|---|",
    ]
    for name, kept in content["kept"].items():
        anew = n_folds * len(kept) * content["anew"][name]
        rows.append(f"| `{name}` | {len(kept)} | {anew:.0f} | {sum(map(sum, kept)):.1f} | {sum(kept[0]):.1f} |")
    n_seeds = len(content["kept"]["spahgc"])
    saved = n_folds * n_seeds * content["anew"]["spahgc"] - sum(map(sum, content["kept"]["spahgc"]))
    return (
        "**Searches of a cross-validation**: four slides of Visium's size, one held out in turn; seconds of one core "
        "for all folds and seeds. Of `spahgc`, all graphs of the default preset; of `egn` and `knn`, the searches.\n\n"
        + "\n".join(rows)
        + f"\n\nThe folder held {content['kept_mb']:.0f} MB. With {n_seeds} seeds `spahgc` is spared {saved:.0f} s of "
        f"about {n_folds * n_seeds * median(speed['stages']['fold visium']['seconds']):.0f} s."
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
