"""The noise ceiling on drawn counts whose true expression is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from spahgc import metrics
from spahgc._slides import normalize


def drawn(*, spread: float = 0.0, n: int = 3000, g: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Poisson counts, and log1p of the true counts per 10k."""
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(n, 3)) @ (rng.normal(size=(3, g)) * rng.uniform(0, 0.6, g))
    rate = np.exp(patterns) * rng.lognormal(0, 1.2, g)
    share = rate / rate.sum(axis=1, keepdims=True)
    counts = rng.poisson(share * (1000 * rng.lognormal(0, spread, n))[:, None])
    return counts, np.log1p(1e4 * share)


@pytest.mark.parametrize("spread", [0.0, 0.4, 0.7])
def test_is_the_correlation_of_true_and_measured(spread: float) -> None:
    """Without taking depth out, the mean would be 0.08 too high at a spread of 0.4 and 0.15 at 0.7."""
    counts, true = drawn(spread=spread)
    expected = metrics.pearson(normalize(counts), true)
    difference = metrics.noise_ceiling(counts) - expected
    clear = expected > 0.3
    assert clear.sum() > 100
    assert np.quantile(np.abs(difference[clear]), 0.95) < 0.12
    assert abs(np.nanmean(difference[clear])) < 0.05
    assert abs(np.nanmean(difference)) < 0.04


@pytest.mark.parametrize("how", ["log1p", "log10"])
def test_against_halves_made_molecule_by_molecule(how: Any) -> None:
    counts, _ = drawn(n=60, g=20, spread=0.3)
    design = np.column_stack([np.ones(60), np.log(counts.sum(axis=1) + 1)])
    rng = np.random.default_rng(1)
    r = []
    for _ in range(200):
        first = np.zeros_like(counts)
        for (i, j), count in np.ndenumerate(counts):
            first[i, j] = (rng.random(count) < 0.5).sum()
        a, b = (normalize(half, how).astype(float) for half in (first, counts - first))
        if how == "log1p":
            a, b = (half - design @ np.linalg.lstsq(design, half, rcond=None)[0] for half in (a, b))
        r.append([stats.pearsonr(x, y).statistic for x, y in zip(a.T, b.T, strict=True)])
    r = np.maximum(np.mean(r, axis=0), 0)
    reliability = 2 * r / (1 + r)
    if how == "log1p":
        rest = normalize(counts) - design @ np.linalg.lstsq(design, normalize(counts), rcond=None)[0]
        reliability *= rest.var(axis=0) / normalize(counts).var(axis=0)
    found = metrics.noise_ceiling(counts, n_splits=200, normalize=how)
    clear = r > 0.1
    assert clear.sum() > 5
    np.testing.assert_allclose(found[clear], np.sqrt(reliability)[clear], atol=0.04)


def test_genes_are_a_part_and_depth_is_of_all() -> None:
    counts, _ = drawn(spread=0.7, n=800, g=60)
    genes = np.array([40, 3, 17])
    part, whole = (metrics.noise_ceiling(counts, genes=g, n_splits=60) for g in (genes, None))
    np.testing.assert_allclose(part, whole[genes], atol=0.02)
    alone = metrics.noise_ceiling(counts[:, genes], n_splits=60)
    assert np.abs(alone - whole[genes]).max() > 0.05


def test_more_counts_more_ceiling_and_noise_has_none() -> None:
    rng = np.random.default_rng(0)
    pattern = np.exp(0.5 * rng.normal(size=(3000, 1)))
    counts = rng.poisson(np.hstack([pattern * [0.1, 1, 10], np.full((3000, 1), 3.0), np.full((3000, 1), 300.0)]))
    found = metrics.noise_ceiling(counts)
    assert found[0] < found[1] < found[2]
    assert found[2] > 0.6
    assert found[3] < 0.2


def test_undefined() -> None:
    counts, _ = drawn(n=100, g=10, spread=0.2)
    counts[:, 0], counts[:, 1] = 0, 0
    counts[5, 1] = 1  # one molecule is in one half only
    found = metrics.noise_ceiling(counts)
    assert np.isnan(found[:2]).all()
    assert np.isfinite(found[2:]).all()
    assert ((found[2:] >= 0) & (found[2:] <= 1)).all()


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_array, np.float32, np.uint16])
def test_forms_of_counts(form: type) -> None:
    counts, _ = drawn(n=50, g=12, spread=0.3)
    given = counts.astype(form) if form in (np.float32, np.uint16) else form(counts)
    before = given.copy()
    np.testing.assert_array_equal(metrics.noise_ceiling(given), metrics.noise_ceiling(counts))
    assert (given != before).sum() == 0


def test_seed_and_unit() -> None:
    counts, _ = drawn(n=200, g=12, spread=0.7)
    first = metrics.noise_ceiling(counts, rng=3)
    np.testing.assert_array_equal(first, metrics.noise_ceiling(counts, rng=np.random.default_rng(3)))
    assert (first != metrics.noise_ceiling(counts, rng=4)).any()
    assert np.nanmean(metrics.noise_ceiling(counts, normalize="log10")) > np.nanmean(first)


def test_bad_input() -> None:
    counts = np.ones((5, 3))
    for bad in (counts * 0.5, -counts, counts * np.nan, sp.csr_array(counts * 0.5), counts[0]):
        with pytest.raises(ValueError, match=r"matrix \(n_obs, n_vars\) of raw counts .* without negative, missing or"):
            metrics.noise_ceiling(bad)
    with pytest.raises(ValueError, match="`n_splits` must be an integer of at least 1, got 0"):
        metrics.noise_ceiling(counts, n_splits=0)
    with pytest.raises(ValueError, match="only counts can be split"):
        metrics.noise_ceiling(counts, normalize="none")
    with pytest.raises(ValueError, match="contains a column twice"):
        metrics.noise_ceiling(counts, genes=np.array([1, 1]))
