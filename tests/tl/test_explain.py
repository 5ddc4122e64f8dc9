"""The evidence behind predictions, in tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData

import spahgc
from spahgc.tl import Model

from .conftest import VARIANTS, reread

PANEL = [f"G{i:02d}" for i in range(12)]


@pytest.fixture(scope="module")
def models(_reference: AnnData) -> dict[str, Model]:
    params: dict[str, dict[str, Any]] = {
        "spahgc": {**VARIANTS["spahgc"], "method_params": {**VARIANTS["spahgc"]["method_params"], "n_seeds": 2}},
        "knn": {"method": "knn", "method_params": {"n_neighbors": 4}},
        "ridge": {"method": "ridge"},
    }
    return {name: spahgc.tl.train(_reference, panel=PANEL, rng=0, **given) for name, given in params.items()}


@pytest.fixture(params=["spahgc", "knn"])
def model(request: pytest.FixtureRequest, models: dict[str, Model]) -> Model:
    return models[request.param]


def explained(model: Model, target: AnnData, **params: Any) -> AnnData:
    spahgc.tl.predict(model, target)
    spahgc.tl.explain(model, target, **params)
    return target


def test_slots(model: Model, target: AnnData, reference: AnnData) -> None:
    explained(model, target, n_references=3)
    n = target.n_obs
    assert target.obsm["spahgc_references"].shape == target.obsm["spahgc_weights"].shape == (n, 3)
    assert target.obsm["spahgc_references"].dtype == np.int32
    assert target.obsm["spahgc_weights"].dtype == target.obs["spahgc_agreement"].dtype == np.float32
    assert target.uns["spahgc_evidence"]["model"] == model.fingerprint == target.uns["spahgc"]["model"]
    shares = target.obsm["spahgc_slides"]
    assert list(shares.columns) == ["A1", "A2", "B1"]
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-5)
    table = spahgc.get.evidence(target, adata_ref=reference)
    assert list(table.columns) == ["spot", "rank", "slide", "patient", "x", "y", "weight", "reference"]
    assert len(table) == 3 * n
    assert (table["slide"] == reference.obs.loc[table["reference"], "region"].to_numpy()).all()
    assert (table["patient"] == reference.obs.loc[table["reference"], "patient"].to_numpy()).all()
    np.testing.assert_array_equal(table[["x", "y"]], reference[table["reference"]].obsm["spatial"])
    for _, own in table.groupby("spot"):
        assert list(own["rank"]) == [1, 2, 3]
        assert own["weight"].is_monotonic_decreasing


def test_what_was_measured_in_the_spots_named_is_what_knn_predicts(
    models: dict[str, Model], target: AnnData, reference: AnnData
) -> None:
    """From the table that is read, through the names of reference spots, to the prediction; so they agree."""
    explained(models["knn"], target)
    table = spahgc.get.evidence(target, adata_ref=reference)
    counts = reference.X.toarray().astype(np.float64)
    measured = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)[:, reference.var_names.get_indexer(PANEL)]
    rows = reference.obs_names.get_indexer(table["reference"])
    expected = np.zeros((target.n_obs, len(PANEL)))
    np.add.at(
        expected, target.obs_names.get_indexer(table["spot"]), table["weight"].to_numpy()[:, None] * measured[rows]
    )
    assert list(target.obsm["spahgc"].columns) == PANEL
    np.testing.assert_allclose(target.obsm["spahgc"].to_numpy(), expected, rtol=1e-4, atol=1e-4)


def test_agreement_is_the_correlation_with_what_was_measured(
    models: dict[str, Model], target: AnnData, reference: AnnData
) -> None:
    explained(models["spahgc"], target, n_references=100)
    table = spahgc.get.evidence(target, adata_ref=reference)
    counts = reference.X.toarray().astype(np.float64)
    measured = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)[:, reference.var_names.get_indexer(PANEL)]
    slide = reference.obs["region"].astype(str).to_numpy()
    means = {name: measured[slide == name].mean(axis=0) for name in sorted(set(slide))}
    spreads = {name: measured[slide == name].std(axis=0) for name in means}
    relative = np.array([(row - means[name]) / spreads[name] for row, name in zip(measured, slide, strict=True)])
    level, spread = np.mean(list(means.values()), axis=0), np.mean(list(spreads.values()), axis=0)
    for spot in target.obs_names[::17]:
        own = table[table["spot"] == spot]
        assert own["weight"].sum() == pytest.approx(1, rel=1e-4)
        evidence = own["weight"].to_numpy() @ relative[reference.obs_names.get_indexer(own["reference"])]
        predicted = (target.obsm["spahgc"].loc[spot].to_numpy() - level) / spread
        expected = np.corrcoef(evidence, predicted)[0, 1]
        assert target.obs.loc[spot, "spahgc_agreement"] == pytest.approx(expected, abs=1e-4)


def test_order_of_rows_and_what_was_measured_in_the_target_change_nothing(model: Model, target: AnnData) -> None:
    whole = explained(model, target.copy())
    order = np.random.default_rng(0).permutation(target.n_obs)
    mixed = target[order].copy()
    mixed.X = mixed.X.copy()
    mixed.X.data[:] = 7
    explained(model, mixed)
    first, second = (spahgc.get.evidence(table, target.obs_names[:5]) for table in (whole, mixed))
    assert first.drop(columns="weight").equals(second.drop(columns="weight"))
    np.testing.assert_allclose(first["weight"], second["weight"], atol=1e-5)
    np.testing.assert_allclose(
        mixed.obs["spahgc_agreement"].reindex(whole.obs_names), whole.obs["spahgc_agreement"], atol=1e-4
    )


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_it_survives_files_and_subsetting(
    model: Model, target: AnnData, reference: AnnData, tmp_path: Path, suffix: str
) -> None:
    explained(model, target)
    some = target.obs_names[[3, 40]]
    expected = spahgc.get.evidence(target, some, adata_ref=reference)
    read = reread(target[::-1].copy(), tmp_path / f"target.{suffix}")
    assert spahgc.get.evidence(read[some], some, adata_ref=reference).equals(expected)


def test_copy_and_a_loaded_model_and_a_store(model: Model, target: AnnData, tmp_path: Path) -> None:
    inputs = ("image_toy", "spatial")
    spahgc.tl.predict(model, target)
    copied = spahgc.tl.explain(model, target, copy=True)
    assert copied is not None
    assert "spahgc_evidence" not in target.uns
    assert "spahgc_agreement" not in target.obs
    model.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    again = spahgc.tl.explain(loaded, target, copy=True)
    assert again is not None
    assert spahgc.get.evidence(again).equals(spahgc.get.evidence(copied))
    obsm, uns = {name: target.obsm[name] for name in inputs}, {name: target.uns[name] for name in inputs}
    uns["spatialdata_attrs"] = target.uns["spatialdata_attrs"]
    stored = anndata.AnnData(obs=target.obs[["region", "patient"]], obsm=obsm, uns=uns)
    spahgc.tl.predict(model, stored, store=tmp_path / "predicted.zarr")
    spahgc.tl.explain(model, stored)
    np.testing.assert_allclose(stored.obs["spahgc_agreement"], copied.obs["spahgc_agreement"], atol=1e-6)


def test_evidence_goes_with_the_prediction_that_it_is_of(models: dict[str, Model], target: AnnData) -> None:
    explained(models["knn"], target)
    spahgc.tl.predict(models["spahgc"], target)
    assert "spahgc_evidence" not in target.uns
    assert "spahgc_agreement" not in target.obs
    assert not {"spahgc_references", "spahgc_weights", "spahgc_slides"} & set(target.obsm)
    explained(models["spahgc"], target)
    spahgc.tl.explain(models["spahgc"], target, n_references=2)  # again: its own are replaced
    assert target.obsm["spahgc_weights"].shape[1] == 2
    # What is somebody else's is not overwritten.
    spahgc.tl.predict(models["knn"], target)
    target.obs["spahgc_agreement"] = "mine"
    spahgc.tl.predict(models["knn"], target)
    with pytest.raises(ValueError, match=r"obs\['spahgc_agreement'\] exists already.*cannot overwrite it"):
        spahgc.tl.explain(models["knn"], target)
    assert (target.obs["spahgc_agreement"] == "mine").all()
    assert "spahgc_weights" not in target.obsm


def test_errors(models: dict[str, Model], target: AnnData) -> None:
    with pytest.raises(TypeError, match="`model` must be a Model"):
        spahgc.tl.explain(target, target)
    with pytest.raises(KeyError, match="Run spahgc.tl.predict"):
        spahgc.tl.explain(models["knn"], target)
    with pytest.raises(ValueError, match=r"looks at no reference spot.*: 'knn', 'spahgc'\."):
        explained(models["ridge"], target)
    with pytest.raises(ValueError, match=r"is of another model than Model\(knn"):
        spahgc.tl.explain(models["knn"], target)
    with pytest.raises(ValueError, match="of at least 1, got 0"):
        explained(models["knn"], target, n_references=0)
    assert "spahgc_evidence" not in target.uns


def test_errors_of_get(model: Model, target: AnnData, reference: AnnData) -> None:
    with pytest.raises(KeyError, match=r"'spahgc' has no evidence.*Run spahgc\.tl\.explain"):
        spahgc.get.evidence(target)
    explained(model, target)
    with pytest.raises(KeyError, match=r"No spot 'nowhere' in obs_names, which begin with"):
        spahgc.get.evidence(target, "nowhere")
    moved = reference.copy()
    moved.obsm["spatial"] = moved.obsm["spatial"] + 1
    with pytest.raises(ValueError, match=r"adata_ref has no spot at \(.*\) of slide '.*', nor .* other spots"):
        spahgc.get.evidence(target, adata_ref=moved)
