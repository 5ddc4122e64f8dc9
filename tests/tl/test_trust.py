"""Trust per gene: what it promises on tables drawn from its model, the verdicts, and where it is stored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

import spahgc
from spahgc.tl._trust import Shifts, _additive, gene_trust, same_patient

from .conftest import reread

N_GENES = 200
COLUMNS = ["spahgc_expected_pearson", "spahgc_trust_low", "spahgc_trust_high", "spahgc_trust"]


def drawn(
    rng: np.random.Generator,
    patients: Sequence[str],
    *,
    n_genes: int = N_GENES,
    gene: float = 0.15,
    slide: float = 0.08,
    slope: float = 0.2,
    patient: float = 0.0,
    residual: float = 0.08,
) -> np.ndarray:
    """Correlations (n_slides, n_genes) of slides of these patients, in the terms of the model."""
    means = rng.normal(0.25, gene, n_genes)
    of_patient = {name: rng.normal(0, patient) + rng.normal(0, patient, n_genes) for name in sorted(set(patients))}
    rows = [
        means
        + of_patient[name]
        + rng.normal(0, slide)
        + rng.normal(0, slope) * (means - 0.25)
        + rng.normal(0, residual, n_genes)
        for name in patients
    ]
    return np.tanh(rows)


def long(
    values: np.ndarray, patients: Sequence[str] | None = None, *, method: str = "ridge", metric: str = "pearson"
) -> pd.DataFrame:
    """The long table of a matrix of scores."""
    patients = patients or ["A"] * len(values)
    return pd.DataFrame(
        [
            (method, f"S{i}", patients[i], f"G{j:03d}", metric, values[i, j], 0)
            for i in range(values.shape[0])
            for j in range(values.shape[1])
        ],
        columns=["method", "slide", "patient", "gene", "metric", "value", "seed"],
    )


def whole(values: np.ndarray, *, removed: np.ndarray | None = None, depth: float = 0.1) -> pd.DataFrame:
    """All that a cross-validation of ridge gives, one patient."""
    parts = [
        long(values),
        long(values if removed is None else removed, metric="pearson_depth_removed"),
        long(np.full_like(values, depth), metric="depth_only"),
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize(("n_slides", "slide"), [(3, 0.03), (3, 0.12), (4, 0.06), (5, 0.12)])
def test_nine_in_ten_scores_of_a_new_slide_are_in_the_interval(n_slides: int, slide: float) -> None:
    rng = np.random.default_rng(0)
    units, hits, medians = np.arange(n_slides), [], []
    for _ in range(100):
        values = drawn(rng, ["A"] * (n_slides + 1), slide=slide, slope=2 * slide, n_genes=100)
        model = Shifts.fit(np.arctanh(values[:-1]), units)
        low, high = model.interval(0.9)
        hits.append(np.mean((np.tanh(low) <= values[-1]) & (values[-1] <= np.tanh(high))))
        medians.append(np.mean(model.means > np.arctanh(values[-1])))
    assert 0.85 <= np.mean(hits) <= 0.95
    # And it is centred: as many new scores above the expected one as below.
    assert 0.42 <= np.mean(medians) <= 0.58


@pytest.mark.parametrize("n_slides", [3, 4, 8])
def test_interval_of_one_gene_is_the_prediction_interval_of_students_t(n_slides: int) -> None:
    """With a single gene there is nothing to pool or to shrink: mean -/+ t sd sqrt(1 + 1/n) on Fisher's z."""
    z = np.random.default_rng(n_slides).normal(0.4, 0.1, n_slides)
    row = gene_trust(long(np.tanh(z)[:, None]), method="ridge", level=0.9).loc["G000"]
    half = student_t(n_slides - 1).ppf(0.95) * z.std(ddof=1) * np.sqrt(1 + 1 / n_slides)
    np.testing.assert_allclose(
        row[["low", "high"]].astype(float), np.tanh([z.mean() - half, z.mean() + half]), rtol=1e-3
    )


@pytest.mark.parametrize("n_patients", [3, 5])
def test_it_covers_a_new_patient_where_patients_were_held_out(n_patients: int) -> None:
    rng = np.random.default_rng(n_patients)
    names = [f"P{i}" for i in range(n_patients) for _ in range(1 + i % 2)]
    units = np.unique(names, return_inverse=True)[1]
    by_patient, by_slide = [], []
    for _ in range(100):
        values = drawn(rng, [*names, "new"], patient=0.15, slide=0.05, n_genes=100)
        for found, of in ((by_patient, units), (by_slide, np.arange(len(names)))):
            low, high = Shifts.fit(np.arctanh(values[:-1]), of).interval(0.9)
            found.append(np.mean((np.tanh(low) <= values[-1]) & (values[-1] <= np.tanh(high))))
    assert 0.85 <= np.mean(by_patient) <= 0.96
    # Slides of one patient taken for slides of several promise too much.
    assert np.mean(by_slide) < np.mean(by_patient)


def test_genes_keep_their_order_and_few_slides_are_drawn_to_the_mean() -> None:
    rng = np.random.default_rng(1)
    values = drawn(rng, ["A"] * 4, residual=0.15)
    truth = np.arctanh(values).mean(axis=0)
    model = Shifts.fit(np.arctanh(values), np.arange(4))
    assert np.corrcoef(np.argsort(np.argsort(model.means)), np.argsort(np.argsort(truth)))[0, 1] > 0.999
    assert model.means.std() < truth.std()
    # Shrinking pays: the next slide is met better.
    errors = []
    for _ in range(30):
        values = drawn(rng, ["A"] * 4, gene=0.08, residual=0.2, slide=0, slope=0)
        known, new = np.arctanh(values[:3]), np.arctanh(values[3])
        shrunk = Shifts.fit(known, np.arange(3)).means
        errors.append([np.mean((shrunk - new) ** 2), np.mean((known.mean(axis=0) - new) ** 2)])
    assert np.mean(errors, axis=0)[0] < 0.9 * np.mean(errors, axis=0)[1]


def test_the_frame() -> None:
    values = np.tanh(np.array([[0.5, 0.2, 0.02], [0.6, 0.25, 0.0], [0.55, 0.2, 0.05], [0.5, 0.22, 0.01]]))
    ridge = whole(values - 0.1)
    ceiling = long(np.full_like(values, 0.8), method="measured", metric="ceiling")
    table = pd.concat([ridge, whole(values).assign(method="spahgc"), ceiling], ignore_index=True)
    trust = gene_trust(table, method="spahgc")
    assert list(trust.index) == ["G000", "G001", "G002"]
    names = "expected_pearson low high expected_depth_removed difference_to_ridge difference_to_depth"
    assert list(trust.columns) == [*names.split(), "share_of_ceiling", "n_slides", "verdict"]
    np.testing.assert_allclose(trust["expected_pearson"], values.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(trust["difference_to_ridge"], 0.1, atol=0.02)
    np.testing.assert_allclose(trust["difference_to_depth"], trust["expected_pearson"] - 0.1)
    np.testing.assert_allclose(trust["share_of_ceiling"], trust["expected_pearson"] / 0.8)
    assert list(trust["verdict"]) == ["trusted", "weak", "not predictable"]
    assert (trust["low"] < trust["expected_pearson"]).all()
    assert (trust["high"] > trust["expected_pearson"]).all()
    assert trust["n_slides"].tolist() == [4, 4, 4]
    wider = gene_trust(table, method="spahgc", level=0.99)
    assert (wider["low"] < trust["low"]).all()
    assert gene_trust(table[table["method"] != "ridge"], method="spahgc")["difference_to_ridge"].isna().all()
    assert (gene_trust(table, method="ridge")["difference_to_ridge"] == 0).all()


def test_skill_that_is_depth_alone_is_not_trusted() -> None:
    values = np.tanh(np.random.default_rng(0).normal(0.6, 0.03, (4, 20)))
    removed = values.copy()
    removed[:, 0] = 0.02
    trust = gene_trust(whole(values, removed=removed, depth=-0.6), method="ridge")
    assert trust.loc["G000", "verdict"] == "weak"
    assert set(trust.drop("G000")["verdict"]) == {"trusted"}
    # An oracle of depth does not care for the sign.
    assert (trust["difference_to_depth"].abs() < 0.15).all()
    # Where the values are no counts, depth is not known, and is not asked for.
    unknown = gene_trust(whole(values, removed=np.full_like(values, np.nan), depth=np.nan), method="ridge")
    assert set(unknown["verdict"]) == {"trusted"}
    assert unknown["difference_to_depth"].isna().all()


@pytest.mark.parametrize("n_slides", [1, 2, 3])
def test_one_slide_or_two_have_no_interval(n_slides: int) -> None:
    values = np.array([[0.30], [0.37], [0.34]]) + drawn(np.random.default_rng(3), ["A"] * 3, slide=0, slope=0)
    trust = gene_trust(whole(values[:n_slides]), method="ridge")
    assert (trust[["low", "high"]].notna() == (n_slides == 3)).all(axis=None)
    assert ("trusted" in set(trust["verdict"])) == (n_slides == 3)
    assert trust["expected_pearson"].notna().all()


def test_missing_scores() -> None:
    values = drawn(np.random.default_rng(4), ["A"] * 4)
    values[:, 7] = np.nan
    values[1:, 8] = np.nan
    table = whole(values)
    table = table[~((table["gene"] == "G009") & (table["slide"] == "S0"))]
    trust = gene_trust(table, method="ridge")
    assert len(trust) == N_GENES
    assert trust.index[-1] == "G007"
    assert trust.loc["G007", "verdict"] == "not assessed"
    assert trust.loc["G007", ["expected_pearson", "low", "high"]].isna().all()
    assert trust.loc[["G007", "G008", "G009", "G010"], "n_slides"].tolist() == [0, 1, 3, 4]
    width = trust["high"] - trust["low"]
    assert width["G008"] > width["G010"]
    nothing = gene_trust(whole(np.full((3, 4), np.nan)), method="ridge")
    assert set(nothing["verdict"]) == {"not assessed"}


def test_a_single_gene_and_perfect_scores() -> None:
    for n_slides in (1, 2, 3, 5):
        trust = gene_trust(whole(np.linspace(0.3, 0.4, n_slides)[:, None]), method="ridge")
        assert trust["expected_pearson"].item() == pytest.approx(0.35 if n_slides > 1 else 0.3, abs=0.01)
        assert np.isfinite(trust["low"].item()) == (n_slides > 2)
    perfect = gene_trust(whole(np.ones((3, 5))), method="ridge")
    assert (perfect["expected_pearson"] > 0.99).all()
    assert np.isfinite(perfect[["low", "high"]]).all(axis=None)


def test_seeds_are_averaged_first_and_the_order_of_rows_does_not_matter() -> None:
    values = drawn(np.random.default_rng(5), ["A"] * 3)
    expected = gene_trust(whole(values), method="ridge")
    noise = 0.1 * np.random.default_rng(6).normal(size=values.shape)
    seeds = pd.concat([whole(values + noise).assign(seed=0), whole(values - noise).assign(seed=1)])
    for table in (seeds, whole(values).sample(frac=1, random_state=0)):
        pd.testing.assert_frame_equal(gene_trust(table, method="ridge"), expected, rtol=1e-9)


def test_what_was_held_out() -> None:
    patients = ["A", "A", "A", "A", "B"]
    values = drawn(np.random.default_rng(8), patients, patient=0.1, slide=0.03, slope=0)
    table = pd.concat([long(values, patients), long(values, patients, metric="pearson_depth_removed")])
    # B's slide had no other slide of its patient to learn from, so it says nothing of slides of known patients.
    by_slide = gene_trust(table, method="ridge", split_by="slide")
    assert by_slide["n_slides"].max() == 4
    alone = table[table["patient"] == "A"]
    pd.testing.assert_frame_equal(by_slide, gene_trust(alone, method="ridge", split_by="slide"))
    by_patient = gene_trust(table, method="ridge", split_by="patient")
    assert by_patient["n_slides"].max() == 5
    # Two patients: too little is known of a third for an interval.
    assert by_patient["low"].isna().all()
    assert by_slide["low"].notna().all()
    assert same_patient(table, "slide")
    assert not same_patient(table, "patient")
    assert same_patient(alone, "patient")
    assert not same_patient(long(values, list("ABCDE")), "slide")


@pytest.fixture(scope="module")
def _validated(planted: Callable[..., ad.AnnData]) -> ad.AnnData:
    """Four slides of one patient and one of another, cross-validated slide by slide with ridge and gene mean."""
    table = planted({"A1": "A", "A2": "A", "A3": "A", "A4": "A", "B1": "B"})
    by_slide = {"split_by": "slide", "allow_shared_patients": True}
    panel = list(table.var_names[:20])
    spahgc.tl.cross_validate(table, methods=["ridge", "gene_mean"], panel=panel, n_jobs=1, **by_slide)
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
    in_var = validated.var["spahgc_expected_pearson"]
    np.testing.assert_array_equal(in_var, trust["expected_pearson"].reindex(validated.var_names))
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


def test_trust_that_is_not_taken(validated: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    """Trust that has seen the target, and optimistic scores."""
    rest = validated[validated.obs["region"] != "A1"].copy()
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        assert spahgc.tl.train(rest, method="ridge", panel=10).trust is None
    assert "slides differ" in caplog.text
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


def test_shifts_are_levels_and_slopes_around_the_mean_gene() -> None:
    """With a gene that a single slide has: the shifts of a slide average to its level over all genes."""
    z = np.random.default_rng(0).normal(size=(5, 8))
    z[1:, 2] = np.nan
    rows, columns = np.nonzero(np.isfinite(z))
    design = np.zeros((len(rows), 5 + 8))
    design[np.arange(len(rows)), rows] = design[np.arange(len(rows)), 5 + columns] = 1
    level = np.linalg.lstsq(design, z[rows, columns], rcond=None)[0][:5]
    _, shifts, _ = _additive(z)
    np.testing.assert_allclose(shifts.mean(axis=1), level - level.mean(), atol=1e-8)
