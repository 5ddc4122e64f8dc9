"""Predictions in a store on disk: written block by block; where they fail, nothing is lost and nothing is left."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata._io.specs.registry import IORegistryError
from dask.array import Array

import spahgc
from spahgc import _disk
from spahgc._slides import Slide
from spahgc.methods import Ridge

from .conftest import Models, circles, content, reread


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows of twelve genes to a chunk, so that a slide has several."""
    monkeypatch.setattr(_disk, "CHUNK_BYTES", 10 * 12 * 4)


@pytest.mark.parametrize("variant", ["ridge", "smoothed_ridge", "context_kernel", "knn", "spahgc", "spahgc-paper"])
def test_values_are_those_of_the_table_to_the_last_bit(
    models: Models, variant: str, shuffled: ad.AnnData, tmp_path: Path
) -> None:
    path = tmp_path / "pred.zarr"
    expected = spahgc.tl.predict(models(variant), shuffled, copy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = spahgc.tl.predict(models(variant), shuffled, store=path, copy=True)
    read = ad.read_zarr(path)
    assert list(read.obs_names) == list(shuffled.obs_names)
    assert read.X.dtype == np.float32
    np.testing.assert_array_equal(read.X, expected.obsm["spahgc"].to_numpy())
    for table in (read, stored):
        np.testing.assert_array_equal(table.obs["spahgc_support"], expected.obs["spahgc_support"])
        assert table.obs["spahgc_support"].dtype == np.float32
    assert [entry.name for entry in tmp_path.iterdir()] == ["pred.zarr"]


def test_slots(models: Models, shuffled: ad.AnnData, tmp_path: Path, snapshot: Callable[[Any], Any]) -> None:
    before = shuffled.copy()
    in_table = spahgc.tl.predict(models("ridge"), shuffled, copy=True)
    assert spahgc.tl.predict(models("ridge"), shuffled, store=tmp_path / "pred.zarr") is None
    assert shuffled.uns["spahgc"].pop("store") == str(tmp_path / "pred.zarr")
    assert snapshot(shuffled.uns["spahgc"]) == snapshot(in_table.uns["spahgc"])
    del shuffled.obs["spahgc_support"], shuffled.uns["spahgc"]
    assert snapshot(shuffled) == snapshot(before)


def test_the_store_is_what_predicted_returns(reference: ad.AnnData, shuffled: ad.AnnData, tmp_path: Path) -> None:
    """With trust; one chunk has all genes of some rows."""
    import zarr

    reference.obs["patient"] = reference.obs["region"].astype(str).to_numpy()
    spahgc.tl.cross_validate(reference, methods=["ridge"], panel=12, n_seeds=1, n_jobs=1)
    model = spahgc.tl.train(reference, panel=12, method="ridge")
    expected = spahgc.get.predicted(spahgc.tl.predict(model, shuffled, copy=True))
    spahgc.tl.predict(model, shuffled, store=tmp_path / "pred.zarr")
    read = ad.read_zarr(tmp_path / "pred.zarr")
    assert "spahgc_trust" in read.var
    pd.testing.assert_frame_equal(read.var, expected.var, check_index_type=False)
    pd.testing.assert_frame_equal(read.obs, expected.obs, check_index_type=False)
    np.testing.assert_array_equal(read.obsm["spatial"], expected.obsm["spatial"])
    assert read.uns.keys() == expected.uns.keys() == {"spahgc", "spatial", "spatialdata_attrs"}
    assert read.uns["spahgc"]["params"]["method"] == "ridge"
    assert read.uns["spahgc"].keys() == expected.uns["spahgc"].keys()
    assert zarr.open_array(tmp_path / "pred.zarr" / "X", mode="r").chunks == (10, 12)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_formats_of_zarr(models: Models, target: ad.AnnData, tmp_path: Path, zarr_format: int) -> None:
    with ad.settings.override(zarr_write_format=zarr_format), warnings.catch_warnings():
        warnings.simplefilter("error")
        spahgc.tl.predict(models("ridge"), target, store=tmp_path / "pred.zarr")
    assert (tmp_path / "pred.zarr" / "zarr.json").exists() is (zarr_format == 3)
    expected = ad.read_zarr(tmp_path / "pred.zarr").X
    np.testing.assert_array_equal(spahgc.get.predicted(target).to_memory().X, expected)


def test_one_prediction_replaces_the_other(models: Models, target: ad.AnnData, tmp_path: Path) -> None:
    spahgc.tl.predict(models("ridge"), target)
    spahgc.tl.evaluate(target)
    expected = target.obsm["spahgc"]
    spahgc.tl.predict(models("ridge"), target, store=tmp_path / "pred.zarr")
    assert "spahgc" not in target.obsm
    assert "spahgc" not in target.layers
    assert "spahgc_pearson" not in target.var
    read = ad.read_zarr(tmp_path / "pred.zarr")  # the scores were of the other one
    assert not [name for name in read.var if name.startswith("spahgc_")]
    spahgc.tl.predict(models("ridge"), target)
    assert "store" not in target.uns["spahgc"]
    assert target.obsm["spahgc"].equals(expected)
    assert (tmp_path / "pred.zarr").exists()


def test_he_only_with_another_key(models: Models, target: ad.AnnData, tmp_path: Path) -> None:
    he_only = ad.AnnData(obs=target.obs.copy(), obsm=dict(target.obsm), uns=dict(target.uns))
    path = tmp_path / "new" / "folder" / "ridge.zarr"
    spahgc.tl.predict(models("ridge"), he_only, store=str(path), key_added="ridge")
    expected = spahgc.tl.predict(models("ridge"), target, copy=True).obsm["spahgc"]
    np.testing.assert_array_equal(spahgc.get.predicted(he_only, key="ridge").to_memory().X, expected)
    assert list(ad.read_zarr(path).uns) == ["ridge", "spatial", "spatialdata_attrs"]


def test_a_relative_path_is_kept_as_an_absolute_one(
    models: Models, target: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    spahgc.tl.predict(models("ridge"), target, store="../pred.zarr")
    monkeypatch.chdir("/")
    assert target.uns["spahgc"]["store"] == str(tmp_path / "pred.zarr")
    assert spahgc.get.predicted(target).shape == (72, 12)
    with pytest.raises(ValueError, match="Only local paths can be written, got 's3://bucket/pred.zarr'"):
        spahgc.tl.predict(models("ridge"), target, store="s3://bucket/pred.zarr")


def test_embeddings_that_are_mapped(models: Models, shuffled: ad.AnnData, tmp_path: Path) -> None:
    expected = spahgc.tl.predict(models("spahgc"), shuffled, copy=True)
    np.save(tmp_path / "toy.npy", shuffled.obsm["image_toy"])
    shuffled.obsm["image_toy"] = np.load(tmp_path / "toy.npy", mmap_mode="r")
    spahgc.tl.predict(models("spahgc"), shuffled, store=tmp_path / "pred.zarr")
    assert isinstance(shuffled.obsm["image_toy"], np.memmap)
    np.testing.assert_array_equal(ad.read_zarr(tmp_path / "pred.zarr").X, expected.obsm["spahgc"])


def test_predicted_reads_when_asked(stored: ad.AnnData, models: Models, snapshot: Callable[[Any], Any]) -> None:
    expected = spahgc.get.predicted(spahgc.tl.predict(models("ridge"), stored, copy=True))
    before = snapshot(stored)
    found = spahgc.get.predicted(stored)
    assert isinstance(found.X, Array)
    assert found.X.chunksize == (10, 12)
    np.testing.assert_array_equal(found.to_memory().X, expected.X)
    np.testing.assert_array_equal(found[5:8, ["G03"]].X.compute(), expected[5:8, ["G03"]].X)
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert found.uns.keys() == expected.uns.keys()
    found.obs["region"], found.uns["spahgc"]["store"] = "x", ""
    assert snapshot(stored) == before


def test_of_some_rows_in_another_order(stored: ad.AnnData) -> None:
    whole = spahgc.get.predicted(stored).to_memory()
    for part in (stored[stored.obs["region"] == "T2"], stored[::-1], stored[[3, 1, 70]].copy()):
        found = spahgc.get.predicted(part).to_memory()
        np.testing.assert_array_equal(found.X, whole[part.obs_names].X)
    # What was added to the table since then is the table's.
    stored.obs["cluster"] = "1"
    assert "cluster" in spahgc.get.predicted(stored).obs


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_evaluate_a_table_from_a_file(stored: ad.AnnData, models: Models, tmp_path: Path, kind: str) -> None:
    in_table = spahgc.tl.predict(models("ridge"), stored, copy=True)
    read = reread(stored, tmp_path / f"table.{kind}")
    np.testing.assert_array_equal(spahgc.get.predicted(read).to_memory().X, in_table.obsm["spahgc"])
    for table in (read, in_table):
        spahgc.tl.evaluate(table)
    pd.testing.assert_frame_equal(spahgc.get.scores(read), spahgc.get.scores(in_table), check_dtype=False)
    assert spahgc.get.predicted(read).var["spahgc_pearson"].notna().all()
    # That table holds a record of the prediction as well, and is none for all that.
    with pytest.raises(FileExistsError, match="not a prediction that spahgc.tl.predict wrote"):
        _disk.check_free(tmp_path / f"table.{kind}", overwrite=True)


def test_the_table_of_a_spatialdata(models: Models, target: ad.AnnData, tmp_path: Path) -> None:
    sdata = sd.SpatialData(shapes=circles(target), tables={"table": target})
    spahgc.tl.predict(models("ridge"), sdata["table"], store=tmp_path / "pred.zarr")
    sdata["predicted"] = spahgc.get.predicted(sdata["table"]).to_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(tmp_path / "slides.zarr")
        read = sd.read_zarr(tmp_path / "slides.zarr")
    expected = spahgc.tl.predict(models("ridge"), target, copy=True).obsm["spahgc"]
    for table in (spahgc.get.predicted(read["table"]).to_memory(), read["predicted"]):
        np.testing.assert_array_equal(table.X, expected)


def test_nothing_is_overwritten_unasked(models: Models, stored: ad.AnnData, tmp_path: Path) -> None:
    path, before = tmp_path / "pred.zarr", content(tmp_path)
    with pytest.raises(FileExistsError, match=r"pred\.zarr exists already. Pass overwrite=True to replace it"):
        spahgc.tl.predict(models("knn"), stored, store=path)
    assert content(tmp_path) == before
    expected = spahgc.tl.predict(models("knn"), stored, copy=True).obsm["spahgc"]
    spahgc.tl.predict(models("knn"), stored, store=path, overwrite=True)
    assert ad.read_zarr(path).uns["spahgc"]["params"]["method"] == "knn"
    np.testing.assert_array_equal(spahgc.get.predicted(stored).to_memory().X, expected)
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
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match="not a prediction that spahgc.tl.predict wrote there, and is never"):
        spahgc.tl.predict(models("ridge"), target, store=path, overwrite=True)
    assert content(tmp_path) == before


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
    class Half(np.ndarray):
        n = 0

        def __getitem__(self, rows: Any) -> Any:
            Half.n += 1
            if Half.n == 4:
                raise Interrupted
            return super().__getitem__(rows)

    monkeypatch.setattr(_disk.Scratch, "mapped", lambda self: np.zeros((72, 12), np.float32).view(Half))


def fails_while_renaming(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def once(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise Interrupted
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", once)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("fail", [fails_while_predicting, fails_while_writing, fails_while_renaming])
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
    before = content(tmp_path), snapshot(target)
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.raises(Interrupted):
            spahgc.tl.predict(models("ridge"), target, store=tmp_path / "pred.zarr", overwrite=True)
    assert (content(tmp_path), snapshot(target)) == before
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
        with pytest.raises(OSError, match="MB free, and .* takes .* MB, half of it"):
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
    for use in (spahgc.get.predicted, spahgc.tl.evaluate, lambda table: spahgc.pl.expression(table, "G03", slide="T1")):
        with pytest.raises(FileNotFoundError, match=r"There is no .*pred\.zarr.*'spahgc'.*If the store was"):
            use(stored)
    path.mkdir()
    with pytest.raises(ValueError, match=r"is not a prediction.*adata.uns\['spahgc'\]\['store'\] = <new path>"):
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
