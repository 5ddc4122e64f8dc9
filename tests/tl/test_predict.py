"""What predict writes, and what it does not look at."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import spahgc
from spahgc._tables._cohorts import target_slides

from .conftest import VARIANTS, Models


def predicted(model: Any, adata: ad.AnnData, **kwargs: Any) -> tuple[pd.DataFrame, pd.Series]:
    """Prediction and support of a copy of a table."""
    out = spahgc.tl.predict(model, adata, copy=True, **kwargs)
    return out.obsm["spahgc"], out.obs["spahgc_support"]


def same(a: tuple[pd.DataFrame, pd.Series], b: tuple[pd.DataFrame, pd.Series]) -> bool:
    """To the last bit, names and order included."""
    return bool(a[0].equals(b[0]) and a[1].equals(b[1]))


def test_expression_of_the_target_is_never_read(models: Models, variant: str, target: ad.AnnData) -> None:
    model, expected = models(variant), predicted(models(variant), target)
    noise = np.random.default_rng(1).lognormal(3, 2, target.shape)
    for values in (noise, -target.X, None, np.full(target.shape, np.nan)):
        table = target.copy()
        table.X = values
        assert same(predicted(model, table), expected)
    without_genes = target[:, []].copy()
    without_genes.X = None
    assert same(predicted(model, without_genes), expected)
    # Sharp: another embedding, position and stain do change it (but not the mean of each gene).
    shifted = target.copy()
    for name in ("image_toy", "spatial"):
        shifted.obsm[name] = shifted.obsm[name][::-1].copy()
    shifted.obs["cellularity"] = shifted.obs["cellularity"].to_numpy()[::-1]
    found = predicted(model, shifted)
    assert not same(found, expected)
    if model.method.needs:
        assert not found[0].equals(expected[0])


def test_expression_of_the_target_plays_no_part_in_training(reference: ad.AnnData, target: ad.AnnData) -> None:
    noise = target[:, ::-1].copy()
    noise.X = np.random.default_rng(1).poisson(3, target.shape)
    options = {"panel": 8, "copy": True, **VARIANTS["spahgc"]}
    a, b = (spahgc.tl.predict(reference, table, **options) for table in (target, noise))
    assert a.uns["spahgc"]["model"] == b.uns["spahgc"]["model"]
    assert same((a.obsm["spahgc"], a.obs["spahgc_support"]), (b.obsm["spahgc"], b.obs["spahgc_support"]))


def test_order_of_rows_and_slides_does_not_matter(
    models: Models, variant: str, options: dict[str, Any], reference: ad.AnnData, target: ad.AnnData
) -> None:
    rng = np.random.default_rng(2)
    expected = predicted(models(variant), target)
    shuffled = reference[rng.permutation(reference.n_obs)].copy()
    model = spahgc.tl.train(shuffled, panel=12, **options)
    assert model.genes == models(variant).genes
    assert model.fingerprint == models(variant).fingerprint
    table, support = predicted(model, target[rng.permutation(target.n_obs)].copy())
    np.testing.assert_allclose(table.loc[target.obs_names], expected[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(support[target.obs_names], expected[1], rtol=0, atol=1e-5)


def test_slides_are_predicted_one_by_one(models: Models, variant: str, target: ad.AnnData) -> None:
    model, together = models(variant), predicted(models(variant), target)
    alone = predicted(model, target[target.obs["region"] == "T2"].copy())
    np.testing.assert_allclose(alone[0], together[0].loc[alone[0].index], rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone[1], together[1][alone[0].index], rtol=0, atol=1e-5)
    spots, support = predicted(model, target[:2].copy())
    assert np.isfinite(spots.to_numpy()).all()
    assert 0 < support.iloc[0] <= 1


def test_panel_and_scales_come_from_the_reference_alone(reference: ad.AnnData, target: ad.AnnData) -> None:
    table, _ = predicted(reference, target[:, ["G03"]].copy(), panel=["G07", "G03"], method="ridge")
    assert list(table.columns) == ["G07", "G03"]
    only_noise = target[:, 12:].copy()
    with pytest.warns(UserWarning, match="None of the 1 predicted genes"):
        table, _ = predicted(reference, only_noise, panel=["G07"], method="ridge")
    assert list(table.columns) == ["G07"]


def test_one_seed_gives_one_prediction(reference: ad.AnnData, target: ad.AnnData) -> None:
    kwargs = {"panel": 6, "method_params": {"network": {"epochs": 2, "hidden": 16}, "n_seeds": 1, "preset": "paper"}}
    first = predicted(reference, target, rng=3, **kwargs)[0]
    for rng in (4, np.random.default_rng(np.random.SeedSequence(0))):
        assert not first.equals(predicted(reference, target, rng=rng, **kwargs)[0])
    assert first.equals(predicted(spahgc.tl.train(reference, rng=3, **kwargs), target)[0])


def test_slots(models: Models, target: ad.AnnData, snapshot: Callable[[Any], Any]) -> None:
    before = target.copy()
    model = models("ridge")
    assert spahgc.tl.predict(model, target) is None
    table = target.obsm["spahgc"]
    assert table.index.equals(target.obs_names)
    assert tuple(table.columns) == model.genes
    assert set(table.dtypes) == {target.layers["spahgc"].dtype} == {np.dtype(np.float32)}
    assert np.isfinite(table.to_numpy()).all()
    np.testing.assert_array_equal(target.layers["spahgc"], table.reindex(columns=target.var_names))
    support = target.obs["spahgc_support"]
    assert support.dtype == np.float32
    assert support.between(0, 1).all()
    entry = target.uns["spahgc"]
    assert entry["genes"] == list(model.genes)
    assert entry["units"] == "log1p counts per 10k"
    assert entry["encoder"] == {"encoder": "toy", "tile_um": 100.0, "fields_of_view": [1.0, 2.0]}
    assert entry["model"] == model.fingerprint
    assert {"spahgc", "torch", "torch-geometric", "anndata"} <= set(entry["versions"])
    params = entry["params"]
    assert (params["method"], params["normalize"], params["use_rep"]) == ("ridge", "log1p", "image_toy")
    assert params["reference_slides"] == ["A1", "A2", "B1"]
    assert params["reference_patients"] == ["A", "A", "B"]
    assert params["target_slides"] == ["T1", "T2"]
    assert params["shared_patients"] == ["B"]
    # All else is as it was.
    del target.obsm["spahgc"], target.layers["spahgc"], target.uns["spahgc"], target.obs["spahgc_support"]
    assert snapshot(target) == snapshot(before)


def test_copy_leaves_both_tables_alone(
    reference: ad.AnnData, target: ad.AnnData, snapshot: Callable[[Any], Any]
) -> None:
    before = snapshot(reference), snapshot(target)
    out = spahgc.tl.predict(reference, target, panel=5, method="knn", copy=True)
    assert "spahgc" in out.obsm
    out.obsm["spatial"][:] = 0
    assert (snapshot(reference), snapshot(target)) == before
    spahgc.tl.predict(reference, target, panel=5, method="knn")
    assert snapshot(reference) == before[0]


def test_a_slide_with_he_only(models: Models, target: ad.AnnData) -> None:
    expected = predicted(models("ridge"), target)
    he_only = ad.AnnData(obs=target.obs.copy(), obsm=dict(target.obsm), uns=dict(target.uns))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spahgc.tl.predict(models("ridge"), he_only)
    assert "spahgc" not in he_only.layers
    assert same((he_only.obsm["spahgc"], he_only.obs["spahgc_support"]), expected)


def test_on_a_view(models: Models, target: ad.AnnData, snapshot: Callable[[Any], Any]) -> None:
    before = snapshot(target)
    view = target[target.obs["region"] == "T1"]
    with pytest.warns(ad.ImplicitModificationWarning):
        spahgc.tl.predict(models("ridge"), view)
    assert view.obsm["spahgc"].shape == (36, 12)
    assert snapshot(target) == before


def test_several_predictions_side_by_side(models: Models, target: ad.AnnData) -> None:
    for name in ("ridge", "knn"):
        spahgc.tl.predict(models(name), target, key_added=name)
        spahgc.tl.evaluate(target, key=name)
    assert target.uns["ridge"]["params"]["method"] == "ridge"
    assert target.uns["knn"]["params"]["method"] == "knn"
    assert not target.obsm["ridge"].equals(target.obsm["knn"])
    assert {"ridge_support", "knn_support"} <= set(target.obs)
    assert {"ridge_pearson", "knn_pearson"} <= set(target.var)
    assert "spahgc" not in target.obsm
    # A new one replaces the old one and its scores.
    spahgc.tl.predict(models("knn"), target, key_added="ridge")
    assert target.obsm["ridge"].equals(target.obsm["knn"])
    assert target.obs["ridge_support"].equals(target.obs["knn_support"])
    assert "ridge_scores" not in target.uns
    assert not [name for name in target.var if name.startswith("ridge_")]


@pytest.fixture
def ridge(models: Models, reference: ad.AnnData, target: ad.AnnData) -> Callable[..., bool]:
    """Whether ridge on reference and target, as they are now, predicts as it did on the tables as they were."""
    expected = predicted(models("ridge"), target)

    def unchanged(**options: Any) -> bool:
        return same(predicted(reference, target, panel=12, method="ridge", **options), expected)

    return unchanged


def test_several_embeddings_side_by_side(reference: ad.AnnData, target: ad.AnnData, ridge: Callable[..., bool]) -> None:
    reference.obsm["image_other"] = np.ones((reference.n_obs, 3))
    target.obsm["image_more"] = np.ones((target.n_obs, 4))
    target.obsm["image_most"] = np.ones((target.n_obs, 4))
    assert ridge(use_rep="image_toy")
    # What the reference settles needs not be said for the target.
    del reference.obsm["image_other"]
    assert ridge()


def test_any_key_of_obsm_is_an_embedding(reference: ad.AnnData, target: ad.AnnData, ridge: Callable[..., bool]) -> None:
    for table in (reference, target):
        table.obsm["mine"] = pd.DataFrame(table.obsm.pop("image_toy").astype(np.float64), index=table.obs_names)
    assert ridge(use_rep="mine")


def test_counts_in_a_layer(reference: ad.AnnData, ridge: Callable[..., bool]) -> None:
    reference.layers["counts"] = reference.X.toarray().astype(np.int16)
    reference.X = np.full(reference.shape, np.nan)
    assert ridge(layer="counts")


@pytest.mark.parametrize("kind", [np.asarray, sp.csc_matrix, sp.csr_array, np.int64, np.uint16, np.float16])
def test_any_kind_of_count_matrix(reference: ad.AnnData, ridge: Callable[..., bool], kind: Any) -> None:
    dense = reference.X.toarray()
    reference.X = dense.astype(kind) if isinstance(kind, type) and issubclass(kind, np.number) else kind(dense)
    assert ridge()


def test_library_key(reference: ad.AnnData, target: ad.AnnData, ridge: Callable[..., bool]) -> None:
    for table in (reference, target):
        table.obs["sample"] = table.obs["region"].astype(str).to_numpy()
        table.obs["region"] = "one"
        del table.uns["spatialdata_attrs"]
    assert ridge(library_key="sample")


def test_split_by_follows_the_patients(reference: ad.AnnData, target: ad.AnnData) -> None:
    def split(table: ad.AnnData, **kwargs: Any) -> str:
        out = spahgc.tl.predict(reference, table, panel=4, method="ridge", copy=True, **kwargs)
        return str(out.uns["spahgc"]["params"]["split_by"])

    known = target[target.obs["patient"] == "B"].copy()
    assert split(known) == "slide"
    assert split(target) == "patient"  # T2 is of another patient
    assert split(known, split_by="patient") == "patient"
    del known.obs["patient"]
    assert split(known) == "patient"


def test_warns_of_a_target_that_was_trained_on(models: Models, reference: ad.AnnData, target: ad.AnnData) -> None:
    with pytest.warns(UserWarning, match="'A1' is one of the reference slides"):
        spahgc.tl.predict(models("ridge"), reference)
    renamed = target.copy()
    renamed.obs["region"] = renamed.obs["region"].cat.rename_categories({"T1": "A1"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spahgc.tl.predict(models("ridge"), renamed)


def test_warns_where_the_genes_are_named_differently(models: Models, target: ad.AnnData) -> None:
    target.var_names = [f"ENSG{i:011d}" for i in range(target.n_vars)]
    with pytest.warns(UserWarning, match="(?s)None of the 12 predicted genes.*One table uses symbols.*Ensembl ids"):
        spahgc.tl.predict(models("ridge"), target)
    assert "spahgc" in target.obsm
    assert "spahgc" not in target.layers
    with pytest.raises(ValueError, match="(?s)None of the 12 predicted genes.*Ensembl ids"):
        spahgc.tl.evaluate(target)


def test_a_large_layer_is_named_and_can_be_left_out(
    reference: ad.AnnData, target: ad.AnnData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("spahgc._tables._predictions.LARGE_LAYER", 4 * target.n_obs * target.n_vars - 1)
    with caplog.at_level("INFO", logger="spahgc"):
        spahgc.tl.predict(reference, target, method="gene_mean", panel=4)
    assert "write_layer=False leaves it out" in caplog.text
    assert "spahgc" in target.layers
    spahgc.tl.predict(reference, target, method="gene_mean", panel=4, write_layer=False)
    assert "spahgc" not in target.layers
    assert target.obsm["spahgc"].shape == (target.n_obs, 4)


def test_one_bar_for_all_slides_and_parts(
    models: Models, target: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    spahgc.tl.predict(models("ridge"), target, progress=True)
    assert not capsys.readouterr().err  # it is too quick
    monkeypatch.setattr("spahgc._run.DELAY", 0.0)
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


def test_progress_of_every_method(
    models: Models, variant: str, target: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shares that a slide's prediction reports sum to 1."""
    model, shares = models(variant), []
    slide = target_slides(target, model.recipe, library_key=None, patient_key="patient")[0].slide
    monkeypatch.setattr("spahgc._run.SpotBar.over", lambda bar, n_spots: shares.append)
    model.predict([slide])
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
