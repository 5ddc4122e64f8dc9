"""Kernel ridge regression over the reference spots."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from sklearn.kernel_ridge import KernelRidge

from spahgc._slides import Cohort, Slide
from spahgc.methods import ContextKernel, Run
from spahgc.methods._features import Context
from spahgc.methods.kernel import KernelFit


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(60, 5))
    y = np.column_stack([np.sin(x[:, 0]) + 2, x[:, 1] * x[:, 2], generator.normal(size=60)])
    return x, y, generator.normal(size=(15, 5))


def test_is_sklearns_on_the_same_kernel(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    x, y, new = data
    fit = KernelFit.fit(x, y, penalty=0.5)
    scale = np.median(pdist(x))
    assert fit.scale == pytest.approx(scale)
    other = KernelRidge(alpha=0.5, kernel="precomputed").fit(np.exp(-cdist(x, x) / scale), y - y.mean(axis=0))
    np.testing.assert_allclose(fit(new), other.predict(np.exp(-cdist(new, x) / scale)) + y.mean(axis=0), atol=1e-10)


def test_penalty_draws_to_the_mean(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    x, y, new = data
    far = [np.abs(KernelFit.fit(x, y, penalty=penalty)(new) - y.mean(axis=0)).mean() for penalty in (0.1, 1, 10, 1e6)]
    assert far == sorted(far, reverse=True)
    assert far[-1] < 1e-4


def test_many_spots_share_centers(
    data: tuple[np.ndarray, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer centers than spots it is the subset of regressors; close centers lose little."""
    x, y, new = data
    twice = np.repeat(x, 2, axis=0)
    whole = KernelFit.fit(twice, np.repeat(y, 2, axis=0))
    monkeypatch.setattr("spahgc.methods.kernel.MAX_EXACT", 60)
    monkeypatch.setattr("spahgc.methods.kernel._ROWS", 7)
    some = KernelFit.fit(twice, np.repeat(y, 2, axis=0))
    assert len(some.centers) == 60 < len(whole.centers) == 120
    kernel = np.exp(-cdist(twice, some.centers) / some.scale)
    among = np.exp(-cdist(some.centers, some.centers) / some.scale)
    values = np.repeat(y, 2, axis=0) - y.mean(axis=0)
    expected = np.linalg.solve(kernel.T @ kernel + among + 1e-8 * 120 * np.eye(60), kernel.T @ values)
    np.testing.assert_allclose(some.coefficients, expected, rtol=1e-5, atol=1e-8)
    assert np.corrcoef(some(new)[:, 0], whole(new)[:, 0])[0, 1] > 0.95
    assert some(new).shape == (15, 3)


def test_features_are_weighted(cohort: Cohort, target: Slide) -> None:
    plain, weighted = Context.fit(cohort.slides), Context.fit(cohort.slides, weights=(1, 0.5, 0.25, 0))
    r = len(plain.pca.variance)
    features, halved = plain(target), weighted(target)
    np.testing.assert_array_equal(halved[:, :r], features[:, :r])
    np.testing.assert_allclose(halved[:, r : 2 * r], features[:, r : 2 * r] / 2, rtol=1e-6)
    assert not halved[:, 3 * r :].any()


def test_surroundings_count(cohort: Cohort, target: Slide) -> None:
    """Where the spots lie elsewhere, other spots are around them."""
    fitted = ContextKernel().fit(cohort, Run())
    shuffled = target.coordinates[np.random.default_rng(0).permutation(len(target))]
    moved = Slide(target.name, target.patient, target.embedding, shuffled)
    assert np.abs(fitted.predict(moved) - fitted.predict(target)).max() > 1e-3
