"""What the graphs of SpaHGC take in a cross-validation, computed anew for each seed, or kept for the other seeds.

python benchmarks/pairs.py

Four slides of Visium's size, one held out in turn, on one core. Timed are the graphs of the default preset, of both its
views; the networks are not trained.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from _cases import CASES  # noqa: E402
from _common import RESULTS, machine, write_json  # noqa: E402
from _search_tables import pairs_table  # noqa: E402

SEEDS = 3


def folds() -> Iterator[tuple[Any, Any]]:
    """Three reference slides and the one that is held out, by turns."""
    from dataclasses import replace

    reference, target = CASES["visium"]()
    expression = reference.slides[0].expression
    slides = [*reference.slides, replace(target, expression=expression)]
    for i in range(len(slides)):
        others = tuple(slide for j, slide in enumerate(slides) if j != i)
        yield replace(reference, slides=others), slides[i].without_expression()


def views(cohort: Any, target: Any) -> list[tuple[Any, Any]]:
    """The same with the features of the two views, whose components are those of a fold."""
    from dataclasses import replace

    from spahgc.methods._features import Context
    from spahgc.methods.kernel import WEIGHTS

    found, context = [], Context.fit(cohort.slides, weights=WEIGHTS)
    for made in (context, context.of_spot()):
        slides = tuple(replace(slide, embedding=made(slide)) for slide in cohort)
        found.append((replace(cohort, slides=slides), replace(target, embedding=made(target))))
    return found


def graphs(cases: list[tuple[Any, Any]]) -> None:
    """All graphs of a fit of SpaHGC and of the prediction of a slide, as the method makes them."""
    from functools import partial

    from spahgc.methods._references import References, TrainingGraphs
    from spahgc.methods.spahgc import PRESETS
    from spahgc.nn import Config, slide_graph

    config = Config(**PRESETS["default"].network)
    for cohort, target in cases:
        values = {slide.name: slide.expression for slide in cohort}
        references = References([slide.embedding for slide in cohort], config.n_references)
        TrainingGraphs(cohort, values, config, references=references)
        slide_graph(
            target.embedding, target.coordinates, cohort.embedding(), cohort.expression(),
            n_references=config.n_references, n_near=config.n_near, n_close=config.n_close,
            search=partial(references.search, n_queries=len(target)),
        )  # fmt: skip


def main() -> None:
    """Run all, and print the table."""
    import torch

    from spahgc._disk import keeping, shared_folder

    torch.set_num_threads(1)
    anew, n_folds = 0.0, 0
    kept: list[list[float]] = [[] for _ in range(SEEDS)]
    with shared_folder(None) as folder:
        for cohort, target in folds():
            n_folds += 1
            cases = views(cohort, target)
            # In every fold, and for every seed, the same work.
            anew = anew or _seconds(cases)
            with keeping(folder):
                for seconds in kept:
                    seconds.append(_seconds(cases))
    content = {
        "machine": machine(),
        "folds": n_folds,
        "anew": anew,
        "kept": kept,
    }
    write_json(RESULTS / "pairs.json", content)
    print(pairs_table(content, json.loads((RESULTS / "speed.json").read_text())))


def _seconds(cases: list[tuple[Any, Any]]) -> float:
    """Time on the processor: others may be busy on this machine."""
    start = time.process_time()
    graphs(cases)
    return time.process_time() - start


if __name__ == "__main__":
    main()
