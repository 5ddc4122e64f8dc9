"""Units of expression and the choice of the panel."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from scipy.stats import rankdata

from spahgc._slides import dispersion, normalize, rank_genes, spot_depth

KINDS = [np.asarray, sp.csr_matrix, sp.csr_array, sp.csc_array]


@pytest.fixture
def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 4, size=30), size=(40, 30)).astype(np.float32)
    counts[3] = 0  # a spot without counts
    counts[:, 5] = 0  # a gene without counts
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_log1p_is_that_of_scanpy(counts: np.ndarray, kind: Any) -> None:
    table = ad.AnnData(counts.copy())
    sc.pp.normalize_total(table, target_sum=1e4)
    sc.pp.log1p(table)
    found = normalize(kind(counts))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, table.X, rtol=1e-5)
    assert (found[3] == 0).all()
    # Depth is over all genes, whichever are asked for.
    np.testing.assert_array_equal(normalize(kind(counts), genes=np.array([7, 2])), found[:, [7, 2]])


def test_other_units(counts: np.ndarray) -> None:
    np.testing.assert_allclose(normalize(counts, "log10"), np.log10(counts + 1), rtol=1e-6)
    np.testing.assert_array_equal(normalize(counts, "none"), counts)
    np.testing.assert_array_equal(normalize(-counts, "none", genes=np.array([1])), -counts[:, [1]])
    with pytest.raises(ValueError, match="must be one of 'log1p', 'log10', 'none', got 'cpm'"):
        normalize(counts, "cpm")


def test_input_is_not_changed(counts: np.ndarray) -> None:
    before, matrix = counts.copy(), sp.csr_array(counts)
    normalize(counts)
    normalize(matrix)
    rank_genes([counts, matrix])
    np.testing.assert_array_equal(counts, before)
    np.testing.assert_array_equal(matrix.toarray(), before)


def test_depth_does_not_overflow() -> None:
    assert spot_depth(np.full((1, 40), 2000, np.float16)) == 80_000
    assert spot_depth(np.full((1, 400), 200, np.uint8)) == 80_000
    # 2^24 + 1 is no float32.
    assert spot_depth(sp.csr_array(np.array([[2.0**24, 1, 0]], np.float32))) == 2**24 + 1
    depth = spot_depth(sp.csr_matrix(np.eye(3, dtype=np.int8)))
    assert depth.dtype == np.float64
    assert depth.shape == (3,)


def plain_dispersion(counts: np.ndarray) -> np.ndarray:
    depth = counts.sum(axis=1, dtype=float)
    out = np.zeros(counts.shape[1])
    for gene in range(counts.shape[1]):
        total = counts[:, gene].sum(dtype=float)
        if total > 0:
            expected = total / depth.sum() * depth
            out[gene] = ((counts[:, gene] - expected) ** 2).sum() / total
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_dispersion_against_a_plain_loop(counts: np.ndarray, kind: Any) -> None:
    np.testing.assert_allclose(dispersion(kind(counts)), plain_dispersion(counts), rtol=1e-9, atol=1e-9)


def test_dispersion_of_chance_is_one_whatever_the_depth() -> None:
    rng = np.random.default_rng(0)
    depth = rng.lognormal(8, 1, 5000)
    share = np.array([1e-4, 1e-3, 1e-2, 0.1])
    counts = rng.poisson(depth[:, None] * share)
    counts = np.column_stack([counts, rng.poisson(depth * (1 - share.sum()))])
    np.testing.assert_allclose(dispersion(counts)[:4], 1 - share, atol=0.1)
    # A gene that varies beyond chance stands out.
    patchy = rng.poisson(depth * 1e-2 * np.where(np.arange(5000) < 2500, 1.8, 0.2))
    assert dispersion(np.column_stack([counts, patchy]))[-1] > 5


def plain_ranking(slides: list[np.ndarray], min_fraction: float = 0.05) -> list[int]:
    n = sum(len(slide) for slide in slides)
    mean_rank = np.mean([rankdata(-plain_dispersion(slide)) for slide in slides], axis=0)
    found = sum((slide > 0).sum(axis=0) for slide in slides)
    eligible = [
        gene
        for gene in range(slides[0].shape[1])
        if found[gene] > min_fraction * n and all((slide[:, gene] > 0).any() for slide in slides)
    ]
    return sorted(eligible, key=lambda gene: (mean_rank[gene], gene))


@pytest.fixture
def slides() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    rate = rng.gamma(0.3, 3, size=50)
    slides = [rng.poisson(rng.gamma(1, rate, size=(n, 50))) for n in (30, 45, 20)]
    slides[1][:, 0] = 0  # not found on one slide
    for slide in slides:
        slide[:, 1] = 0
        slide[0, 1] = 50  # variable, but found in one spot a slide
    return slides


@pytest.mark.parametrize("kind", KINDS)
def test_ranking_against_a_plain_loop(slides: list[np.ndarray], kind: Any) -> None:
    found = rank_genes([kind(slide) for slide in slides])
    assert found.tolist() == plain_ranking(slides)
    assert 0 not in found
    assert 1 not in found
    assert rank_genes([kind(slide) for slide in slides], min_fraction=0.3).tolist() == plain_ranking(slides, 0.3)


def test_ranking_does_not_depend_on_any_order(slides: list[np.ndarray]) -> None:
    rng = np.random.default_rng(2)
    expected = rank_genes(slides).tolist()
    assert rank_genes(slides[::-1]).tolist() == expected
    assert rank_genes([slide[rng.permutation(len(slide))] for slide in slides]).tolist() == expected
    # Genes of one mean rank go by their column; the rest has one order.
    genes = rng.permutation(50)
    rank = np.mean([rankdata(-plain_dispersion(slide)) for slide in slides], axis=0)
    again = genes[rank_genes([slide[:, genes] for slide in slides])]
    assert sorted(again) == sorted(expected)
    np.testing.assert_array_equal(rank[again], rank[expected])


def test_explicit_zeros_are_zeros(slides: list[np.ndarray]) -> None:
    stored = [sp.csr_array(slide + 1) for slide in slides]
    for matrix in stored:
        matrix.data -= 1
    assert rank_genes(stored).tolist() == plain_ranking(slides)


def test_nothing_is_eligible() -> None:
    assert rank_genes([np.zeros((4, 3)), np.ones((4, 3))]).size == 0
