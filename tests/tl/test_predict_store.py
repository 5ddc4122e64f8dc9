"""Predictions that are written to a store on disk, block by block."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from dask.array import Array
from spatialdata.models import ShapesModel

import spahgc
from spahgc import _disk

Models = Callable[[str], spahgc.tl.Model]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rows of twelve genes to a chunk, so that a slide has several."""
    monkeypatch.setattr(_disk, "CHUNK_BYTES", 10 * 12 * 4)


# What is written.


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
    spahgc.tl.predict(models("knn"), target, store=tmp_path / "pred.zarr", overwrite=True)
    assert not np.array_equal(spahgc.get.predicted(target).to_memory().X, expected)


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
    with pytest.raises(ValueError, match="must be a local path, got 's3://bucket/pred.zarr'"):
        spahgc.tl.predict(models("ridge"), target, store="s3://bucket/pred.zarr")


# What it is good for.


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


def test_evaluate(stored: ad.AnnData, models: Models) -> None:
    in_table = spahgc.tl.predict(models("ridge"), stored, copy=True)
    for table in (stored, in_table):
        spahgc.tl.evaluate(table)
    pd.testing.assert_frame_equal(spahgc.get.scores(stored), spahgc.get.scores(in_table))
    assert spahgc.get.predicted(stored).var["spahgc_pearson"].notna().all()


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_the_table_survives_a_file(stored: ad.AnnData, tmp_path: Path, kind: str) -> None:
    expected = spahgc.get.predicted(stored).to_memory().X
    if kind == "h5ad":
        stored.write_h5ad(tmp_path / "table.h5ad")
        read = ad.read_h5ad(tmp_path / "table.h5ad")
    else:
        stored.write_zarr(tmp_path / "table.zarr")
        read = ad.read_zarr(tmp_path / "table.zarr")
    np.testing.assert_array_equal(spahgc.get.predicted(read).to_memory().X, expected)
    spahgc.tl.evaluate(read)
    # That table holds a record of the prediction as well, and is none for all that.
    with pytest.raises(FileExistsError, match="not a prediction that spahgc.tl.predict wrote"):
        _disk.check_free(tmp_path / f"table.{kind}", overwrite=True)


def test_scanpy_and_squidpy_take_it(stored: ad.AnnData) -> None:
    import scanpy as sc
    import squidpy as sq

    read = ad.read_zarr(stored.uns["spahgc"]["store"])
    sc.pp.pca(read, n_comps=3)
    assert read.obsm["X_pca"].shape == (72, 3)
    sc.tl.rank_genes_groups(read, "region")
    assert set(read.uns["rank_genes_groups"]["names"]["T1"]) == set(read.var_names)
    sq.gr.spatial_neighbors(read, library_key="region")
    connected = read.obsp["spatial_connectivities"].toarray() > 0
    assert connected.any()
    slide = read.obs["region"].to_numpy()
    assert not connected[slide[:, None] != slide].any()


def test_the_table_of_a_spatialdata(models: Models, target: ad.AnnData, tmp_path: Path) -> None:
    shapes = {
        slide: ShapesModel.parse(
            target.obsm["spatial"][(rows := (target.obs["region"] == slide).to_numpy())],
            geometry=0,
            radius=27.0,
            index=pd.Index(target.obs["spot_id"][rows]),
        )
        for slide in ("T1", "T2")
    }
    sdata = sd.SpatialData(shapes=shapes, tables={"table": target})
    spahgc.tl.predict(models("ridge"), sdata["table"], store=tmp_path / "pred.zarr")
    sdata["predicted"] = spahgc.get.predicted(sdata["table"]).to_memory()
    values = sd.get_values("G03", element_name="T2", sdata=sdata, table_name="predicted")
    expected = spahgc.tl.predict(models("ridge"), target, copy=True).obsm["spahgc"]["G03"]
    np.testing.assert_array_equal(values["G03"], expected[values.index])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(tmp_path / "slides.zarr")
        read = sd.read_zarr(tmp_path / "slides.zarr")
    np.testing.assert_array_equal(spahgc.get.predicted(read["table"]).to_memory().X[:, 3], read["predicted"].X[:, 3])
