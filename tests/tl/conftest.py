"""Reference and target tables, and a small model of every method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from anndata import AnnData
from spatialdata.models import ShapesModel

import spahgc
from spahgc.methods import METHODS

Models = Callable[[str], spahgc.tl.Model]
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


def content(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reread(table: AnnData, path: Path) -> AnnData:
    """Write a table to a file and read it back; the format follows the suffix, h5ad or zarr."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if path.suffix == ".zarr":
            table.write_zarr(path)
            return ad.read_zarr(path)
        table.write_h5ad(path)
        return ad.read_h5ad(path)


def circles(table: AnnData) -> dict[str, Any]:
    """Spots of the slides of a table as SpatialData shapes."""
    shapes = {}
    for slide, rows in table.obs.groupby("region", observed=True).indices.items():
        index = table.obs["spot_id"].to_numpy()[rows]
        shapes[slide] = ShapesModel.parse(table.obsm["spatial"][rows], geometry=0, radius=27.5, index=index)
    return shapes


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
def models(_reference: AnnData) -> Models:
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
def stored(models: Models, shuffled: AnnData, tmp_path: Path) -> AnnData:
    """A table of two slides, mixed, whose prediction is in a store."""
    spahgc.tl.predict(models("ridge"), shuffled, store=tmp_path / "pred.zarr")
    return shuffled
