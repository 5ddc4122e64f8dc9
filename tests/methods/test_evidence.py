"""Which reference spots a method looks at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spahgc._slides import Cohort, Slide
from spahgc.methods import KNN, METHODS, Method, Ridge, Run, SpaHGC
from spahgc.methods.base import Evidence

SMALL = {"epochs": 2, "hidden": 16, "n_references": 5}


def spahgc(cohort: Cohort, n_seeds: int = 2, **network: Any) -> SpaHGC:
    return SpaHGC(n_seeds=n_seeds, network={**SMALL, **network}).fit(cohort, Run(split_by="slide"))


def test_merged() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.integers(0, 9, (20, k)), rng.uniform(size=(20, k))) for k in (4, 6)]
    found = Evidence.merged(parts)
    assert (found.index.shape, found.weight.shape) == ((20, 10), (20, 10))
    assert found.weight.dtype == np.float32
    assert (np.diff(found.weight, axis=1) <= 0).all()
    for i in range(20):
        expected: dict[int, float] = {}
        for rows, weights in parts:
            for row, weight in zip(rows[i], weights[i], strict=True):
                expected[int(row)] = expected.get(int(row), 0.0) + weight
        total = sum(expected.values())
        kept = found.weight[i] > 0
        got = dict(zip(found.index[i][kept].tolist(), found.weight[i][kept].tolist(), strict=True))
        assert got.keys() == expected.keys()
        assert got == pytest.approx({row: weight / total for row, weight in expected.items()}, rel=1e-5)


def test_of_knn_is_what_it_predicts_from(cohort: Cohort, target: Slide) -> None:
    method = KNN(n_neighbors=4).fit(cohort, Run())
    evidence = method.evidence(target)
    mean = np.einsum("nk,nkg->ng", evidence.weight, cohort.expression()[evidence.index])
    np.testing.assert_allclose(mean, method.predict(target), rtol=1e-5)


def test_of_spahgc_are_the_spots_that_it_retrieves(cohort: Cohort, target: Slide) -> None:
    method = spahgc(cohort)
    evidence = method.evidence(target)
    assert evidence is not None
    np.testing.assert_allclose(evidence.weight.sum(axis=1), 1, rtol=1e-5)
    for view in ("context", "components"):
        retrieved = method._references[view].search(np.asarray(method._node_features(target, view)))
        for i in range(len(target)):
            assert set(retrieved[i]) <= set(evidence.index[i])
    # Two views of five each.
    assert evidence.index.shape == (len(target), 10)
    seen = {int(row) for row in evidence.index[evidence.weight > 0]}
    assert seen <= set(range(cohort.n_spots))
    # Looking changes nothing.
    before = method.predict(target)
    method.evidence(target)
    np.testing.assert_array_equal(method.predict(target), before)


def test_weights_of_networks_are_averaged(cohort: Cohort, target: Slide) -> None:
    """Of four networks of two views, each view's retrieved spots have half of the weight."""
    method = spahgc(cohort, n_seeds=4)
    evidence = method.evidence(target)
    assert evidence is not None
    of_view = {
        view: method._references[view].search(np.asarray(method._node_features(target, view)))
        for view in ("context", "components")
    }
    for i in range(len(target)):
        weight = dict(zip(evidence.index[i].tolist(), evidence.weight[i].tolist(), strict=True))
        only = {view: set(rows[i].tolist()) for view, rows in of_view.items()}
        if not only["context"] & only["components"]:
            assert sum(weight[row] for row in only["context"]) == pytest.approx(0.5, abs=1e-5)


def test_there_is_none_without_attention(cohort: Cohort, target: Slide) -> None:
    assert spahgc(cohort, use_refer=False, use_pooling=False).evidence(target) is None
    one = SpaHGC(network=SMALL).fit(cohort.subset(["a"]), Run(split_by="slide"))
    assert one.evidence(target) is None
    assert Ridge().fit(cohort, Run(split_by="slide")).evidence(target) is None


def test_who_looks_at_reference_spots() -> None:
    looking = {name for name, method in METHODS.items() if method.evidence is not Method.evidence}
    assert looking == {"spahgc", "knn"}
