"""Predictions to a store that fail: nothing is lost, and nothing is left."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata._io.specs.registry import IORegistryError

import spahgc
from spahgc import _disk
from spahgc._slides import Slide
from spahgc.methods import Ridge

Models = Callable[[str], spahgc.tl.Model]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows of twelve genes to a chunk, so that a slide has several."""
    monkeypatch.setattr(_disk, "CHUNK_BYTES", 10 * 12 * 4)


def files(folder: Path) -> dict[str, str]:
    """Checksum of every file in a folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def test_nothing_is_overwritten_unasked(models: Models, stored: ad.AnnData, tmp_path: Path) -> None:
    path, before = tmp_path / "pred.zarr", files(tmp_path)
    with pytest.raises(FileExistsError, match=r"pred\.zarr exists already. Pass overwrite=True to replace it"):
        spahgc.tl.predict(models("knn"), stored, store=path)
    assert files(tmp_path) == before
    spahgc.tl.predict(models("knn"), stored, store=path, overwrite=True)
    assert ad.read_zarr(path).uns["spahgc"]["params"]["method"] == "knn"
    assert [entry.name for entry in tmp_path.iterdir()] == ["pred.zarr"]


@pytest.mark.parametrize("kind", ["file", "folder", "table", "link"])
def test_what_is_no_prediction_is_never_overwritten(
    models: Models, target: ad.AnnData, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "pred.zarr"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    elif kind == "table":
        spahgc.tl.predict(models("ridge"), target)
        target.write_zarr(path)
    else:
        path.symlink_to(tmp_path / "elsewhere")
    before = files(tmp_path)
    with pytest.raises(FileExistsError, match="not a prediction that spahgc.tl.predict wrote there, and is never"):
        spahgc.tl.predict(models("ridge"), target, store=path, overwrite=True)
    assert files(tmp_path) == before


class Interrupted(Exception):
    """Stands for whatever may happen."""


def fails_while_predicting(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Ridge.predict_into

    def stops(self: Ridge, slide: Slide, out: Any, **kwargs: Any) -> None:
        whole(self, slide, out, **kwargs)
        if slide.name == "T2":
            raise Interrupted

    monkeypatch.setattr(Ridge, "predict_into", stops)


def fails_while_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half:
        shape = (72, 12)

        def __len__(self) -> int:
            return 72

        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            Half.n += 1
            if Half.n == 4:
                raise Interrupted
            return np.zeros((len(rows), 12), np.float32)

    Half.n = 0
    monkeypatch.setattr(_disk.Scratch, "mapped", lambda self: Half())


def fails_while_renaming(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def once(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise Interrupted
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)


@pytest.mark.parametrize(
    ("fail", "there"),
    [
        (fails_while_predicting, False),
        (fails_while_writing, False),
        (fails_while_writing, True),
        (fails_while_renaming, True),
    ],
)
def test_a_failure_leaves_all_as_it_was(
    models: Models,
    target: ad.AnnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Callable[[Any], Any],
    fail: Callable[[pytest.MonkeyPatch], None],
    there: bool,
) -> None:
    if there:
        spahgc.tl.predict(models("knn"), target, store=tmp_path / "pred.zarr")
    before = files(tmp_path), snapshot(target)
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises(Interrupted):
            spahgc.tl.predict(models("ridge"), target, store=tmp_path / "pred.zarr", overwrite=True)
    assert (files(tmp_path), snapshot(target)) == before
    assert [entry.name for entry in tmp_path.iterdir()] == (["pred.zarr"] if there else [])


def test_not_finite_is_not_written(
    models: Models, target: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Callable[[Any], Any]
) -> None:
    whole = Ridge.predict_into

    def nan(self: Ridge, slide: Slide, out: Any, **kwargs: Any) -> None:
        whole(self, slide, out, **kwargs)
        out[0:2] = np.full((2, 12), np.nan, np.float32)

    monkeypatch.setattr(Ridge, "predict_into", nan)
    before = snapshot(target)
    for kwargs in ({}, {"store": tmp_path / "pred.zarr"}):
        with pytest.raises(FloatingPointError, match="4 spots have NaN or infinite values. Nothing was written"):
            spahgc.tl.predict(models("ridge"), target, **kwargs)
        assert snapshot(target) == before
    assert not list(tmp_path.iterdir())


def test_a_full_disk(
    models: Models, target: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Callable[[Any], Any]
) -> None:
    """Too little room is seen before the work; a file that cannot grow stops it with an error, and nothing is left."""
    before = snapshot(target)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2 * 72 * 12 * 4 - 1}))
        with pytest.raises(OSError, match="GB free, and to write the prediction takes"):
            spahgc.tl.predict(models("ridge"), target, store=tmp_path / "new" / "pred.zarr")
    assert not list(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (72 * 12 * 4 - 1, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            spahgc.tl.predict(models("ridge"), target, store=tmp_path / "pred.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    assert snapshot(target) == before


def test_what_cannot_be_written_is_found_before_the_work(
    models: Models, target: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_while_predicting(monkeypatch)
    target.obs["scanned"] = pd.Timestamp("2026-01-01")
    with pytest.raises(IORegistryError, match="No method registered for writing .*Datetime"):
        spahgc.tl.predict(models("ridge"), target, store=tmp_path / "pred.zarr")
    assert not list(tmp_path.iterdir())


def test_a_store_that_is_not_there(stored: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "pred.zarr"
    path.rename(tmp_path / "moved.zarr")
    for use in (
        spahgc.get.predicted,
        spahgc.tl.evaluate,
        lambda table: spahgc.pl.expression(table, "G03", slide="T1", show=False),
    ):
        with pytest.raises(
            FileNotFoundError,
            match=r"There is no .*pred\.zarr.*'spahgc'.*If the store was",
        ):
            use(stored)
    path.mkdir()
    with pytest.raises(ValueError, match=r"is not a prediction.*adata.uns\['spahgc'\]\['store'\] = <path>"):
        spahgc.get.predicted(stored)
    stored.uns["spahgc"]["store"] = str(tmp_path / "moved.zarr")
    assert spahgc.get.predicted(stored).to_memory().shape == (72, 12)


def test_a_store_of_something_else(models: Models, stored: ad.AnnData) -> None:
    other = stored.copy()
    other.obs_names = [f"{name}-1" for name in other.obs_names]
    with pytest.raises(ValueError, match="has no prediction of 72 of the table's 72 spots, e.g. 'T"):
        spahgc.get.predicted(other)
    spahgc.tl.predict(models("knn"), stored.copy(), store=stored.uns["spahgc"]["store"], overwrite=True)
    with pytest.raises(ValueError, match="was overwritten: its prediction 'spahgc' is of another model"):
        spahgc.get.predicted(stored)
