"""Which encoder is meant, and the check of what one returns."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from spahgc.encoders import texture
from spahgc.encoders._base import check_key, checked, resolve


def test_a_name() -> None:
    found = resolve("texture")
    assert (found.name, found.encode, found.fields_of_view, found.tile_px) == ("texture", texture, (1, 2, 4), 112)


def test_a_callable() -> None:
    def mean_colour(tiles: Any) -> Any:
        return tiles.mean(axis=(2, 3))

    found = resolve(mean_colour)
    assert (found.name, found.encode, found.fields_of_view, found.tile_px) == ("mean_colour", mean_colour, (1,), 224)
    assert resolve(partial(mean_colour)).name == "partial"


def test_unknown_encoders() -> None:
    with pytest.raises(ValueError, match=r"No encoder 'uni9'. Available: texture, or a callable.*obsm\['image_uni9'\]"):
        resolve("uni9")
    with pytest.raises(TypeError, match="not int"):
        resolve(3)  # type: ignore[arg-type]


def test_keys() -> None:
    assert check_key("image_uni-2.h") == "image_uni-2.h"
    for key in ("image_<lambda>", "a b", "a/b", ""):
        with pytest.raises(ValueError, match="key_added"):
            check_key(key)


def test_float64_and_torch_are_taken() -> None:
    import torch

    expected = np.arange(6, dtype=np.float32).reshape(3, 2)
    for output in (expected, expected.astype(np.float64), expected.tolist(), torch.tensor(expected)):
        values = checked(output, 3, name="mine")
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected)


def test_what_comes_back_is_checked() -> None:
    import torch

    good = np.zeros((3, 4))
    for output, error, message in [
        (good[:2], ValueError, r"'mine' was given 3 tiles.*shape \(2, 4\)"),
        (good[0], ValueError, r"shape \(4,\)"),
        (good[:, :0], ValueError, r"shape \(3, 0\)"),
        (good[..., None], ValueError, r"shape \(3, 4, 1\)"),
        (np.where(np.eye(3, 4) > 0, np.nan, good), ValueError, "3 of its rows hold NaN"),
        (np.where(np.eye(3, 4) > 0, np.inf, good), ValueError, "NaN or infinite"),
        (np.full((3, 4), 1e300), ValueError, "infinite"),
        (good.astype(int), TypeError, "int64"),
        (None, TypeError, "NoneType of object"),
        ([[1.0], [2.0, 3.0], [4.0]], TypeError, "returned list, which is no array"),
        (torch.zeros(3, 4, requires_grad=True), TypeError, r"detach\(\).cpu\(\).numpy\(\)"),
    ]:
        with pytest.raises(error, match=message):
            checked(output, 3, name="mine")
