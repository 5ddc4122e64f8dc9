"""What the default of SpaHGC is made of."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from spahgc import settings
from spahgc._slides import Cohort, Slide
from spahgc.methods import ContextKernel, ContextRidge, Ridge, Run, SpaHGC
from spahgc.methods._features import GeneScale
from spahgc.methods._references import TrainingGraphs

SMALL = {"epochs": 2, "hidden": 16, "n_references": 5}


def relative(method: SpaHGC, cohort: Cohort, slide: Slide) -> np.ndarray:
    """A prediction on the scale that is trained on."""
    scale = GeneScale.fit(cohort)
    level, std = scale.mean.mean(axis=0), scale.std.mean(axis=0)
    return (method.predict(slide).astype(np.float64) - level) / np.where(std > 0, std, 1.0)


def fit(cohort: Cohort, run: Run, **params: Any) -> SpaHGC:
    return SpaHGC(network=SMALL, **params).fit(cohort, run)


def test_the_kernel_counts_a_third(cohort: Cohort, target: Slide) -> None:
    run = Run(split_by="slide")
    whole = relative(fit(cohort, run, n_seeds=2), cohort, target)
    networks = relative(fit(cohort, run, n_seeds=2, changes={"kernel": 0.0}), cohort, target)
    kernel = ContextKernel().fit(cohort, run).relative_values(target)(slice(None))
    np.testing.assert_allclose(whole, 2 / 3 * networks + kernel / 3, atol=1e-4)


def test_networks_take_turns_in_what_they_see(cohort: Cohort, target: Slide) -> None:
    run = Run(split_by="slide")
    both = fit(cohort, run, n_seeds=2)
    widths = [network.n_features for network in both._networks]
    assert widths == [both._references["context"].slides[0].shape[1], target.embedding.shape[1]]
    assert widths[0] > widths[1]
    one = fit(cohort, run, n_seeds=2, changes={"views": ["spot"]})
    assert [network.n_features for network in one._networks] == [target.embedding.shape[1]] * 2


def test_new_patients_get_the_linear_methods_too(cohort: Cohort, target: Slide) -> None:
    known, new = fit(cohort, Run(split_by="slide"), n_seeds=1), fit(cohort, Run(split_by="patient"), n_seeds=1)
    linear = [kind(relative=True).fit(cohort, Run(split_by="patient")) for kind in (Ridge, ContextRidge)]
    expected = [relative(known, cohort, target), *(method.relative_values(target)(slice(None)) for method in linear)]
    np.testing.assert_allclose(relative(new, cohort, target), np.mean(expected, axis=0), atol=1e-4)
    without = fit(cohort, Run(split_by="patient"), n_seeds=1, changes={"linear_for_new": False})
    np.testing.assert_array_equal(without.predict(target), known.predict(target))


def test_one_slide_is_the_kernel_alone(cohort: Cohort, target: Slide, caplog: pytest.LogCaptureFixture) -> None:
    one = cohort.subset(["a"])
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        found = fit(one, Run(split_by="slide"))
    assert "one reference slide, 'a'" in caplog.text
    np.testing.assert_allclose(
        found.predict(target), ContextKernel().fit(one, Run()).predict(target), rtol=1e-5, atol=1e-5
    )
    assert found.history() == {}


@pytest.mark.parametrize("max_nodes", [10_000, 12])
def test_a_network_refers_to_other_slides_only(cohort: Cohort, max_nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "max_nodes", max_nodes)
    """The nodes of a training graph, of a slide or of a block, hold no expression of the slide that is the target."""
    method = fit(cohort, Run(split_by="slide"), n_seeds=1)
    references = method._references["context"]
    graphs = TrainingGraphs(cohort, method._values, method._config, references=references)
    cores = dict.fromkeys((slide.name for slide in cohort), 0)
    for name, (graph, values) in zip(graphs.names, graphs, strict=True):
        slide = next(slide for slide in cohort if slide.name == name.split(",")[0])
        own = {tuple(row) for row in np.round(method._values[slide.name], 4)}
        joint = graph.reference.numpy().astype(np.float64)
        assert not own & {tuple(row) for row in np.round(joint[:, references.slides[0].shape[1] :], 4)}
        assert {tuple(row) for row in np.round(values.numpy().astype(np.float64), 4)} <= own
        cores[slide.name] += len(values) if graph.core is None else len(graph.core)
    assert cores == {slide.name: len(slide) for slide in cohort}
    assert (len(graphs) == len(cohort)) == (max_nodes == 10_000)


def test_training_in_blocks_is_like_training_on_the_whole(
    cohort: Cohort, target: Slide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As close as another seed, and not the same."""
    run = Run(split_by="slide")
    whole, other = fit(cohort, run).predict(target), fit(cohort, Run(seed=1, split_by="slide")).predict(target)
    monkeypatch.setattr(settings, "max_nodes", 20)
    blocks = fit(cohort, run).predict(target)
    assert np.abs(blocks - whole).max() > 0
    assert np.abs(blocks - whole).mean() < 2 * np.abs(other - whole).mean()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"preset": "best"}, "`preset` must be one of 'default', 'paper', got 'best'"),
        ({"changes": {"n_seed": 2}}, "`changes` has unknown names: 'n_seed'. Available: 'relative', 'views'"),
        ({"changes": {"views": ["moon"]}}, "`views` must be one or more of 'spot', 'components', 'context', got"),
        ({"changes": {"kernel": 2.0}}, "`kernel` must be between 0 and 1"),
        ({"changes": {"relative": False}}, "`kernel` and `linear_for_new` need relative=True"),
        ({"n_seeds": -1}, "`n_seeds` must be an integer of at least 0"),
        ({"preset": "paper", "n_seeds": 0}, "`n_seeds` must be at least 1 without a kernel"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpaHGC(**params)
