"""Predictions and scores as objects to go on with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import spahgc
from spahgc import _keys


@pytest.fixture(scope="module")
def _done(planted: Callable[..., ad.AnnData]) -> ad.AnnData:
    target = planted({"T1": "B", "T2": "C"})
    model = spahgc.tl.train(planted({"A1": "A", "B1": "B"}), panel=["G05", "G01", "G20"], method="ridge")
    target = target[:, ["G00", "G01", "G05"]].copy()  # G20 was not measured
    target.layers["counts"] = target.X.copy()
    spahgc.tl.predict(model, target)
    spahgc.tl.evaluate(target)
    return target


@pytest.fixture
def done(_done: ad.AnnData) -> ad.AnnData:
    """A target of two slides with a prediction of three genes, two of them measured and scored."""
    return _done.copy()


def test_predicted(done: ad.AnnData, snapshot: Callable[[Any], Any]) -> None:
    before = snapshot(done)
    table = spahgc.get.predicted(done)
    assert list(table.var_names) == ["G05", "G01", "G20"]
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(table.X, done.obsm["spahgc"].to_numpy())
    pd.testing.assert_frame_equal(table.obs, done.obs)
    np.testing.assert_array_equal(table.obsm["spatial"], done.obsm["spatial"])
    assert set(table.obsm) == {"spatial"}
    assert set(table.uns) == {"spahgc", "spatial", "spatialdata_attrs"}
    assert not table.layers
    for metric in _keys.METRICS:
        column = table.var[f"spahgc_{metric}"]
        np.testing.assert_equal(column["G01"], done.var.loc["G01", f"spahgc_{metric}"])
        assert np.isnan(column["G20"])
    # It shares nothing with the table.
    table.X[:] = 0
    table.obs["region"] = "x"
    table.obsm["spatial"][:] = 0
    table.uns["spahgc"]["params"]["method"] = "x"
    table.uns["spatial"]["T1"]["images"]["hires"][:] = 0
    table.uns["spatialdata_attrs"]["region"] = []
    table.var["spahgc_pearson"] = 0.0
    assert snapshot(done) == before


def test_predicted_without_scores_or_slots(done: ad.AnnData) -> None:
    for key in ("spatial", "spatialdata_attrs", "spahgc_scores"):
        del done.uns[key]
    del done.obsm["spatial"]
    table = spahgc.get.predicted(done)
    assert table.var.shape == (3, 0)
    assert set(table.uns) == {"spahgc"}
    assert not table.obsm


def test_predicted_of_one_slide_lists_no_other(done: ad.AnnData, snapshot: Callable[[Any], Any]) -> None:
    part = done[done.obs["region"] == "T2"].copy()
    before = snapshot(part)
    table = spahgc.get.predicted(part)
    assert list(table.uns["spatial"]) == ["T2"]
    assert table.uns["spatialdata_attrs"]["region"] == ["T2"]
    assert snapshot(part) == before
    assert list(spahgc.get.predicted(done).uns["spatial"]) == ["T1", "T2"]
    view = done[done.obs["region"] == "T2"]
    table = spahgc.get.predicted(view)
    assert list(table.obs_names) == list(view.obs_names)
    np.testing.assert_array_equal(table.X, view.obsm["spahgc"].to_numpy())
    assert view.is_view


def test_scores(done: ad.AnnData) -> None:
    long = spahgc.get.scores(done)
    assert len(long) == 2 * 2 * len(_keys.METRICS)
    assert not long.duplicated(["slide", "gene", "metric"]).any()
    long["value"] = 0.0
    assert spahgc.get.scores(done)["value"].abs().max() > 0
    # Scores from before a metric was added.
    kept = spahgc.get.scores(done).query("metric != 'structure'")
    done.uns["spahgc_scores"] = {name: column.to_numpy() for name, column in kept.items()}
    table = spahgc.get.predicted(done)
    assert "spahgc_structure" not in table.var
    assert table.var.loc["G01", "spahgc_pearson"] == done.var.loc["G01", "spahgc_pearson"]


def test_keys(done: ad.AnnData) -> None:
    done.obsm["other"] = done.obsm["spahgc"] * 2
    np.testing.assert_array_equal(spahgc.get.predicted(done, key="other").X, done.obsm["spahgc"].to_numpy() * 2)
    with pytest.raises(KeyError, match="no prediction 'mine'. Run spahgc.tl.predict.*Available.*: '(spahgc|other)'"):
        spahgc.get.predicted(done, key="mine")
    with pytest.raises(KeyError, match="obsm has no prediction 'spatial'"):
        spahgc.get.predicted(done, key="spatial")
    with pytest.raises(
        KeyError, match="Prediction 'other' was not scored. Run spahgc.tl.evaluate.*Available keys: 'spahgc'"
    ):
        spahgc.get.scores(done, key="other")
