"""What a process with little memory runs in `test_predict_large.py`: a prediction into a store, and one into the table.

Arguments: a folder, and the bytes that may be taken. What it found goes to standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import zarr

import spahgc
from spahgc._slides import Cohort, Slide
from spahgc._tables._cohorts import Recipe
from spahgc.methods import Run, get_method
from spahgc.tl import Model

from .limited import limit_memory

GENES, WIDTH = tuple(f"G{i:03d}" for i in range(300)), 8


def table(n: int) -> ad.AnnData:
    """Two slides, their rows mixed."""
    rng = np.random.default_rng(n)
    obs = pd.DataFrame({"slide": pd.Categorical(rng.choice(["T1", "T2"], n))}, index=np.arange(n).astype(str))
    embedding = rng.standard_normal((n, WIDTH), dtype=np.float32)
    return ad.AnnData(obs=obs, obsm={"image_toy": embedding, "spatial": rng.random((n, 2))})


def model() -> Model:
    rng = np.random.default_rng(0)
    slides = [
        Slide(
            name,
            name,
            rng.standard_normal((50, WIDTH), dtype=np.float32),
            rng.random((50, 2)),
            rng.random((50, len(GENES)), dtype=np.float32),
        )
        for name in ("A", "B")
    ]
    reference = Cohort(tuple(slides), GENES)
    method = get_method("ridge", penalty=1.0, n_components=WIDTH).fit(reference.standardized(), Run())
    return Model(method, reference, Recipe(GENES, "none", "image_toy", WIDTH, None), params={})


def main() -> None:
    """Predict under a limit of memory that is not of files."""
    folder, most = Path(sys.argv[1]), int(sys.argv[2])
    # The stack of every thread counts, and there would be as many as the machine has cores, and four more.
    zarr.config.set({"threading.max_workers": 1})
    fitted, small, large = model(), table(100), table(200_000)
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
    print(json.dumps({"table": found, "before": before, "mean": float(values.mean())}))  # noqa: T201


if __name__ == "__main__":
    main()
