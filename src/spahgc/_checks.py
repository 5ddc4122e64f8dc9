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
_WRONG_TYPE, _WRONG_VALUE, _FITS = range(3)
_SEQUENCES = (Sequence, Iterable, list, tuple, set, frozenset)
# How a message names the plain types, and what they accept.
_PLAIN: dict[Any, tuple[str, Any]] = {
    bool: ("True or False", bool | np.bool_),
    int: ("an integer", int | np.integer),
    float: ("a finite number", int | float | np.integer | np.floating),
    str: ("a string", str),
    os.PathLike: ("a path", str | os.PathLike),
    None: ("None", type(None)),
    type(None): ("None", type(None)),
    Any: ("anything", object),
}
_PLURAL: dict[Any, str] = {int: "integers", float: "finite numbers", str: "strings", bool: "True or False"}
# Names that files import for type checking only, and that are checked by more than their name.
_OFTEN = {"os": os, "Callable": Callable, "Iterable": Iterable, "Mapping": Mapping, "Path": Path, "Sequence": Sequence}


@dataclass(frozen=True)
class Range:
    """Values that a number may take, and how a message names them."""

    text: str
    holds: Callable[[Any], bool]


def at_least(low: float) -> Range:
    """Range of numbers greater than or equal to `low`."""
    return Range(f"of at least {low:g}", lambda value: value >= low)


def above(low: float) -> Range:
    """Range of numbers greater than `low`."""
    return Range(f"greater than {low:g}", lambda value: value > low)


def between(low: float, high: float) -> Range:
    """Range of numbers from `low` to `high`, both included."""
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
            hints = _hints(function)
            try:
                arguments = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                parameters = format_names(signature.parameters, most=30)
                raise TypeError(f"{function.__name__}(): {error}. Parameters: {parameters}.") from None
            for name, value in arguments.items():
                hint = hints.get(name, Any)
                if get_origin(hint) is not Unpack:
                    check_argument(name, value, hint, ranges.get(name))
                    continue
                options = _hints(get_args(hint)[0])
                for option, given in value.items():
                    if option not in options:
                        available = format_names(options, most=30)
                        raise TypeError(f"{function.__name__}() has no parameter {option!r}. Available: {available}.")
                    check_argument(option, given, options[option], ranges.get(option))
            return function(*args, **kwargs)

        return wrapper

    return decorate


def check_argument(name: str, value: Any, hint: Any, within: Range | None = None) -> None:
    """Raise if a value does not fit a type hint or lies outside a range."""
    kinds = _kinds(hint)
    verdict = max(_verdict(value, kind, within) for kind in kinds)
    if verdict == _FITS:
        return
    wanted = " or ".join(dict.fromkeys(_describe(kind, within) for kind in kinds))
    is_slide = hasattr(value, "tables") and "AnnData" in {getattr(kind, "__name__", "") for kind in kinds}
    advice = " Pass its table: sdata['table']." if is_slide else ""
    shown = repr(value)
    if len(shown) > _MANY or "\n" in shown:
        shown = f"an object of type {type(value).__name__}"
    error = ValueError if verdict == _WRONG_VALUE else TypeError
    raise error(f"`{name}` must be {wanted}, got {shown}.{advice}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Alternatives of a type hint."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds(part))
    if hasattr(hint, "__value__"):  # a `type` statement
        return _kinds(hint.__value__)
    return (hint,)


def _verdict(value: Any, kind: Any, within: Range | None) -> int:
    """Whether a value fits one alternative of a type hint."""
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        options = [option for option in args if type(value) is type(option)]
        return (_FITS if value in options else _WRONG_VALUE) if options else _WRONG_TYPE
    if origin in _PLAIN:
        if not isinstance(value, _PLAIN[origin][1]) or (origin in (int, float) and isinstance(value, bool)):
            return _WRONG_TYPE
        if origin not in (int, float) or (
            (isinstance(value, int) or np.isfinite(value)) and (within is None or within.holds(value))
        ):
            return _FITS
        return _WRONG_VALUE
    if origin in _SEQUENCES:
        if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
            return _WRONG_TYPE
        if not isinstance(value, Sized):  # a generator, which would be used up
            return _WRONG_TYPE if origin is Sequence else _FITS
        item = args[0] if len(args) == 1 or args[1:] == (Ellipsis,) else Any
        return _verdict_of_all(value, item, within)
    if origin is Callable:
        return _FITS if callable(value) else _WRONG_TYPE
    if isinstance(origin, _Named):
        return _FITS if origin.__name__ in {base.__name__ for base in type(value).__mro__} else _WRONG_TYPE
    if not isinstance(origin, type) or origin is np.ndarray or getattr(origin, "_is_protocol", False):
        return _FITS
    if isinstance(value, Mapping) and issubclass(origin, Mapping) and args:
        return _verdict_of_all(value.values(), args[1], within)
    return _FITS if isinstance(value, origin) else _WRONG_TYPE


def _verdict_of_all(values: Iterable[Any], hint: Any, within: Range | None) -> int:
    return min((max(_verdict(value, kind, within) for kind in _kinds(hint)) for value in values), default=_FITS)


def _describe(kind: Any, within: Range | None) -> str:
    origin, args = get_origin(kind) or kind, get_args(kind)
    span = f" {within.text}" if within else ""
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in _PLAIN:
        return _PLAIN[origin][0] + (span if origin in (int, float) else "")
    is_mapping = isinstance(origin, type) and not isinstance(origin, _Named) and issubclass(origin, Mapping)
    if is_mapping or origin in _SEQUENCES:
        item = args[1 if is_mapping else 0] if args else None
        items = _PLURAL.get(item, "values") + (span if item in (int, float) else "")
        return ("a mapping to " if is_mapping else "a sequence of ") + items
    name = getattr(origin, "__name__", str(origin))
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


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
    check_argument("rng", rng, int, Range("of at least 0 and below 2**63", lambda seed: 0 <= seed < 2**63))
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
