"""Distance of neighbouring spots in reference and target."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import pytest

from spahgc import tl
from spahgc.tl._support import pitches


@pytest.fixture
def tables(planted: Callable[..., ad.AnnData]) -> tuple[ad.AnnData, ad.AnnData]:
    """Reference and target whose spots are 100 um apart, as the embedding records."""
    reference, target = planted({"A": "P1", "B": "P2"}), planted({"T": "P3"})
    for table in (reference, target):
        names = table.obs["region"].cat.categories
        table.uns["image_toy"]["params"]["microns_per_pixel"] = dict.fromkeys(names, 1.0)
    return reference, target


def rescaled(target: ad.AnnData, mpp: float) -> ad.AnnData:
    out = target.copy()
    out.uns["image_toy"]["params"]["microns_per_pixel"]["T"] = mpp
    return out


def test_pitch_is_measured_in_micrometres(tables: tuple[ad.AnnData, ad.AnnData]) -> None:
    reference, target = tables
    assert pitches(reference, "image_toy", None, what="reference") == {"A": 100.0, "B": 100.0}
    assert pitches(rescaled(target, 0.5), "image_toy", None, what="target") == {"T": 50.0}


def test_without_a_scale_nothing_is_said(tables: tuple[ad.AnnData, ad.AnnData]) -> None:
    _, target = tables
    del target.uns["image_toy"]["params"]["microns_per_pixel"]
    assert pitches(target, "image_toy", None, what="target") == {}
    assert pitches(target[:1].copy(), "image_toy", None, what="target") == {}


@pytest.mark.parametrize("mpp", [0.49, 2.01])
def test_warns_of_another_pitch(tables: tuple[ad.AnnData, ad.AnnData], mpp: float) -> None:
    reference, target = tables
    with pytest.warns(UserWarning, match=rf"100 um apart in the reference, and in the target 'T' {100 * mpp:.3g} um"):
        tl.predict(reference, rescaled(target, mpp), method="ridge")


@pytest.mark.parametrize("mpp", [0.51, 1.0, 1.99])
def test_a_pitch_that_is_alike_is_fine(tables: tuple[ad.AnnData, ad.AnnData], mpp: float) -> None:
    reference, target = tables
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tl.predict(reference, rescaled(target, mpp), method="ridge")


def test_a_trained_model_remembers(tables: tuple[ad.AnnData, ad.AnnData], tmp_path: Path) -> None:
    reference, target = tables
    tl.train(reference, method="ridge").save(tmp_path / "model")
    model = tl.Model.load(tmp_path / "model")
    assert model.params["pitch_um"] == {"A": 100.0, "B": 100.0}
    with pytest.warns(UserWarning, match="does not carry over"):
        tl.predict(model, rescaled(target, 3.0))
