"""Moran's I against scanpy and the plain double sum."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import squidpy as sq
from anndata import AnnData
from scipy import stats

from spahgc import metrics


def slide(seed: int, n: int = 80, g: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates, and genes with patterns from none to strong."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 100, (n, 2))
    return xy, np.sin(xy[:, :1] / 20) * np.linspace(0, 2, g) + rng.normal(size=(n, g)) + 100 * rng.normal(size=g)


@pytest.mark.parametrize("seed", range(5))
def test_against_the_double_sum(seed: int) -> None:
    xy, x = slide(seed, n=30)
    index = metrics.spatial_knn(xy, 4)
    expected = []
    for gene in x.T:
        z = gene - gene.mean()
        total = sum(z[i] * z[j] / 4 for i in range(30) for j in index[i])
        expected.append(total / (z**2).sum())
    np.testing.assert_allclose(metrics.morans_i(x, index), expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_against_scanpy_on_squidpy_neighbors(seed: int) -> None:
    xy, x = slide(seed)
    adata = AnnData(x, obsm={"spatial": xy})
    sq.gr.spatial_neighbors_knn(adata, n_neighs=6)
    weights = adata.obsp["spatial_connectivities"]
    standard = sp.csr_matrix(weights / weights.sum(axis=1))
    expected = sc.metrics.morans_i(standard, x.T)
    np.testing.assert_allclose(metrics.morans_i(x, weights), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.morans_i(x, metrics.spatial_knn(xy, 6)), expected, rtol=1e-5)


def test_spots_without_neighbors() -> None:
    """Isolated spots, as squidpy leaves them at the rim: scanpy's formula divides by the sum of the weights."""
    xy, x = slide(0)
    weights = sp.random_array((80, 80), density=0.02, rng=np.random.default_rng(0), format="csr")
    sums = weights.sum(axis=1)
    assert (sums == 0).any()
    standard = sp.csr_matrix(weights.toarray() / np.where(sums > 0, sums, 1)[:, None])
    np.testing.assert_allclose(metrics.morans_i(x, weights), sc.metrics.morans_i(standard, x.T), rtol=1e-5)


def test_a_pattern_is_seen_and_noise_is_not() -> None:
    xy, _ = slide(0, n=2000)
    x = np.column_stack([xy[:, 0], np.random.default_rng(1).normal(size=2000)])
    smooth, noise = metrics.morans_i(x, metrics.spatial_knn(xy, 6))
    assert smooth > 0.95
    assert abs(noise) < 0.05


def test_constant_genes_and_nan() -> None:
    xy, x = slide(0, g=4)
    x[:, 0], x[3, 1], x[:, 2] = 1 / 3, np.nan, 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.morans_i(x.astype(np.float32), metrics.spatial_knn(xy, 6))
    np.testing.assert_array_equal(np.isnan(found), [True, True, True, False])


@pytest.mark.parametrize("how", ["pearson", "spearman"])
def test_agreement_is_the_correlation_over_genes(how: str) -> None:
    xy, x = slide(0, g=12)
    y = x + np.random.default_rng(1).normal(size=x.shape)
    index = metrics.spatial_knn(xy, 6)
    of = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[how]
    expected = of(metrics.morans_i(x, index), metrics.morans_i(y, index)).statistic
    assert metrics.morans_i_agreement(x, y, index, method=how) == pytest.approx(expected)
    y = np.column_stack([y, np.zeros(80)])  # a gene that is constant in one is left out
    x = np.column_stack([x, xy[:, 0]])
    assert metrics.morans_i_agreement(x, y, index, method=how) == pytest.approx(expected)
    assert np.isnan(metrics.morans_i_agreement(x, np.zeros_like(x), index))
    assert metrics.morans_i_agreement(x, 3 * x + 1, index, method=how) == pytest.approx(1)


def test_bad_input() -> None:
    xy, x = slide(0)
    index = metrics.spatial_knn(xy, 6)
    for bad in (index.astype(float), index[:, 0], xy, index + 1, index - 1):
        with pytest.raises(ValueError, match=r"integer array \(n_obs, k\) of rows from 0 to 79, got .*spatial_knn"):
            metrics.morans_i(x, bad)
    for bad in (index[:-1], sp.eye_array(3, format="csr"), sp.csr_array((80, 80))):
        with pytest.raises(ValueError, match=r"a row for each of 80 spots and at least one pair of .*, got \d+ pairs"):
            metrics.morans_i(x, bad)
    with pytest.raises(ValueError, match="`values` must be a matrix"):
        metrics.morans_i(x[:, 0], index)
    with pytest.raises(ValueError, match="`method` must be one of 'pearson', 'spearman', got 'kendall'"):
        metrics.morans_i_agreement(x, x, index, method="kendall")
