"""Accuracy on real slides, each held out in turn: every method, both embeddings, with the controls beside them.

python benchmarks/accuracy.py                 everything; hours on two cores, the most telling runs first
python benchmarks/accuracy.py --quick         three cases, texture embeddings, one seed; a few minutes
python benchmarks/accuracy.py --minutes 30    what can be started within 30 minutes; the next call goes on

Nothing that is fitted sees the held-out slide's expression: the target table that the methods get has none. A run
that was stopped goes on where it was, every result is on disk before the next is waited for; ``--fresh`` starts anew.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

# One thread a process: the runs themselves are side by side.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from _common import RESULTS  # noqa: E402
from _data import TASKS, case, table  # noqa: E402
from _runs import PANEL, execute  # noqa: E402
from _tables import UNIT_NAMES, accuracy_table, cases_table, seconds_table  # noqa: E402

PUBLISHED = ("stnet", "histogene", "hist2st", "thitogene", "egn", "bleep", "mclstexp", "m2ost", "triplex")
CONTROLS = (
    *("gene_mean", "cellularity", "coordinates", "knn", "ridge", "low_rank_ridge", "smoothed_ridge", "context_ridge"),
)
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in CONTROLS},
    "context_kernel": {"method": "context_kernel"},
    "fast": {"method": "fast"},
    "spahgc": {"method": "spahgc"},
    **{name: {"method": name} for name in PUBLISHED},
    "spahgc (paper)": {"method": "spahgc", "preset": "paper"},
}
EMBEDDINGS = ("texture", "mobilenet")
UNITS = ("log1p", "log10")
SEEDS = (0, 1, 2)
PAPER_CASES = ("C2", "C4", "B4")
"""The paper's preset takes minutes a run: these, with texture embeddings, depth-normalized, one seed."""
QUICK_CASES = ("C4", "mob_11", "colon q2")

_PHASES = {
    ("log1p", False, True): 0,
    ("log1p", False, False): 0,
    ("log1p", True, True): 1,
    ("log10", False, True): 2,
    ("log10", False, False): 2,
    ("log1p", True, False): 3,
    ("log10", True, True): 4,
    ("log10", True, False): 5,
}
"""When a run's turn comes, by unit, whether it is one of the further seeds, and whether it is spahgc's."""

Run = tuple[str, str, str, str, int]
"""Case, embedding, unit, method, seed."""


def main() -> None:
    """Run what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="three cases, texture embeddings, one seed")
    parser.add_argument("--fresh", action="store_true", help="forget results of an earlier run")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing after this time")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 takes all cores")
    parser.add_argument("--out", type=Path, help="JSON of the results")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / ("accuracy_quick.json" if arguments.quick else "accuracy.json")
    if arguments.fresh:
        out.unlink(missing_ok=True)
    content = json.loads(out.read_text()) if out.is_file() else {"results": {}, "seconds": 0.0}
    runs = planned(quick=arguments.quick)
    content["protocol"] = protocol(runs)
    missing = [run for run in runs if key(run) not in content["results"]]
    started = time.perf_counter()
    for name in {case(run[0]).dataset for run in missing}:
        table(name)  # made once, before there are several processes
    calls = {key(run): (*run[:3], run[4], METHODS[run[3]]) for run in missing}
    execute(calls, content, out, jobs=arguments.jobs, until=started + 60 * arguments.minutes)
    print_tables(content)
    done = sum(key(run) in content["results"] for run in runs)
    print(
        f"\n{done} of {len(runs)} runs are there. This call took {time.perf_counter() - started:.0f} s, all calls "
        f"together {content['seconds']:.0f} s."
    )


def planned(*, quick: bool) -> list[Run]:
    """All runs, the most telling first: one seed of all, then of spahgc the others, log10, the rest."""
    from spahgc.methods import METHODS as REGISTERED

    runs: list[tuple[int, int, int, Run]] = []
    for i, method in enumerate(METHODS):
        paper = method == "spahgc (paper)"
        seeds = SEEDS if REGISTERED[METHODS[method]["method"]].stochastic and not paper else SEEDS[:1]
        for unit in UNITS:
            for seed in seeds:
                for embedding in EMBEDDINGS:
                    for j, task in enumerate(TASKS):
                        plain = (unit, embedding, seed) == ("log1p", "texture", 0)
                        if len(task.references) < REGISTERED[METHODS[method]["method"]].min_slides:
                            continue
                        if paper and (quick or not plain or task.name not in PAPER_CASES):
                            continue
                        if quick and (not plain or task.name not in QUICK_CASES):
                            continue
                        phase = 6 if paper else _PHASES[unit, seed > 0, method == "spahgc"]
                        runs.append((phase, i, j, (task.name, embedding, unit, method, seed)))
    return [run for *_, run in sorted(runs)]


def protocol(runs: list[Run]) -> dict[str, Any]:
    """What the tables need to know, and what a reader does."""
    cases = [task.name for task in TASKS if any(run[0] == task.name for run in runs)]
    return {
        "data": "HER2+ breast ST (Andersson et al. 2021; B4, C2-C5), mouse olfactory bulb ST (Stahl et al. 2016; 01, "
        "02, 11), mouse colon Visium (Parigi et al. 2022; section 1 in four blocks by angle, 300 um gap)",
        "split": "one slide, block or patient held out; all other slides of the data set are the reference ('C from "
        "B4': B4 alone)",
        "embeddings": "texture (378 statistics, no weights), mobilenet (1024, ImageNet); standardised per slide",
        "panel": f"{PANEL} genes with the best mean dispersion rank over the reference slides, in over 5 % of their "
        "spots",
        "score": "mean over genes of the Pearson correlation over the spots of the held-out slide",
        "seeds": f"{len(SEEDS)} planned for methods that depend on one, averaged; the paper's preset: 1",
        "spahgc (paper)": "three runs of commit 9d0372b, whose network is the same, on another machine (AMD EPYC)",
        "code": "between the commits below the package's code differs in spahgc's default, which was run again, and in "
        "no other method",
        "cases": {task.name: {"dataset": task.dataset, "kind": task.kind} for task in TASKS if task.name in cases},
        "methods": [method for method in METHODS if any(run[3] == method for run in runs)],
        "planned": [key(run) for run in runs],
    }


def key(run: Run) -> str:
    """Name of a run in the JSON."""
    return "|".join(map(str, run))


def print_tables(content: dict[str, Any]) -> None:
    """All tables."""
    units = {name.split("|")[2] for name in content["results"]}
    embeddings = {name.split("|")[1] for name in content["results"]}
    for unit in (unit for unit in UNITS if unit in units):
        for embedding in (embedding for embedding in EMBEDDINGS if embedding in embeddings):
            print(f"\nMean per-gene Pearson, {UNIT_NAMES[unit]}, {embedding} embeddings, {PANEL} genes\n")
            print(accuracy_table(content, unit, embedding))
            print(f"\n{cases_table(content, unit, embedding)}")
    print(f"\nSeconds per case (training and prediction, one thread), median\n\n{seconds_table(content)}")


if __name__ == "__main__":
    main()
