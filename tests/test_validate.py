"""Checks of what a user passes in, on their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spahgc._checks import format_names, rng_seed
from spahgc._tables import _slots as check


@pytest.fixture
def table(planted: Callable[..., ad.AnnData]) -> ad.AnnData:
    return planted({"A1": "A"})


def test_listed() -> None:
    assert format_names([]) == "none"
    assert format_names(["a", 1]) == "'a', '1'"
    assert format_names(range(12), most=3) == "'0', '1', '2', ... (12 in all)"


def test_rng_seed() -> None:
    assert rng_seed(7) == 7
    assert rng_seed(np.int32(7)) == 7
    a, b = np.random.default_rng(0), np.random.default_rng(0)
    assert rng_seed(a) == rng_seed(b)
    assert rng_seed(a) != rng_seed(np.random.default_rng(0))  # it moves on
    for bad in (-1, 1.5, "0", True, None):
        with pytest.raises((TypeError, ValueError), match="`rng` must be an integer of at least 0"):
            rng_seed(bad)


def test_library_column(table: ad.AnnData) -> None:
    assert check.library_column(table, None, what="target") == "region"
    assert check.library_column(table, "patient", what="target") == "patient"
    table.uns["spatialdata_attrs"]["region_key"] = "gone"
    with pytest.raises(KeyError, match="target.obs has no column 'gone'"):
        check.library_column(table, None, what="target")


def test_embedding_of_any_kind(table: ad.AnnData) -> None:
    """Not copied if it need not be: a slide may be as large as memory."""
    expected = table.obsm["image_toy"].copy()
    assert np.shares_memory(check.embedding(table, "image_toy", what="target"), table.obsm["image_toy"])
    for value in (expected.astype(np.float64), pd.DataFrame(expected, index=table.obs_names), sp.csr_matrix(expected)):
        table.obsm["image_toy"] = value
        found = check.embedding(table, "image_toy", what="target")
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
    table.obsm["image_toy"] = np.full((36, 2), "a")
    with pytest.raises(ValueError, match="must be a numeric matrix"):
        check.embedding(table, "image_toy", what="target")


def test_kinds_of_values() -> None:
    counts = np.array([[0, 2], [0, 0]])
    for make in (np.asarray, sp.csr_array):
        assert check.are_counts(make(counts))
        assert not check.are_counts(make(counts / 3))
        assert not check.are_counts(make(-counts))
        assert check.negative(make(-counts))
        assert not check.negative(make(counts))
        assert check.measured(make(counts)).tolist() == [True, False]
        assert check.measured(make(-counts)).tolist() == [True, False]
    stored_zero = sp.csr_array((np.zeros(1), ([0], [0])), shape=(2, 2))
    assert check.measured(stored_zero).tolist() == [False, False]


def test_names_that_can_be_stored(table: ad.AnnData, tmp_path: Path) -> None:
    names = ["ERBB2", "HLA-DRA", "a.b", "a b"]
    assert all(map(check.is_storable, names))
    assert not any(map(check.is_storable, ["a/b", "", ".", "..", "_index"]))
    table.obsm["spahgc"] = pd.DataFrame(np.zeros((36, 4)), index=table.obs_names, columns=names)
    table.write_zarr(tmp_path / "table.zarr")
    assert list(ad.read_zarr(tmp_path / "table.zarr").obsm["spahgc"].columns) == names


def test_naming_hint() -> None:
    symbols, ensembl = ["ERBB2", "ESR1", "ENSA"], ["ENSG00000141736.3", "ENSMUSG00000000001", "ENSG00000091831"]
    assert "One table uses Ensembl ids, the other symbols" in check.naming_hint(ensembl, symbols)
    assert "One table uses symbols, the other Ensembl ids" in check.naming_hint(symbols, ensembl)
    assert "upper and lower case" in check.naming_hint(["Erbb2", "Esr1"], symbols)
    assert check.naming_hint(["BRCA1", "BRCA2"], symbols) == ""
    assert check.naming_hint([], []) == ""
