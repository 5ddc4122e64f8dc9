"""Checks of arguments: declared constraints, one decorator, one message."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def format_names(names: Iterable[Any], *, most: int = 10) -> str:
    """Names for an error message, the first `most` of them."""
    names = [repr(str(name)) for name in names]
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def rng_seed(rng: int | np.random.Generator) -> int:
    """The seed that an int or a Generator stands for; a Generator moves on."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**31))
    seed: Any = rng  # Users pass other types too.
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise TypeError(f"rng is an int of at least 0 or a numpy Generator, not {rng!r}.")
    return int(seed)


def matrix(values: ArrayLike, what: str, *, dtype: type = np.float32) -> NDArray:
    """`values` as a finite two-dimensional array, or an error that names `what`."""
    array: NDArray = real(values, what).astype(dtype, copy=False)
    finite(array, what)
    return array


def real(values: ArrayLike, what: str) -> NDArray:
    """`values` as a two-dimensional array of real numbers in their own dtype; a memory-mapped file is not read."""
    # np.asarray would turn a memory-mapped file into a plain view; it is read no earlier than its rows are.
    array = np.asanyarray(values)
    if array.ndim != 2:
        raise ValueError(f"{what} has shape {array.shape}; it is a matrix with one row per spot.")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise TypeError(f"{what} has dtype {array.dtype}; it holds real numbers.")
    return array


def finite(array: NDArray, what: str, *, first_row: int = 0) -> None:
    """An error that names rows if some value of `array`, whose rows start at `first_row`, is not finite."""
    # The sum is finite if all values are, and takes no second array; it may overflow, and then the values are asked.
    if array.size and not np.isfinite(array.sum(dtype=np.float64)) and not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        where = f"{len(rows)} of {len(array)} rows, first in row {first_row + rows[0]}"
        raise ValueError(f"{what} has NaN or infinite values in {where}.")


def positive(value: int, name: str) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is a whole number, not {value!r}.")
    if value < 1:
        raise ValueError(f"{name} is at least 1, not {value}.")
    return int(value)
