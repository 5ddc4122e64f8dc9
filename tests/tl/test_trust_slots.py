"""Trust on the reference, with the model, on the prediction; on planted genes it is right."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import spahgc

from .conftest import reread

COLUMNS = ["spahgc_expected_pearson", "spahgc_trust_low", "spahgc_trust_high", "spahgc_trust"]


@pytest.fixture(scope="module")
def _validated(planted: Callable[..., ad.AnnData]) -> ad.AnnData:
    """Four slides of one patient and one of another, cross-validated slide by slide with ridge and gene mean."""
    table = planted({"A1": "A", "A2": "A", "A3": "A", "A4": "A", "B1": "B"})
    spahgc.tl.cross_validate(
        table,
        methods=["ridge", "gene_mean"],
        panel=list(table.var_names[:20]),
        split_by="slide",
        allow_shared_patients=True,
        n_jobs=1,
    )
    return table


@pytest.fixture
def validated(_validated: ad.AnnData) -> ad.AnnData:
    return _validated.copy()


@pytest.fixture
def same(planted: Callable[..., ad.AnnData]) -> ad.AnnData:
    return planted({"A5": "A"})


def test_the_reference_holds_it(validated: ad.AnnData) -> None:
    trust = spahgc.get.trust(validated)
    assert trust.attrs["label"] == "ridge"
    assert trust.attrs["same_patient"]
    assert trust.attrs["rule"].startswith("trusted: expected >= 0.3, 90 % interval above 0")
    assert trust.attrs["slides"] == ["A1", "A2", "A3", "A4", "B1"]
    assert len(trust) == 20
    assert trust["expected_pearson"].is_monotonic_decreasing
    # G00 to G11 follow the image; B1 has no slide of its own patient to learn from, and does not count.
    assert set(trust.loc[[f"G{i:02d}" for i in range(12)], "verdict"]) <= {"trusted", "weak"}
    assert (trust.loc[[f"G{i:02d}" for i in range(12, 20)], "verdict"] == "trusted").sum() == 0
    assert trust["n_slides"].max() == 4
    assert trust["share_of_ceiling"].notna().any()
    pd.testing.assert_series_equal(
        validated.var["spahgc_expected_pearson"].dropna(),
        trust["expected_pearson"].sort_index(),
        check_names=False,
        check_index_type=False,
    )
    assert validated.var["spahgc_trust"].isna().sum() == validated.n_vars - 20
    assert set(spahgc.get.trust(validated, method="gene_mean")["verdict"]) == {"not assessed"}
    with pytest.raises(KeyError, match=r"no trust of method 'knn'. Available: 'ridge', 'gene_mean'"):
        spahgc.get.trust(validated, method="knn")


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_it_travels_to_the_prediction_and_through_files(
    validated: ad.AnnData, same: ad.AnnData, tmp_path: Path, suffix: str
) -> None:
    expected = spahgc.get.trust(validated)
    reference = reread(validated, tmp_path / f"reference{suffix}")
    pd.testing.assert_frame_equal(spahgc.get.trust(reference), expected)
    model = spahgc.tl.train(reference, method="ridge", panel=list(reference.var_names[2:22]))
    trust = model.trust
    assert trust is not None
    assert set(trust.index) == set(reference.var_names[2:22])
    # Two genes of the panel were never held out, two that were are not in the panel.
    assert trust.loc[["G20", "G21"], "verdict"].tolist() == ["not assessed"] * 2
    assert trust["n_slides"].min() == 0
    pd.testing.assert_frame_equal(trust.iloc[:18], expected.drop(["G00", "G01"]))

    model.save(tmp_path / "model")
    loaded = spahgc.tl.Model.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.trust, trust)
    assert loaded.fingerprint == model.fingerprint

    same = same[:, 5:].copy()
    spahgc.tl.predict(loaded, same)
    target = reread(same, tmp_path / f"target{suffix}")
    pd.testing.assert_frame_equal(spahgc.get.trust(target), trust)
    assert spahgc.get.trust(target).attrs["other_patient"] == []
    pd.testing.assert_frame_equal(
        target.var[COLUMNS], same.var[COLUMNS], check_index_type=False, check_column_type=False
    )
    np.testing.assert_array_equal(
        target.var["spahgc_expected_pearson"], trust["expected_pearson"].reindex(target.var_names)
    )
    predicted = spahgc.get.predicted(target)
    assert list(predicted.var["spahgc_trust"]) == list(trust["verdict"].reindex(predicted.var_names))
    assert predicted.var["spahgc_trust_low"].notna().sum() == 18
    pd.testing.assert_frame_equal(spahgc.get.trust(predicted), trust)
    # Predicting again replaces it; a model without trust takes it away.
    spahgc.tl.predict(loaded, target)
    assert spahgc.get.trust(target) is not None
    reference.uns.pop("spahgc_trust")
    spahgc.tl.predict(reference, target, method="ridge")
    assert not set(COLUMNS) & set(target.var)
    with pytest.raises(KeyError, match=r"spahgc.tl.cross_validate"):
        spahgc.get.trust(target)


def test_another_patient_is_not_trusted(
    validated: ad.AnnData, planted: Callable[..., ad.AnnData], caplog: pytest.LogCaptureFixture
) -> None:
    model = spahgc.tl.train(validated, method="ridge", panel=20)
    target = planted({"C1": "C", "A5": "A"})
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        spahgc.tl.predict(model, target)
    assert "C1 is not known to be of one of them" in caplog.text
    trust = spahgc.get.trust(target)
    assert trust.attrs["other_patient"] == ["C1"]
    assert "trusted" not in set(trust["verdict"])
    assert trust["low"].isna().all()
    assert model.trust is not None
    assert "trusted" in set(model.trust["verdict"])
    del target.obs["patient"]
    spahgc.tl.predict(model, target)
    assert spahgc.get.trust(target).attrs["other_patient"] == ["A5", "C1"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "knn"}, "'knn' was not cross-validated"),
        ({"method": "ridge", "normalize": "log10"}, "normalize differ"),
        ({"method": "gene_mean"}, None),
    ],
)
def test_only_the_trust_of_this_method_is_taken(
    validated: ad.AnnData, caplog: pytest.LogCaptureFixture, options: dict[str, Any], said: str | None
) -> None:
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        model = spahgc.tl.train(validated, panel=10, **options)
    assert (model.trust is None) == (said is not None)
    assert said is None or said in caplog.text


def test_trust_that_has_seen_the_target_is_not_taken(validated: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    rest = validated[validated.obs["region"] != "A1"].copy()
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        assert spahgc.tl.train(rest, method="ridge", panel=10).trust is None
    assert "slides differ" in caplog.text


def test_optimistic_scores_give_no_trust(validated: ad.AnnData) -> None:
    spahgc.tl.cross_validate(validated, methods=["ridge"], protocol="hest", panel=10, n_jobs=1)
    assert "spahgc_trust" not in validated.uns
    assert not set(COLUMNS) & set(validated.var)


def test_columns_of_the_user_are_not_overreread(validated: ad.AnnData, same: ad.AnnData) -> None:
    same.var["spahgc_trust"] = 1
    with pytest.raises(ValueError, match=r"var\['spahgc_trust'\] exists already and was not written by spahgc"):
        spahgc.tl.predict(validated, same, method="ridge")
    # What a cross-validation wrote may be.
    spahgc.tl.predict(validated, validated, method="ridge", panel=10, key_added="spahgc")
    assert spahgc.get.trust(validated)["n_slides"].max() == 4


def test_planted_genes_are_trusted_and_others_not_predictable() -> None:
    sdata = spahgc.datasets.synthetic_cohort(n_patients=3)
    spahgc.pp.image_embedding(sdata, encoder="texture")
    table = sdata["table"]
    spahgc.tl.cross_validate(table, methods=["ridge"], panel=list(table.var_names), n_jobs=1)
    verdicts = spahgc.get.trust(table)["verdict"].reindex(table.var_names)
    planted = table.var["planted"]
    assert set(verdicts[planted]) == {"trusted"}
    # Four slides of 150 spots: a smooth pattern is like another one by chance on all of them, if rarely.
    assert (verdicts[~planted] == "not predictable").mean() >= 0.9
    assert "trusted" not in set(verdicts[~planted])
