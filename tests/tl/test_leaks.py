"""Nothing of a held-out slide's expression reaches a method: for every registered method, by the chassis alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import spahgc
from spahgc._slides import Slide
from spahgc._tables._cohorts import target_slides
from spahgc.methods import METHODS, Ridge, Run

from .conftest import Models

SLIDES = {"A1": "A", "A2": "A", "B1": "B", "C1": "C"}
HELD_OUT = "C1"


@pytest.fixture(scope="module")
def measured(planted: Callable[..., ad.AnnData]) -> ad.AnnData:
    """Four slides of three patients."""
    return planted(SLIDES)


def without(adata: ad.AnnData, *names: str) -> ad.AnnData:
    return adata[~adata.obs["region"].isin(names)].copy()


def fold(adata: ad.AnnData, **options: Any) -> tuple[spahgc.tl.Model, ad.AnnData]:
    """Train without the held-out slide, then predict that."""
    model = spahgc.tl.train(without(adata, HELD_OUT), device="cpu", progress=False, **options)
    held_out = adata[adata.obs["region"] == HELD_OUT].copy()
    return model, spahgc.tl.predict(model, held_out, copy=True)


@pytest.fixture
def method(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[Slide]:
    """The slides that the variant's method is asked to predict, as it gets them."""
    seen: list[Slide] = []
    kind = METHODS[options["method"]]
    predict_into = kind.predict_into

    def watched(self: Any, slide: Slide, *args: Any, **kwargs: Any) -> None:
        seen.append(slide)
        predict_into(self, slide, *args, **kwargs)

    monkeypatch.setattr(kind, "predict_into", watched)
    return seen


def test_noise_in_the_held_out_expression_changes_nothing(
    measured: ad.AnnData, options: dict[str, Any], method: list[Slide]
) -> None:
    noisy = measured.copy()
    rows = np.flatnonzero(noisy.obs["region"] == HELD_OUT)
    counts = noisy.X.toarray()
    counts[rows] = np.random.default_rng(5).poisson(30, (len(rows), noisy.n_vars))
    noisy.X = counts
    (model, expected), (again, found) = (fold(table, panel=8, **options) for table in (measured, noisy))
    assert again.genes == model.genes
    assert again.fingerprint == model.fingerprint
    assert found.obsm["spahgc"].equals(expected.obsm["spahgc"])
    assert found.obs["spahgc_support"].equals(expected.obs["spahgc_support"])
    assert method
    assert all(slide.expression is None for slide in method)


def test_a_slide_that_comes_with_expression_loses_it(
    models: Models, variant: str, target: ad.AnnData, method: list[Slide]
) -> None:
    model = models(variant)
    slide = target_slides(target, model.recipe, library_key=None, patient_key="patient")[0].slide
    values = np.random.default_rng(0).normal(size=(len(slide), len(model.genes))).astype(np.float32)
    found = model.predict([replace(slide, expression=values)]).values
    np.testing.assert_array_equal(found, model.predict([slide]).values)
    assert [given.expression for given in method] == [None, None]


def test_the_fold_decides_panel_and_scales(measured: ad.AnnData, options: dict[str, Any], models: Models) -> None:
    """Trained on other slides, a method has other genes, and predicts the same genes otherwise."""
    folds = [without(measured, "C1"), without(measured, "A1")]
    panels = [spahgc.tl.train(table, panel=5, method="gene_mean").genes for table in folds]
    assert panels[0] != panels[1]
    first, second = (spahgc.tl.train(table, panel=list(panels[0]), device="cpu", **options) for table in folds)
    assert first.fingerprint != second.fingerprint
    target = measured[measured.obs["region"] == "B1"].copy()
    with pytest.warns(UserWarning, match="'B1' is one of the reference slides"):
        one, other = (spahgc.tl.predict(model, target, copy=True).obsm["spahgc"] for model in (first, second))
    assert not np.allclose(one, other, rtol=0, atol=1e-6)


def test_a_method_gets_no_slide_that_lacks_what_it_needs(
    models: Models, variant: str, options: dict[str, Any], reference: ad.AnnData, target: ad.AnnData
) -> None:
    """Of the arrays, a table may lack the stain density alone."""
    bare = {"reference": reference.copy(), "target": target.copy()}
    for table in bare.values():
        del table.obs["cellularity"]
    if "cellularity" not in METHODS[options["method"]].needs:
        found = spahgc.tl.predict(models(variant), bare["target"], copy=True).obsm["spahgc"]
        assert found.equals(spahgc.tl.predict(models(variant), target, copy=True).obsm["spahgc"])
        return
    message = f"Method '{options['method']}' requires cellularity, but slide '{{}}' has only embedding, "
    with pytest.raises(ValueError, match=message.format("A1") + ".*Run spahgc.pp.image_embedding"):
        spahgc.tl.train(bare["reference"], panel=5, **options)
    with pytest.raises(ValueError, match=message.format("T1")):
        spahgc.tl.predict(models(variant), bare["target"])
    with pytest.raises(ValueError, match=message.format("T1")):  # before the training
        spahgc.tl.predict(reference, bare["target"], panel=5, **options)
    assert "spahgc" not in bare["target"].obsm


def test_what_a_method_does_not_need_changes_nothing(models: Models, variant: str, target: ad.AnnData) -> None:
    model, expected = models(variant), spahgc.tl.predict(models(variant), target, copy=True).obsm["spahgc"]
    rng = np.random.default_rng(3)
    noisy = target.copy()
    needs = model.method.needs
    if "cellularity" not in needs:
        noisy.obs["cellularity"] = rng.random(target.n_obs)
    if "embedding" not in needs:
        noisy.obsm["image_toy"] = rng.normal(size=target.obsm["image_toy"].shape)
    # Positions also order the spots: what sums over spots may differ in the last digit.
    if "coordinates" not in needs:
        noisy.obsm["spatial"] = rng.permutation(target.obsm["spatial"])
    found = spahgc.tl.predict(model, noisy, copy=True).obsm["spahgc"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_register_and_use_by_name(reference: ad.AnnData, target: ad.AnnData, tmp_path: Path) -> None:
    seen: list[Slide] = []

    class Doubled(Ridge):
        name = "doubled"
        needs = frozenset({"embedding", "cellularity"})

        def fit(self, cohort: Any, run: Run, **kwargs: Any) -> Any:
            seen.extend(cohort)
            return super().fit(cohort, run, **kwargs)

        def predict(self, slide: Slide) -> Any:
            seen.append(slide)
            return 2 * super().predict(slide)

    try:
        assert spahgc.methods.register(Doubled) is Doubled
        spahgc.tl.predict(reference, target, method="doubled", panel=5)
        model = spahgc.tl.train(reference, method="doubled", panel=5)
        model.save(tmp_path / "model")
        assert spahgc.tl.Model.load(tmp_path / "model").fingerprint == model.fingerprint
    finally:
        METHODS.pop("doubled", None)
    ridge = spahgc.tl.predict(reference, target, method="ridge", panel=5, copy=True)
    np.testing.assert_allclose(target.obsm["spahgc"], 2 * ridge.obsm["spahgc"], rtol=1e-6)
    assert target.uns["spahgc"]["params"]["method"] == "doubled"
    # It has got what it asked for, and the expression of the reference alone.
    assert all(slide.cellularity is not None for slide in seen)
    assert [slide.name for slide in seen[:5]] == ["A1", "A2", "B1", "T1", "T2"]
    assert [slide.expression is None for slide in seen[:5]] == [False] * 3 + [True] * 2
    with pytest.raises(ValueError, match="No method 'doubled'. Available: .*'ridge'"):
        spahgc.tl.predict(reference, target, method="doubled", panel=5)


@pytest.mark.parametrize("side", ["reference", "target"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_stain_density_is_finite(reference: ad.AnnData, target: ad.AnnData, side: str, value: float) -> None:
    table = {"reference": reference, "target": target}[side]
    table.obs.iloc[3, table.obs.columns.get_loc("cellularity")] = value
    with pytest.raises(ValueError, match=rf"{side}.obs\['cellularity'\] has NaN or infinite values in 1 of .*e.g. '"):
        spahgc.tl.predict(reference, target, method="cellularity", panel=5)


def test_a_column_that_holds_no_numbers_is_none(reference: ad.AnnData, target: ad.AnnData) -> None:
    for words in (["high", "low"], [True, False]):
        target.obs["cellularity"] = np.resize(words, target.n_obs)
        spahgc.tl.predict(reference, target, method="ridge", panel=5)
        with pytest.raises(ValueError, match="'cellularity' requires cellularity, but slide 'T1' has only embedding"):
            spahgc.tl.predict(reference, target, method="cellularity", panel=5)
