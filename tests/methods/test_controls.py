"""The plain controls against loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from spahgc._slides import Cohort, Slide, expression_of
from spahgc.methods import (
    KNN,
    Cellularity,
    ContextKernel,
    ContextRidge,
    Coordinates,
    Fast,
    GeneMean,
    LowRankRidge,
    Ridge,
    Run,
    SmoothedRidge,
    check_needs,
)
from spahgc.methods.linear import PENALTIES, SMOOTHINGS

from .conftest import Make


def test_gene_mean_weighs_slides_alike(cohort: Cohort, target: Slide) -> None:
    uneven = replace(cohort, slides=(cohort.slides[0].take(np.arange(5)), *cohort.slides[1:]))
    expected = np.mean([expression_of(s).mean(axis=0) for s in uneven], axis=0)
    found = GeneMean().fit(uneven, Run()).predict(target)
    np.testing.assert_allclose(found, np.tile(expected, (len(target), 1)), rtol=1e-5)
    assert not np.allclose(found[0], uneven.expression().mean(axis=0), rtol=1e-3)


@pytest.mark.parametrize("k", [1, 4, 108])
def test_knn_against_a_plain_loop(cohort: Cohort, target: Slide, k: int) -> None:
    bank, values = cohort.embedding().astype(float), cohort.expression()
    found = KNN(n_neighbors=k).fit(cohort, Run()).predict(target)
    for spot, row in zip(target.embedding.astype(float), found, strict=True):
        cosine = [spot @ other / np.linalg.norm(spot) / np.linalg.norm(other) for other in bank]
        nearest = np.argsort(cosine)[::-1][:k]
        np.testing.assert_allclose(row, values[nearest].mean(axis=0), atol=1e-5)


def test_knn_of_too_few_spots(cohort: Cohort) -> None:
    with pytest.raises(ValueError, match="knn averages 109 reference spots .*but the reference has only 108"):
        KNN(n_neighbors=109).fit(cohort, Run())


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
    alone = Ridge().fit(planted, Run()).predict(target)
    assert score(context) > 0.6
    assert score(alone) < 0.3


def test_context_ridge_relative_predicts_the_level_of_the_reference(cohort: Cohort, target: Slide) -> None:
    slides = tuple(replace(s, expression=expression_of(s) + 10 * i) for i, s in enumerate(cohort))
    shifted = replace(cohort, slides=slides)
    plain = ContextRidge(relative=True).fit(cohort, Run())
    found = ContextRidge(relative=True).fit(shifted, Run())
    # The slides' levels do not weigh on the fit, and the prediction lies at their mean.
    np.testing.assert_allclose(
        found.relative_values(target)(slice(None)), plain.relative_values(target)(slice(None)), atol=1e-4
    )
    np.testing.assert_allclose(found.predict(target), plain.predict(target) + 10, atol=1e-3)


# Controls that see next to nothing.


def by_slide(cohort: Cohort, values: Callable[[Slide], np.ndarray], noise: float = 0.3) -> Cohort:
    """The cohort with other expression: values (n_spots,), up in the even genes and down in the odd ones."""

    def planted(slide: Slide, rng: np.random.Generator) -> Slide:
        expression = np.outer(values(slide), [1, -1] * 3) + noise * rng.normal(size=(len(slide), 6))
        return replace(slide, expression=expression.astype(np.float32))

    return replace(cohort, slides=tuple(planted(s, np.random.default_rng(i)) for i, s in enumerate(cohort)))


def score(measured: np.ndarray, predicted: np.ndarray) -> float:
    signed = zip(predicted.T, [1, -1] * 3, strict=True)
    return float(np.mean([np.corrcoef(measured, column)[0, 1] * sign for column, sign in signed]))


@pytest.mark.parametrize("power", [1, 2])
def test_cellularity_against_least_squares(cohort: Cohort, target: Slide, power: int) -> None:
    def standard(slide: Slide) -> np.ndarray:
        density = np.asarray(slide.cellularity, dtype=float)
        return (density - density.mean()) / density.std()

    planted = by_slide(cohort, lambda s: standard(s) ** power)
    found = Cellularity(penalty=0.0).fit(planted, Run()).predict(target)
    design = [np.column_stack([np.ones(len(s)), standard(s), standard(s) ** 2]) for s in (*planted, target)]
    # The square is standardised per slide; on one slide that is the same space of functions.
    design = [np.column_stack([d[:, :2], (d[:, 2] - d[:, 2].mean()) / d[:, 2].std()]) for d in design]
    solved = np.linalg.lstsq(np.concatenate(design[:-1]), planted.expression(), rcond=None)[0]
    np.testing.assert_allclose(found, design[-1] @ solved, atol=1e-4)
    assert score(standard(target) ** power, Cellularity().fit(planted, Run()).predict(target)) > 0.95


def test_cellularity_is_one_number_a_spot(cohort: Cohort, target: Slide) -> None:
    """Scale and offset of a slide's stain do not matter, nor do spots elsewhere with the same stain."""
    method = Cellularity().fit(cohort, Run())
    expected = method.predict(target)
    assert target.cellularity is not None
    restained = replace(target, cellularity=2 * target.cellularity + 0.1)
    np.testing.assert_allclose(method.predict(restained), expected, atol=1e-4)
    density = target.cellularity.copy()
    density[5] = density[9]
    found = method.predict(replace(target, cellularity=density))
    np.testing.assert_array_equal(found[5], found[9])
    assert np.isfinite(method.predict(replace(target, cellularity=np.full(36, 0.2, np.float32)))).all()


def test_a_slide_without_stain_density(cohort: Cohort, target: Slide) -> None:
    bare = replace(target, cellularity=None)
    message = "'cellularity' requires cellularity, but slide 't' has only embedding, coordinates"
    with pytest.raises(ValueError, match=message + ".*Run spahgc.pp.image_embedding"):
        check_needs(Cellularity, bare)
    with pytest.raises(ValueError, match=message):
        Cellularity().fit(cohort, Run()).predict(bare)
    check_needs(Cellularity(), target)
    check_needs(GeneMean, bare)


def test_coordinates_find_a_smooth_field(cohort: Cohort, target: Slide) -> None:
    def field(slide: Slide) -> np.ndarray:
        x, y = slide.coordinates.T
        return np.sin(x / 2) + np.cos(y / 2) * x / 5

    planted = by_slide(cohort, field)
    method = Coordinates().fit(planted, Run())
    assert score(field(target), method.predict(target)) > 0.9
    # It sees no image, and of the position neither offset nor scale.
    np.testing.assert_array_equal(method.predict(replace(target, embedding=-target.embedding)), method.predict(target))
    moved = replace(target, coordinates=target.coordinates * [3, 5] - [100, 7])
    np.testing.assert_allclose(method.predict(moved), method.predict(target), atol=1e-4)


def test_coordinates_on_odd_slides(cohort: Cohort, target: Slide) -> None:
    method = Coordinates().fit(cohort, Run())
    row = replace(target, coordinates=target.coordinates * [1, 0] + [0, 1e6])
    one_place = replace(target, coordinates=np.full((36, 2), 7.0))
    far = target.coordinates.copy()
    far[0] = 1e9
    for slide in (row, one_place, replace(target, coordinates=far)):
        found = method.predict(slide)
        assert np.isfinite(found).all()
        assert np.abs(found).max() < 20
    np.testing.assert_array_equal(method.predict(one_place), np.tile(method.predict(one_place)[0], (36, 1)))


# Averaging over neighbours.


@pytest.mark.parametrize(("k", "weight"), [(0, 0.5), (1, 0.5), (6, 0.25), (6, 1.0), (18, 0.0), (100, 0.75)])
def test_smoothed_ridge_against_a_plain_loop(
    cohort: Cohort, target: Slide, k: int, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SmoothedRidge, "smoothings", ((k, weight),))
    method = SmoothedRidge(penalty=3.0).fit(cohort, Run())
    ridge = Ridge(penalty=3.0).fit(cohort, Run()).predict(target).astype(float)
    found = method.predict(target)
    for spot, row in enumerate(found):
        distance = np.linalg.norm(target.coordinates - target.coordinates[spot], axis=1)
        itself, *nearest = np.argsort(distance, kind="stable")[: k + 1]
        assert itself == spot
        expected = (1 - weight) * ridge[spot] + weight * ridge[nearest].mean(axis=0) if nearest else ridge[spot]
        np.testing.assert_allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize(("noise", "expected"), [(0.0, {0}), (8.0, {6, 18})])
def test_smoothed_ridge_picks_the_neighbours_that_help(make: Make, noise: float, expected: set[int]) -> None:
    """Expression is a field over the slide; the embedding shows it plainly, or under noise of each spot's own."""

    def planted(slide: Slide) -> Slide:
        rng = np.random.default_rng(len(slide.name))
        x, y = slide.coordinates.T
        field = np.column_stack([np.sin(x), np.cos(y), x - y, x + y, np.sin(x + y), x * y / 5])
        field = (field - field.mean(axis=0)) / field.std(axis=0)
        embedding = np.hstack([field + noise * rng.normal(size=field.shape)] * 2)
        return replace(slide, embedding=embedding.astype(np.float32), expression=field.astype(np.float32))

    made = make({"a": "P", "bb": "Q", "ccc": "R", "dddd": "S"}, n=400)
    cohort = replace(made, slides=tuple(planted(s) for s in made)).standardized()
    method = SmoothedRidge().fit(cohort, Run())
    assert method.tuned.smoothing[0] in expected
    if noise == 0:
        assert method.tuned == Ridge().fit(cohort, Run()).tuned


def test_smoothed_ridge_tunes_all_together(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a loop over neighbours, penalties and sizes, with predictions that are averaged as such."""
    cohort = make({"a": "P", "b": "P", "c": "Q", "d": "R"}, noise=4.0, seed=3).standardized()
    scores = {}
    for k, weight in SMOOTHINGS:
        for penalty in PENALTIES:
            groups = []
            for held_out in (["a", "b"], ["c"], ["d"]):
                train = cohort.subset([s.name for s in cohort if s.name not in held_out])
                absolute = penalty * train.n_spots * train.embedding().astype(float).var(axis=0).sum()
                with monkeypatch.context() as patch:
                    patch.setattr(SmoothedRidge, "smoothings", ((k, weight),))
                    fit = SmoothedRidge(penalty=absolute, n_components=32).fit(train, Run())
                each = []
                for slide in (s for s in cohort if s.name in held_out):
                    predicted, measured = fit.predict(slide), expression_of(slide)
                    each.append(np.mean([np.corrcoef(measured[:, g], predicted[:, g])[0, 1] for g in range(6)]))
                groups.append(np.mean(each))
            scores[(k, weight), penalty] = np.mean(groups)
    method = SmoothedRidge().fit(cohort, Run())
    assert (method.tuned.smoothing, method.tuned.penalty) == max(scores, key=scores.__getitem__)
    assert method.tuned.n_components == 32


def test_smoothing_on_one_slide_is_fixed(cohort: Cohort) -> None:
    assert SmoothedRidge().fit(cohort.subset(["a"]), Run()).tuned.smoothing == (6, 0.5)


# Low-rank targets.


@pytest.mark.parametrize("kind", [Ridge, ContextRidge, ContextKernel])
def test_low_rank_targets_are_the_leading_components(
    kind: type[Ridge] | type[ContextKernel], make: Make, target: Slide
) -> None:
    cohort = make({"a": "P", "b": "P", "c": "Q"}, g=8, noise=2.0).standardized()
    values = [expression_of(slide).astype(np.float64) for slide in cohort]
    scaled = [(v - v.mean(axis=0)) / v.std(axis=0) for v in values]
    _, _, axes = np.linalg.svd(np.concatenate(scaled), full_matrices=False)
    projected = [(z @ axes[:3].T @ axes[:3]).astype(np.float32) for z in scaled]
    slides = zip(cohort, projected, strict=True)
    by_hand = Cohort(tuple(replace(slide, expression=z) for slide, z in slides), cohort.genes)
    fixed = {} if kind is ContextKernel else {"penalty": 2.0, "n_components": 5}
    found = kind(rank=3, **fixed).fit(cohort, Run()).predict(target)
    # Fitted by hand to the projected values as they are: the kernel standardizes again, so only its pattern is known.
    plain = kind(**fixed).fit(by_hand, Run()).predict(target)
    level, std = np.mean([v.mean(axis=0) for v in values], axis=0), np.mean([v.std(axis=0) for v in values], axis=0)
    if kind is ContextKernel:
        both = np.corrcoef(found.T, plain.T)
        assert np.diag(both, 8).min() > 0.99
    else:
        np.testing.assert_allclose(found, plain * std + level, atol=1e-4)
    assert np.linalg.matrix_rank(((found - level) / std).astype(np.float64), tol=1e-3) == 3


def test_fast_is_the_mean_of_two_fits(cohort: Cohort, target: Slide) -> None:
    members = [kind(rank=10).fit(cohort, Run()).predict(target) for kind in (Ridge, ContextRidge)]
    np.testing.assert_allclose(Fast().fit(cohort, Run()).predict(target), np.mean(members, axis=0), atol=1e-5)
    control = LowRankRidge().fit(cohort, Run())
    np.testing.assert_array_equal(control.predict(target), members[0])
    assert control.params()["rank"] == 10
