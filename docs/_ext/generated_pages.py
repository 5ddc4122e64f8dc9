"""Pages that are made from the package and the repository before Sphinx looks for its sources.

- ``api/generated/{subpackage}.md``: the names in the subpackage's ``__all__``, by kind.
- ``tutorials/``: the notebooks of ``/tutorials``, as they were committed.
- ``accuracy.md``: the committed results of ``benchmarks/accuracy.py``.

All of these are in .gitignore; a file is rewritten only if it changed, so that a second build stays fast.
"""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.config import Config

SUBPACKAGES = ["io", "datasets", "pp", "tl", "get", "pl", "metrics", "encoders", "methods", "nn"]


def kind(obj: Any) -> str:
    """Heading under which a public name is listed."""
    if inspect.isclass(obj):
        return "Classes"
    return "Functions" if callable(obj) else "Data"


def api_page(subpackage: str) -> str:
    """Page of one subpackage: its docstring, then tables of its public names."""
    full_name = f"spahgc.{subpackage}"
    module = importlib.import_module(full_name)
    lines = [f"# `{full_name}`", "", inspect.cleandoc(module.__doc__ or ""), ""]
    groups: dict[str, list[str]] = {"Functions": [], "Classes": [], "Data": []}
    for name in getattr(module, "__all__", ()):
        groups[kind(getattr(module, name))].append(name)
    for heading, names in groups.items():
        if not names:
            continue
        if heading == "Data":  # autodoc would show the docstring of the value's type
            directives = [data_entry(f"{full_name}.{name}", getattr(module, name)) for name in names]
        else:
            directives = [".. autosummary::", "    :toctree:", "", *(f"    {full_name}.{name}" for name in names)]
        lines += [f"## {heading}", "", "```{eval-rst}", *directives, "```", ""]
    return "\n".join(lines)


def data_entry(full_name: str, value: Any) -> str:
    """Entry of a public name that is no function and no class; of a registry, what it holds."""
    entry = f".. py:data:: {full_name}\n    :type: {type(value).__name__}\n"
    return f"{entry}\n    Holds {', '.join(f'``{key}``' for key in value)}.\n" if isinstance(value, dict) else entry


def accuracy_page(repository: Path) -> str:
    """What the accuracy benchmark found, from its committed JSON."""
    sys.path.insert(0, str(repository / "benchmarks"))
    from _tables import UNIT_NAMES, accuracy_table, protocol_table

    content = json.loads((repository / "benchmarks" / "results" / "accuracy_quick.json").read_text())
    lines = ["# How good is it", "", "Made from the committed output of `benchmarks/accuracy.py --quick`.", ""]
    lines += [protocol_table(content), ""]
    for unit, name in UNIT_NAMES.items():
        lines += [f"## {name}", "", accuracy_table(content, unit), ""]
    lines += [
        "The depth oracle knows only how many molecules each spot gave: what it scores is no knowledge of any gene.",
        "A ratio to ridge from one seed and three slides is an indication; intervals need more of both.",
    ]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Write a file, if that changes it."""
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def make_pages(app: Sphinx, _config: Config) -> None:
    """Write all generated pages."""
    docs = Path(app.srcdir)
    for subpackage in SUBPACKAGES:
        write(docs / "api" / "generated" / f"{subpackage}.md", api_page(subpackage))

    write(docs / "accuracy.md", accuracy_page(docs.parent))

    tutorials = docs / "tutorials"
    tutorials.mkdir(exist_ok=True)
    notebooks = sorted((docs.parent / "tutorials").glob("*.ipynb"))
    for old in set(tutorials.glob("*.ipynb")) - {tutorials / notebook.name for notebook in notebooks}:
        old.unlink()
    for notebook in notebooks:
        copy = tutorials / notebook.name
        if not copy.is_file() or copy.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, copy)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("config-inited", make_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
