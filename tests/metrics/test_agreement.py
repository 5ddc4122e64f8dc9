"""Per-gene scores against scipy, scikit-learn and plain definitions."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from spahgc import metrics

SEEDS = range(20)
CORRELATIONS = {
    "pearson": metrics.pearson,
    "spearman": metrics.spearman,
    "pearson_depth_removed": lambda a, b: metrics.pearson_depth_removed(a, b, np.arange(1, len(a) + 1) ** 2),
}


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices of 2 to 60 spots and 1 to 8 genes, correlated, of many scales and offsets, with ties."""
    rng = np.random.default_rng(seed)
    n, g = int(rng.integers(3, 60)), int(rng.integers(1, 8))
    a = rng.normal(size=(n, g))
    b = rng.uniform(-1, 1, g) * a + rng.normal(size=(n, g))
    if seed % 3 == 0:
        a, b = np.round(a * 2), np.round(b * 2)  # ties
        a[0], b[0], a[1], b[1] = 9, 8, -9, 8  # no column is constant
        b[2] = -8
    scale = 10 ** rng.uniform(-6, 6, (2, g))
    offset = rng.normal(size=(2, g)) * scale * 100
    return a * scale[0] + offset[0], b * scale[1] + offset[1]


@pytest.mark.parametrize("seed", SEEDS)
def test_against_scipy_and_scikit_learn(seed: int) -> None:
    a, b = pair(seed)
    genes = list(zip(a.T, b.T, strict=True))
    np.testing.assert_allclose(metrics.pearson(a, b), [stats.pearsonr(x, y).statistic for x, y in genes], atol=1e-9)
    np.testing.assert_allclose(metrics.spearman(a, b), [stats.spearmanr(x, y).statistic for x, y in genes], atol=1e-9)
    np.testing.assert_allclose(metrics.rmse(a, b), root_mean_squared_error(a, b, multioutput="raw_values"), rtol=1e-9)
    np.testing.assert_allclose(metrics.mae(a, b), mean_absolute_error(a, b, multioutput="raw_values"), rtol=1e-9)
    depth = np.random.default_rng(seed + 100).integers(1, 10_000, len(a))
    expected = [stats.pearsonr(x, np.log(depth + 1)).statistic for x in a.T]
    np.testing.assert_allclose(metrics.depth_only(a, depth), expected, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_removed_is_the_partial_correlation(seed: int) -> None:
    """Correlation of the residuals of least squares on an intercept and the log depth."""
    a, b = pair(seed)
    depth = np.random.default_rng(seed + 100).integers(1, 10_000, len(a))
    design = np.column_stack([np.ones(len(a)), np.log(depth + 1)])
    rest = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in (a, b)]
    expected = [stats.pearsonr(x, y).statistic for x, y in zip(rest[0].T, rest[1].T, strict=True)]
    if len(a) > 3:
        np.testing.assert_allclose(metrics.pearson_depth_removed(a, b, depth), expected, atol=1e-7)


def test_depth_removed_takes_away_what_only_depth_gives() -> None:
    rng = np.random.default_rng(0)
    depth = rng.lognormal(8, 0.5, 2000)
    log_depth = np.log(depth + 1)[:, None]
    a, b = log_depth + 0.1 * rng.normal(size=(2000, 3)), log_depth + 0.1 * rng.normal(size=(2000, 3))
    assert (metrics.pearson(a, b) > 0.9).all()
    assert (np.abs(metrics.pearson_depth_removed(a, b, depth)) < 0.1).all()
    signal = rng.normal(size=(2000, 3))
    assert (metrics.pearson_depth_removed(a + signal, b + signal, depth) > 0.9).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CORRELATIONS)
def test_invariances(name: str, seed: int) -> None:
    score = CORRELATIONS[name]
    a, b = pair(seed)
    expected = score(a, b)
    assert expected.shape == (a.shape[1],)
    assert expected.dtype == np.float64
    assert (np.abs(expected[np.isfinite(expected)]) <= 1).all()
    np.testing.assert_allclose(score(b, a), expected, atol=1e-7)
    np.testing.assert_allclose(score(a, -2 * b), -expected, atol=1e-7)
    np.testing.assert_allclose(score(a[:, ::-1], b[:, ::-1]), expected[::-1], atol=1e-9)
    np.testing.assert_allclose(score(a.tolist(), b.tolist()), expected, atol=1e-12)


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("constant", [0.0, 1.0, 1 / 3, 1e-30, -7.7e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_gene_is_nan(name: str, constant: float, dtype: type) -> None:
    a = np.random.default_rng(0).normal(size=(30, 3)).astype(dtype)
    b = a.copy()
    a[:, 0] = constant
    b[:, 1] = constant
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.isnan(CORRELATIONS[name](a, b)), [True, True, False])
    assert metrics.rmse(a, a)[0] == 0


@pytest.mark.parametrize("name", CORRELATIONS)
def test_rounding_noise_is_no_signal(name: str) -> None:
    """A constant gene that went through float32 sums differs in its last bits, along with the spot's other values."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(50, 1))
    a = (5 + 1e-8 * noise).astype(np.float64)
    assert np.isnan(CORRELATIONS[name](a, noise)).all()
    assert np.isnan(CORRELATIONS[name](noise, a)).all()


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_float32_with_a_large_offset(offset: float) -> None:
    rng = np.random.default_rng(0)
    a = (rng.normal(size=(500, 4)) + offset).astype(np.float32)
    b = (0.5 * a + rng.normal(size=(500, 4))).astype(np.float32)
    exact = [
        stats.pearsonr(x.astype(np.float64), y.astype(np.float64)).statistic for x, y in zip(a.T, b.T, strict=True)
    ]
    np.testing.assert_allclose(metrics.pearson(a, b), exact, atol=1e-9)
    np.testing.assert_allclose(metrics.rmse(a, a + 1), 1, rtol=1e-3)


@pytest.mark.parametrize("name", CORRELATIONS)
def test_a_gene_with_nan_is_nan_and_no_other(name: str) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30, 3))
    a[4, 0] = np.nan
    b[5, 2] = np.nan
    np.testing.assert_array_equal(np.isnan(CORRELATIONS[name](a, b)), [True, False, True])
    assert CORRELATIONS[name](a, b)[1] == pytest.approx(CORRELATIONS[name](a[:, 1:2], b[:, 1:2])[0])


def test_depth_that_is_constant_or_not_known() -> None:
    a, b = pair(1)
    depth = np.full(len(a), 500.0)
    np.testing.assert_array_equal(metrics.pearson_depth_removed(a, b, depth), metrics.pearson(a, b))
    assert np.isnan(metrics.depth_only(a, depth)).all()
    depth[0] = np.nan
    assert np.isnan(metrics.pearson_depth_removed(a, b, depth)).all()
    assert np.isnan(metrics.depth_only(a, depth)).all()
    # A gene that is depth itself has nothing left.
    depth = np.arange(1.0, 40.0)
    a = np.log(depth + 1)[:, None]
    assert metrics.pearson(a, a) == pytest.approx(1)
    assert np.isnan(metrics.pearson_depth_removed(a, a, depth)).all()


def test_bad_input() -> None:
    a = np.zeros((5, 2))
    for score in (metrics.pearson, metrics.spearman, metrics.rmse, metrics.mae):
        for x, y in ((a, a[:4]), (a[:, 0], a[:, 0]), (a[:1], a[:1])):
            shapes = re.escape(f"of one shape with at least two spots, got {x.shape} and {y.shape}")
            with pytest.raises(ValueError, match=shapes):
                score(x, y)
    for depth in (np.ones(4), -np.ones(5)):
        with pytest.raises(ValueError, match=f"total count of each of 5 spots, at least 0, got {len(depth)} values"):
            metrics.pearson_depth_removed(a, a, depth)
    assert metrics.pearson(a[:, :0], a[:, :0]).shape == (0,)
