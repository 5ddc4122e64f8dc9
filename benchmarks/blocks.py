"""Training in spatial blocks against training on whole slides: colon section 1, a quarter held out, several seeds.

python benchmarks/blocks.py

The reference slides are the other three quarters, of about 500 spots each. With ``settings.max_nodes`` below that, each
is cut into blocks. The spread over seeds of either says what a difference means.
"""

from __future__ import annotations

import os
from statistics import mean, stdev
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from _common import RESULTS, machine, write_json  # noqa: E402
from _runs import score  # noqa: E402

CASES = ("colon q0", "colon q2")
SEEDS = (0, 1, 2)
MAX_NODES = (20_000, 150)


def run(case: str, max_nodes: int, seed: int) -> float:
    """Mean per-gene Pearson on the held-out quarter, by the default preset, texture embeddings, depth-normalized."""
    import spahgc

    spahgc.settings.max_nodes = max_nodes
    _, result = score("", case, "texture", "log1p", seed, {"method": "spahgc"})
    (slide,) = result["slides"].values()
    return float(slide["pearson"])


def main() -> None:
    """Run all, and print the table."""
    from joblib import Parallel, delayed

    runs = [(case, size, seed) for case in CASES for size in MAX_NODES for seed in SEEDS]
    scores = dict(zip(runs, Parallel(n_jobs=2)(delayed(run)(*one) for one in runs), strict=True))
    content: dict[str, Any] = {
        "machine": machine(),
        "scores": {"|".join(map(str, key)): v for key, v in scores.items()},
    }
    write_json(RESULTS / "blocks.json", content)
    print("| held out | whole slides | blocks of at most 150 spots | spread over seeds, whole | difference |")
    print("|---|---|---|---|---|")
    for case in CASES:
        whole, blocks = ([scores[case, size, seed] for seed in SEEDS] for size in MAX_NODES)
        means = mean(whole), mean(blocks)
        print(f"| {case} | {means[0]:.4f} | {means[1]:.4f} | {stdev(whole):.4f} | {means[1] - means[0]:+.4f} |")


if __name__ == "__main__":
    main()
