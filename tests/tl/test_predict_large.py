"""Predictions of slides that are large: memory, and the bar that shows how far they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import spahgc

from .conftest import Models
from .limited import run_limited


def test_embeddings_that_are_mapped(models: Models, shuffled: ad.AnnData, tmp_path: Path) -> None:
    expected = spahgc.tl.predict(models("spahgc"), shuffled, copy=True)
    np.save(tmp_path / "toy.npy", shuffled.obsm["image_toy"])
    shuffled.obsm["image_toy"] = np.load(tmp_path / "toy.npy", mmap_mode="r")
    spahgc.tl.predict(models("spahgc"), shuffled, store=tmp_path / "pred.zarr")
    assert isinstance(shuffled.obsm["image_toy"], np.memmap)
    np.testing.assert_array_equal(ad.read_zarr(tmp_path / "pred.zarr").X, expected.obsm["spahgc"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to RLIMIT_DATA")
def test_less_memory_than_the_prediction_takes(tmp_path: Path) -> None:
    """200,000 spots of 300 genes are 240 MB: with two thirds of that, no prediction in memory, but one on disk."""
    found = run_limited("store_script", tmp_path, 160_000_000)
    assert (found["table"], found["before"]) == ("MemoryError", ["small.zarr"])
    assert 0.4 < found["mean"] < 0.6
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["large.zarr", "small.zarr"]


def test_one_bar_for_all_slides_and_parts(
    models: Models, target: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("spahgc._run.DELAY", 0.0)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    spahgc.tl.predict(models("spahgc"), target, progress=True, store=tmp_path / "pred.zarr")
    shown = capsys.readouterr().err
    assert "Predicting T1" in shown
    assert "Predicting T2" in shown
    assert shown.strip().splitlines()[-1].split("\r")[-1].startswith("Predicting T2: 100%")
    assert "72/72" in shown
    alone = target[target.obs["region"] == "T2"].copy()
    spahgc.tl.predict(models("spahgc"), alone, progress=True)
    assert "Predicting: 100%" in capsys.readouterr().err
    spahgc.settings.progress = True
    spahgc.tl.predict(models("ridge"), alone)
    assert "36/36" in capsys.readouterr().err
    spahgc.tl.predict(models("ridge"), alone, progress=False)
    assert not capsys.readouterr().err


def test_no_bar_on_what_is_quick(models: Models, target: ad.AnnData, capsys: Any) -> None:
    spahgc.tl.predict(models("ridge"), target, progress=True)
    assert not capsys.readouterr().err


def test_progress_of_every_method(models: Models, variant: str, target: ad.AnnData) -> None:
    """The shares that a slide's prediction tells sum to 1."""
    from spahgc._tables._cohorts import target_slides

    model = models(variant)
    slide = target_slides(target, model.recipe, library_key=None, patient_key="patient")[0].slide
    shares: list[float] = []
    out = np.full((len(slide), 12), np.nan, np.float32)
    model._predict_into(slide, out, shares.append)
    np.testing.assert_array_equal(out, model.predict([slide]).values)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
