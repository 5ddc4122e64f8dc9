"""What is known of the encoders before one of them is loaded."""

from __future__ import annotations

import inspect
import logging
import sys
from typing import Any

import pytest

from spahgc.encoders import _hub, _table, load, table, texture_names
from spahgc.encoders._hub import MPP, NOT_TILES, REPOSITORIES, describe_transform, registry


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_table(torchvision: None, no_network: None) -> None:
    found = table()
    assert found.index.name == "encoder"
    assert found.index.is_unique
    named = ["texture", "resnet50", "uni", "uni2", "conch", "conch_v1.5", "virchow2", "gigapath", "h-optimus-0"]
    named += ["h-optimus-1", "phikonv2", "ctranspath", "midnight", "hibou-l"]
    assert set(named) <= set(found.index)
    # Encoders of slides, segmentation, statistics and generators are no encoders of tiles.
    others = {"titan", "prism", "madeleine", "chief-slide-encoder", "cellpose", "brightness", "cytosyn"}
    assert not others & set(found.index)
    page = "https://huggingface.co/MahmoodLab/UNI2-h"
    expected = [1536, 224, 0.5, "CC-BY-NC-ND-4.0", False, True, True, 681.4e6, False, "", page]
    assert found.loc["uni2"].tolist() == expected
    assert found.loc["crisp", "license"] == "MIT and CC-BY-NC-ND-4.0"
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
    tables = [_table.SIDES, _table.REMOTE_CODE, _hub.REQUIRES, MPP, REPOSITORIES, _hub.EXPORTED, _hub.READ_FILES]
    tables += [_hub.TRANSFORMERS, _hub.ARCHITECTURES, _hub.OPTIONS, _hub.SWIGLU]
    assert set().union(*tables) - names == {"resnet50"}
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
            held[name] = describe_transform(transform)[0]
    assert len(held) > 30
    found = table()["tile_px"]
    assert {name: (found[name], side) for name, side in held.items() if found[name] != side} == {}


def test_options_of_timm_are_those_of_lazyslide_models(torchvision: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models built from files get the options that their class passes to timm when it downloads them."""
    import timm
    import torch
    from lazyslide_models import TimmModel

    asked: dict[str, Any] = {}

    def create_model(name: str, **options: Any) -> None:
        asked.update(options, name=name)
        raise KeyError  # nothing is built

    monkeypatch.setattr(timm, "create_model", create_model)
    layers = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    common = {"pretrained": True, "num_classes": 0}
    compared = 0
    for name, model in registry().items():
        if name in _hub.READ_FILES or not issubclass(model, TimmModel):
            continue
        asked.clear()
        with pytest.raises(KeyError):
            model(**({"model_path": "a.bin"} if name in {"uni", "uni2"} else {}))
        source = _hub.ARCHITECTURES.get(name, asked["name"])
        expected = {**common, **_hub.OPTIONS.get(name, {}), **(layers if name in _hub.SWIGLU else {})}
        assert set(expected) <= set(asked), name
        # What gigapath-flash repeats of its architecture.
        same = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, "reg_tokens": 0, "class_token": True}
        expected = {"global_pool": "token", **same, **expected, "name": source}
        differs = {key: value for key, value in asked.items() if expected.get(key) != value}
        assert differs == ({"pretrained": False} if name in _hub.ARCHITECTURES else {}), name
        compared += 1
    assert compared > 15


def test_a_transform_as_text() -> None:
    class Step:
        def __init__(self, text: str, **kwargs: Any) -> None:
            self.text = text
            vars(self).update(kwargs)

        def __str__(self) -> str:
            return self.text

    class Transform:
        transforms = [Step("Resize(256)", size=[256]), Step("CenterCrop(224)", size=(224, 224)), Step("ToDtype()")]

    assert describe_transform(Transform) == (256, "Resize(256); CenterCrop(224); ToDtype()")
    Transform.transforms = [Step("Resize", size=[224, 448])]
    with pytest.raises(ValueError, match="tiles are square"):
        describe_transform(Transform)
