"""The linear kernel against scikit-learn; tuning; expression relative to the slide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.linear_model import Ridge as SklearnRidge

from spahgc._slides import Cohort, Slide, expression_of
from spahgc.methods import Ridge, Run
from spahgc.methods._features import PCA, GeneScale
from spahgc.methods.linear import NO_SMOOTHING, LinearFit, tune

Make = Callable[..., Cohort]


@pytest.mark.parametrize(("n", "d", "size"), [(80, 10, 4), (80, 10, 10), (12, 50, 8), (12, 50, 40), (5, 3, 64)])
def test_pca_against_sklearn(n: int, d: int, size: int) -> None:
    rng = np.random.default_rng(n + d)
    features = (rng.normal(size=(n, d)) * rng.uniform(0.5, 4, d) + 7).astype(np.float32)
    found = PCA.fit(features, size)
    expected = SklearnPCA(min(size, n - 1, d), svd_solver="full").fit(features.astype(np.float64))
    r = expected.n_components_
    assert found.axes.shape == (d, r)
    np.testing.assert_allclose(found.variance, expected.explained_variance_ * (n - 1) / n, rtol=1e-5)
    assert found.total == pytest.approx(features.astype(np.float64).var(axis=0).sum(), rel=1e-6)
    np.testing.assert_allclose(np.abs(found.axes.T @ expected.components_.T), np.eye(r), atol=1e-4)
    np.testing.assert_allclose(np.abs(found(features)), np.abs(expected.transform(features)), atol=1e-3)


def test_pca_does_not_depend_on_signs_or_input() -> None:
    features = np.random.default_rng(0).normal(size=(30, 6))
    before = features.copy()
    found = PCA.fit(features, 3)
    np.testing.assert_array_equal(features, before)
    largest = np.abs(found.axes).argmax(axis=0)
    assert (found.axes[largest, np.arange(3)] > 0).all()
    np.testing.assert_allclose(PCA.fit(features[::-1], 3).axes, found.axes, atol=1e-9)


def test_pca_of_nothing() -> None:
    found = PCA.fit(np.ones((6, 4)), 3)
    assert found.axes.shape == (4, 0)
    assert found(np.ones((2, 4))).shape == (2, 0)
    fit = LinearFit.fit(np.ones((6, 4)), np.arange(12.0).reshape(6, 2), 0.1, 3)
    np.testing.assert_allclose(fit(np.zeros((3, 4))), [[5.0, 6.0]] * 3)


@pytest.mark.parametrize("penalty", [1e-3, 1e-1, 3.0])
@pytest.mark.parametrize(("n", "d", "size"), [(90, 12, 5), (90, 12, 64), (20, 60, 7)])
def test_ridge_against_sklearn(penalty: float, n: int, d: int, size: int) -> None:
    """Ridge on principal components, the penalty relative to the number of spots and the total variance."""
    rng = np.random.default_rng(1)
    features, values = rng.normal(size=(n, d)) * 3 + 1, rng.normal(size=(n, 4)) + 5
    fit = LinearFit.fit(features, values, penalty, size)
    pca = SklearnPCA(min(size, n - 1, d), svd_solver="full").fit(features)
    alpha = n * penalty * features.var(axis=0).sum()
    ridge = SklearnRidge(alpha=alpha).fit(pca.transform(features), values)
    new = rng.normal(size=(15, d))
    np.testing.assert_allclose(fit(new), ridge.predict(pca.transform(new)), atol=1e-8)


def test_method_against_sklearn(cohort: Cohort, target: Slide) -> None:
    _, penalty, size = tune(
        cohort, {s.name: s.embedding for s in cohort}, GeneScale.identity(cohort).values(cohort), split_by="patient"
    )
    features = cohort.embedding().astype(np.float64)
    pca = SklearnPCA(min(size, 12), svd_solver="full").fit(features)
    ridge = SklearnRidge(alpha=len(features) * penalty * features.var(axis=0).sum())
    ridge.fit(pca.transform(features), cohort.expression())
    expected = ridge.predict(pca.transform(target.embedding))
    np.testing.assert_allclose(Ridge().fit(cohort, Run()).predict(target), expected, atol=1e-5)
    measured = expression_of(target)
    scores = [np.corrcoef(measured[:, i], expected[:, i])[0, 1] for i in range(6)]
    assert min(scores) > 0.6


# Tuning.


def tuned(cohort: Cohort, **kwargs: object) -> tuple[float, int]:
    features = {s.name: s.embedding for s in cohort}
    return tune(cohort, features, {s.name: expression_of(s).astype(float) for s in cohort}, **kwargs)[1:]


def test_tune_picks_the_penalty_that_fits(make: Make) -> None:
    """Clear signal wants a weak penalty; a signal in noise, with about as many features as spots, a strong one."""
    slides = {"a": "P", "b": "Q", "c": "R", "d": "S"}
    clear = make(slides, n=36, d=30, noise=0.01).standardized()
    noisy = make(slides, n=36, d=30, noise=3.0).standardized()
    options = {"penalties": (1e-5, 1e-3, 1e-1, 10.0), "sizes": (30,)}
    assert tuned(clear, **options)[0] == 1e-5
    assert tuned(noisy, **options)[0] >= 1e-1


def test_tune_picks_the_size_that_fits(make: Make) -> None:
    """Expression follows one strong direction; the weak ones are noise that fits by chance."""

    def skew(slide: Slide) -> Slide:
        embedding = slide.embedding * np.where(np.arange(24) < 2, 5, 1)
        values = embedding[:, :2] @ np.ones((2, 6)) + 20 * np.random.default_rng(len(slide.name)).normal(size=(36, 6))
        return replace(slide, embedding=embedding.astype(np.float32), expression=values.astype(np.float32))

    made = make({"a": "P", "bb": "Q", "ccc": "R"}, d=24)
    skewed = replace(made, slides=tuple(skew(s) for s in made))
    assert tuned(skewed, penalties=(1e-6,), sizes=(2, 24))[1] == 2
    # Sizes beyond the number of features are the same fit: the smallest of them is taken.
    assert tuned(make({"a": "P", "b": "Q"}), penalties=(1e-3,), sizes=(12, 64, 256))[1] == 12


@pytest.mark.parametrize("seed", range(12))
def test_tune_against_a_plain_loop(make: Make, seed: int) -> None:
    """Every group is held out once, and counts the same however many slides it has."""
    cohort = make({"a": "P", "b": "P", "c": "Q", "d": "R"}, noise=4.0, seed=seed).standardized()
    penalties, sizes = (1e-3, 1e-1, 1.0), (3, 12)
    best: tuple[float, float, int] = (-2.0, 0.0, 0)
    for penalty in penalties:
        for size in sizes:
            groups = []
            for held_out in (["a", "b"], ["c"], ["d"]):
                train = [s for s in cohort if s.name not in held_out]
                fit = LinearFit.fit(
                    np.concatenate([s.embedding for s in train]),
                    np.concatenate([s.expression for s in train]).astype(float),
                    penalty,
                    size,
                )
                per_slide = [
                    np.mean([np.corrcoef(s.expression[:, g], fit(s.embedding)[:, g])[0, 1] for g in range(6)])
                    for s in cohort
                    if s.name in held_out
                ]
                groups.append(np.mean(per_slide))
            best = max(best, (float(np.mean(groups)), penalty, size))
    assert tuned(cohort, penalties=penalties, sizes=sizes) == best[1:]


def test_tune_holds_out_what_it_is_told_to(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = make({"a": "P", "b": "P", "c": "Q"}).standardized()
    sizes: list[int] = []
    fit = PCA.fit.__func__

    def spy(cls: type[PCA], features: np.ndarray, size: int) -> PCA:
        sizes.append(len(features))
        return fit(cls, features, size)

    monkeypatch.setattr(PCA, "fit", classmethod(spy))
    tuned(cohort)
    assert sizes == [36, 72]  # Q is learnt from alone, then P
    sizes.clear()
    tuned(cohort, split_by="slide")
    assert sizes == [72, 72, 72]


def test_nothing_to_hold_out(make: Make) -> None:
    assert tuned(make({"a": "P"})) == (3e-2, 64)
    assert tuned(make({"a": "P"}), penalties=(7.0,)) == (7.0, 64)
    assert Ridge().fit(make({"a": "P"}).standardized(), Run()).tuned == (NO_SMOOTHING, 3e-2, 64)


# Expression.


def test_expression_scaled_by_slide(cohort: Cohort) -> None:
    scale, unscaled = GeneScale.fit(cohort), GeneScale.identity(cohort)
    for i, slide in enumerate(cohort):
        values = expression_of(slide).astype(float)
        expected = (values - values.mean(axis=0)) / values.std(axis=0)
        np.testing.assert_allclose(scale.values(cohort)[slide.name], expected)
        np.testing.assert_allclose(np.asarray(scale.rows(cohort)[slide.name]), expected, atol=1e-5)
        np.testing.assert_array_equal(unscaled.values(cohort)[slide.name], slide.expression)
        np.testing.assert_allclose(scale.mean[i], values.mean(axis=0))
        np.testing.assert_allclose(scale.std[i], values.std(axis=0))


def test_expression_of_a_constant_gene(cohort: Cohort) -> None:
    first = cohort.slides[0]
    values = expression_of(first).copy()
    values[:, 1] = 4
    changed = replace(cohort, slides=(replace(first, expression=values), *cohort.slides[1:]))
    scale = GeneScale.fit(changed)
    assert (scale.values(changed)["a"][:, 1] == 0).all()
    assert scale.std[0, 1] == 0
    # Predictions go back to the mean over the slides.
    spread = np.mean([expression_of(s)[:, 1].std() for s in cohort.slides[1:]]) * 2 / 3
    assert Ridge(relative=True).fit(changed, Run()).state()["std"][1] == pytest.approx(spread)
