"""Means over patients and their intervals, against plain loops and known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from spahgc import metrics


def test_mean_is_over_slides_then_patients() -> None:
    found = metrics.bootstrap([1.0, 3.0, 10.0, np.nan], ["a", "a", "b", "c"])
    assert found.mean == 6
    assert (found.n_patients, found.n_slides, found.level, found.unit) == (2, 3, 0.95, "patient")
    assert 1 <= found.low <= found.mean <= found.high <= 10


def test_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(list("abcdef"), [1, 4, 2, 3, 1, 2])
    values = rng.normal(size=13) + np.repeat(rng.normal(size=6), [1, 4, 2, 3, 1, 2])
    order = rng.permutation(13)  # the order of the slides does not matter
    found = metrics.bootstrap(values[order], patients[order], n_resamples=20_000, level=0.8, rng=1)
    means = []
    for _ in range(20_000):
        drawn = [
            rng.choice(values[patients == name], (patients == name).sum()).mean() for name in rng.choice([*"abcdef"], 6)
        ]
        means.append(np.mean(drawn))
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.1, 0.9]), abs=0.03)


def test_one_slide_a_patient_is_the_usual_bootstrap() -> None:
    values = np.random.default_rng(0).gamma(2, size=30)
    found = metrics.bootstrap(values, range(30), n_resamples=20_000)
    usual = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert (found.low, found.high) == pytest.approx((usual.low, usual.high), abs=0.02)
    assert found.mean == pytest.approx(values.mean())


def test_covers_the_mean_of_patients_not_seen() -> None:
    """Slides of one patient are alike: an interval that took them for independent would be far too narrow."""
    rng, covered = np.random.default_rng(0), 0
    patients = np.repeat(np.arange(15), 4)
    for _ in range(200):
        values = np.repeat(rng.normal(size=15), 4) + 0.2 * rng.normal(size=60)
        found = metrics.bootstrap(values, patients, n_resamples=400, rng=rng)
        covered += found.low <= 0 <= found.high
    assert 0.85 <= covered / 200 <= 0.98


@pytest.mark.parametrize(("n", "meaningful"), [(1, False), (4, False), (5, True), (8, True)])
def test_meaningful_from_five_patients(n: int, meaningful: bool) -> None:
    found = metrics.bootstrap(np.arange(2.0 * n), np.repeat(np.arange(n), 2))
    assert found.meaningful is meaningful
    assert found.unit == ("patient" if n > 1 else "slide")
    assert found.low < found.mean < found.high


def test_few_slides() -> None:
    one = metrics.bootstrap([0.3, np.nan], ["a", "b"])
    assert one.mean == 0.3
    assert np.isnan([one.low, one.high]).all()
    none = metrics.bootstrap([np.nan], ["a"])
    assert np.isnan([none.mean, none.low, none.high]).all()
    assert (none.n_patients, none.n_slides, none.meaningful) == (0, 0, False)
    assert np.isnan(metrics.bootstrap([], []).mean)


def test_seed() -> None:
    values, patients = np.arange(12.0), np.arange(12) // 2
    first = metrics.bootstrap(values, patients, rng=3)
    assert first == metrics.bootstrap(values, patients, rng=np.random.default_rng(3))
    assert first != metrics.bootstrap(values, patients, rng=4)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"one entry per slide, got shapes \(2,\) and \(3,\)"):
        metrics.bootstrap([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="`level` must be a finite number between 0 and 1, got 95"):
        metrics.bootstrap([1, 2], [1, 2], level=95)
    with pytest.raises(ValueError, match="`n_resamples` must be an integer of at least 1, got 0"):
        metrics.bootstrap([1, 2], [1, 2], n_resamples=0)
