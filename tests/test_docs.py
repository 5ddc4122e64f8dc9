"""Calls in the README, the documentation and the tutorials fit the package; a user's method runs as written."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

import spahgc
from spahgc.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("formats/*.md"))]
TUTORIALS = sorted(ROOT.glob("tutorials/*.ipynb"))


def code_of(path: Path) -> Iterator[str]:
    """Python of a page, block by block, or of a notebook, cell by cell, without magics."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from (dedent(block) for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    else:
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "code":
                yield "".join(line for line in cell["source"] if not line.startswith("%"))


def bad_calls(source: str) -> list[str]:
    """Calls of spahgc that its signatures do not take."""
    bad = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and re.fullmatch(r"spahgc(\.\w+)+", name := ast.unparse(node.func)):
            function = reduce(getattr, name.split(".")[1:], spahgc)
            names = [keyword.arg for keyword in node.keywords]
            try:
                inspect.signature(function).bind_partial(*node.args, **dict.fromkeys(filter(None, names)))
            except TypeError as error:
                bad.append(f"{ast.unparse(node)}: {error}")
    return bad


def test_a_bad_call_is_found() -> None:
    assert bad_calls("spahgc.tl.evaluate(a, adata=c)")
    assert not bad_calls("spahgc.tl.evaluate(a, key=b)")


@pytest.mark.parametrize("path", [*PAGES, *TUTORIALS], ids=lambda path: path.name)
def test_calls_fit_the_signatures(path: Path) -> None:
    assert [call for source in code_of(path) for call in bad_calls(source)] == []


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
