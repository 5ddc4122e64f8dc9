"""The approximate index: what it finds, and what it says of itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from spahgc._slides import Rows
from spahgc.nn import ApproximateIndex, cosine_topk

K = 7


def clustered(seed: int = 0, d: int = 32) -> list[np.ndarray]:
    """Slides of spots around 60 centres; the centres are those of all slides, and each slide has a shift of its own."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, d))
    return [
        (centres[rng.integers(0, 60, n)] + 0.2 * rng.normal(size=d) + 0.5 * rng.normal(size=(n, d))).astype(np.float32)
        for n in (700, 400, 900, 600)
    ]


def plain_recall(index: ApproximateIndex, slides: list[np.ndarray]) -> float:
    """Share of the K best by a full float64 product, from every slide to the others, that the index finds."""
    shares = []
    units = [slide / np.linalg.norm(slide.astype(np.float64), axis=1, keepdims=True) for slide in slides]
    for i, own in enumerate(units):
        cosine = own @ np.concatenate(units).T
        cosine[:, sum(map(len, units[:i])) : sum(map(len, units[: i + 1]))] = -2
        best = np.argsort(-cosine, axis=1)[:, :K]
        found = index.search(slides[i], without=i)[0]
        shares.append((found[:, :, None] == best[:, None, :]).any(axis=1).mean())
    return float(np.mean(shares))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def slides() -> list[np.ndarray]:
    return clustered()


@pytest.fixture(scope="module")
def index(slides: list[np.ndarray]) -> ApproximateIndex:
    return ApproximateIndex(slides, K)


def test_it_finds_nearly_all_and_says_how_many(index: ApproximateIndex, slides: list[np.ndarray]) -> None:
    assert index.recall >= 0.99
    assert index.n_queries == 4 * 64
    assert index.n_probed < index.n_lists
    assert plain_recall(index, slides) == pytest.approx(index.recall, abs=0.01)


def test_recall_is_not_made_up() -> None:
    """Without clusters the eight nearest lists hold much less, and that is what is said."""
    rng = np.random.default_rng(0)
    slides = [rng.normal(size=(n, 32)).astype(np.float32) for n in (700, 400, 900, 600)]
    index = ApproximateIndex(slides, K, least_recall=0.0)
    assert index.n_probed == 8
    assert 0.2 < index.recall < 0.8
    assert plain_recall(index, slides) == pytest.approx(index.recall, abs=0.05)


def test_all_lists_are_the_exact_search() -> None:
    rng = np.random.default_rng(0)
    slides = [rng.normal(size=(n, 20)).astype(np.float32) for n in (300, 200)]
    index = ApproximateIndex(slides, K, least_recall=1.0)
    index.n_probed = index.n_lists
    query = rng.normal(size=(50, 20)).astype(np.float32)
    for found, expected in zip(index.search(query), cosine_topk(query, np.concatenate(slides), K), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


def test_ties_go_to_the_lower_index() -> None:
    """Rows that are copies of each other: all are in one list, and fewer than the shortlist holds."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 16)).astype(np.float32)
    slides = [rows, 2 * rows, 3 * rows]
    index = ApproximateIndex(slides, 3)
    found, similarity = index.search(rows)
    np.testing.assert_array_equal(found, np.arange(80)[:, None] + [0, 80, 160])
    np.testing.assert_array_equal(similarity, 1)
    index = ApproximateIndex(slides, 2)
    np.testing.assert_array_equal(index.search(rows, without=1)[0], np.arange(80)[:, None] + [0, 160])


@pytest.mark.parametrize("without", [0, 1, 3])
def test_a_slide_is_left_out(index: ApproximateIndex, slides: list[np.ndarray], without: int) -> None:
    found = index.search(slides[without], without=without)[0]
    start = sum(map(len, slides[:without]))
    assert not ((found >= start) & (found < start + len(slides[without]))).any()


def test_where_the_lists_hold_too_few_all_are_looked_at(slides: list[np.ndarray]) -> None:
    k = 400
    index = ApproximateIndex(slides, k)
    index.n_probed = 1
    found, similarity = index.search(slides[1][:30], without=2)
    expected = cosine_topk(slides[1][:30], np.concatenate([*slides[:2], slides[3]]), k)[0]
    np.testing.assert_array_equal(found, np.where(expected < 1100, expected, expected + 900))
    assert (np.diff(similarity, axis=1) <= 0).all()


def test_the_same_with_any_number_of_threads(slides: list[np.ndarray]) -> None:
    made = []
    for n_threads, seed in ((1, 0), (2, 0), (2, 1)):
        torch.set_num_threads(n_threads)
        index = ApproximateIndex(slides, K, seed=seed)
        made.append((faiss.serialize_index(index._index).tobytes(), index.n_probed, index.search(slides[0])[0]))
    assert made[0][:2] == made[1][:2]
    np.testing.assert_array_equal(made[0][2], made[1][2])
    assert made[2][0] != made[1][0]


def test_half_precision_that_is_mapped(tmp_path: Path, slides: list[np.ndarray], index: ApproximateIndex) -> None:
    mapped = []
    for i, slide in enumerate(slides):
        np.save(tmp_path / f"{i}.npy", slide.astype(np.float16))
        mapped.append(Rows(np.load(tmp_path / f"{i}.npy", mmap_mode="r")))
    half = ApproximateIndex(mapped, K)
    assert half.recall >= 0.99
    assert np.mean(half.search(slides[0])[0] == index.search(slides[0])[0]) > 0.97


def test_a_byte_per_feature() -> None:
    rng = np.random.default_rng(0)
    index = ApproximateIndex([rng.normal(size=(3000, 256)), rng.normal(size=(3000, 256))], 3, least_recall=0.0)
    assert len(faiss.serialize_index(index._index)) < 1.15 * 6000 * 256


# Errors.


def test_without_faiss(slides: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'spahgc\[ann\]'"):
        ApproximateIndex(slides, K)


def test_errors(index: ApproximateIndex, slides: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least two slides"):
        ApproximateIndex(slides[:1], K)
    with pytest.raises(ValueError, match="k = 500 are needed"):
        ApproximateIndex(slides[:2], 500)
    bad = [slides[0], slides[1].copy()]
    bad[1][3, 2] = np.nan
    with pytest.raises(ValueError, match="first in row 703"):
        ApproximateIndex(bad, K)
    with pytest.raises(ValueError, match="`query` has NaN"):
        index.search(bad[1])
    with pytest.raises(ValueError, match="`k` must be an integer of at least 1, got 0"):
        ApproximateIndex(slides, 0)
