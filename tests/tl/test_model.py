"""Models on disk: what is saved comes back to the last bit; what is damaged is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import spahgc
from spahgc.tl import Model, _model_folder

from .conftest import Models, content

PARTS = {"config.json", "weights.safetensors", "reference"}
REFERENCE = {f"reference/{name}.npy" for name in ("cellularity", "coordinates", "embedding", "expression")}
FILES = {"config.json", "weights.safetensors", *REFERENCE}


@pytest.fixture
def folder(models: Models, tmp_path: Path) -> Path:
    """A saved model."""
    models("ridge").save(tmp_path / "model")
    return tmp_path / "model"


def predicted(model: Model, target: ad.AnnData) -> tuple[bytes, bytes]:
    out = spahgc.tl.predict(model, target, copy=True)
    return out.obsm["spahgc"].to_numpy().tobytes(), out.obs["spahgc_support"].to_numpy().tobytes()


def edit(folder: Path, **changes: Any) -> None:
    """Change values of config.json, with the checksum that spahgc itself would have written."""
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    config.pop("checksum", None)
    config["checksum"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(config))


def test_save_load_predict(models: Models, variant: str, target: ad.AnnData, tmp_path: Path) -> None:
    model = models(variant)
    assert model.save(tmp_path / "deep" / "model") is None
    files = content(tmp_path / "deep" / "model").keys()
    assert files >= FILES or not model.method.keeps_reference
    loaded = Model.load(tmp_path / "deep" / "model")
    assert loaded.fingerprint == model.fingerprint
    assert predicted(loaded, target) == predicted(model, target)
    assert (loaded.genes, loaded.history, loaded.params) == (model.genes, model.history, model.params)
    for mine, other in zip(loaded.reference, model.reference, strict=True):
        if model.method.keeps_reference:
            np.testing.assert_array_equal(mine.cellularity, other.cellularity)
    assert repr(loaded) == repr(model)
    # A second trip changes nothing either.
    loaded.save(str(tmp_path / "again"))
    assert content(tmp_path / "again") == content(tmp_path / "deep" / "model")


def test_a_model_trained_again_has_the_same_fingerprint(models: Models, reference: ad.AnnData) -> None:
    model = models("ridge")
    assert spahgc.tl.train(reference, method="ridge", panel=12).fingerprint == model.fingerprint
    assert spahgc.tl.train(reference, method="ridge", panel=11).fingerprint != model.fingerprint
    assert models("knn").fingerprint != model.fingerprint
    changed = reference.copy()
    changed.obsm["image_toy"][0, 0] += 1e-3
    assert spahgc.tl.train(changed, method="ridge", panel=12).fingerprint != model.fingerprint


def test_the_folder_holds_no_pickle(folder: Path, target: ad.AnnData) -> None:
    weights = (folder / "weights.safetensors").read_bytes()
    json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    for name in REFERENCE:
        np.load(folder / name, allow_pickle=False)
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == _model_folder.FORMAT
    assert config["versions"]["spahgc"] == spahgc.__version__
    spahgc.tl.predict(Model.load(folder), target)
    assert target.uns["spahgc"]["model"] == config["fingerprint"]
    assert len({path.stat().st_mode for path in folder.rglob("*") if path.is_file()}) == 1


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a complete model.*present: nothing"):
        Model.load(tmp_path)
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "file"):
        with pytest.raises(FileNotFoundError, match=f"There is no model folder .*{name}.*Model.save"):
            Model.load(tmp_path / name)


@pytest.mark.parametrize("name", sorted(FILES))
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"complete.*{Path(name).name} missing"):
        Model.load(folder)


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_file(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=f"{name}.*truncated.*[Cc]opy .* again, or train again"):
        Model.load(folder)


@pytest.mark.parametrize("name", sorted(FILES - {"config.json"}))
@pytest.mark.parametrize("at", [0, 20, -1])
def test_one_byte_changed(folder: Path, name: str, at: int) -> None:
    content = bytearray((folder / name).read_bytes())
    content[at] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} (is not the file that was saved|cannot be read)"):
        Model.load(folder)


def test_edited_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    edited = [text.replace('"G0', '"H0', 1)]
    for changes in (
        {"method": "knn"},
        {"params": {}},
        {"fingerprint": "0"},
        {"arrays": {}},
        {"checksum": "0"},
        {"a": 1},
    ):
        edited.append(json.dumps({**json.loads(text), **changes}))
    for changed in edited:
        (folder / "config.json").write_text(changed)
        with pytest.raises(ValueError, match="config.json was edited after it was saved"):
            Model.load(folder)
    for other in ("[]", "null", "{}", "\xff", '{"format": }'):
        (folder / "config.json").write_bytes(other.encode("latin-1"))
        with pytest.raises(ValueError, match="config.json cannot be read.*truncated or was edited"):
            Model.load(folder)


@pytest.mark.parametrize("found", [0, -5, 3, 5, "4", None])
def test_other_formats(folder: Path, found: Any) -> None:
    edit(folder, format=found, versions={"spahgc": "9.1"})
    advice = r".*spahgc\s+9.1: update spahgc" if found == 5 else ""
    message = rf"(?s)model format {found!r}, but this version of spahgc reads format 4{advice}"
    with pytest.raises(ValueError, match=message):
        Model.load(folder)


def test_forged_config(folder: Path) -> None:
    """Any edit is refused by name, also if the checksum was computed anew."""
    config = json.loads((folder / "config.json").read_text())
    for name in config.keys() - {"checksum", "format", "versions", "history", "trust"}:
        for value in ({}, [], "mine", -1, None, True, {"genes": 1}, [{}]):
            if value == config[name]:
                continue
            edit(folder, **{**config, name: value})
            with pytest.raises(ValueError, match="model/config.json does not match|not the file"):
                Model.load(folder)
    for value in ({"genes": []}, "x"):
        edit(folder, **{**config, "trust": value})
        with pytest.raises(ValueError, match="model/config.json does not match"):
            Model.load(folder)
    for name in config.keys() - {"checksum", "format", "versions"}:
        (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key != name}))
        edit(folder)
        with pytest.raises(ValueError, match=f"config.json does not match .*{name}"):
            Model.load(folder)


def test_an_existing_model_stays(models: Models, folder: Path) -> None:
    before = content(folder)
    with pytest.raises(FileExistsError, match="model exists already. Pass overwrite=True"):
        models("knn").save(folder)
    assert content(folder) == before
    models("knn").save(folder, overwrite=True)
    assert Model.load(folder).fingerprint == models("knn").fingerprint
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("content", [(), ("notes.txt",), ("config.json", "data.csv"), (*sorted(PARTS), "notes.txt")])
def test_a_folder_with_anything_else_is_never_replaced(
    models: Models, tmp_path: Path, content: tuple[str, ...]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in content:
        (other / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="It is not a model folder"):
            models("knn").save(other, overwrite=overwrite)
    assert {path.name: path.read_text() for path in other.iterdir()} == dict.fromkeys(content, "mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="not a model folder"):
        models("knn").save(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("step", ["weights", "checksum", "rename"])
def test_a_failed_save_leaves_nothing_behind(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, step: str
) -> None:
    path = tmp_path / "model"
    if existing:
        models("ridge").save(path)
    before = content(tmp_path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    if step == "weights":
        monkeypatch.setattr(models("knn").method, "state", fail)
    elif step == "checksum":
        monkeypatch.setattr(_model_folder, "_checksum", fail)
    else:
        rename = Path.rename

        def fail_into_place(self: Path, target: Path) -> Path:
            if target == path and self.name != "old":
                fail()
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(OSError, match="no space left"):
        models("knn").save(path, overwrite=True)
    assert content(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == (["model"] if existing else [])


def test_options_are_settled(models: Models, target: ad.AnnData, snapshot: Callable[[Any], Any]) -> None:
    before = snapshot(target)
    options = {"panel": 5, "method": "ridge", "preset": "paper", "method_params": {}, "normalize": "log1p"}
    options |= {"use_rep": "image_toy", "layer": "counts", "split_by": "slide", "rng": 0}
    for name, value in options.items():
        with pytest.raises(ValueError, match=f"{name} cannot be changed: the model is trained.*tl.train"):
            spahgc.tl.predict(models("ridge"), target, **{name: value})
    with pytest.raises(ValueError, match="panel, rng cannot be changed"):
        spahgc.tl.predict(models("ridge"), target, panel=3, rng=1)
    assert snapshot(target) == before


def test_history_and_repr(models: Models) -> None:
    assert models("ridge").history == {}
    history = models("spahgc-paper").history
    assert len(history["loss"]) == 2
    assert "chosen_epoch" not in history  # the last one is used
    assert np.isfinite(history["loss"]).all()
    assert repr(models("ridge")) == "Model(ridge, 12 genes, image_toy, reference: A1, A2, B1)"
