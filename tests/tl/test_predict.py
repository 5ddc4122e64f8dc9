"""What predict writes, and what it does not look at."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import spahgc

from .conftest import Models


def predicted(model: Any, adata: ad.AnnData, **kwargs: Any) -> tuple[pd.DataFrame, pd.Series]:
    """Prediction and support of a copy of a table."""
    out = spahgc.tl.predict(model, adata, copy=True, **kwargs)
    return out.obsm["spahgc"], out.obs["spahgc_support"]


def same(a: tuple[pd.DataFrame, pd.Series], b: tuple[pd.DataFrame, pd.Series]) -> bool:
    """To the last bit, names and order included."""
    return bool(a[0].equals(b[0]) and a[1].equals(b[1]))


# What the prediction depends on.


def test_expression_of_the_target_is_never_read(models: Models, variant: str, target: ad.AnnData) -> None:
    model, expected = models(variant), predicted(models(variant), target)
    noise = target.copy()
    noise.X = np.random.default_rng(1).lognormal(3, 2, target.shape)
    negative = target.copy()
    negative.X = -target.X
    without_x = target.copy()
    without_x.X = None
    not_finite = target.copy()
    not_finite.X = np.full(target.shape, np.nan)
    without_genes = target[:, []].copy()
    without_genes.X = None
    for table in (noise, negative, without_x, not_finite, without_genes):
        assert same(predicted(model, table), expected)
    # Sharp: another embedding, position and stain do change it (but not the mean of each gene).
    shifted = target.copy()
    for name in ("image_toy", "spatial"):
        shifted.obsm[name] = shifted.obsm[name][::-1].copy()
    shifted.obs["cellularity"] = shifted.obs["cellularity"].to_numpy()[::-1]
    assert same(predicted(model, shifted), expected) is False
    if model.method.needs:
        assert not predicted(model, shifted)[0].equals(expected[0])


def test_expression_of_the_target_plays_no_part_in_training(reference: ad.AnnData, target: ad.AnnData) -> None:
    noise = target[:, ::-1].copy()
    noise.X = np.random.default_rng(1).poisson(3, target.shape)
    kwargs = {"method": "spahgc", "panel": 8, "method_params": {"network": {"epochs": 2, "hidden": 16}, "n_seeds": 1}}
    a = spahgc.tl.predict(reference, target, copy=True, **kwargs)
    b = spahgc.tl.predict(reference, noise, copy=True, **kwargs)
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


def test_panel_and_scales_come_from_the_reference_alone(reference: ad.AnnData, target: ad.AnnData) -> None:
    table, _ = predicted(reference, target[:, ["G03"]].copy(), panel=["G07", "G03"], method="ridge")
    assert list(table.columns) == ["G07", "G03"]
    only_noise = target[:, 12:].copy()
    with pytest.warns(UserWarning, match="None of the 1 predicted genes"):
        table, _ = predicted(reference, only_noise, panel=["G07"], method="ridge")
    assert list(table.columns) == ["G07"]


def test_one_seed_gives_one_prediction(reference: ad.AnnData, target: ad.AnnData) -> None:
    kwargs = {"panel": 6, "method_params": {"network": {"epochs": 2, "hidden": 16}, "n_seeds": 1, "preset": "paper"}}
    a, b, c, d = (
        predicted(reference, target, rng=rng, **kwargs)[0]
        for rng in (3, 3, 4, np.random.default_rng(np.random.SeedSequence(0)))
    )
    assert a.equals(b)
    assert not a.equals(c)
    assert not a.equals(d)
    assert a.equals(predicted(spahgc.tl.train(reference, rng=3, **kwargs), target)[0])


def test_a_method_learns_what_is_planted(reference: ad.AnnData, target: ad.AnnData) -> None:
    """Planted genes are predicted and the others not; the mean of each gene knows nothing."""
    out = spahgc.tl.predict(reference, target, method="ridge", panel=list(reference.var_names), copy=True)
    spahgc.tl.evaluate(out)
    scores = out.var["spahgc_pearson"]
    assert scores[:12].mean() > 0.6
    assert abs(scores[12:].mean()) < 0.2


# What is written.


def test_slots(models: Models, target: ad.AnnData, snapshot: Callable[[Any], Any]) -> None:
    before = target.copy()
    model = models("ridge")
    assert spahgc.tl.predict(model, target) is None
    table = target.obsm["spahgc"]
    assert isinstance(table, pd.DataFrame)
    assert table.index.equals(target.obs_names)
    assert tuple(table.columns) == model.genes
    assert set(table.dtypes) == {np.dtype(np.float32)}
    assert np.isfinite(table.to_numpy()).all()
    layer = target.layers["spahgc"]
    assert layer.dtype == np.float32
    for i, gene in enumerate(target.var_names):
        if gene in model.genes:
            np.testing.assert_array_equal(layer[:, i], table[gene])
        else:
            assert np.isnan(layer[:, i]).all()
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
    out = spahgc.tl.predict(reference, target, panel=5, method="ridge", copy=True)
    assert (snapshot(reference), snapshot(target)) == before
    assert "spahgc" in out.obsm
    out.obsm["spatial"][:] = 0
    assert snapshot(target) == before[1]


def test_the_reference_is_never_changed(
    reference: ad.AnnData, target: ad.AnnData, snapshot: Callable[[Any], Any]
) -> None:
    before = snapshot(reference)
    spahgc.tl.predict(reference, target, panel=5, method="knn")
    assert snapshot(reference) == before


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


def test_a_new_prediction_replaces_the_old_one_and_its_scores(models: Models, target: ad.AnnData) -> None:
    spahgc.tl.predict(models("ridge"), target)
    spahgc.tl.evaluate(target)
    assert "spahgc_pearson" in target.var
    expected = predicted(models("knn"), target)
    spahgc.tl.predict(models("knn"), target)
    assert same((target.obsm["spahgc"], target.obs["spahgc_support"]), expected)
    assert "spahgc_scores" not in target.uns
    assert not [name for name in target.var if name.startswith("spahgc_")]


def test_several_embeddings_side_by_side(reference: ad.AnnData, target: ad.AnnData) -> None:
    expected = predicted(reference, target, panel=5, method="ridge")
    reference.obsm["image_other"] = np.ones((reference.n_obs, 3))
    target.obsm["image_more"] = np.ones((target.n_obs, 4))
    target.obsm["image_most"] = np.ones((target.n_obs, 4))
    assert same(predicted(reference, target, panel=5, method="ridge", use_rep="image_toy"), expected)
    # What the reference settles needs not be said for the target.
    del reference.obsm["image_other"]
    assert same(predicted(reference, target, panel=5, method="ridge"), expected)


def test_any_key_of_obsm_is_an_embedding(reference: ad.AnnData, target: ad.AnnData) -> None:
    expected = predicted(reference, target, panel=5, method="ridge")
    for table in (reference, target):
        table.obsm["mine"] = pd.DataFrame(table.obsm.pop("image_toy").astype(np.float64), index=table.obs_names)
    assert same(predicted(reference, target, panel=5, method="ridge", use_rep="mine"), expected)


def test_counts_in_a_layer(reference: ad.AnnData, target: ad.AnnData) -> None:
    expected = predicted(reference, target, panel=5, method="ridge")
    reference.layers["counts"] = reference.X.toarray().astype(np.int16)
    reference.X = np.full(reference.shape, np.nan)
    assert same(predicted(reference, target, panel=5, method="ridge", layer="counts"), expected)


@pytest.mark.parametrize("kind", [np.asarray, sp.csc_matrix, sp.csr_array, np.int64, np.uint8, np.float16])
def test_any_kind_of_count_matrix(reference: ad.AnnData, target: ad.AnnData, kind: Any) -> None:
    reference.X = reference.X.minimum(255).tocsr()
    expected = predicted(reference, target, panel=5, method="ridge")
    dense = reference.X.toarray()
    reference.X = dense.astype(kind) if isinstance(kind, type) and issubclass(kind, np.number) else kind(dense)
    assert same(predicted(reference, target, panel=5, method="ridge"), expected)


def test_library_key(reference: ad.AnnData, target: ad.AnnData) -> None:
    expected = predicted(reference, target, panel=5, method="ridge")
    for table in (reference, target):
        table.obs["sample"] = table.obs["region"].astype(str).to_numpy()
        table.obs["region"] = "one"
        del table.uns["spatialdata_attrs"]
    assert same(predicted(reference, target, panel=5, method="ridge", library_key="sample"), expected)


def test_single_spot_and_single_slide_targets(models: Models, variant: str, target: ad.AnnData) -> None:
    spot = spahgc.tl.predict(models(variant), target[:1].copy(), copy=True)
    assert np.isfinite(spot.obsm["spahgc"].to_numpy()).all()
    assert 0 < spot.obs["spahgc_support"].iloc[0] <= 1


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


def test_the_layer_can_be_left_out(
    reference: ad.AnnData, target: ad.AnnData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("spahgc._tables._predictions._LARGE_LAYER", 0)
    with caplog.at_level("INFO", "spahgc"):
        spahgc.tl.predict(reference, target, method="gene_mean", panel=4)
    assert "spahgc" in target.layers
    assert "layers['spahgc'] takes 0 MB" in caplog.text
    spahgc.tl.predict(reference, target, method="gene_mean", panel=4, write_layer=False)
    assert "spahgc" not in target.layers
    assert target.obsm["spahgc"].shape == (target.n_obs, 4)
