"""The decorator that checks arguments against the signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
import pytest

from spahgc._checks import above, at_least, between, checked, rng_seed
from spahgc._keys import check_key

if TYPE_CHECKING:
    import os

    from anndata import AnnData
    from matplotlib.axes import Axes

    from spahgc.tl import Model

How = Literal["log1p", "none"]


class Options(TypedDict, total=False):
    seed: int
    layer: str | None


@checked(n=at_least(1), size=above(0), level=between(0, 1), panel=at_least(1), seed=at_least(0))
def run(
    adata: AnnData | Model | None = None,
    *,
    n: int = 1,
    size: float | Mapping[str, float] = 1.0,
    level: float = 0.5,
    panel: int | Sequence[str] = 3,
    how: How | None = "log1p",
    copy: bool = False,
    path: str | os.PathLike[str] = ".",
    ax: Axes | None = None,
    call: Callable[[int], int] | None = None,
    anything: Any = None,
    rng: int | np.random.Generator = 0,
    **options: Unpack[Options],
) -> str:
    """Say done."""
    return "done"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n": 0}, ValueError, "`n` must be an integer of at least 1, got 0."),
        ({"n": 2.5}, TypeError, "`n` must be an integer of at least 1, got 2.5."),
        ({"n": True}, TypeError, "`n` must be an integer of at least 1, got True."),
        ({"n": None}, TypeError, "`n` must be an integer of at least 1, got None."),
        ({"size": float("inf")}, ValueError, "`size` must be a finite number greater than 0 or a mapping to finite"),
        ({"size": {"A": -1.0}}, ValueError, "`size` must be a finite number greater than 0 or a mapping to finite"),
        ({"size": {"A": "1"}}, TypeError, "`size` must be"),
        ({"level": 1.1}, ValueError, "`level` must be a finite number between 0 and 1, got 1.1."),
        (
            {"panel": "GNAS"},
            TypeError,
            "`panel` must be an integer of at least 1 or a sequence of strings, got",
        ),
        ({"panel": ["a", 1]}, TypeError, "`panel` must be"),
        ({"how": "log2"}, ValueError, "`how` must be one of 'log1p', 'none' or None, got 'log2'."),
        ({"how": 1}, TypeError, "`how` must be one of"),
        ({"copy": "no"}, TypeError, "`copy` must be True or False, got 'no'."),
        ({"path": 3}, TypeError, "`path` must be a string or a path, got 3."),
        ({"ax": "here"}, TypeError, "`ax` must be an Axes or None, got 'here'."),
        ({"call": 1}, TypeError, "`call` must be a Callable or None, got 1."),
        ({"adata": np.zeros(3)}, TypeError, "`adata` must be an AnnData or a Model or None, got array"),
        ({"rng": "x"}, TypeError, "`rng` must be an integer or a Generator, got 'x'."),
        ({"seed": -1}, ValueError, "`seed` must be an integer of at least 0, got -1."),
        ({"sed": 1}, TypeError, r"run\(\) has no parameter 'sed'. Available: 'seed', 'layer'."),
    ],
)
def test_what_does_not_fit(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(") if "\\" not in message else message):
        run(**arguments)


def test_what_fits() -> None:
    import anndata as ad
    import pandas as pd

    given: dict[str, list[Any]] = {
        "adata": [ad.AnnData(np.zeros((2, 2))), None],
        "n": [np.int64(3)],
        "size": [1, np.float32(2), {"A": 1}],
        "panel": [5, ["a"], pd.Index(["a"]), np.array(["a", "b"]), ()],
        "copy": [np.bool_(True)],
        "path": ["a"],
        "call": [len],
        "anything": [object()],
        "rng": [np.random.default_rng()],
        "layer": [None, "counts"],
    }
    for name, values in given.items():
        assert all(run(**{name: value}) == "done" for value in values)


def test_a_slide_where_a_table_is_asked_for() -> None:
    class SpatialData:
        tables: tuple[str, ...] = ()

    with pytest.raises(TypeError, match=r"Pass its table: sdata\['table'\]"):
        run(SpatialData())  # type: ignore[arg-type]


def test_keys() -> None:
    """No result takes the name of a slot that has another meaning."""
    assert check_key("image_uni-2.h") == "image_uni-2.h"
    for key in ("image_<lambda>", "a b", "a/b", "", ".", "..", "spatial", "X_pca", "patient", "in_tissue", "alignment"):
        with pytest.raises(ValueError, match="key_added"):
            check_key(key)


def test_seeds() -> None:
    assert rng_seed(2**63 - 1) == 2**63 - 1
    for seed in (-1, 2**64, 1.5, "0"):
        with pytest.raises((TypeError, ValueError), match="`rng` must be an integer"):
            rng_seed(seed)  # type: ignore[arg-type]
