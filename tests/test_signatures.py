"""Every parameter of every public function refuses what it is not, in a message of spahgc that names it.

The calls are made from the signatures, so a new function or parameter is tested without a line here.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_origin

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import spahgc
from spahgc._checks import _hints, _kinds

ROOMS = ("datasets", "get", "io", "metrics", "pl", "pp", "tl")
UNCHECKED = {"Any", "ndarray", "_SupportsArray", "Callable"}


class Other:
    """An object that no function takes."""

    def __repr__(self) -> str:
        return "<other>"


def functions() -> dict[str, Callable[..., Any]]:
    found = {}
    for room in ROOMS:
        module = getattr(spahgc, room)
        for name in module.__all__:
            function = getattr(module, name)
            if isinstance(function, types.FunctionType):
                found[f"{room}.{name}"] = function
    return found


def valid(hint: Any) -> Any:
    """Some value of an annotated type."""
    names = {getattr(kind, "__name__", "") for kind in _kinds(hint)}
    if "AnnData" in names:
        return ad.AnnData(np.ones((3, 2), np.float32))
    if "Model" in names:
        return object.__new__(spahgc.tl.Model)
    if "SpatialData" in names:
        return SpatialData()
    if "DataFrame" in names:
        return pd.DataFrame({"a": [1]})
    if "ArrayLike" in str(hint) or "_SupportsArray" in str(hint):
        return np.zeros((3, 2))
    return "x" if str in _kinds(hint) else () if Sequence in {get_origin(kind) for kind in _kinds(hint)} else 1


def checkable(hint: Any) -> bool:
    """Whether a type hint says which types are wrong."""
    return not any(
        kind is Any or getattr(kind, "__name__", str(kind)) in UNCHECKED or "ndarray" in str(kind)
        or getattr(kind, "_is_protocol", False) or get_origin(kind) is Callable
        for kind in _kinds(hint)
    )  # fmt: skip


def wrong(hint: Any) -> Iterator[Any]:
    """Values that an annotated type does not allow."""
    kinds = _kinds(hint)
    origins = {get_origin(kind) or kind for kind in kinds}
    yield Other()
    if None not in kinds and type(None) not in kinds:
        yield None
    if origins & {int, float}:
        yield from (np.nan, np.inf, True)
    if int in origins and float not in origins:
        yield 2.5
    if bool in origins:
        yield from ("no", 1)
    if Literal in origins and str not in origins:
        yield "no such option"
    if origins <= {str, type(None)}:
        yield from (3, b"text", ["text"])


def required(function: Callable[..., Any]) -> dict[str, Any]:
    """Values for the parameters without default."""
    hints = _hints(function)
    return {
        key: valid(hints.get(key, Any))
        for key, entry in inspect.signature(function).parameters.items()
        if entry.default is inspect.Parameter.empty and entry.kind is not inspect.Parameter.VAR_KEYWORD
    }


CASES = [
    (name, parameter)
    for name, function in functions().items()
    for parameter, entry in inspect.signature(function).parameters.items()
    if entry.kind is not inspect.Parameter.VAR_KEYWORD and checkable(_hints(function).get(parameter, Any))
]


def test_most_parameters_are_covered() -> None:
    n = sum(len(inspect.signature(function).parameters) for function in functions().values())
    assert len(CASES) > 0.8 * n


@pytest.mark.parametrize(("name", "parameter"), CASES, ids=[".".join(case) for case in CASES])
def test_what_a_parameter_is_not(name: str, parameter: str) -> None:
    function = functions()[name]
    for value in wrong(_hints(function)[parameter]):
        with pytest.raises((TypeError, ValueError), match=f"`{parameter}` must be ") as caught:
            function(**{**required(function), parameter: value})
        assert caught.traceback[-1].path.name == "_checks.py", value


@pytest.mark.parametrize("name", functions())
def test_a_parameter_that_is_not_there(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name.split('.')[1]}\\(\\).*'no_such_parameter'"):
        functions()[name](**required(functions()[name]), no_such_parameter=1)
