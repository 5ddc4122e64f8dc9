"""The figures in the README are those of the committed benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("embedding", ["texture", "mobilenet"])
def test_accuracy_table(embedding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from _tables import accuracy_table

    content = json.loads((ROOT / "benchmarks" / "results" / "accuracy.json").read_text())
    assert accuracy_table(content, "log1p", embedding) in (ROOT / "README.md").read_text()


def test_trust_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from _tables import trust_table

    content = json.loads((ROOT / "benchmarks" / "results" / "trust.json").read_text())
    of_spahgc = {name: row for name, row in content["results"].items() if name.startswith("spahgc")}
    assert trust_table(of_spahgc) in (ROOT / "README.md").read_text()
