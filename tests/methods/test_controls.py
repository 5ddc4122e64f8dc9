"""The plain controls against loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from spahgc._slides import Cohort, Slide, expression_of
from spahgc.methods import KNN, ContextRidge, GeneMean, Run


def test_gene_mean_weighs_slides_alike(cohort: Cohort, target: Slide) -> None:
    uneven = replace(cohort, slides=(cohort.slides[0].take(np.arange(5)), *cohort.slides[1:]))
    expected = np.mean([expression_of(s).mean(axis=0) for s in uneven], axis=0)
    found = GeneMean().fit(uneven, Run()).predict(target)
    np.testing.assert_allclose(found, np.tile(expected, (len(target), 1)), rtol=1e-5)
    assert not np.allclose(found[0], uneven.expression().mean(axis=0), rtol=1e-3)


@pytest.mark.parametrize("k", [1, 4, 108])
def test_knn_against_a_plain_loop(cohort: Cohort, target: Slide, k: int) -> None:
    bank, values = cohort.embedding().astype(float), cohort.expression()
    found = KNN(k).fit(cohort, Run()).predict(target)
    for spot, row in zip(target.embedding.astype(float), found, strict=True):
        cosine = [spot @ other / np.linalg.norm(spot) / np.linalg.norm(other) for other in bank]
        nearest = np.argsort(cosine)[::-1][:k]
        np.testing.assert_allclose(row, values[nearest].mean(axis=0), atol=1e-5)


def test_knn_parameters(cohort: Cohort) -> None:
    with pytest.raises(ValueError, match="n_neighbors is at least 1, not 0"):
        KNN(0)
    with pytest.raises(ValueError, match="knn needs 109 reference spots .n_neighbors.; the reference has 108"):
        KNN(109).fit(cohort, Run())


def test_context_ridge_sees_the_surroundings(cohort: Cohort, target: Slide) -> None:
    """Genes that follow the mean of the six nearest spots and not the spot itself."""

    def surroundings(slide: Slide) -> np.ndarray:
        distance = np.linalg.norm(slide.coordinates[:, None] - slide.coordinates[None], axis=2)
        nearest = np.argsort(distance, axis=1, kind="stable")[:, 1:7]
        return slide.embedding[nearest].mean(axis=1)[:, :6]

    planted = replace(cohort, slides=tuple(replace(s, expression=surroundings(s).astype(np.float32)) for s in cohort))
    measured = surroundings(target)

    def score(values: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(measured[:, g], values[:, g])[0, 1] for g in range(6)]))

    context = ContextRidge().fit(planted, Run()).predict(target)
    from spahgc.methods import Ridge

    alone = Ridge().fit(planted, Run()).predict(target)
    assert score(context) > 0.6
    assert score(alone) < 0.3


def test_context_ridge_relative_predicts_the_level_of_the_reference(cohort: Cohort, target: Slide) -> None:
    shifted = replace(
        cohort,
        slides=tuple(replace(s, expression=expression_of(s) + 10 * i) for i, s in enumerate(cohort)),
    )
    plain = ContextRidge(relative=True).fit(cohort, Run())
    found = ContextRidge(relative=True).fit(shifted, Run())
    # The slides' levels do not weigh on the fit, and the prediction lies at their mean.
    np.testing.assert_allclose(found.relative_values(target), plain.relative_values(target), atol=1e-4)
    np.testing.assert_allclose(found.predict(target), plain.predict(target) + 10, atol=1e-3)
