"""Scores: the right numbers, on the right spots and genes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import stats

import spahgc
from spahgc import _keys

from .conftest import Models


@pytest.fixture
def done(models: Models, target: ad.AnnData) -> ad.AnnData:
    """The target with a prediction of 12 genes."""
    spahgc.tl.predict(models("ridge"), target)
    return target


def test_against_scipy_slide_by_slide(done: ad.AnnData) -> None:
    spahgc.tl.evaluate(done)
    measured = done.copy()
    sc.pp.normalize_total(measured, target_sum=1e4)
    sc.pp.log1p(measured)
    depth = np.log(np.asarray(done.X.sum(axis=1)).ravel() + 1)
    scores = spahgc.get.scores(done).set_index(["slide", "gene", "metric"])["value"]
    for slide in ("T1", "T2"):
        rows = (done.obs["region"] == slide).to_numpy()
        for gene in done.obsm["spahgc"].columns[:4]:
            a = measured[rows, gene].X.toarray().ravel().astype(float)
            b = done.obsm["spahgc"][gene].to_numpy()[rows].astype(float)
            expected = {
                "pearson": stats.pearsonr(a, b).statistic,
                "spearman": stats.spearmanr(a, b).statistic,
                "rmse": np.sqrt(((a - b) ** 2).mean()),
                "mae": np.abs(a - b).mean(),
                "depth_only": stats.pearsonr(a, depth[rows]).statistic,
            }
            found = {metric: scores[slide, gene, metric] for metric in expected}
            assert found == pytest.approx(expected, abs=1e-5)
        genes = list(done.obsm["spahgc"].columns)
        x = np.corrcoef(measured[rows, genes].X.toarray().T.astype(float))
        y = np.corrcoef(done.obsm["spahgc"].to_numpy()[rows].T.astype(float))
        for i, gene in enumerate(genes):
            expected_structure = stats.pearsonr(np.delete(x[i], i), np.delete(y[i], i)).statistic
            assert scores[slide, gene, "structure"] == pytest.approx(expected_structure, abs=1e-5)
    assert set(spahgc.get.scores(done)["metric"]) == set(_keys.METRICS)
    assert len(scores) == 2 * 12 * len(_keys.METRICS)


def test_what_is_written(done: ad.AnnData, snapshot: Callable[[Any], Any]) -> None:
    before = done.copy()
    assert "spahgc_pearson" in spahgc.tl.evaluate(done, copy=True).var
    assert snapshot(done) == snapshot(before)
    assert spahgc.tl.evaluate(done) is None
    long = spahgc.get.scores(done)
    assert list(long.columns) == ["slide", "patient", "method", "gene", "metric", "value"]
    assert dict(long.groupby("slide", observed=True)["patient"].first()) == {"T1": "B", "T2": "C"}
    assert set(long["method"]) == {"ridge"}
    for metric in _keys.METRICS:
        mean = long[long["metric"] == metric].groupby("gene")["value"].mean()
        column = done.var[f"spahgc_{metric}"]
        assert column.dtype == np.float64
        np.testing.assert_allclose(column[mean.index], mean)
        assert column[~done.var_names.isin(mean.index)].isna().all()
    done.var.drop(columns=[f"spahgc_{metric}" for metric in _keys.METRICS], inplace=True)
    del done.uns["spahgc_scores"]
    assert snapshot(done) == snapshot(before)


def test_order_of_rows_and_genes_does_not_matter(done: ad.AnnData) -> None:
    rng = np.random.default_rng(0)
    shuffled = done[rng.permutation(done.n_obs), rng.permutation(done.n_vars)].copy()
    for table in (done, shuffled):
        spahgc.tl.evaluate(table)
    columns = [f"spahgc_{metric}" for metric in _keys.METRICS]
    pd.testing.assert_frame_equal(shuffled.var.loc[done.var_names, columns], done.var[columns], atol=1e-9)
    # Genes that were not measured are left out.
    part = done[:, ["G20", "G01", "G00"]].copy()
    predicted = [gene for gene in part.var_names if gene in done.obsm["spahgc"]]
    spahgc.tl.evaluate(part)
    assert sorted(spahgc.get.scores(part)["gene"].unique()) == sorted(predicted)


def test_gene_that_is_constant_on_a_slide(done: ad.AnnData) -> None:
    gene = done.obsm["spahgc"].columns[0]
    column = done.var_names.get_loc(gene)
    counts = done.X.toarray()
    counts[(done.obs["region"] == "T1").to_numpy(), column] = 0
    done.X = counts
    spahgc.tl.evaluate(done)
    scores = spahgc.get.scores(done).set_index(["slide", "gene", "metric"])["value"]
    for metric in ("pearson", "spearman", "pearson_depth_removed", "depth_only"):
        assert np.isnan(scores["T1", gene, metric])
        assert done.var.loc[gene, f"spahgc_{metric}"] == scores["T2", gene, metric]
    assert scores["T1", gene, "rmse"] > 0


def test_slides_without_measured_expression_are_left_out(done: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    expected = done[done.obs["region"] == "T2"].copy()
    spahgc.tl.evaluate(expected)
    counts = done.X.toarray()
    counts[(done.obs["region"] == "T1").to_numpy()] = 0
    done.X = counts
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        spahgc.tl.evaluate(done)
    assert "'T1' has no measured expression" in caplog.text
    pd.testing.assert_frame_equal(spahgc.get.scores(done), spahgc.get.scores(expected))
    np.testing.assert_array_equal(done.var["spahgc_rmse"], expected.var["spahgc_rmse"])


def test_patient_that_is_not_known(done: ad.AnnData) -> None:
    done.obs["patient"] = done.obs["patient"].cat.remove_categories("C")
    spahgc.tl.evaluate(done)
    long = spahgc.get.scores(done)
    assert dict(long.groupby("slide")["patient"].first()) == {"T1": "B", "T2": "unknown"}
    del done.obs["patient"]
    spahgc.tl.evaluate(done)
    assert set(spahgc.get.scores(done)["patient"]) == {"unknown"}


def test_slides_by_the_key_of_the_prediction(models: Models, reference: ad.AnnData, target: ad.AnnData) -> None:
    for table in (reference, target):
        table.obs["sample"] = table.obs["region"].astype(str).to_numpy()
    target.obs["region"] = "one"
    spahgc.tl.predict(reference, target, method="ridge", panel=4, library_key="sample")
    spahgc.tl.evaluate(target)
    assert set(spahgc.get.scores(target)["slide"]) == {"T1", "T2"}
    spahgc.tl.evaluate(target, library_key="region")
    assert set(spahgc.get.scores(target)["slide"]) == {"one"}


@pytest.mark.parametrize("normalize", ["log10", "none"])
def test_other_units(
    reference: ad.AnnData, target: ad.AnnData, normalize: Any, caplog: pytest.LogCaptureFixture
) -> None:
    spahgc.tl.predict(reference, target, method="ridge", panel=4, normalize=normalize)
    assert target.uns["spahgc"]["units"] == {"log10": "log10(counts + 1)", "none": "as given"}[normalize]
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        spahgc.tl.evaluate(target)
    counts = target[:, target.obsm["spahgc"].columns].X.toarray().astype(float)
    measured = np.log10(counts + 1) if normalize == "log10" else counts
    error = (target.obsm["spahgc"].to_numpy() - measured) ** 2
    rows = (target.obs["region"] == "T1").to_numpy()
    expected = (np.sqrt(error[rows].mean(axis=0)) + np.sqrt(error[~rows].mean(axis=0))) / 2
    np.testing.assert_allclose(target.var.loc[target.obsm["spahgc"].columns, "spahgc_rmse"], expected, rtol=1e-5)
    shown = target.var["spahgc_depth_only"].mean()
    assert f"normalize='{normalize}'" in caplog.text
    assert f"{shown:.3f}" in caplog.text
    target.X = target.X * 0
    message = {"log10": "target.X is all zero", "none": "No slide of the target has measured expression"}[normalize]
    with pytest.raises(ValueError, match=message):
        spahgc.tl.evaluate(target)


def test_depth_is_not_made_up_where_values_are_no_counts(reference: ad.AnnData, target: ad.AnnData) -> None:
    for table in (reference, target):
        values = np.log1p(table.X.toarray())
        table.X = values - values.mean(axis=0)  # as after scaling: no depth follows from it, sums may be negative
    spahgc.tl.predict(reference, target, method="ridge", panel=["G00", "G01"], normalize="none")
    spahgc.tl.evaluate(target)
    assert target.var.loc["G00", "spahgc_pearson"] > 0.5
    assert target.var["spahgc_pearson_depth_removed"].isna().all()
    assert target.var["spahgc_depth_only"].isna().all()


def test_counts_in_a_layer(done: ad.AnnData) -> None:
    expected = spahgc.tl.evaluate(done, copy=True)
    done.layers["counts"] = done.X.copy()
    done.X = None
    spahgc.tl.evaluate(done, layer="counts")
    np.testing.assert_array_equal(done.var["spahgc_pearson"], expected.var["spahgc_pearson"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "mine"}, "no prediction 'mine'.*Available predictions: 'spahgc'"),
        ({"key": "image_toy"}, "no prediction 'image_toy'"),
        ({"library_key": "slide"}, "target.obs has no column 'slide'.*Available: 'region'"),
        ({"layer": "counts"}, "target.layers has no 'counts'.*Available: 'spahgc'"),
    ],
)
def test_wrong_names(done: ad.AnnData, options: dict[str, str], message: str) -> None:
    with pytest.raises(KeyError, match=message):
        spahgc.tl.evaluate(done, **options)


def test_prediction_without_its_parameters(done: ad.AnnData) -> None:
    joined = ad.concat([done[:36], done[36:]])
    with pytest.raises(KeyError, match="uns has no 'spahgc'.*uns_merge.*tl.predict again"):
        spahgc.tl.evaluate(joined, library_key="region")


def test_nothing_was_measured(done: ad.AnnData, snapshot: Callable[[Any], Any]) -> None:
    without_x, zero, negative = done.copy(), done.copy(), done.copy()
    without_x.X, zero.X, negative.X = None, done.X * 0, -done.X
    no_genes = ad.AnnData(obs=done.obs, obsm=dict(done.obsm), uns=done.uns)
    for table, words in (
        (without_x, "target has no expression .X is None.*Measured expression is needed"),
        (no_genes, "target has no expression .*Measured expression is needed"),
        (zero, "target.X is all zero.*Measured expression is needed"),
        (negative, "target.X has negative values.*layer=<layer with raw counts>"),
        (done[35:37].copy(), "Slide 'T1' has 1 spot, but a score over spots needs at least two"),
    ):
        before = snapshot(table)
        with pytest.raises(ValueError, match=words):
            spahgc.tl.evaluate(table)
        assert snapshot(table) == before
