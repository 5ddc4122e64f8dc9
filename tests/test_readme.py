"""The figures in the README are those of the committed benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("unit", ["log1p", "log10"])
def test_accuracy_table(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from _tables import accuracy_table

    content = json.loads((ROOT / "benchmarks" / "results" / "accuracy_quick.json").read_text())
    assert accuracy_table(content, unit) in (ROOT / "README.md").read_text()
