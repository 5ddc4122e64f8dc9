"""The figures in the README are those of the committed benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


@pytest.mark.parametrize("embedding", ["texture", "mobilenet"])
def test_accuracy_table(embedding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from _tables import accuracy_table, untouched

    content, readme = json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text()), README.read_text()
    assert accuracy_table(content, "log1p", embedding) in readme
    assert untouched(content, embedding) in readme


def test_below_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of B4."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from _tables import case_scores

    content = json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text())
    said = []
    for embedding in ("texture", "mobilenet"):
        scores = case_scores(content, "log1p", embedding)
        said.append(f"{scores['spahgc']['B4']:.3f} against {scores['ridge']['B4']:.3f}")
    assert f"({said[0]}, and {said[1]})" in README.read_text()


def test_trust_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from _tables import trust_table

    content = json.loads((ROOT / "benchmarks" / "results" / "trust.json").read_text())
    of_spahgc = {name: row for name, row in content["results"].items() if name.startswith("spahgc")}
    assert trust_table(of_spahgc) in README.read_text()
