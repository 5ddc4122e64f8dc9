"""A small cohort of slides as arrays, with a planted link from embedding to expression."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch

from spahgc._slides import Cohort, Slide, standardize

Make = Callable[..., Cohort]


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """These problems are too small to split: on a busy machine, waiting for a second thread costs 20 times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _make(
    slides: Mapping[str, str], *, n: int = 36, d: int = 12, g: int = 6, noise: float = 0.5, seed: int = 0
) -> Cohort:
    weights = np.random.default_rng(seed).normal(size=(d, g)) / np.sqrt(d)
    made = []
    for name, patient in slides.items():
        rng = np.random.default_rng([seed, *name.encode()])
        embedding = rng.normal(size=(n, d))
        expression = embedding @ weights + noise * rng.normal(size=(n, g)) + 3
        positions = np.column_stack(np.divmod(np.arange(n), 6)).astype(np.float64)
        density = (0.1 + 0.02 * embedding[:, 0]).astype(np.float32)
        made.append(
            Slide(name, patient, embedding.astype(np.float32), positions, expression.astype(np.float32), density)
        )
    return Cohort(tuple(made), tuple(f"g{i}" for i in range(g)))


@pytest.fixture(scope="session")
def make() -> Make:
    """Maker of a cohort, embeddings not standardised."""
    return _make


@pytest.fixture(scope="session")
def cohort() -> Cohort:
    """Three slides of two patients, standardised, as methods get them."""
    return _make({"a": "P", "b": "P", "c": "Q"}).standardized()


@pytest.fixture(scope="session")
def target() -> Slide:
    """Another slide, with the expression that methods must not look at."""
    return standardize(_make({"t": "Q"}).slides[0])
