"""Small graphs for the tests of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from spahgc.nn import Config, GraphTensors, slide_graph

Slide = tuple[GraphTensors, torch.Tensor]


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """These problems are too small to split: on a busy machine, waiting for a second thread costs 20 times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small() -> Config:
    """A small network without dropout; what the paper has otherwise."""
    return Config(hidden=16, n_layers=2, heads=4, dropout=0.0, n_references=3, n_near=2, n_close=2, epochs=3)


@pytest.fixture
def arrays() -> tuple[np.ndarray, ...]:
    """Embeddings and positions of a target slide of 57 spots, embeddings and expression of 40 reference spots."""
    rng = np.random.default_rng(0)
    z_r, y_r = (rng.normal(size=(40, width)).astype(np.float32) for width in (6, 5))
    return rng.normal(size=(57, 6)).astype(np.float32), rng.uniform(size=(57, 2)), z_r, y_r


@pytest.fixture
def cohort() -> Callable[..., list[Slide]]:
    """Slides with a linear image-gene signal; each in turn the target, its references from the others."""

    def make(
        n_slides: int = 3, n_spots: int = 24, n_features: int = 6, n_genes: int = 5, config: Config | None = None
    ) -> list[Slide]:
        config = Config(n_references=3, n_near=2, n_close=2) if config is None else config
        rng = np.random.default_rng(0)
        weights = rng.normal(size=(n_features, n_genes))
        z = [rng.normal(size=(n_spots + i, n_features)).astype(np.float32) for i in range(n_slides)]
        y = [(values @ weights).astype(np.float32) for values in z]
        slides = []
        for i in range(n_slides):
            others = [j for j in range(n_slides) if j != i]
            graph = slide_graph(
                z[i],
                rng.uniform(size=(len(z[i]), 2)),
                np.concatenate([z[j] for j in others]),
                np.concatenate([y[j] for j in others]),
                n_references=config.n_references,
                n_near=config.n_near,
                n_close=config.n_close,
            )
            slides.append((graph.tensors(), torch.from_numpy(y[i])))
        return slides

    return make
