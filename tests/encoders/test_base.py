"""Which encoder is meant, and the check of what one returns."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spahgc.encoders import load, table, texture, texture_names
from spahgc.encoders._base import check_embeddings
from spahgc.encoders._table import resolve


def test_names_and_callables() -> None:
    def mean_color(tiles: Any) -> Any:
        return tiles.mean(axis=(2, 3))

    found = resolve("texture")
    assert (found.name, found.encode, found.fields_of_view, found.tile_px) == ("texture", texture, (1, 2, 4), 112)
    assert found.recipe == {"source": "spahgc", "model": "texture", "revision": 1, "width": len(texture_names())}
    found = resolve(mean_color)
    assert (found.name, found.encode, found.fields_of_view, found.tile_px) == ("mean_color", mean_color, (1,), 224)
    assert (found.threads, found.recipe) == (False, {"source": "callable", "model": "mean_color"})
    assert resolve(partial(mean_color)).name == "partial"


def test_unknown_encoders(torchvision: None) -> None:
    with pytest.raises(ValueError, match=r"No encoder 'uni9'. Available: 'uni2?', 'uni2?'.*obsm\['image_uni9'\]"):
        resolve("uni9")
    # A weight file does not say what model it belongs to.
    for name in ("titan", "weights/uni.bin", "model.safetensors", "ctranspath.pt2"):
        with pytest.raises(ValueError, match=rf"No encoder '{name}'.*load\(<model>, weights=<file>\)"):
            resolve(name)
    with pytest.raises(TypeError, match=r"load\('uni2', weights='a.bin'\)"):
        resolve(Path("a.bin"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timm has no pretrained network 'resnet9000'.*Similar: .*resnet"):
        resolve("timm:resnet9000")
    with pytest.raises(TypeError, match="got an object of type int"):
        resolve(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`name` must be a string, got "):
        load(lambda tiles: tiles)  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["lazyslide_models", "torch", "timm"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, package: str) -> None:
    monkeypatch.delitem(sys.modules, "spahgc.encoders._hub", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("uni2", "resnet50", "timm:resnet18"):
        with pytest.raises(ImportError, match=rf"'{name}' requires .*{package}.*pip install 'spahgc\[models\]'"):
            load(name)
    assert resolve("texture").name == "texture"
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        assert list(table().index) == ["texture"]
    assert "pip install 'spahgc[models]'" in caplog.text


def test_what_has_been_loaded_is_taken_as_it_is() -> None:
    encoder = load("texture", device="cpu")
    assert resolve(encoder) is encoder
    assert resolve(encoder, device="cpu", precision="float32") is encoder
    with pytest.raises(ValueError, match="precision='bfloat16', but encoder 'texture' was loaded in float32"):
        resolve(encoder, precision="bfloat16")
    with pytest.raises(ValueError, match="precision='bfloat16' does not apply to encoder 'texture'"):
        load("texture", precision="bfloat16")
    with pytest.raises(ValueError, match="'texture' has no weights; remove weights='a.bin'"):
        load("texture", weights="a.bin")
    with pytest.raises(ValueError, match="does not apply to encoder '<lambda>', which is not a torch network"):
        resolve(lambda tiles: tiles, precision="bfloat16")


def test_float64_and_torch_are_taken() -> None:
    import torch

    expected = np.arange(6, dtype=np.float32).reshape(3, 2)
    for output in (expected, expected.astype(np.float64), expected.tolist(), torch.tensor(expected)):
        values = check_embeddings(output, 3, name="mine")
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
        (np.where(np.eye(3, 4) > 0, np.nan, good), ValueError, "3 of its rows have NaN"),
        (np.where(np.eye(3, 4) > 0, np.inf, good), ValueError, "NaN or infinite"),
        (np.full((3, 4), 1e300), ValueError, "infinite"),
        (good.astype(int), TypeError, "int64"),
        (None, TypeError, "NoneType of object"),
        ([[1.0], [2.0, 3.0], [4.0]], TypeError, "returned list, which is not an array"),
        (torch.zeros(3, 4, requires_grad=True), TypeError, r"detach\(\).cpu\(\).numpy\(\)"),
    ]:
        with pytest.raises(error, match=message):
            check_embeddings(output, 3, name="mine")
    np.testing.assert_array_equal(check_embeddings(good + 1, 3, name="uni", width=4), good + 1)
    with pytest.raises(ValueError, match=r"'uni' was given 3 tiles and should return floats \(3, 5\).*shape \(3, 4\)"):
        check_embeddings(good, 3, name="uni", width=5)
