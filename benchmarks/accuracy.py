"""Accuracy on real slides, each held out in turn: mean per-gene Pearson of every method beside the depth oracle.

python benchmarks/accuracy.py --quick    C2, C4 and B4 of her2st, texture embeddings, one seed

Nothing that is fitted sees the held-out slide's expression: the target table that the methods get has none. A run
that was stopped goes on where it was; ``--fresh`` starts anew. Results go to benchmarks/results/, a table is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

# One thread a process: the tasks themselves run side by side.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from _common import RESULTS, data_dir, machine, write_json  # noqa: E402
from _tables import UNIT_NAMES, accuracy_table  # noqa: E402

METHODS: dict[str, dict[str, Any]] = {
    "gene_mean": {"method": "gene_mean"},
    "knn": {"method": "knn"},
    "ridge": {"method": "ridge"},
    "context_ridge": {"method": "context_ridge"},
    "spahgc (paper)": {"method": "spahgc", "preset": "paper"},
    "spahgc": {"method": "spahgc", "preset": "default"},
}
TARGETS = ("C2", "C4", "B4")
SAMPLES = ("B4", "C2", "C3", "C4", "C5")
UNITS = ("log1p", "log10")
PANEL = 300
PROTOCOL = {
    "data": "HER2+ breast ST (Andersson et al. 2021), slides B4 C2 C3 C4 C5; patients B and C",
    "split": "one slide held out, the other four are the reference; B4 is a new patient, C2 and C4 are not",
    "embedding": "texture, standardised per slide",
    "panel": f"{PANEL} genes with the best mean dispersion rank over the reference slides, in over 5 % of their spots",
    "score": "mean over genes of the Pearson correlation over the spots of the held-out slide",
    "seeds": 1,
    "targets": list(TARGETS),
    "methods": list(METHODS),
}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="three slides, one embedding, one seed (all there is so far)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget results of an earlier run")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 takes all cores")
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy_quick.json")
    arguments = parser.parse_args()
    if not arguments.quick:
        parser.error("only --quick is there so far: the full run comes with the published baselines.")
    started = time.perf_counter()
    done = {} if arguments.fresh or not arguments.out.is_file() else json.loads(arguments.out.read_text())["results"]
    tasks = [(t, unit, m) for m in METHODS for t in TARGETS for unit in UNITS if _key(t, unit, m) not in done]
    if tasks:
        run(tasks, done, arguments.out, arguments.jobs)
    print_tables(json.loads(arguments.out.read_text()))
    took = time.perf_counter() - started
    print(f"\n{len(tasks)} of {len(TARGETS) * len(UNITS) * len(METHODS)} runs were missing; this took {took:.0f} s.")


def run(tasks: list[tuple[str, str, str]], done: dict[str, Any], out: Path, jobs: int) -> None:
    """Run tasks side by side; each result is on disk before the next is waited for."""
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    import spahgc

    spahgc.settings.progress = False
    sdata = spahgc.datasets.her2st(data_dir() / "her2st", samples=list(SAMPLES))
    spahgc.pp.image_embedding(sdata, encoder="texture")
    table = sdata["table"]
    del sdata
    # The longest tasks first, so that no core is idle at the end.
    tasks = sorted(tasks, key=lambda task: ("paper" not in task[2], task[2] != "spahgc"))
    results = Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(score)(table, *task) for task in tasks)
    for key, result in tqdm(results, total=len(tasks), unit="run"):
        done[key] = result
        write_json(out, {"protocol": PROTOCOL, "machine": machine(), "results": done})


def score(table: Any, target: str, unit: str, method: str) -> tuple[str, dict[str, Any]]:
    """Hold out one slide, predict it from its H&E, score it."""
    import torch

    import spahgc

    torch.set_num_threads(1)
    spahgc.settings.progress = False
    reference = table[table.obs["region"] != target].copy()
    measured = table[table.obs["region"] == target].copy()
    blind = measured[:, :0].copy()
    started = time.perf_counter()
    spahgc.tl.predict(reference, blind, panel=PANEL, normalize=unit, rng=0, **METHODS[method])
    seconds = time.perf_counter() - started
    for slot in ("obsm", "uns"):
        getattr(measured, slot)["spahgc"] = getattr(blind, slot)["spahgc"]
    spahgc.tl.evaluate(measured)
    scores = spahgc.get.scores(measured).pivot(index="gene", columns="metric", values="value")
    summary = {
        name: _mean(scores[name]) for name in ("pearson", "spearman", "pearson_depth_removed", "depth_only", "rmse")
    }
    share = float((scores["pearson"] > 0.3).mean())
    return _key(target, unit, method), {**summary, "share_above_0.3": share, "seconds": round(seconds, 1)}


def _mean(values: Any) -> float | None:
    return None if values.isna().all() else round(float(values.mean()), 4)


def _key(target: str, unit: str, method: str) -> str:
    return f"{target}|{unit}|{method}"


def print_tables(content: dict[str, Any]) -> None:
    """All tables, and how long each method took."""
    for unit in UNITS:
        print(f"\nMean per-gene Pearson, {UNIT_NAMES[unit]}, {PANEL} genes\n\n{accuracy_table(content, unit)}")
    print("\nSeconds per held-out slide, one thread (training and prediction, median):")
    for method in METHODS:
        seconds = median(content["results"][_key(t, u, method)]["seconds"] for t in TARGETS for u in UNITS)
        print(f"  {method:16}{seconds:8.1f}")


if __name__ == "__main__":
    main()
