"""All that is written survives h5ad and zarr, and the next step takes what was read back."""

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
from spatialdata.models import TableModel

import spahgc
from spahgc._keys import METRICS

from .conftest import Models, circles, reread

Trip = Callable[[ad.AnnData], ad.AnnData]


@pytest.fixture(params=["h5ad", "zarr", "spatialdata"])
def trip(request: pytest.FixtureRequest, tmp_path: Path) -> Trip:
    """Write a table and read it back."""

    def go(table: ad.AnnData) -> ad.AnnData:
        path = tmp_path / f"table{len(list(tmp_path.iterdir()))}.{request.param}"
        if request.param != "spatialdata":
            return reread(table, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            sd.SpatialData(tables={"table": TableModel.parse(table.copy())}, shapes=circles(table)).write(path)
            return sd.read_zarr(path)["table"]

    return go


def plain(value: Any) -> Any:
    """As it is in a file: lists and tuples are arrays there, and arrays of names have no fixed dtype."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in np.asarray(value).tolist()]
    return value.item() if isinstance(value, np.generic) else value


def same_prediction(a: ad.AnnData, b: ad.AnnData, key: str = "spahgc") -> None:
    pd.testing.assert_frame_equal(a.obsm[key], b.obsm[key], check_index_type=False, check_column_type=False)
    assert set(b.obsm[key].dtypes) == {np.dtype(np.float32)}
    support = f"{key}_support"
    np.testing.assert_array_equal(a.obs[support], b.obs[support])
    assert b.obs[support].dtype == np.float32
    assert plain(a.uns[key]) == plain(b.uns[key])
    assert (key in a.layers) == (key in b.layers)
    if key in a.layers:
        np.testing.assert_array_equal(a.layers[key], b.layers[key])
        assert b.layers[key].dtype == np.float32


@pytest.mark.parametrize("he_only", [False, True])
@pytest.mark.parametrize("variant", ["knn", "spahgc-paper"])  # without parameters of a training, and with
def test_prediction(models: Models, variant: str, target: ad.AnnData, trip: Trip, he_only: bool) -> None:
    if he_only:
        target = ad.AnnData(obs=target.obs.copy(), obsm=dict(target.obsm), uns=dict(target.uns))
    spahgc.tl.predict(models(variant), target)
    read = trip(target)
    same_prediction(target, read)
    np.testing.assert_array_equal(spahgc.get.predicted(read).X, target.obsm["spahgc"].to_numpy())
    assert isinstance(read.uns["spahgc"]["model"], str)
    assert isinstance(read.uns["spahgc"]["params"]["method_params"], dict)
    # A second trip, of what was read.
    same_prediction(target, trip(read))


def test_next_steps_take_what_was_read(models: Models, target: ad.AnnData, trip: Trip) -> None:
    import matplotlib.pyplot as plt

    spahgc.tl.predict(models("spahgc-paper"), target)
    read = trip(target)
    for table in (target, read):
        spahgc.tl.evaluate(table)
    again = trip(read)
    for table in (read, again):
        pd.testing.assert_frame_equal(spahgc.get.scores(table), spahgc.get.scores(target), check_dtype=False)
    assert spahgc.get.scores(again)["value"].dtype == np.float64
    columns = [name for name in target.var if name.startswith("spahgc_")]
    assert len(columns) == len(METRICS)
    pd.testing.assert_frame_equal(again.var[columns], target.var[columns], check_index_type=False)
    try:
        one = again[again.obs["region"] == "T1"].copy()
        assert spahgc.pl.support(one, show=False) is not None
        assert spahgc.pl.expression(one, again.obsm["spahgc"].columns[0], show=False) is not None
        assert spahgc.pl.gene_scores(again, show=False) is not None
        assert spahgc.pl.training(again, show=False) is not None
    finally:
        plt.close("all")
    # The prediction as a table of its own, there and back too.
    table, expected = trip(spahgc.get.predicted(again)), spahgc.get.predicted(target)
    np.testing.assert_array_equal(table.X, expected.X)
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(table.obsm["spatial"], expected.obsm["spatial"])
    pd.testing.assert_frame_equal(table.var, expected.var, check_index_type=False)
    assert list(table.obs["region"]) == list(expected.obs["region"])
    assert plain(table.uns["spahgc"]) == plain(expected.uns["spahgc"])
    hires, expected_hires = (made.uns["spatial"]["T1"]["images"]["hires"] for made in (table, expected))
    np.testing.assert_array_equal(hires, expected_hires)
    assert hires.dtype == np.uint8
    # Predicting again replaces it: what was read is known as a prediction of ours.
    spahgc.tl.predict(models("ridge"), again)
    assert again.uns["spahgc"]["params"]["method"] == "ridge"


def test_tables_that_were_read_are_predicted_alike(
    reference: ad.AnnData, target: ad.AnnData, trip: Trip, models: Models
) -> None:
    """The parameters of an embedding are equal before and after a trip, and so are predictions."""
    expected = spahgc.tl.predict(models("ridge"), target, copy=True)
    for ref, tgt in ((trip(reference), target), (reference, trip(target)), (trip(reference), trip(target))):
        out = spahgc.tl.predict(ref, tgt, panel=12, method="ridge", copy=True)
        np.testing.assert_array_equal(out.obsm["spahgc"].to_numpy(), expected.obsm["spahgc"].to_numpy())
        assert out.uns["spahgc"]["model"] == expected.uns["spahgc"]["model"]


def test_several_keys_and_odd_gene_names(reference: ad.AnnData, target: ad.AnnData, trip: Trip) -> None:
    names = ["HLA-DRA", "Nkx2.5", "7SK", "Gt(ROSA)26Sor", "__ambiguous[A+B]", "H19 imprinted", "C1orf112", "c1ORF112x"]
    for table in (reference, target):
        table.var_names = [*names, *table.var_names[len(names) :]]
    spahgc.tl.predict(reference, target, panel=names, method="ridge", key_added="a-1.b")
    spahgc.tl.predict(reference, target, panel=names[:2], method="knn", key_added="knn_2")
    read = trip(target)
    same_prediction(target, read, "a-1.b")
    same_prediction(target, read, "knn_2")
    assert list(read.obsm["a-1.b"].columns) == names


def test_subsets_keep_the_prediction(models: Models, target: ad.AnnData) -> None:
    spahgc.tl.predict(models("ridge"), target)
    spahgc.tl.evaluate(target)
    part = target[target.obs["region"] == "T2", :5].copy()
    pd.testing.assert_frame_equal(part.obsm["spahgc"], target.obsm["spahgc"].loc[part.obs_names])
    np.testing.assert_array_equal(spahgc.get.predicted(part).obs_names, part.obs_names)
    spahgc.tl.evaluate(part)
    assert set(spahgc.get.scores(part)["slide"]) == {"T2"}


def test_joined_tables_keep_the_prediction(models: Models, target: ad.AnnData) -> None:
    halves = [target[target.obs["region"] == name].copy() for name in ("T1", "T2")]
    for half in halves:
        spahgc.tl.predict(models("ridge"), half)
    joined = ad.concat(halves, uns_merge="first")
    spahgc.tl.evaluate(joined)
    spahgc.tl.predict(models("ridge"), target)
    spahgc.tl.evaluate(target)
    np.testing.assert_allclose(joined.var["spahgc_pearson"], target.var["spahgc_pearson"], atol=1e-6)
