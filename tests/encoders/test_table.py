"""What is known of the encoders before one of them is loaded."""

from __future__ import annotations

import inspect
import logging
import sys
from typing import Any

import numpy as np
import pytest

from spahgc.encoders import _table, load, table, texture_names
from spahgc.encoders._build import BUILT_IN, EXPORTED
from spahgc.encoders._lazyslide import MPP, NOT_TILES, REPOSITORIES, registry
from spahgc.encoders._transforms import described


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_table(torchvision: None, no_network: None) -> None:
    found = table()
    assert found.index.name == "encoder"
    assert list(found.columns) == list(_table.COLUMNS)
    assert found.index.is_unique
    named = ["texture", "resnet50", "uni", "uni2", "conch", "conch_v1.5", "virchow2", "gigapath", "h-optimus-0"]
    named += ["h-optimus-1", "phikonv2", "ctranspath", "midnight", "hibou-l"]
    assert set(named) <= set(found.index)
    # Encoders of slides, segmentation, statistics and generators are no encoders of tiles.
    assert not {"titan", "prism", "madeleine", "chief-slide-encoder", "cellpose", "brightness", "cytosyn"} & set(
        found.index
    )
    uni2 = found.loc["uni2"]
    assert (uni2["width"], uni2["tile_px"], uni2["microns_per_pixel"], uni2["licence"]) == (
        1536,
        224,
        0.5,
        "CC-BY-NC-ND-4.0",
    )
    assert (uni2["gated"], uni2["commercial"], uni2["download"], uni2["parameters"]) == (True, False, True, 681.4e6)
    assert uni2["page"] == "https://huggingface.co/MahmoodLab/UNI2-h"
    assert found.loc["crisp", "licence"] == "MIT and CC-BY-NC-ND-4.0"
    texture = found.loc["texture"]
    assert (texture["width"], texture["tile_px"], texture["download"]) == (len(texture_names()), 112, False)
    assert texture["tile_px"] == load("texture").tile_px
    assert found["page"].iloc[1:].str.startswith("https://").all()
    assert found["width"].max() == 4608
    assert {str(kind) for kind in found.dtypes} == {"int64", "float64", "bool", "object"}


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "lazyslide_models", None)
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        found = table()
    assert list(found.index) == ["texture"]
    assert "pip install 'spahgc[models]'" in found.attrs["missing"]
    assert "pip install 'spahgc[models]'" in caplog.text


def test_what_is_said_of_models_is_of_models_that_there_are(torchvision: None) -> None:
    names = set(registry())
    said = {*_table.SIDES, *_table.REMOTE_CODE, *_table.REQUIRES, *MPP, *EXPORTED, *BUILT_IN, *REPOSITORIES}
    assert said - names == {"resnet50"}
    assert set(NOT_TILES.values()) <= names
    assert all(value > 0 for value in MPP.values())


def test_models_that_run_code_of_the_hub(torchvision: None) -> None:
    """Those whose class, or a class it inherits from, hands code of a repository to Python."""

    def runs_code(model: Any) -> bool:
        sources = [inspect.getsource(cls) for cls in model.__mro__ if cls.__module__.startswith("lazyslide_models.")]
        return any("trust_remote_code=True" in source or "torch.hub.load" in source for source in sources)

    assert {name for name, model in registry().items() if runs_code(model)} == _table.REMOTE_CODE


def test_sides_of_tiles_are_those_of_the_transforms(torchvision: None) -> None:
    """Of every model whose transform can be asked for without its weights."""
    held = {}
    for name, model in registry().items():
        bare = object.__new__(model)
        bare.img_size = (224, 224)
        try:
            transform = bare.get_transform()
        except AttributeError:  # it asks the network, or its processor
            continue
        if transform is not None:
            held[name] = described(transform)[0]
    assert len(held) > 30
    found = table()["tile_px"]
    assert {name: (found[name], side) for name, side in held.items() if found[name] != side} == {}


def test_described() -> None:
    class Step:
        def __init__(self, **kwargs: Any) -> None:
            vars(self).update(kwargs)

    def step(kind: str, **kwargs: Any) -> Any:
        return type(kind, (Step,), {})(**kwargs)

    class Transform:
        transforms = [
            step("ToImage"),
            step("Resize", size=[256], interpolation=type("Mode", (), {"value": "bicubic"})),
            step("CenterCrop", size=(224, 224)),
            step("ToDtype", scale=True),
            step("Normalize", mean=[np.float32(0.1)] * 3, std=[0.5] * 3),
        ]

    assert described(Transform) == (
        256,
        "resize 256 bicubic; centre crop 224; scale to 0..1; normalise mean (0.1, 0.1, 0.1) sd (0.5, 0.5, 0.5)",
    )
    Transform.transforms = [step("Resize", size=[224, 448], interpolation=None)]
    with pytest.raises(ValueError, match="not square"):
        described(Transform)
