"""Reference and target tables, and a small model of every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData

import spahgc
from spahgc.methods import METHODS

SLIDES = {"A1": "A", "A2": "A", "B1": "B"}
SMALL = {"epochs": 2, "hidden": 16, "n_references": 5}
VARIANTS: dict[str, dict[str, Any]] = {
    # Methods that are trained for epochs take their number, and two are enough here.
    **{
        name: {"method": name, "method_params": {"epochs": 2} if "epochs" in signature(method).parameters else {}}
        for name, method in METHODS.items()
    },
    "spahgc": {"method": "spahgc", "method_params": {"network": SMALL, "n_seeds": 1}},
    "spahgc-paper": {"method": "spahgc", "preset": "paper", "method_params": {"network": SMALL}},
}


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """These problems are too small to split: on a busy machine, waiting for a second thread costs 20 times the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def _reference(planted: Callable[..., AnnData]) -> AnnData:
    return planted(SLIDES)


@pytest.fixture(scope="package")
def _target(planted: Callable[..., AnnData]) -> AnnData:
    return planted({"T1": "B", "T2": "C"})


@pytest.fixture
def reference(_reference: AnnData) -> AnnData:
    """Three slides of two patients, 36 spots each; genes G00 to G11 follow the embedding, G12 to G23 do not."""
    return _reference.copy()


@pytest.fixture
def target(_target: AnnData) -> AnnData:
    """Two other slides, measured too, one of a reference patient."""
    return _target.copy()


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    """Every method, small; SpaHGC with both presets."""
    return str(request.param)


@pytest.fixture
def options(variant: str) -> dict[str, Any]:
    """Arguments of `train` for a variant."""
    return VARIANTS[variant]


@pytest.fixture(scope="package")
def models(_reference: AnnData) -> Callable[[str], spahgc.tl.Model]:
    """Maker of a model of a variant, trained once."""
    made: dict[str, spahgc.tl.Model] = {}

    def model(variant: str) -> spahgc.tl.Model:
        if variant not in made:
            made[variant] = spahgc.tl.train(_reference, panel=12, device="cpu", progress=False, **VARIANTS[variant])
        return made[variant]

    return model


@pytest.fixture
def shuffled(target: AnnData) -> AnnData:
    """Two slides, their rows mixed."""
    return target[np.random.default_rng(0).permutation(target.n_obs)].copy()


@pytest.fixture
def stored(models: Callable[[str], spahgc.tl.Model], shuffled: AnnData, tmp_path: Path) -> AnnData:
    """A table of two slides, mixed, whose prediction is in a store."""
    spahgc.tl.predict(models("ridge"), shuffled, store=tmp_path / "pred.zarr")
    return shuffled
