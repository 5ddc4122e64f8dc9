"""Trust per gene on real slides: does cross-validation on the reference say which genes will be predicted?

python benchmarks/trust.py                    ridge and spahgc, every slide of her2st held out in turn
python benchmarks/trust.py --methods ridge    under a minute

The reference of a held-out slide is cross-validated slide by slide; what that leads to expect of each gene is then put
beside what the trained model scores on the held-out slide, whose expression nothing has seen before. Finished runs are
kept in benchmarks/results/trust.json and not run again, unless ``--fresh``.
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

from _common import RESULTS, machine, write_json  # noqa: E402
from _data import CACHE, table  # noqa: E402
from _tables import trust_table  # noqa: E402

PANEL, TOP, UNIT = 300, 50, "log1p"
LEGEND = "Mean Pearson of genes on the held-out slide; 90 % intervals; trust from cross-validation by slide"
METHODS = ("ridge", "spahgc")
TARGETS = {"C2": "same patient", "C3": "same patient", "C4": "same patient", "C5": "same patient", "B4": "new patient"}
PROTOCOL = {
    "data": "HER2+ breast ST (Andersson et al. 2021), slides B4 C2 C3 C4 C5; patients B and C",
    "split": "one slide held out, the other four are the reference; within it, each slide held out in turn",
    "embedding": "texture, standardised per slide",
    "panel": f"{PANEL} genes, chosen on the training slides",
    "unit": UNIT,
    "score": "Pearson correlation of each gene over the spots of the held-out slide",
    "new patient": "B4 is of a patient that no held-out slide was of: its row shows what would be promised wrongly. "
    "tl.predict therefore gives no interval there, and calls no gene more than weak",
    "left out": "C from B4: one reference slide cannot be cross-validated, so no gene has trust",
}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods to run")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each method in the cross-validation")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--fresh", action="store_true", help="forget results of an earlier run")
    parser.add_argument("--out", type=Path, default=RESULTS / "trust.json")
    arguments = parser.parse_args()
    done = {} if arguments.fresh or not arguments.out.is_file() else json.loads(arguments.out.read_text())["results"]
    adata = None
    for method in arguments.methods:
        for target in TARGETS:
            key = f"{method} {target}"
            if key in done:
                continue
            adata = table("her2st") if adata is None else adata
            done[key] = run(adata, target, method, seeds=arguments.seeds, jobs=arguments.jobs)
            print(f"{key}: {done[key]['seconds']} s", flush=True)
            write_json(arguments.out, {"protocol": PROTOCOL, "machine": machine(), "results": done})
    print(f"\n{LEGEND}\n\n{trust_table(done)}\n\n{PROTOCOL['new patient']}.\n{PROTOCOL['left out']}.")


def run(adata: Any, target: str, method: str, *, seeds: int, jobs: int) -> dict[str, Any]:
    """What was expected of each gene of a held-out slide, beside what came."""
    import spahgc

    spahgc.settings.progress = False
    started = time.perf_counter()
    slides = adata.obs["region"].astype(str)
    reference, measured = adata[slides != target].copy(), adata[slides == target].copy()
    blind = measured[:, :0].copy()
    common: dict[str, Any] = {"panel": PANEL, "normalize": UNIT, "use_rep": "image_texture", "library_key": "region"}
    spahgc.tl.cross_validate(
        reference,
        methods=[method] if method == "ridge" else ["ridge", method],
        split_by="slide",
        allow_shared_patients=True,
        n_seeds=seeds,
        n_jobs=jobs,
        resume=CACHE / "trust" / f"{target}_{method}_{seeds}",
        **common,
    )
    trust = spahgc.get.trust(reference, method=method)
    spahgc.tl.predict(reference, blind, method=method, rng=0, **common)
    for slot in ("obsm", "uns"):
        getattr(measured, slot)["spahgc"] = getattr(blind, slot)["spahgc"]
    spahgc.tl.evaluate(measured, library_key="region")
    scores = spahgc.get.scores(measured)
    realised = scores[scores["metric"] == "pearson"].set_index("gene")["value"].dropna()
    return {**compare(trust, realised), "kind": TARGETS[target], "seconds": round(time.perf_counter() - started, 1)}


def compare(trust: Any, realised: Any) -> dict[str, Any]:
    """Scores of the expectation, over the genes that have both."""
    from scipy.stats import spearmanr

    both = trust.join(realised.rename("realised"), how="inner").dropna(subset=["expected_pearson", "realised"])
    inside = both["realised"].between(both["low"], both["high"])
    top = both.nlargest(TOP, "expected_pearson").index
    means = both.groupby("verdict")["realised"].mean()
    verdicts = ("trusted", "weak", "not predictable")
    found = {
        "spearman": spearmanr(both["expected_pearson"], both["realised"])[0],
        "mean": both["realised"].mean(),
        "mean_expected": both["expected_pearson"].mean(),
        "mean_top": both.loc[top, "realised"].mean(),
        "mean_oracle": both["realised"].nlargest(TOP).mean(),
        "coverage": inside.mean(),
        "coverage_top": inside[top].mean(),
        "width": (both["high"] - both["low"]).mean(),
        **{f"mean_{verdict}": means.get(verdict, float("nan")) for verdict in verdicts},
    }
    counts = {f"n_{verdict}": int((both["verdict"] == verdict).sum()) for verdict in verdicts}
    rounded = {name: None if value != value else round(float(value), 4) for name, value in found.items()}
    return {**rounded, **counts, "n_genes": len(both), "n_panel": len(realised)}


if __name__ == "__main__":
    main()
