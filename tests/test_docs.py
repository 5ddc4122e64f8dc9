"""Examples of the documentation that show how to extend the package run as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import spahgc
from spahgc.methods import METHODS

DOCS = Path(__file__).parents[1] / "docs"


def colors(tiles: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each color channel."""
    return np.hstack([tiles.mean(axis=(2, 3)), tiles.std(axis=(2, 3))]).astype(np.float32)


def test_a_method_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is registered, predicts better than nothing, and is the same after saving."""
    (definition,) = re.findall(r"```python\n(.*?)```", (DOCS / "own_method.md").read_text(encoding="utf-8"), re.DOTALL)
    try:
        exec(definition, {})
        sdata = spahgc.datasets.synthetic_cohort(n_slides=3, n_patients=3, n_spots=60, n_genes=60)
        spahgc.pp.image_embedding(sdata, encoder=colors, tile_px=32, key_added="image_colors")
        table = sdata["table"]
        held_out = (table.obs["region"] == table.obs["region"].cat.categories[0]).to_numpy()
        reference, target = table[~held_out].copy(), table[held_out].copy()
        model = spahgc.tl.train(reference, method="pls", panel=20, method_params={"n_components": 4})
        model.save(tmp_path / "model")
        spahgc.tl.predict(spahgc.tl.Model.load(tmp_path / "model"), target)
        again = spahgc.tl.predict(model, target, copy=True)
        np.testing.assert_array_equal(again.obsm["spahgc"], target.obsm["spahgc"])
        spahgc.tl.evaluate(target)
        scores = spahgc.get.scores(target)
        assert scores.loc[scores["metric"] == "pearson", "value"].mean() > 0.1
    finally:
        METHODS.pop("pls", None)
