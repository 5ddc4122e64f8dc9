"""The README is short, its figures are those of the committed benchmarks, and its code uses names that exist."""

from __future__ import annotations

import json
import re
import sys
from functools import reduce
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

import spahgc

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = {
    "kNN on embeddings": "knn",
    "ridge regression": "ridge",
    "the same on ten components of the expression": "low_rank_ridge",
    "Hist2ST, compact form": "hist2st",
    'spahgc, `preset="fast"` (no network, two seconds)': "fast",
    "spahgc": "spahgc",
}


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import _tables

    return _tables


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n ").split("|")]


def test_the_table_is_part_of_the_benchmark(tables: Any) -> None:
    header, _, *rows = map(cells, tables.accuracy_table(results("accuracy"), "log1p", "texture").splitlines())
    whole = {row[0]: row[1:5] for row in rows}
    lines = README.split("| method |")[1].splitlines()
    assert [re.findall(r"\d+", name) for name in cells(lines[0])] == [re.findall(r"\d+", name) for name in header[1:5]]
    shown = {cells(line)[0]: cells(line)[1:] for line in lines[2 : 2 + len(ROWS)]}
    assert shown == {name: whole[method] for name, method in ROWS.items()}


def test_figures_in_the_text(tables: Any) -> None:
    text = " ".join(README.split())
    said = tables.untouched(results("accuracy"), "texture")
    untouched = re.search(r"spahgc (\d\.\d+), ridge (\d\.\d+).* fast (\d\.\d+)", said)
    assert untouched is not None
    whole, ridge, fast = untouched.groups()
    assert f"on the other nine spahgc scores {whole} and ridge {ridge}" in text
    assert f'The preset `"fast"` has most of this ({fast})' in text
    trust = {name: row for name, row in results("trust")["results"].items() if name.startswith("spahgc")}
    top = mean(row["mean_top"] for row in trust.values() if row["kind"] == "same patient")
    assert f"the 50 genes that cross-validation ranks first reach {top:.2f}" in text


def test_it_is_short_and_shows_a_picture() -> None:
    assert len(README.splitlines()) <= 110
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert (ROOT / picture).stat().st_size <= 250_000


def test_links_to_the_documentation_have_a_page() -> None:
    pages = re.findall(r"https://spahgc\.readthedocs\.io/en/latest/([\w/]+)\.html", README)
    made = {"accuracy"}  # from the benchmarks, when the documentation is built
    assert not [page for page in pages if page not in made and not (ROOT / "docs" / f"{page}.md").is_file()]


def test_names_exist() -> None:
    used = re.findall(r"\b(?:spahgc\.)?((?:datasets|get|io|pl|pp|tl)\.\w+)", README)
    assert "tl.predict" in used
    for name in used:
        reduce(getattr, name.split("."), spahgc)  # AttributeError names what is gone
