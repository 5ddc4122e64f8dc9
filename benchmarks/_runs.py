"""Runs side by side that can be stopped and go on: hold out, predict from H&E, score."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _common import machine, write_json
from _data import case, split

PANEL = 300

Call = tuple[str, str, str, int, Mapping[str, Any]]
"""Case, embedding, unit, seed, and what tl.predict gets besides."""


def execute(
    calls: Mapping[str, Call], content: dict[str, Any], out: Path, *, jobs: int = -1, until: float = float("inf")
) -> None:
    """Run calls side by side; each result is on disk within seconds, and nothing is started after `until`."""
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    if not calls:
        return
    content["machine"] = machine()
    before, started, written = content.get("seconds", 0.0), time.perf_counter(), 0.0

    def in_time() -> Iterator[Any]:
        for name, call in calls.items():
            if time.perf_counter() > until:
                return
            yield delayed(score)(name, *call)

    results = Parallel(n_jobs=jobs, return_as="generator_unordered", pre_dispatch="n_jobs")(in_time())
    for name, result in tqdm(results, total=len(calls), unit="run", mininterval=10):
        content["results"][name] = {**result, "commit": content["machine"]["commit"]}
        content["seconds"] = round(before + time.perf_counter() - started, 1)
        if time.perf_counter() - written > 5:
            write_json(out, content)
            written = time.perf_counter()
    write_json(out, content)


def score(
    name: str, of_case: str, embedding: str, unit: str, seed: int, params: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Hold out, predict from H&E, score; means over genes, by slide."""
    import torch

    import spahgc

    torch.set_num_threads(1)
    spahgc.settings.progress = False
    spahgc.settings.verbosity = "error"  # that there is one reference slide is said with the cases
    reference, target = split(case(of_case))
    measured, blind = target.copy(), target[:, :0].copy()
    started = time.perf_counter()
    spahgc.tl.predict(
        reference,
        blind,
        panel=PANEL,
        normalize=unit,
        use_rep=f"image_{embedding}",
        library_key="region",
        split_by="patient" if case(of_case).kind == "new patient" else "slide",
        rng=seed,
        **params,
    )
    seconds = time.perf_counter() - started
    for slot in ("obsm", "uns"):
        getattr(measured, slot)["spahgc"] = getattr(blind, slot)["spahgc"]
    spahgc.tl.evaluate(measured, library_key="region")
    slides = {}
    for slide, scores in spahgc.get.scores(measured).groupby("slide"):
        means = {str(metric): _mean(values["value"]) for metric, values in scores.groupby("metric")}
        share = spahgc.metrics.share_above(scores.loc[scores["metric"] == "pearson", "value"].to_numpy())
        slides[str(slide)] = {**means, "share_above_0.3": None if share != share else round(share, 4)}
    return name, {"slides": slides, "seconds": round(seconds, 2)}


def _mean(values: Any) -> float | None:
    return None if values.isna().all() else round(float(values.mean()), 4)
