"""What a committed notebook has to be; ``make tutorials`` executes them."""

from __future__ import annotations

import ast
import base64
import json
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

import spahgc

NOTEBOOKS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
MOST_BYTES = 3_000_000
# Folders that exist on one machine only, at the start of a word.
ABSOLUTE = re.compile(
    r"(?<![\w.:/])(?:/(?:builds|home|mnt|opt|private|root|srv|tmp|usr|Users|var|work)/|[A-Za-z]:\\)[^\s\"']*"
)


def code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def python(cell: dict[str, Any]) -> str:
    """Source of a cell without IPython's magics."""
    return "\n".join(line for line in "".join(cell["source"]).splitlines() if not line.startswith("%"))


def texts(notebook: dict[str, Any]) -> list[str]:
    """All that is written in a notebook: sources, and outputs that are not pictures."""
    found = ["".join(cell["source"]) for cell in notebook["cells"]]
    for output in (output for cell in code(notebook) for output in cell["outputs"]):
        found.append("".join(output.get("text", "")))
        found += ["".join(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
    return found


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_are_tutorials() -> None:
    assert "01_her2st" in [path.stem for path in NOTEBOOKS]


def test_executed_in_order_from_top_to_bottom(notebook: dict[str, Any]) -> None:
    assert notebook["nbformat"] == 4
    cells = code(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)


def test_outputs_are_there_without_errors_and_warnings(notebook: dict[str, Any]) -> None:
    outputs = [output for cell in code(notebook) for output in cell["outputs"]]
    assert not [output["ename"] for output in outputs if output["output_type"] == "error"]
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    for picture in pictures:
        assert base64.b64decode("".join(picture)).startswith(b"\x89PNG")


def test_every_plotting_cell_shows_a_picture(notebook: dict[str, Any]) -> None:
    for cell in code(notebook):
        if re.search(r"\.pl\.|plt\.show", python(cell)):
            assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), python(cell)


def test_nothing_of_the_machine_it_ran_on(notebook: dict[str, Any]) -> None:
    written = "\n".join(texts(notebook))
    assert not ABSOLUTE.findall(written)
    assert "\x1b[" not in written  # colours of a terminal
    assert not re.findall(r"\d+%\||it/s\]", written)  # progress bars
    assert all("execution" not in cell["metadata"] for cell in code(notebook))  # clock times


@pytest.mark.parametrize("text", ["see /root/.cache/x", "'/work/main'", "C:\\Users\\me", "(/tmp/a.h5ad)"])
def test_finds_paths_of_a_machine(text: str) -> None:
    assert ABSOLUTE.search(text)


@pytest.mark.parametrize("text", ["https://doi.org/work/1", "../../shared/data", "counts/10k and 1/2", "a/tmp/b"])
def test_takes_nothing_else_for_one(text: str) -> None:
    assert not ABSOLUTE.search(text)


def test_small_enough_for_a_repository(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES


def test_names_of_the_package_exist(notebook: dict[str, Any]) -> None:
    """Names in code, and in the text between backticks."""
    used = {
        ast.unparse(node)
        for cell in code(notebook)
        for node in ast.walk(ast.parse(python(cell)))
        if isinstance(node, ast.Attribute) and re.fullmatch(r"spahgc(\.\w+)+", ast.unparse(node))
    }
    prose = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    used |= {f"spahgc.{name}" for name in re.findall(r"`(?:spahgc\.)?((?:pp|tl|get|pl|datasets|io)\.\w+)", prose)}
    assert "spahgc.tl.predict" in used
    for name in sorted(used):
        reduce(getattr, name.split(".")[1:], spahgc)  # AttributeError names what is gone


def test_one_title_and_no_level_skipped(notebook: dict[str, Any]) -> None:
    prose = "\n".join("".join(cell["source"]) + "\n" for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose, flags=re.MULTILINE)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
