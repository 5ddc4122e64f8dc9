"""Predictions in a process with little memory: `run_limited` starts one, `main` is what runs there."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
import zarr

import spahgc
from spahgc._slides import Cohort, Slide
from spahgc._tables._cohorts import Recipe
from spahgc.methods import Run, get_method
from spahgc.tl import Model

ROOT = Path(__file__).parents[2]
GENES, WIDTH = tuple(f"G{i:03d}" for i in range(300)), 8


def run_limited(script: str, folder: Path, most: int) -> dict[str, Any]:
    """Run `bank` or `store` in a process of its own, with a folder and a number of bytes; what it returned."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tl.limited", script, str(folder), str(most)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def limit_memory(most: int) -> None:
    """From now on this process gets so many bytes more, those of mapped files not counted."""
    limit = status("VmData") + most
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def status(name: str) -> int:
    """A line of the status of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def bank(folder: Path, most: int) -> dict[str, Any]:
    """Open the two models of a folder, predict its slide, and try to read the reference whole."""
    slide = Slide("T1", "B", **dict(np.load(folder / "slide.npz")))
    # So that nothing is left to import or to set up.
    Model.load(folder / "small").predict([slide], progress=False)
    limit_memory(most)
    found: dict[str, Any] = {}
    before, start = status("RssFile"), time.perf_counter()
    model = Model.load(folder / "large")
    found["large"] = {"seconds": time.perf_counter() - start, "read": status("RssFile") - before}
    made = model.predict([slide], progress=False)
    np.savez(folder / "large.npz", values=made.values, support=made.support)
    try:
        [np.fromfile(path, np.uint8) for path in (folder / "large" / "reference").iterdir()]
    except MemoryError:
        return {**found, "whole": "MemoryError"}
    return {**found, "whole": "fits"}


def table(n: int) -> ad.AnnData:
    """Two slides, their rows mixed."""
    rng = np.random.default_rng(n)
    obs = pd.DataFrame({"slide": pd.Categorical(rng.choice(["T1", "T2"], n))}, index=np.arange(n).astype(str))
    embedding = rng.standard_normal((n, WIDTH), dtype=np.float32)
    return ad.AnnData(obs=obs, obsm={"image_toy": embedding, "spatial": rng.random((n, 2))})


def ridge() -> Model:
    """Ridge on two slides of noise."""
    rng, slides = np.random.default_rng(0), []
    for name in ("A", "B"):
        embedding, coordinates = rng.standard_normal((50, WIDTH), dtype=np.float32), rng.random((50, 2))
        slides.append(Slide(name, name, embedding, coordinates, rng.random((50, len(GENES)), dtype=np.float32)))
    reference = Cohort(tuple(slides), GENES)
    method = get_method("ridge", penalty=1.0, n_components=WIDTH).fit(reference.standardized(), Run())
    return Model(method, reference, Recipe(GENES, "none", "image_toy", WIDTH, None), params={})


def store(folder: Path, most: int) -> dict[str, Any]:
    """Predict a large table into itself, and then into a store."""
    # The stack of every thread counts, and there would be as many as the machine has cores, and four more.
    zarr.config.set({"threading.max_workers": 1})
    fitted, small, large = ridge(), table(100), table(200_000)
    how = {"library_key": "slide", "progress": False}
    # So that nothing is left to import or to set up.
    spahgc.tl.predict(fitted, small, store=folder / "small.zarr", **how)
    limit_memory(most)
    try:
        spahgc.tl.predict(fitted, large, **how)
        found = "fits"
    except MemoryError:
        found = "MemoryError"
    before = sorted(path.name for path in folder.iterdir())
    spahgc.tl.predict(fitted, large, store=folder / "large.zarr", **how)
    values = spahgc.get.predicted(large)[:1000].to_memory().X
    return {"table": found, "before": before, "mean": float(values.mean())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    made = {"bank": bank, "store": store}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(made))  # noqa: T201
