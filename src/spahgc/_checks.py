"""Argument checks: a function states in its signature what it takes, and one decorator checks it.

Types come from the annotations; `checked` adds the ranges. Every error has one form:
"`n_seeds` must be an integer of at least 1, got 0."
"""

from __future__ import annotations

import ast
import builtins
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, Unpack, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

P = ParamSpec("P")
R = TypeVar("R")
_MANY = 60  # characters of a value that a message shows
# Names that files import for type checking only, and that are checked by more than their name.
_OFTEN = {"os": os, "Callable": Callable, "Iterable": Iterable, "Mapping": Mapping, "Path": Path, "Sequence": Sequence}


@dataclass(frozen=True)
class Range:
    """Values that a number may take, and how a message names them."""

    text: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Range:
    """Numbers greater than or equal to `low`."""
    return Range(f"of at least {low:g}", lambda value: value >= low)


def above(low: float) -> Range:
    """Numbers greater than `low`."""
    return Range(f"greater than {low:g}", lambda value: value > low)


def between(low: float, high: float) -> Range:
    """Numbers from `low` to `high`, both included."""
    return Range(f"between {low:g} and {high:g}", lambda value: low <= value <= high)


def checked(**ranges: Range) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the arguments of a function against its annotations and ranges before it runs.

    Understood are bool, int, float (finite), str, `None`, `Literal`, paths, sequences, mappings, unions and classes;
    anything else (`Any`, arrays) is not checked. Classes that are imported for type checking only are compared by
    name. Keyword arguments annotated with `Unpack` of a `TypedDict` are checked as if they were parameters.

    Parameters
    ----------
    **ranges
        Range of each parameter that needs one; applies to numbers, also inside a sequence or mapping.

    Raises
    ------
    TypeError
        If an argument has none of the annotated types.
    ValueError
        If a number is out of its range, or a string is not among the options.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            hints = _hints(function)
            for name, value in bound.arguments.items():
                hint = hints.get(name, Any)
                if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                    if get_origin(hint) is Unpack:
                        _check_keywords(function.__name__, value, _hints(get_args(hint)[0]), ranges)
                elif name not in {"self", "cls"}:
                    check_argument(name, value, hint, ranges.get(name))
            return function(*args, **kwargs)

        return wrapper

    return decorate


def _check_keywords(function: str, values: dict[str, Any], hints: dict[str, Any], ranges: dict[str, Range]) -> None:
    for name, value in values.items():
        if name not in hints:
            raise TypeError(f"{function}() has no parameter {name!r}. Available: {format_names(hints, most=30)}.")
        check_argument(name, value, hints[name], ranges.get(name))


def check_argument(name: str, value: Any, hint: Any, within: Range | None = None) -> None:
    """Raise if a value does not fit a type hint or lies outside a range."""
    verdicts = [_fits(value, kind, within) for kind in _kinds(hint)]
    if True in verdicts:
        return
    wanted = " or ".join(dict.fromkeys(_describe(kind, within) for kind in _kinds(hint)))
    tables = {getattr(kind, "__name__", "") for kind in _kinds(hint)}
    advice = " Pass its table: sdata['table']." if "AnnData" in tables and hasattr(value, "tables") else ""
    error = ValueError if None in verdicts else TypeError
    raise error(f"`{name}` must be {wanted}, got {_shown(value)}.{advice}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Alternatives of a type hint."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds(part))
    if hasattr(hint, "__value__"):  # a `type` statement
        return _kinds(hint.__value__)
    return (hint,)


def _fits(value: Any, kind: Any, within: Range | None) -> bool | None:
    """Whether a value fits one alternative; `None` if it has the type but not the right value."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if origin is Literal:
        if any(type(value) is type(option) and value == option for option in args):
            return True
        return None if any(type(value) is type(option) for option in args) else False
    if origin is bool:
        return isinstance(value, bool | np.bool_)
    if origin in (int, float):
        types_of = (int, np.integer) if origin is int else (int, float, np.integer, np.floating)
        if isinstance(value, bool) or not isinstance(value, types_of):
            return False
        return True if np.isfinite(value) and (within is None or within.holds(value)) else None
    if origin is os.PathLike:
        return isinstance(value, str | os.PathLike)
    if _is_mapping(origin):
        pairs = ((item, args[1]) for item in value.values()) if args and isinstance(value, Mapping) else ()
        return isinstance(value, Mapping) and _all_fit(pairs, within)
    if origin in (Sequence, Iterable, list, tuple, set, frozenset):
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            return False
        if not isinstance(value, Sized):  # a generator, which would be used up
            return origin is not Sequence
        item = args[0] if len(args) == 1 or args[1:] == (Ellipsis,) else Any
        return _all_fit(((part, item) for part in value), within)
    if origin is Callable or kind is Callable:
        return callable(value)
    if isinstance(origin, _Named):
        return any(base.__name__ == origin.__name__ for base in type(value).__mro__)
    if isinstance(origin, type) and origin is not np.ndarray and not getattr(origin, "_is_protocol", False):
        return isinstance(value, origin)
    return True


def _all_fit(pairs: Iterable[tuple[Any, Any]], within: Range | None) -> bool | None:
    verdicts = {max((_fits(value, kind, within) for kind in _kinds(hint)), key=_RANK.index) for value, hint in pairs}
    return False if False in verdicts else None if None in verdicts else True


_RANK: list[bool | None] = [False, None, True]


def _describe(kind: Any, within: Range | None) -> str:
    origin, args = get_origin(kind) or kind, get_args(kind)
    span = f" {within.text}" if within else ""
    named = {int: f"an integer{span}", float: f"a finite number{span}", bool: "True or False", str: "a string"}
    if kind is None or kind is type(None):
        return "None"
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in named:
        return named[origin]
    if origin is os.PathLike:
        return "a path"
    if _is_mapping(origin):
        return "a mapping" + (f" to {_plural(args[1], span)}" if args else "")
    if origin in (Sequence, Iterable, list, tuple, set, frozenset):
        return "a sequence" + (f" of {_plural(args[0], span)}" if args else "")
    name = getattr(origin, "__name__", str(origin))
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def _plural(kind: Any, span: str) -> str:
    names = {int: "integers", float: "finite numbers", str: "strings", bool: "True or False"}
    return names.get(kind, "values") + (span if kind in (int, float) else "")


def _shown(value: Any) -> str:
    text = repr(value)
    if len(text) > _MANY or "\n" in text:
        return f"an object of type {type(value).__name__}"
    return text


def _is_mapping(origin: Any) -> bool:
    return isinstance(origin, type) and not isinstance(origin, _Named) and issubclass(origin, Mapping)


class _Named(type):
    """Stand-in for a class that is imported for type checking only; instances are recognized by its name."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Named(name, (), {})

    def __getitem__(cls, item: Any) -> Any:
        return cls


@cache
def _hints(obj: Any) -> dict[str, Any]:
    """Type hints by parameter; names that are not imported at run time become stand-ins."""
    known = _OFTEN | vars(builtins) | vars(sys.modules[obj.__module__])
    texts = [text for text in obj.__annotations__.values() if isinstance(text, str)]
    used = {node.id for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    return get_type_hints(obj, known, {name: _Named(name, (), {}) for name in used - known.keys()})


def format_names(names: Iterable[Any], *, most: int = 10) -> str:
    """Format names for an error message, showing the first `most` of them."""
    names = [repr(str(name)) for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def rng_seed(rng: int | np.random.Generator) -> int:
    """Seed from an integer or a Generator, which is advanced."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**31))
    check_argument("rng", rng, int, at_least(0))
    return int(rng)


def positive(value: int, name: str) -> int:
    """Return an integer of at least 1, or raise."""
    check_argument(name, value, int, at_least(1))
    return int(value)


def matrix(values: ArrayLike, name: str, *, dtype: type = np.float32) -> NDArray:
    """Return values as a finite two-dimensional array, or raise."""
    array: NDArray = real(values, name).astype(dtype, copy=False)
    finite(array, name)
    return array


def real(values: ArrayLike, name: str) -> NDArray:
    """Return values as a two-dimensional array of real numbers, or raise; memory-mapped files are not read."""
    array = np.asanyarray(values)  # np.asarray would turn a memory-mapped file into a plain view
    if array.ndim != 2:
        raise ValueError(f"`{name}` must be a matrix with one row per spot, got shape {array.shape}.")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise TypeError(f"`{name}` must hold real numbers, got dtype {array.dtype}.")
    return array


def finite(array: NDArray, name: str, *, first_row: int = 0) -> None:
    """Raise if an array, whose rows start at `first_row`, has values that are not finite."""
    # A finite sum needs no second array; the sum may overflow, and then all values are inspected.
    if array.size and not np.isfinite(array.sum(dtype=np.float64)) and not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        where = f"{len(rows)} of {len(array)} rows, first in row {first_row + rows[0]}"
        raise ValueError(f"`{name}` has NaN or infinite values in {where}.")
