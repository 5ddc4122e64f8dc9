"""What every method keeps to."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spahgc._slides import Cohort, Rows, Slide, expression_of
from spahgc.methods import METHODS, Method, Ridge, Run, get_method, register

SMALL = {"epochs": 2, "hidden": 16, "n_references": 5}
VARIANTS: dict[str, dict[str, Any]] = {
    # Methods that are trained for epochs take their number, and two are enough here.
    **{
        name: {"epochs": 2} if "epochs" in inspect.signature(method).parameters else {}
        for name, method in METHODS.items()
    },
    "spahgc": {"network": SMALL, "n_seeds": 2},
    "spahgc paper": {"preset": "paper", "network": SMALL},
    "context_ridge relative": {"relative": True},
    "knn 3": {"n_neighbors": 3},
}


def method_of(variant: str) -> type[Method]:
    return METHODS[variant.split()[0]]


def new(variant: str) -> Method:
    return get_method(variant.split()[0], **VARIANTS[variant])


@pytest.fixture(scope="module")
def fitted(cohort: Cohort) -> dict[str, Method]:
    return {variant: new(variant).fit(cohort, Run(seed=1)) for variant in VARIANTS}


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_prediction_and_history(fitted: dict[str, Method], variant: str, cohort: Cohort, target: Slide) -> None:
    method = fitted[variant]
    assert isinstance(method, Method)
    found = method.predict(target)
    assert found.shape == (len(target), len(cohort.genes))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(method.predict(target), found)
    history = method.history()
    assert json.loads(json.dumps(history)) == history
    assert all(isinstance(curve, list) and all(isinstance(v, float) for v in curve) for curve in history.values())


class Blocks:
    """Takes blocks of rows and gives copies of them, as what is written to a file does."""

    def __init__(self, n: int, g: int) -> None:
        self.values = np.full((n, g), np.nan, np.float32)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.values[rows.start : rows.stop].copy()

    def __setitem__(self, rows: slice, values: np.ndarray) -> None:
        assert values.shape == (rows.stop - rows.start, self.values.shape[1])
        self.values[rows.start : rows.stop] = values


def test_prediction_into_what_is_not_an_array(
    fitted: dict[str, Method], variant: str, cohort: Cohort, target: Slide
) -> None:
    out, shares = Blocks(len(target), len(cohort.genes)), []
    fitted[variant].predict_into(target, out, progress=shares.append)
    np.testing.assert_array_equal(out.values, fitted[variant].predict(target))
    assert sum(shares) == pytest.approx(1)


def test_a_class_that_changes_predict_alone_is_written_as_it_predicts(cohort: Cohort, target: Slide) -> None:
    class Halved(Ridge):
        name = "halved"

        def predict(self, slide: Slide) -> Any:
            return super().predict(slide) / 2

    class Same(Halved):
        name = "same"

    for kind in (Halved, Same):
        method, out = kind().fit(cohort, Run()), Blocks(len(target), len(cohort.genes))
        method.predict_into(target, out)
        np.testing.assert_array_equal(out.values, method.predict(target))
        np.testing.assert_allclose(out.values, Ridge().fit(cohort, Run()).predict(target) / 2, rtol=1e-6)


def test_blind_to_the_expression_of_the_slide(fitted: dict[str, Method], variant: str, target: Slide) -> None:
    found = fitted[variant].predict(target.without_expression())
    np.testing.assert_array_equal(fitted[variant].predict(target), found)
    noise = np.random.default_rng(0).normal(size=(len(target), 6)).astype(np.float32)
    np.testing.assert_array_equal(fitted[variant].predict(replace(target, expression=noise)), found)
    np.testing.assert_array_equal(fitted[variant].predict(replace(target, name="a", patient="P")), found)


def test_fit_returns_itself_and_changes_no_slide(variant: str, cohort: Cohort, target: Slide) -> None:
    before = cohort.fingerprint()
    method = new(variant)
    assert method.fit(cohort, Run(seed=1)) is method
    assert cohort.fingerprint() == before
    embedding = target.embedding.copy()
    method.predict(target)
    np.testing.assert_array_equal(target.embedding, embedding)


def test_one_seed_and_the_same_params_give_one_fit(
    fitted: dict[str, Method], variant: str, cohort: Cohort, target: Slide
) -> None:
    params = json.loads(json.dumps(fitted[variant].params()))
    again = get_method(fitted[variant].name, **params).fit(cohort, Run(seed=1))
    assert again.params() == fitted[variant].params() == params
    np.testing.assert_array_equal(again.predict(target), fitted[variant].predict(target))
    other = new(variant).fit(cohort, Run(seed=2))
    for name, array in again.state().items():
        np.testing.assert_array_equal(array, fitted[variant].state()[name])
    if method_of(variant).stochastic:
        assert not np.array_equal(other.predict(target), again.predict(target))
    else:
        np.testing.assert_array_equal(other.predict(target), again.predict(target))


def test_state_restores_it(variant: str, cohort: Cohort, target: Slide, fitted: dict[str, Method]) -> None:
    method = fitted[variant]
    state = method.state()
    assert all(isinstance(name, str) and isinstance(array, np.ndarray) for name, array in state.items())
    assert not any(array.dtype == object for array in state.values())
    copied = {name: array.copy() for name, array in state.items()}
    again = new(variant)
    assert again.restore(copied, cohort) is again
    np.testing.assert_array_equal(again.predict(target), method.predict(target))
    assert again.state().keys() == state.keys()
    for name, array in again.state().items():
        np.testing.assert_array_equal(array, state[name])


class Watched(Rows):
    """Rows that say so when they are read."""

    n_read = 0

    def __getitem__(self, rows: Any) -> np.ndarray:
        block = super().__getitem__(rows)
        Watched.n_read += block.size // self.shape[1]
        return block


@pytest.mark.parametrize("variant", [v for v in VARIANTS if METHODS[v.split()[0]].reads_reference])
def test_restores_without_reading_the_reference(
    fitted: dict[str, Method], variant: str, cohort: Cohort, target: Slide
) -> None:
    method, again = fitted[variant], new(variant)
    slides = (replace(s, embedding=Watched(s.embedding), expression=Watched(expression_of(s))) for s in cohort)
    rows = {name: np.asarray(array) for name, array in method.reference_rows().items()}
    assert all(array.shape[0] == cohort.n_spots and array.dtype == np.float32 for array in rows.values())
    Watched.n_read = 0
    again.restore({**method.state(), **rows}, Cohort.in_order(slides, cohort.genes))
    assert Watched.n_read == 0
    np.testing.assert_array_equal(again.predict(target), method.predict(target))
    assert (Watched.n_read > 0) is (variant.split()[0] in ("knn", "spahgc"))
    for name, array in again.reference_rows().items():
        np.testing.assert_array_equal(array, rows[name])


def test_spots_one_by_one(fitted: dict[str, Method], cohort: Cohort, target: Slide) -> None:
    """Methods that look at a spot alone give it the same prediction without the others."""
    for variant in ("gene_mean", "knn", "knn 3", "ridge"):
        part = fitted[variant].predict(target.take(np.array([7, 3])))
        np.testing.assert_allclose(part, fitted[variant].predict(target)[[7, 3]], atol=1e-6)


def test_a_single_spot_and_a_slide_that_shows_nothing(fitted: dict[str, Method], variant: str, target: Slide) -> None:
    """Standardised, a constant embedding is zero: it is predicted, with numbers."""
    for slide in (target.take(np.array([0])), replace(target, embedding=target.embedding * 0)):
        assert np.isfinite(fitted[variant].predict(slide)).all()


@pytest.mark.parametrize("variant", [v for v in VARIANTS if METHODS[v.split()[0]].min_slides == 1 and "paper" not in v])
def test_one_slide_is_enough_where_it_says_so(variant: str, cohort: Cohort, target: Slide) -> None:
    method = new(variant).fit(cohort.subset(["a"]), Run())
    assert np.isfinite(method.predict(target)).all()


def test_constant_genes(variant: str, cohort: Cohort, target: Slide) -> None:
    def flat(slide: Slide) -> Slide:
        expression = np.array(slide.expression)
        expression[:, 2] = 1.5
        return replace(slide, expression=expression)

    method = new(variant).fit(replace(cohort, slides=tuple(flat(s) for s in cohort)), Run())
    found = method.predict(target)
    assert np.isfinite(found).all()
    if variant != "spahgc paper":  # which learns every level
        np.testing.assert_allclose(found[:, 2], 1.5, atol=0.02)


# The registry.


def test_registry() -> None:
    controls = {"gene_mean", "cellularity", "coordinates", "knn", "ridge", "smoothed_ridge", "context_ridge"}
    assert controls | {"spahgc"} <= set(METHODS)
    for name, method in METHODS.items():
        assert method.name == name
        assert method.__doc__
        assert isinstance(get_method(name), method)
        assert json.dumps(get_method(name).params())
    with pytest.raises(ValueError, match="No method 'lasso'. Available: .*ridge"):
        get_method("lasso")
    with pytest.raises(ValueError, match="'ridge' has no parameter 'alpha'. Available: "):
        get_method("ridge", alpha=1)
    with pytest.raises(ValueError, match="'knn' has no parameter 'k'. Available: 'n_neighbors'"):
        get_method("knn", k=1)


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spahgc.methods.base.METHODS", dict(METHODS))

    class Other(Ridge):
        name = "ridge"

    with pytest.raises(ValueError, match="Method name 'ridge' is already registered"):
        register(Other)
    Other.name, Other.needs = "mine", frozenset({"embedding", "depth"})
    with pytest.raises(ValueError, match="'mine' requires 'depth', which no slide has. Available: 'embedding', 'coord"):
        register(Other)
    Other.needs = frozenset({"embedding"})
    assert register(Other) is Other
    assert register(Other) is Other  # a module that is run again
    assert isinstance(get_method("mine"), Other)
