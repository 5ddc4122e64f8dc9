"""Which reference spots are most similar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spahgc._disk import keeping
from spahgc._slides import Rows
from spahgc.methods import _references
from spahgc.methods._references import References
from spahgc.nn import cosine_topk

SIZES = (70, 3, 50, 41)


def with_ties() -> list[np.ndarray]:
    """Slides with rows that are on several slides, some as multiples of others, and rows of zeros."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(40, 12))
    slides = [(directions[rng.integers(0, 40, n)] * rng.integers(1, 4, (n, 1))).astype(np.float32) for n in SIZES]
    slides[3][::9] = 0
    slides[2][20:] += rng.normal(size=(30, 12)).astype(np.float32)
    return slides


def brute(query: np.ndarray, slides: list[np.ndarray], k: int, without: int | None) -> np.ndarray:
    """Full float64 search over all rows, ties to the lower row."""
    bank, q = np.concatenate(slides).astype(np.float64), query.astype(np.float64)
    norms = [np.linalg.norm(x, axis=1) for x in (q, bank)]
    cosine = np.zeros((len(q), len(bank)))
    np.divide(q @ bank.T, np.outer(*norms), out=cosine, where=np.outer(*norms) > 0)
    slide_of = np.repeat(np.arange(len(slides)), [len(slide) for slide in slides])
    cosine[:, slide_of == (-1 if without is None else without)] = -2
    return np.argsort(-np.round(cosine, 9), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("without", [None, 0, 2, 3])
@pytest.mark.parametrize("k", [1, 5, 16, 40])
def test_the_exact_search(k: int, without: int | None, tmp_path: Path) -> None:
    """Cached or not, with arrays or rows."""
    slides = with_ties()
    query = np.concatenate([slides[2], slides[0][:20]])
    expected = brute(query, slides, k, without)
    np.testing.assert_array_equal(References(slides, k).search(query, without=without), expected)
    with keeping(tmp_path):
        for _ in range(2):
            found = References([Rows(slide) for slide in slides], k).search(query, without=without)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("folder", [None, "there"])
def test_too_few_spots(folder: str | None, tmp_path: Path) -> None:
    with keeping(folder and tmp_path), pytest.raises(ValueError, match="94 spots to choose from, but k = 95"):
        References(with_ties(), 95).search(with_ties()[0], without=0)


def test_a_whole_search_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    monkeypatch.setattr(
        _references, "cosine_topk", lambda q, *a, **b: (searched.append(len(q)), cosine_topk(q, *a, **b))[1]
    )
    slides = with_ties()
    with keeping(tmp_path):
        for k in (5, 5, 6):
            found = References(slides, k).search(slides[0], without=0)
            np.testing.assert_array_equal(found, brute(slides[0], slides, k, 0))
        References(slides, 5).search(slides[0], without=1)
        References(slides, 5).search(slides[0])
        References(slides[:3], 5).search(slides[0], without=0)
    assert searched == [70] * 5
