"""The same methods on the same slides under each protocol, and what the difference between the scores is made of.

python benchmarks/protocols.py                    her2st, texture embeddings: ridge, spahgc, and the paper's network
python benchmarks/protocols.py --paper-epochs 0   without the paper's network

From the honest protocol to the published one, one thing at a time. Finished fits are kept in a cache, so that a run
that was stopped goes on. The result goes to benchmarks/results/protocols.json, a table is printed.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

# One thread a process: the fits themselves run side by side.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from _common import RESULTS, machine, write_json  # noqa: E402
from _data import CACHE, table  # noqa: E402
from _tables import pairs_table, steps_table  # noqa: E402

from spahgc.tl._protocols import PROTOCOLS, Protocol  # noqa: E402

_SHARED = replace(PROTOCOLS["honest"], name="shared", split_by="slide")
_PANEL = replace(_SHARED, name="panel", panel_from="all")
_DEPTH = replace(_PANEL, name="depth", normalize="log10", rescale="range")
_PEEK = replace(_DEPTH, name="peek", peek=True)
STEPS: dict[str, tuple[Protocol, str]] = {
    "honest": (PROTOCOLS["honest"], "honest: the scored patient is new"),
    "shared": (_SHARED, "+ other slides of the scored patient in the training"),
    "panel": (_PANEL, "+ the scored slide takes part in choosing the panel"),
    "depth": (_DEPTH, "+ sequencing depth left in (log10 of raw counts, to each slide's range)"),
    "peek": (_PEEK, "+ the checkpoint chosen on the scored slide (paper)"),
    "hest": (PROTOCOLS["hest"], "HEST-Benchmark (50 variable genes, raw log1p)"),
}
METHODS = {"ridge": {"method": "ridge"}, "spahgc": {"method": "spahgc"}}
PAPER = "paper's network"
# The paper's network takes two training slides, which the honest folds of two patients do not have; it is run where its
# checkpoint matters.
PAPER_STEPS = ("depth", "peek")
PROTOCOL = {
    "data": "HER2+ breast ST (Andersson et al. 2021), slides B4 C2 C3 C4 C5; patients B and C",
    "embedding": "texture, standardised per slide",
    "score": "mean over genes of the Pearson correlation over the spots of a slide, then over the five slides",
    "depth oracle": "knows each spot's total count and nothing else",
    "seeds": 1,
    "note": "two patients: where the scored patient is new, C2 to C5 are predicted from B4 alone; so the first step "
    "adds training slides as well. The pairs tell both apart: each slide predicted from a single other one.",
}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--paper-epochs", type=int, default=30, help="epochs of the paper's network, of 200; 0: without"
    )
    parser.add_argument("--jobs", type=int, default=-1, help="processes; -1 takes all cores")
    parser.add_argument("--fresh", action="store_true", help="forget fits of an earlier run")
    parser.add_argument("--out", type=Path, default=RESULTS / "protocols.json")
    arguments = parser.parse_args()
    import spahgc

    logging.getLogger("spahgc").setLevel(logging.ERROR)  # That the protocols are optimistic is what this is about.
    spahgc.settings.progress = False
    started = time.perf_counter()
    cache = CACHE / "protocols"
    if arguments.fresh:
        import shutil

        shutil.rmtree(cache, ignore_errors=True)
    slides = table("her2st")

    def scores(adata: Any, protocol: Protocol, methods: dict[str, Any], folder: str, **options: Any) -> dict[str, Any]:
        spahgc.tl.cross_validate(
            adata,
            methods=methods,
            protocol=protocol,
            use_rep="image_texture",
            library_key="region",
            n_seeds=1,
            resume=cache / folder,
            n_jobs=arguments.jobs,
            **options,
        )
        return summary(spahgc.get.cross_validation(adata))

    steps = {}
    for name, (protocol, _) in STEPS.items():
        steps[name] = scores(slides, protocol, METHODS, name)
        if arguments.paper_epochs and name in PAPER_STEPS:
            spec = {
                "method": "spahgc",
                "preset": "paper",
                "method_params": {"network": {"epochs": arguments.paper_epochs}},
            }
            steps[name] |= scores(slides, protocol, {PAPER: spec}, f"{name}-paper-{arguments.paper_epochs}")
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    pairs = pair_scores(
        slides, lambda adata, folder, **options: scores(adata, STEPS["honest"][0], METHODS, folder, **options)
    )
    content = {
        "protocol": PROTOCOL,
        "machine": machine(),
        "paper_epochs": arguments.paper_epochs,
        "steps": {name: {"text": STEPS[name][1], "scores": steps[name]} for name in STEPS},
        "pairs": pairs,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(arguments.out, content)
    print_tables(content)


def summary(found: Any) -> dict[str, Any]:
    """Mean Pearson of each method by slide, beside the depth oracle's."""
    by_slide = found.groupby(["method", "metric", "slide"])["value"].mean()
    methods = [name for name in found["method"].unique() if name != "measured"]
    result = {name: _rounded(by_slide[name, "pearson"]) for name in methods}
    return {**result, "depth oracle": _rounded(by_slide[methods[0], "depth_only"])}


def pair_scores(slides: Any, scores: Any) -> dict[str, Any]:
    """Mean Pearson of slides predicted from a single other one, of a new patient or the same."""
    result: dict[str, dict[str, list[float]]] = {"new patient": {}, "same patient": {}}
    for pair in itertools.combinations(sorted(slides.obs["region"].astype(str).unique()), 2):
        two = slides[slides.obs["region"].isin(pair)].copy()
        new = two.obs["patient"].nunique() == 2
        options = {} if new else {"split_by": "slide", "allow_shared_patients": True}
        for method, of_slide in scores(two, "-".join(pair), **options).items():
            result["new patient" if new else "same patient"].setdefault(method, []).extend(of_slide.values())
    return {
        kind: {method: round(sum(v) / len(v), 4) for method, v in of.items()} | {"n": len(of["ridge"])}
        for kind, of in result.items()
    }


def _rounded(values: Any) -> dict[str, float]:
    return {str(name): round(float(value), 4) for name, value in values.items()}


def print_tables(content: dict[str, Any]) -> None:
    """The steps, and the pairs."""
    print(f"\nMean per-gene Pearson over the five slides\n\n{steps_table(content)}\n\n{pairs_table(content)}")
    print(
        f"\nThe paper's network: {content['paper_epochs']} of its 200 epochs. This took {content['seconds']:.0f} s; "
        f"fits of an earlier call are not in that."
    )


if __name__ == "__main__":
    main()
