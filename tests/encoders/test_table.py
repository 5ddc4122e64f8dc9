"""What is known of the encoders before one of them is loaded."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest

from spahgc.encoders import _table, load, table, texture_names


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_table(models: Any, no_network: None) -> None:
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


def test_what_is_said_of_models_is_of_models_that_there_are(models: Any) -> None:
    names = set(models.registry())
    tables = [_table.SIDES, _table.REMOTE_CODE, models.REQUIRES, models.MPP, models.REPOSITORIES]
    tables += [models.READ_FILES, models.ARCHITECTURES]
    assert set().union(*tables) - names == {"resnet50"}
    assert set(_table.NAMES) == names
    assert all(value > 0 for value in models.MPP.values())


def test_models_that_run_code_of_the_hub(models: Any) -> None:
    """Those whose class, or a class it inherits from, hands code of a repository to Python."""

    def runs_code(model: Any) -> bool:
        sources = [inspect.getsource(cls) for cls in model.__mro__ if cls.__module__.startswith("lazyslide_models.")]
        return any("trust_remote_code=True" in source or "torch.hub.load" in source for source in sources)

    assert {name for name, model in models.registry().items() if runs_code(model)} == _table.REMOTE_CODE


def test_sides_of_tiles_are_those_of_the_transforms(models: Any) -> None:
    """Of every model whose transform can be asked for without its weights."""
    held = {}
    for name, model in models.registry().items():
        bare = object.__new__(model)
        bare.img_size = (224, 224)
        try:
            transform = bare.get_transform()
        except AttributeError:  # it asks the network, or its processor
            continue
        if transform is not None:
            held[name] = models.describe_transform(transform)[0]
    assert len(held) > 30
    found = table()["tile_px"]
    assert {name: (found[name], side) for name, side in held.items() if found[name] != side} == {}


def test_models_of_timm_are_built_from_files_with_the_options_of_their_class(
    models: Any, monkeypatch: pytest.MonkeyPatch, tiny_file: Path, tmp_path: Path
) -> None:
    """What reaches timm is what the class passes when it downloads, except for the source of the weights."""
    import timm
    from lazyslide_models import TimmModel

    asked: dict[str, Any] = {}

    def create_model(name: str, **options: Any) -> None:
        asked.update(options, name=name)
        raise KeyError  # nothing is built

    monkeypatch.setattr(timm, "create_model", create_model)
    file = Path(shutil.copy(tiny_file, tmp_path))
    (tmp_path / "config.json").write_text("{}")
    compared = 0
    for name, model in models.registry().items():
        if name in models.READ_FILES or not issubclass(model, TimmModel):
            continue
        with pytest.raises(KeyError):
            model()
        expected = asked | {"name": models.ARCHITECTURES.get(name, f"local-dir:{tmp_path}")}
        asked.clear()
        with pytest.raises(ValueError, match="KeyError"):
            load(name, weights=file)
        overlay = asked.pop("pretrained_cfg_overlay")
        assert (asked, overlay["source"], overlay["custom_load"]) == (expected, "", False), name
        assert asked["pretrained"]
        asked.clear()
        compared += 1
    assert compared > 15


def test_a_transform_as_text(models: Any) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    side, text = models.describe_transform(Compose([Resize([256]), CenterCrop(224)]))
    assert (side, text.partition("(")[0], text.rpartition("; ")[2]) == (256, "Resize", "CenterCrop(size=(224, 224))")
    with pytest.raises(ValueError, match="tiles are square"):
        models.describe_transform(Compose([Resize([224, 448])]))
