"""Structural agreement against numpy's correlation matrices and scipy, gene by gene."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from spahgc import metrics
from spahgc.metrics import _scores


def pair(seed: int, n: int = 40, g: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, 3)) @ rng.normal(size=(3, g)) + rng.normal(size=(n, g))
    return a * 10 ** rng.uniform(-4, 4, g) + 100, a + rng.normal(size=(n, g))


@pytest.mark.parametrize("block", [1, 4, 512])
@pytest.mark.parametrize("seed", range(5))
def test_against_correlation_matrices(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scores, "_BLOCK", block)
    a, b = pair(seed)
    x, y = np.corrcoef(a.T), np.corrcoef(b.T)
    expected = [stats.pearsonr(np.delete(x[i], i), np.delete(y[i], i)).statistic for i in range(9)]
    np.testing.assert_allclose(metrics.structure(a, b), expected, atol=1e-7)


def test_constant_genes_are_nan_and_left_out() -> None:
    a, b = pair(0)
    a[:, 2], b[:, 5], b[4, 7] = 1 / 3, 0, np.nan
    kept = [0, 1, 3, 4, 6, 8]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.structure(a, b)
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(found)), kept)
    np.testing.assert_allclose(found[kept], metrics.structure(a[:, kept], b[:, kept]), atol=1e-12)


def test_perfect_and_unrelated() -> None:
    a, _ = pair(0, n=500, g=60)
    np.testing.assert_allclose(metrics.structure(a, 2 * a - 5), 1)
    assert abs(metrics.structure(a, pair(1, n=500, g=60)[1]).mean()) < 0.2


def test_too_few_genes() -> None:
    a, b = pair(0, g=2)
    assert np.isnan(metrics.structure(a, b)).all()
    assert metrics.structure(a[:, :0], b[:, :0]).shape == (0,)
    # Genes that all follow one pattern: no row of correlations varies.
    assert np.isnan(metrics.structure(a[:, [0, 0, 0, 0]], a[:, [0, 0, 0, 0]])).all()
