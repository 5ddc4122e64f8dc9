"""What each part of the model is worth: the default with one part changed, and the parts of the paper one by one.

python benchmarks/ablation.py               twelve cases, texture embeddings, two seeds; an hour on one busy core
python benchmarks/ablation.py --minutes 5   what can be started within 5 minutes; the next call goes on

One network a fit, with the surroundings in view, so that the seeds can be told apart. Every variant is compared with
the whole on the same cases and seeds; the interval is from drawing cases again, and cases and seeds stay paired.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from _common import RESULTS  # noqa: E402
from _data import TASKS, table  # noqa: E402
from _runs import PANEL, execute  # noqa: E402
from _tables import ablation_table  # noqa: E402

WHOLE = "default, one network"
_NO_CS = {"use_refer": False, "use_pooling": False}
_MASKED = {"weight_target": 0.2, "weight_reference": 0.1}
VARIANTS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "- cross-slice edges (no CNDA, no CNAP)": {"network": _NO_CS},
    "- CNDA": {"network": {"use_refer": False}},
    "- CNAP": {"network": {"use_pooling": False}},
    "- spatial edges (TS)": {"network": {"use_near": False}},
    "- reference edges (RS)": {"network": {"use_close": False}},
    "- all edges": {"network": {**_NO_CS, "use_near": False, "use_close": False}},
    "+ masked contrast with EMA": {"network": _MASKED},
    "+ masked contrast without EMA": {"network": {**_MASKED, "ema_decay": 0.0}},
    "- the second layer": {"network": {"n_layers": 1}},
    "- the second layer, cross-slice edges": {"network": {"n_layers": 1, **_NO_CS}},
    "- kernel": {"changes": {"kernel": 0.0}},
    "- networks (kernel alone)": {"n_seeds": 0},
    "- surroundings in view of the network": {"changes": {"views": ["components"]}},
    "- surroundings, the embedding itself": {"changes": {"views": ["spot"]}},
    "two networks, one of each view": {"n_seeds": 2},
    "- components (all genes)": {"changes": {"n_components": None}},
    "- relative expression and kernel": {"changes": {"relative": False, "kernel": 0.0, "linear_for_new": False}},
    "- kernel, cross-slice edges": {"network": _NO_CS, "changes": {"kernel": 0.0}},
}
SEEDS = (0, 1)
CASES = tuple(task.name for task in TASKS if len(task.references) > 1)
"""Cases with more than one reference slide: with one, no network is trained."""


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--fresh", action="store_true", help="forget results of an earlier run")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing after this time")
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 takes all cores")
    parser.add_argument("--out", type=Path, default=RESULTS / "ablation.json")
    arguments = parser.parse_args()
    if arguments.fresh:
        arguments.out.unlink(missing_ok=True)
    content = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {"results": {}, "seconds": 0.0}
    content["protocol"] = {
        "whole": WHOLE,
        "cases": list(CASES),
        "embedding": "texture, standardised per slide",
        "unit": "log1p counts per 10k",
        "panel": PANEL,
        "seeds": len(SEEDS),
        "variants": list(VARIANTS),
    }
    calls = {
        key(variant, case, seed): (
            case,
            "texture",
            "log1p",
            seed,
            {"method": "spahgc", "method_params": {"n_seeds": 1, **VARIANTS[variant]}},
        )
        for seed in SEEDS
        for variant in VARIANTS
        for case in CASES
    }
    started = time.perf_counter()
    for dataset in {task.dataset for task in TASKS}:
        table(dataset)
    missing = {name: call for name, call in calls.items() if name not in content["results"]}
    execute(missing, content, arguments.out, jobs=arguments.jobs, until=started + 60 * arguments.minutes)
    print(f"Mean per-gene Pearson over {len(CASES)} held-out cases, {len(SEEDS)} seeds\n\n{ablation_table(content)}")
    done = sum(name in content["results"] for name in calls)
    print(f"\n{done} of {len(calls)} runs are there; all calls together took {content['seconds']:.0f} s.")


def key(variant: str, case: str, seed: int) -> str:
    """Name of a run in the JSON."""
    return f"{variant}|{case}|{seed}"


if __name__ == "__main__":
    main()
