"""Features of a spot and its surroundings."""

from __future__ import annotations

import numpy as np
import pytest

from spahgc import _slides
from spahgc._geometry import spatial_knn
from spahgc._slides import Slide
from spahgc.methods._features import RINGS, Context, ContextRows


def slide(n: int) -> Slide:
    rng = np.random.default_rng(n)
    return Slide("a", "P", rng.normal(size=(n, 7)).astype(np.float32), rng.uniform(size=(n, 2)))


def by_definition(context: Context, one: Slide) -> np.ndarray:
    scores = context.pca(one.embedding)
    nearest = spatial_knn(one.coordinates, max(RINGS))
    parts = [scores]
    for ring in RINGS:
        pairs = zip(nearest[:, :ring], scores, strict=True)
        parts.append(np.array([scores[i].mean(axis=0) if len(i) else own for i, own in pairs]))
    features = np.concatenate(parts, axis=1)
    spread = features.std(axis=0)
    return (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1) * context.scale


@pytest.mark.parametrize("n", [1, 2, 5, 7, 30, 61, 200])
def test_means_over_rings(n: int) -> None:
    """On slides with fewer spots than a ring has, too."""
    context = Context.fit([slide(150)], n_components=3, weights=(1.0, 0.7, 0.5, 0.35))
    np.testing.assert_allclose(context(slide(n)), by_definition(context, slide(n)), atol=2e-5)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    context, one = Context.fit([slide(150)], n_components=3), slide(200)
    whole = context(one)
    monkeypatch.setattr(_slides.blocks, "__defaults__", (17,))
    np.testing.assert_allclose(np.asarray(ContextRows(context, one)), whole, atol=1e-5)
    np.testing.assert_allclose(ContextRows(context, one)[40:50], whole[40:50], atol=1e-5)


def test_what_a_large_slide_forgets_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    context, one = Context.fit([slide(150)], n_components=3, weights=(1.0, 0.7)), slide(200)
    rows = ContextRows(context, one)
    whole = np.asarray(rows)
    rows.forget()
    assert rows._scores is not None  # small: kept
    monkeypatch.setattr("spahgc.methods._features.BLOCK", 100)
    rows.forget()
    assert rows._scores is None
    np.testing.assert_array_equal(np.asarray(rows), whole)
