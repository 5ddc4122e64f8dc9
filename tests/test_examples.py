"""Every public function has an example, and every example runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

PACKAGES = ["datasets", "encoders", "get", "io", "metrics", "methods", "nn", "pl", "pp", "tl"]
# Packages in which every function has an example; elsewhere those that are there are run.
COMPLETE = {"get", "io", "metrics", "pl", "pp", "tl"}


def public(package: str) -> dict[str, Any]:
    module = importlib.import_module(f"spahgc.{package}")
    return {name: value for name in module.__all__ if callable(value := getattr(module, name))}


NAMES = [(package, name) for package in PACKAGES for name in public(package)]


@pytest.mark.parametrize("package", sorted(COMPLETE))
def test_every_function_has_an_example(package: str) -> None:
    functions = {name: obj for name, obj in public(package).items() if inspect.isfunction(obj)}
    assert [name for name, function in functions.items() if ">>> " not in (function.__doc__ or "")] == []


@pytest.mark.parametrize(("package", "name"), NAMES, ids=[".".join(pair) for pair in NAMES])
def test_examples_run(package: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    obj = public(package)[name]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(obj, name, globs={}):
        runner.run(test, out=report.append)
    plt.close("all")
    assert runner.failures == 0, "".join(report)
