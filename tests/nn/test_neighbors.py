from __future__ import annotations

import numpy as np
import pytest

from spahgc._slides import Rows, Stack
from spahgc.nn import cosine_topk, spatial_knn


def brute_cosine(query, bank, k, exclude_self=False):
    """Full float64 search, one pair at a time."""
    indices = np.empty((len(query), k), dtype=int)
    similarities = np.empty((len(query), k))
    for i, q in enumerate(query.astype(float)):
        scored = []
        for j, b in enumerate(bank.astype(float)):
            if exclude_self and i == j:
                continue
            norms = np.linalg.norm(q) * np.linalg.norm(b)
            scored.append((-round(q @ b / norms, 9) if norms else 0.0, j))
        scored.sort()
        indices[i] = [j for _, j in scored[:k]]
        similarities[i] = [-s for s, _ in scored[:k]]
    return indices, similarities


@pytest.mark.parametrize("exclude_self", [False, True])
def test_cosine_topk_equals_brute_force(exclude_self):
    rng = np.random.default_rng(1)
    bank = rng.normal(size=(90, 12)).astype(np.float32)
    query = bank if exclude_self else rng.normal(size=(40, 12)).astype(np.float32)
    indices, similarities = cosine_topk(query, bank, 7, exclude_self=exclude_self)
    expected, expected_similarities = brute_cosine(query, bank, 7, exclude_self)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, expected_similarities, atol=1e-7)
    assert indices.dtype == np.int64
    assert similarities.dtype == np.float32


def test_cosine_topk_ties_go_to_the_lower_index():
    # Many directions, each with a copy, multiples and rows of zeros: ties that the nine more candidates hold.
    rng = np.random.default_rng(2)
    directions = rng.normal(size=(60, 8))
    bank = (np.tile(directions, (4, 1)) * rng.integers(1, 4, size=(240, 1))).astype(np.float32)
    bank = bank[rng.permutation(240)]
    bank[::61] = 0
    query = np.concatenate([directions, rng.normal(size=(4, 8))]).astype(np.float32)
    for k in (1, 3, 30):
        np.testing.assert_array_equal(cosine_topk(query, bank, k)[0], brute_cosine(query, bank, k)[0])


def test_cosine_topk_of_very_many_ties_is_reproducible():
    """All rows are as similar; which of them are found is not stated, but it is always the same, each once."""
    bank = np.repeat(np.eye(3, dtype=np.float32)[:1], 500, axis=0)
    index, similarity = cosine_topk(bank[:20], bank, 40)
    assert all(len(set(row)) == 40 for row in index.tolist())
    np.testing.assert_array_equal(similarity, 1)
    np.testing.assert_array_equal(cosine_topk(bank[:20], bank, 40)[0], index)


@pytest.mark.parametrize("exclude_self", [False, True])
def test_cosine_topk_of_zeros_are_the_first_rows(exclude_self):
    bank = np.random.default_rng(4).normal(size=(40, 3))
    bank[[0, 7, 30]] = 0
    for k in (4, 39):
        found = cosine_topk(bank, bank, k, exclude_self=exclude_self)[0]
        for i in (0, 7, 30):
            assert found[i].tolist() == [j for j in range(40) if j != i or not exclude_self][:k]


def test_cosine_topk_does_not_depend_on_the_chunk(monkeypatch):
    rng = np.random.default_rng(3)
    bank, query = (rng.normal(size=(n, 40)).astype(np.float32) for n in (300, 57))
    indices, similarities = cosine_topk(query, bank, 9)
    for chunk in (1, 2, 7, 57):
        monkeypatch.setattr("spahgc.nn.retrieval._CHUNK", chunk)
        monkeypatch.setattr("spahgc.nn.retrieval._BLOCK", 5 * chunk)
        other = cosine_topk(query, bank, 9)
        np.testing.assert_array_equal(other[0], indices)
        np.testing.assert_array_equal(other[1], similarities)


def test_cosine_topk_reads_rows(monkeypatch):
    """A bank that is scaled when it is read, in parts that end within blocks: as the array."""
    monkeypatch.setattr("spahgc.nn.retrieval._BLOCK", 64)
    rng = np.random.default_rng(5)
    parts = [rng.normal(size=(n, 6)).astype(np.float16) for n in (50, 1, 200, 30)]
    mean, scale = rng.normal(size=6), np.array([1, 2, 0.5, np.inf, 1, 3])
    stack = Stack([Rows(part, mean=mean, scale=scale) for part in parts])
    array, query = np.asarray(stack), rng.normal(size=(20, 6)).astype(np.float32)
    expected = brute_cosine(query, array, 9)[0]
    np.testing.assert_array_equal(cosine_topk(query, stack, 9)[0], expected)
    for found, wanted in zip(cosine_topk(query, stack, 9), cosine_topk(query, array, 9), strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="query has 5 features and bank has 6"):
        cosine_topk(query[:, :5], stack, 1)
    parts[2][19, 0] = np.inf
    with pytest.raises(ValueError, match="`bank` has NaN or infinite values in 1 of 64 rows, first in row 70"):
        cosine_topk(query, stack, 1)


def test_cosine_topk_errors():
    x = np.ones((4, 3), dtype=np.float32)
    with pytest.raises(ValueError, match="has 4 spots to choose from, but k = 5"):
        cosine_topk(x, x, 5)
    with pytest.raises(ValueError, match="has 3 spots to choose from, but k = 4"):
        cosine_topk(x, x, 4, exclude_self=True)
    with pytest.raises(ValueError, match="query has 3 features and bank has 2"):
        cosine_topk(x, x[:, :2], 1)
    with pytest.raises(ValueError, match="exclude_self"):
        cosine_topk(x[:2], x, 1, exclude_self=True)
    bad = x.copy()
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match="`bank` has NaN or infinite values in 1 of 4 rows, first in row 2"):
        cosine_topk(x, bad, 1)
    with pytest.raises(ValueError, match="shape"):
        cosine_topk(x[0], x, 1)
    with pytest.raises(ValueError, match="`k` must be an integer of at least 1"):
        cosine_topk(x, x, 0)
    with pytest.raises(TypeError, match="`k` must be an integer"):
        cosine_topk(x, x, 2.0)
    with pytest.raises(TypeError, match="dtype"):
        cosine_topk(np.array([["a"]]), x, 1)


def brute_spatial(xy, k):
    k = min(k, len(xy) - 1)
    result = np.empty((len(xy), k), dtype=int)
    for i in range(len(xy)):
        distance = np.round(np.linalg.norm(xy - xy[i], axis=1), 7)
        result[i] = sorted((j for j in range(len(xy)) if j != i), key=lambda j: (distance[j], j))[:k]
    return result


def grids():
    square = np.stack(np.meshgrid(np.arange(9.0), np.arange(8.0)), axis=-1).reshape(-1, 2) * 290.3 + 1000
    hexagonal = square.copy()
    hexagonal[:, 0] += 145.15 * (np.round((hexagonal[:, 1] - 1000) / 290.3) % 2)
    hexagonal[:, 1] *= np.sqrt(3) / 2
    scattered, stacked = np.random.default_rng(0).uniform(size=(70, 2)), np.repeat(square[:4], 12, axis=0)
    made = {"square": square, "hexagonal": hexagonal, "scattered": scattered, "stacked": stacked}
    return {**made, "one place": np.zeros((40, 2))}


@pytest.mark.parametrize("name", grids())
@pytest.mark.parametrize("k", [1, 5, 20])
def test_spatial_knn_equals_brute_force_under_ties(name, k):
    xy = grids()[name]
    np.testing.assert_array_equal(spatial_knn(xy, k), brute_spatial(xy, k))
    # Not by the accident of one order of rows.
    shuffled = np.random.default_rng(5).permutation(len(xy))
    np.testing.assert_array_equal(spatial_knn(xy[shuffled], k), brute_spatial(xy[shuffled], k))


def test_spatial_knn_on_few_spots_gives_all_others():
    np.testing.assert_array_equal(spatial_knn([[0, 0], [1, 0], [5, 0]], 5), [[1, 2], [0, 2], [1, 0]])
    assert spatial_knn([[0, 0]], 5).shape == (1, 0)
    assert spatial_knn(np.empty((0, 2)), 5).shape[0] == 0


def test_spatial_knn_errors():
    with pytest.raises(ValueError, match="2 or 3 columns .*got 4"):
        spatial_knn(np.zeros((3, 4)), 1)
    with pytest.raises(ValueError, match="`coordinates` has NaN"):
        spatial_knn([[0, np.nan], [1, 1]], 1)
    with pytest.raises(ValueError, match=r"`coordinates` must be a matrix .* got shape \(2,\)"):
        spatial_knn([0, 1], 1)
    with pytest.raises(ValueError, match="`k` must be an integer of at least 1, got 0"):
        spatial_knn([[0, 0], [1, 1]], 0)
