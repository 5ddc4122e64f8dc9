"""Tables of methods beside each other, against plain loops over the long table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from spahgc import metrics

PATIENTS = {"S1": "A", "S2": "A", "S3": "A", "S4": "B", "S5": "C", "S6": "C", "S7": "D", "S8": "E"}


def long(seed: int = 0, gain: float = 0.05, n_genes: int = 7) -> pd.DataFrame:
    """Scores of three methods, two of them with three seeds; some genes have none."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0.3, 0.1, (8, n_genes))
    rows = []
    for method, offset, seeds in (("ridge", 0.0, [0]), ("good", gain, [0, 1, 2]), ("bad", -0.1, [0, 1, 2])):
        for i, (slide, patient) in enumerate(PATIENTS.items()):
            for g in range(n_genes):
                for s in seeds:
                    value = np.nan if (i, g) == (1, 2) else level[i, g] + offset + 0.01 * rng.normal()
                    rows.append((method, slide, patient, f"G{g}", "pearson", value, s))
                    rows.append((method, slide, patient, f"G{g}", "rmse", 1 - value, s))
    columns = ["method", "slide", "patient", "gene", "metric", "value", "seed"]
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=seed)


def mean_by_loops(table: pd.DataFrame, method: str, baseline: str | None = None, metric: str = "pearson") -> float:
    chosen = table[table["metric"] == metric].groupby(["method", "slide", "gene"])["value"].apply(list).to_dict()

    def score(name: str, slide: str, gene: str) -> float:
        return float(np.mean(chosen[name, slide, gene]))

    of_patient = []
    for patient in "ABCDE":
        of_slide = []
        for slide in (slide for slide, owner in PATIENTS.items() if owner == patient):
            values = [score(method, slide, gene) for gene in sorted(set(table["gene"]))]
            if baseline:
                values = [
                    v - score(baseline, slide, g) for v, g in zip(values, sorted(set(table["gene"])), strict=True)
                ]
            of_slide.append(np.nanmean(values))
        of_patient.append(np.mean(of_slide))
    return float(np.mean(of_patient))


@pytest.mark.parametrize("metric", ["pearson", "rmse"])
def test_against_loops(metric: str) -> None:
    table = long()
    found = metrics.summarize(table, metric=metric)
    for method in ("ridge", "good", "bad"):
        row = found.loc[method]
        assert row["mean"] == pytest.approx(mean_by_loops(table, method, metric=metric))
        assert row["difference"] == pytest.approx(mean_by_loops(table, method, "ridge", metric=metric), abs=1e-12)
        assert row["relative"] == pytest.approx(row["difference"] / found.loc["ridge", "mean"], abs=1e-12)
        assert (row["n_slides"], row["n_patients"], row["unit"]) == (8, 5, "patient")
        assert row["undefined"] == pytest.approx(1 / 56)
        assert row["meaningful"]
    assert list(found.index) == ["good", "ridge", "bad"]
    assert found.index.name == "method"
    compared = ["mean", "low", "high", "difference", "difference_low", "difference_high", "relative"]
    assert list(found.columns) == [*compared, "n_slides", "n_patients", "undefined", "meaningful", "unit"]


def test_pairing_sees_a_gain_that_the_two_intervals_hide() -> None:
    found = metrics.summarize(long(gain=0.02))
    good, ridge = found.loc["good"], found.loc["ridge"]
    assert good["low"] < ridge["high"]
    assert 0 < good["difference_low"] < good["difference"] < good["difference_high"] < 0.04
    assert (ridge[["difference", "difference_low", "difference_high"]] == 0).all()


COMPARED = ["difference", "difference_low", "difference_high"]


def test_the_difference_to_the_other_is_the_opposite() -> None:
    table = long()
    one = metrics.summarize(table, "bad", level=0.9, rng=4).loc["good", COMPARED]
    other = metrics.summarize(table, "good", level=0.9, rng=4).loc["bad", COMPARED]
    assert list(other) == pytest.approx([-one.iloc[0], -one.iloc[2], -one.iloc[1]])


@pytest.mark.parametrize("missing", ["good", "ridge"])
def test_a_score_that_either_lacks_is_left_out(missing: str) -> None:
    """A missing score of the method or of the baseline is not a score of 0."""
    table = long()
    gone = (table["method"] == missing) & (table["gene"] == "G1")
    for part in (table[~gone], table.assign(value=table["value"].mask(gone))):
        found, both = (metrics.summarize(one).loc["good", COMPARED] for one in (part, table[table["gene"] != "G1"]))
        assert list(found) == list(both)


def test_only_genes_and_slides_that_both_have() -> None:
    table = long()
    less = table[~((table["method"] == "good") & table["slide"].isin(["S7", "S8"]))].copy()
    less.loc[(less["method"] == "good") & (less["gene"] == "G0"), "value"] = np.nan
    both = table[~table["slide"].isin(["S7", "S8"]) & (table["gene"] != "G0")]
    row, expected = (metrics.summarize(part).loc["good"] for part in (less, both))
    assert list(row[COMPARED]) == list(expected[COMPARED])
    assert (row["n_patients"], row["n_slides"], row["meaningful"]) == (3, 6, False)
    assert row["relative"] == pytest.approx(expected["difference"] / metrics.summarize(both).loc["ridge", "mean"])
    assert row["undefined"] == pytest.approx(7 / 42)
    assert metrics.summarize(less).loc["ridge", "n_patients"] == 5


def test_constant_predictions_are_told() -> None:
    """The gene mean has no correlation; the slide counts for nothing, and the table says why."""
    table = long()
    table.loc[(table["method"] == "bad") & (table["metric"] == "pearson"), "value"] = np.nan
    row = metrics.summarize(table).loc["bad"]
    assert row["undefined"] == 1
    assert row[["mean", "low", "high", "difference", "relative"]].isna().all()
    assert (row["n_slides"], row["meaningful"]) == (0, False)
    assert metrics.summarize(table).index[-1] == "bad"


def test_a_method_does_not_change_the_row_of_another() -> None:
    table = long()
    expected = metrics.summarize(table).loc[["good", "ridge"]]
    pd.testing.assert_frame_equal(metrics.summarize(table[table["method"] != "bad"]), expected)
    pd.testing.assert_frame_equal(
        metrics.summarize(table.astype({"method": "category", "slide": "category"})).iloc[:2], expected
    )


def test_without_seeds_baseline_or_patients() -> None:
    table = long()
    single = table[table["seed"] == 0].drop(columns="seed")
    assert metrics.summarize(single).loc["ridge", "mean"] == metrics.summarize(table).loc["ridge", "mean"]
    alone = metrics.summarize(table, None)
    assert alone[["difference", "difference_low", "relative"]].isna().all(axis=None)
    assert alone["meaningful"].all()
    row = metrics.summarize(table.assign(patient=None)).loc["good"]
    assert (row["n_patients"], row["unit"], row["meaningful"]) == (1, "slide", False)
    assert row["low"] < row["mean"] < row["high"]


def test_share_above() -> None:
    assert metrics.share_above([0.1, 0.3, 0.31, np.nan, 0.9]) == 0.5
    assert metrics.share_above([0.1, 0.3], 0.05) == 1
    assert np.isnan(metrics.share_above([np.nan]))
    assert np.isnan(metrics.share_above([]))


def test_bad_input() -> None:
    table = long()
    with pytest.raises(KeyError, match=r"no column patient, value. Available: 'method', 'slide'"):
        metrics.summarize(table.drop(columns=["patient", "value"]))
    with pytest.raises(KeyError, match=r"no scores 'r2'. Available: 'pearson', 'rmse'|'rmse', 'pearson'"):
        metrics.summarize(table, metric="r2")
    with pytest.raises(KeyError, match=r"no scores of method 'lasso'. Available: .*'ridge'"):
        metrics.summarize(table, "lasso")
    with pytest.raises(ValueError, match=r"pearson of 'ridge' twice for gene 'G\d' of slide .*'seed'"):
        metrics.summarize(pd.concat([table, table[table["method"] == "ridge"]]))
    with pytest.raises(ValueError, match="twice"):
        metrics.summarize(table.drop(columns="seed"))
