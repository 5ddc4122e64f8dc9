"""The published methods in compact form: what they learn, what they look at, how they are fitted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import spahgc
from spahgc._slides import Cohort, Slide, expression_of, standardize
from spahgc._tables._cohorts import reference_cohort
from spahgc.methods import METHODS, GeneMean, NetworkMethod, Run, get_method
from spahgc.methods.network import UNTUNED_EPOCHS, ExpressionScale
from spahgc.metrics import pearson, rmse

BASELINES = ("bleep", "egn", "hist2st", "histogene", "m2ost", "mclstexp", "stnet", "thitogene", "triplex")
SMALL: dict[str, Any] = {"epochs": 3, "hidden": 16}
SPATIAL = ("hist2st", "histogene", "m2ost", "mclstexp", "thitogene", "triplex")


def test_all_nine_say_where_they_are_from_and_what_they_need() -> None:
    assert {name for name, method in METHODS.items() if issubclass(method, NetworkMethod)} == set(BASELINES)
    for name in BASELINES:
        method, text = METHODS[name], METHODS[name].__doc__ or ""
        assert "Source: " in text
        assert "leaves out" in text
        assert method.stochastic
        assert method.needs == ({"embedding", "coordinates"} if name in SPATIAL else {"embedding"})


# What they learn.


@pytest.fixture(scope="module")
def synthetic() -> tuple[Cohort, Slide, np.ndarray]:
    """Reference of four slides, a slide of another patient, and which genes follow the image."""
    sdata = spahgc.datasets.synthetic_cohort(n_slides=6, n_patients=3, n_spots=120, n_genes=64, rng=3)
    spahgc.pp.image_embedding(sdata, progress=False)
    table = sdata["table"]
    genes = list(table.var_names)
    options = {"normalize": "log1p", "use_rep": None, "library_key": None, "patient_key": "patient", "layer": None}
    whole = reference_cohort(table, panel=genes, **options)[0].standardized()
    planted = table.var["planted"].to_numpy()[[genes.index(gene) for gene in whole.genes]]
    return whole.subset(["S1", "S2", "S3", "S4"]), whole.subset(["S5"]).slides[0], planted


@pytest.mark.parametrize("name", BASELINES)
def test_learns_the_planted_genes(name: str, synthetic: tuple[Cohort, Slide, np.ndarray]) -> None:
    cohort, held_out, planted = synthetic
    measured = expression_of(held_out)
    found = get_method(name).fit(cohort, Run(device="cpu")).predict(held_out.without_expression())
    level = GeneMean().fit(cohort, Run()).predict(held_out)
    scores = pearson(measured, found)
    assert np.nanmean(scores[planted]) > 0.25
    assert np.nanmean(scores[planted]) > np.nanmean(scores[~planted]) + 0.15
    assert rmse(measured, found)[planted].mean() < rmse(measured, level)[planted].mean()


# How they are fitted.


@pytest.fixture(scope="module")
def fitted(cohort: Cohort) -> dict[str, Any]:
    return {name: get_method(name, **SMALL).fit(cohort, Run(device="cpu")) for name in BASELINES}


@pytest.mark.parametrize("name", BASELINES)
def test_history(name: str, fitted: dict[str, Any]) -> None:
    history = dict(fitted[name].history())
    (chosen,) = history.pop("chosen_epoch")
    validation = history.pop("validation")
    assert 1 <= chosen <= 3
    assert len(validation) == 3
    assert {len(curve) for curve in history.values()} == {int(chosen)}
    terms = [curve for key, curve in history.items() if key != "loss"]
    np.testing.assert_allclose(np.sum(terms, axis=0), history["loss"], rtol=1e-5)


def test_number_of_epochs_without_a_slide_to_hold_out(cohort: Cohort) -> None:
    single = get_method("stnet").fit(cohort.subset(["a"]), Run(device="cpu")).history()
    assert single["chosen_epoch"] == [float(UNTUNED_EPOCHS)]
    assert "validation" not in single
    # Two slides of which exemplars need both.
    pair = get_method("egn", epochs=2).fit(cohort.subset(["a", "c"]), Run(device="cpu")).history()
    assert pair["chosen_epoch"] == [2.0]
    assert "validation" not in pair


def test_held_out_groups_are_patients_or_slides(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    method = get_method("stnet", **SMALL)
    assert isinstance(method, NetworkMethod)
    seen = []
    train = type(method)._train

    def spy(self: NetworkMethod, cohort: Cohort, *given: Any) -> Any:
        held = [s.name for s in given[3]] if len(given) == 4 else []
        seen.append(("".join(s.name for s in cohort), "".join(held)))
        return train(self, cohort, *given)

    monkeypatch.setattr(NetworkMethod, "_train", spy)
    method.fit(cohort, Run(device="cpu"))
    assert seen == [("ab", "c"), ("c", "ab"), ("abc", "")]
    seen.clear()
    method.fit(cohort, Run(device="cpu", split_by="slide"))
    assert seen == [("bc", "a"), ("ac", "b"), ("abc", "")]


def test_the_epoch_with_the_best_smoothed_score_is_taken(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    method = get_method("stnet", epochs=10)
    curves = iter([[0, 1, 2, 9, 2, 6, 7, 6, 0, 0], [0, 0, 0, 0, 0, 2, 2, 2, 0]])
    monkeypatch.setattr(method, "_train", lambda *_: (None, {"validation": next(curves)}))
    monkeypatch.setattr(method, "_device", "cpu", raising=False)
    epochs, curve = method._choose_epochs(cohort, Run(), 0)  # type: ignore[attr-defined]
    # The fourth epoch stands alone; the curves count as far as both go.
    assert curve == [0, 0.5, 1, 4.5, 1, 4, 4.5, 4, 0]
    assert epochs == 6


@pytest.mark.parametrize("name", BASELINES)
def test_torch_is_left_as_it_was(name: str, cohort: Cohort, target: Slide) -> None:
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    get_method(name, **SMALL).fit(cohort, Run(device="cpu")).predict(target)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", BASELINES)
def test_slides_of_two_spots_and_one(name: str, cohort: Cohort, target: Slide) -> None:
    tiny = replace(cohort, slides=tuple(standardize(s.take(np.arange(2))) for s in cohort))
    method = get_method(name, **SMALL).fit(tiny, Run(device="cpu"))
    for spots in ([0], [0, 1], range(36)):
        assert np.isfinite(method.predict(target.take(np.array(spots)))).all()
    single = replace(cohort, slides=tuple(s.take(np.arange(1)) if s.name == "a" else s for s in cohort))
    assert np.isfinite(get_method(name, **SMALL).fit(single, Run(device="cpu")).predict(target)).all()


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_units_of_expression(name: str, factor: float, cohort: Cohort, target: Slide) -> None:
    """Whatever the unit (raw counts, say), the prediction is finite and in that unit."""
    scaled = replace(cohort, slides=tuple(replace(s, expression=expression_of(s) * np.float32(factor)) for s in cohort))
    found = get_method(name, **SMALL).fit(scaled, Run(device="cpu")).predict(target)
    assert np.isfinite(found).all()
    assert found.mean() == pytest.approx(scaled.expression().mean(), rel=0.15)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("histogene", {"hidden": 0}, "`hidden` must be an integer of at least 1, got 0"),
        ("histogene", {"epochs": 0}, "`epochs` must be an integer of at least 1, got 0"),
        ("histogene", {"learning_rate": 0.0}, "`learning_rate` must be a finite number greater than 0, got 0.0"),
        ("histogene", {"dropout": 1.0}, "`dropout` must be a finite number of at least 0 and less than 1, got 1.0"),
        ("stnet", {"hidden": -1}, "`hidden` must be an integer of at least 1"),
        ("bleep", {"n_neighbors": 0}, "`n_neighbors` must be an integer of at least 1"),
        ("mclstexp", {"n_neighbors": 0}, "`n_neighbors` must be an integer of at least 1"),
        ("egn", {"n_neighbors": 0}, "`n_neighbors` must be an integer of at least 1"),
        ("egn", {"pearson_weight": -1}, "`pearson_weight` must be a finite number of at least 0"),
        ("hist2st", {"n_neighbors": 0}, "`n_neighbors` must be an integer of at least 1"),
        ("hist2st", {"likelihood_weight": -1}, "`likelihood_weight` must be a finite number of at least 0"),
        ("triplex", {"alpha": 2.0}, "`alpha` must be a finite number between 0 and 1"),
        ("m2ost", {"n_layers": 0}, "`n_layers` must be an integer of at least 1"),
        ("context_kernel", {"penalty": 0}, "`penalty` must be a finite number greater than 0, got 0"),
        ("knn", {"n_neighbors": 0}, "`n_neighbors` must be an integer of at least 1, got 0"),
    ],
)
def test_parameters(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_method(name, **wrong)


def test_what_the_parameters_and_the_reference_must_fit(cohort: Cohort) -> None:
    with pytest.raises(ValueError, match="`hidden` must be a multiple of 4 .attention heads., got 18"):
        get_method("histogene", hidden=18).fit(cohort, Run(device="cpu"))
    with pytest.raises(ValueError, match="'egn' needs at least 2 reference slides.*only 'b'.*'ridge'"):
        get_method("egn").fit(cohort.subset(["b"]), Run(device="cpu"))


# What they look at.


@pytest.mark.parametrize("name", BASELINES)
def test_positions_are_used_where_they_are_needed(name: str, fitted: dict[str, Any], target: Slide) -> None:
    method = fitted[name]
    moved = replace(target, coordinates=np.random.default_rng(0).permutation(target.coordinates))
    unit = replace(target, coordinates=target.coordinates * 7 + 1000)
    found = method.predict(target)
    # mclSTExp has positions on the expression side only, that of the reference.
    assert np.array_equal(method.predict(moved), found) == (name not in SPATIAL or name == "mclstexp")
    np.testing.assert_array_equal(method.predict(unit), found)


def test_mclstexp_uses_the_positions_of_the_reference(cohort: Cohort, target: Slide) -> None:
    method = get_method("mclstexp", n_neighbors=3, **SMALL).fit(cohort, Run(device="cpu"))
    rng = np.random.default_rng(0)
    moved = replace(
        cohort, slides=tuple(replace(s, coordinates=rng.permutation(s.coordinates)) for s in cohort), _canonical=True
    )
    again = get_method("mclstexp", n_neighbors=3, **SMALL).restore(method.state(), moved)
    assert not np.array_equal(again.predict(target), method.predict(target))


@pytest.mark.parametrize("name", ["histogene", "hist2st", "thitogene", "triplex"])
def test_a_spot_is_seen_in_view_of_its_slide(name: str, fitted: dict[str, Any], target: Slide) -> None:
    embedding = target.embedding.copy()
    embedding[35] = -embedding[35]
    changed = fitted[name].predict(replace(target, embedding=embedding)) != fitted[name].predict(target)
    assert changed[0].any()


def test_m2ost_sees_two_rings_and_no_further(cohort: Cohort, fitted: dict[str, Any], target: Slide) -> None:
    method = fitted["m2ost"]
    embedding = target.embedding.copy()
    embedding[14] += 3
    changed = (method.predict(replace(target, embedding=embedding)) != method.predict(target)).any(axis=1)
    distance = np.linalg.norm(target.coordinates - target.coordinates[14], axis=1)
    assert changed[distance < 1.5].all()
    assert not changed[distance > 4].any()
    views = method.inputs(target, cohort, ExpressionScale.fit(cohort))
    for i in range(len(target)):
        distance = np.linalg.norm(target.coordinates - target.coordinates[i], axis=1)
        order = np.argsort(np.round(distance, 9), kind="stable")
        order = order[order != i]
        for view, members in zip(views, ([i], order[:6], order[6:18]), strict=True):
            np.testing.assert_allclose(view[i], target.embedding[members].mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("name", ["bleep", "mclstexp"])
def test_retrieval_against_a_plain_loop(name: str, cohort: Cohort, target: Slide) -> None:
    method = get_method(name, n_neighbors=4, **SMALL).fit(cohort, Run(device="cpu"))
    net = method._fitted  # type: ignore[attr-defined]
    scale, bank = ExpressionScale.fit(cohort), []
    with torch.no_grad():
        for slide in cohort:
            inputs = method._tensors(method.inputs(slide, cohort, scale))  # type: ignore[attr-defined]
            expression = torch.from_numpy(scale(expression_of(slide)))
            bank.append(method.express(net, expression, *inputs).double().numpy())  # type: ignore[attr-defined]
        images = net.image(torch.from_numpy(target.embedding)).double().numpy()
    keys, values = np.concatenate(bank), cohort.expression()
    for image, row in zip(images, method.predict(target), strict=True):
        cosine = [image @ key / np.linalg.norm(image) / np.linalg.norm(key) for key in keys]
        nearest = np.argsort(cosine)[::-1][:4]
        np.testing.assert_allclose(row, values[nearest].mean(axis=0), atol=1e-4)


def test_exemplars_against_a_plain_loop_and_never_of_the_slide_itself(cohort: Cohort, target: Slide) -> None:
    method = get_method("egn", n_neighbors=4, **SMALL).fit(cohort, Run(device="cpu"))
    assert isinstance(method, NetworkMethod)
    scale = ExpressionScale.fit(cohort)

    def check(inputs: Any, bank: np.ndarray, expression: np.ndarray) -> None:
        spots, exemplars, embeddings, expressions = map(np.asarray, inputs)
        for row, spot in zip(exemplars, spots, strict=True):
            cosine = bank @ spot / np.linalg.norm(bank, axis=1) / np.linalg.norm(spot)
            nearest = np.argsort(-cosine)[:4]
            np.testing.assert_array_equal(embeddings[row], bank[nearest])
            np.testing.assert_allclose(expressions[row], scale(expression[nearest]))

    check(method.inputs(target, cohort, scale), cohort.embedding(), cohort.expression())
    for slide, (_, *inputs) in zip(cohort, method._steps(cohort, scale), strict=True):
        others = cohort.subset([other.name for other in cohort if other.name != slide.name])
        np.testing.assert_array_equal(inputs[0], slide.embedding)
        check(inputs, others.embedding(), others.expression())


@pytest.mark.parametrize("name", BASELINES)
def test_training_shows_no_slide_its_own_expression(name: str, cohort: Cohort) -> None:
    """The inputs of a slide are the same whatever is measured on it."""
    method = get_method(name, **SMALL)
    assert isinstance(method, NetworkMethod)
    method._device = torch.device("cpu")
    scale = ExpressionScale.fit(cohort)
    first, *rest = cohort.slides
    noise = np.random.default_rng(0).normal(size=expression_of(first).shape).astype(np.float32)
    other = replace(cohort, slides=(replace(first, expression=noise), *rest))
    before, after = method._steps(cohort, scale)[0][1:], method._steps(other, scale)[0][1:]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("name", BASELINES)
def test_the_expression_held_out_while_choosing_epochs_trains_nothing(
    name: str, cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the number of epochs settled, networks of the inner folds do not depend on the fold that is held out."""

    def fold(cohort: Cohort) -> dict[str, np.ndarray]:
        method = get_method(name, epochs=2, hidden=16)
        assert isinstance(method, NetworkMethod)
        method._device = torch.device("cpu")
        network, _ = method._train(cohort.subset(["a", "b"]), 2, 0, "", cohort.subset(["c"]))
        return {key: value.numpy() for key, value in network.state_dict().items()}

    *rest, last = cohort.slides
    noise = np.random.default_rng(0).normal(size=expression_of(last).shape).astype(np.float32)
    for key, value in fold(replace(cohort, slides=(*rest, replace(last, expression=noise)))).items():
        np.testing.assert_array_equal(value, fold(cohort)[key])


# In use.


@pytest.mark.parametrize("name", SPATIAL)
def test_a_large_slide(name: str, fitted: dict[str, Any]) -> None:
    """Four thousand spots, as many as a Visium slide has."""
    rng = np.random.default_rng(0)
    large = Slide("t", None, rng.normal(size=(4000, 12)).astype(np.float32), rng.uniform(0, 60, (4000, 2)))
    assert np.isfinite(fitted[name].predict(large)).all()
