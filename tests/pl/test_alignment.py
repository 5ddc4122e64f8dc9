"""`pl.alignment` draws what the check found."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from spatialdata import SpatialData, concatenate
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

import spahgc

WIDTH, HEIGHT = 300, 380


def make(name: str = "S", *, swapped: bool = False) -> SpatialData:
    """A lopsided piece of tissue without counts, and its spots."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    tissue = (x > 40) & (y > 50) & (2 * (x - 40) + (y - 50) < 300)
    image = np.where(tissue[..., None], [160, 100, 165], [235, 232, 236]) + rng.normal(0, 8, (HEIGHT, WIDTH, 3))
    at = np.column_stack([part.ravel() for part in np.meshgrid(np.arange(45, 290, 12), np.arange(55, 370, 12))])
    at = at[tissue[at[:, 1], at[:, 0]]].astype(float)
    xy = at[:, ::-1].copy() if swapped else at
    index = pd.Index([f"{name}_{i}" for i in range(len(xy))])
    obs = pd.DataFrame({"region": pd.Categorical([name] * len(xy)), "spot_id": index.to_numpy()}, index=index)
    table = TableModel.parse(
        ad.AnnData(obs=obs, obsm={"spatial": xy}), region=name, region_key="region", instance_key="spot_id"
    )
    transformations = {name: Identity()}
    picture = Image2DModel.parse(
        np.clip(image, 0, 255).astype(np.uint8), dims=("y", "x", "c"), transformations=transformations
    )
    shapes = ShapesModel.parse(xy, geometry=0, radius=3.0, index=index, transformations=transformations)
    return SpatialData(images={f"{name}_image": picture}, shapes={name: shapes}, tables={"table": table})


def points(ax: plt.Axes) -> np.ndarray:
    (found,) = (part for part in ax.collections if isinstance(part, PathCollection))
    return np.asarray(found.get_offsets())


def test_as_given_and_undone() -> None:
    sdata = make(swapped=True)
    spahgc.pp.check_alignment(sdata)
    report = spahgc.get.alignment(sdata["table"]).loc["S"]
    given, undone = spahgc.pl.alignment(sdata)
    assert given.get_title() == "S: x and y swapped"
    assert undone.get_title() == "undone: x and y swapped"
    spots = sdata["table"].obsm["spatial"]
    np.testing.assert_allclose(points(given), spots)
    np.testing.assert_allclose(points(undone), spots[:, ::-1])
    assert f"outline {report['given_outline']:.2f}" in given.get_xlabel()
    assert f"outline {report['candidate_outline']:.2f}" in undone.get_xlabel()
    for ax in (given, undone):
        assert ax.images[0].get_array().shape == (HEIGHT, WIDTH, 3)
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # y goes down, as in the image


def test_after_the_fix_the_first_panel_is_how_it_was() -> None:
    sdata = make(swapped=True)
    before = sdata["table"].obsm["spatial"].copy()
    spahgc.pp.check_alignment(sdata, fix=True)
    was, now = spahgc.pl.alignment(sdata)
    np.testing.assert_allclose(points(was), before, atol=1e-6)
    np.testing.assert_allclose(points(now), before[:, ::-1], atol=1e-6)
    assert now.get_title() == "as it is now: swap x and y"


def test_a_slide_that_is_right_and_spots_far_outside() -> None:
    sdata = make()
    table = sdata["table"]
    spahgc.pp.check_alignment(sdata)
    given, other = spahgc.pl.alignment(sdata)
    assert given.get_title() == "S: ok"
    assert other.get_title().startswith("next best, undone:")
    table.uns["alignment"]["slides"]["S"]["affine"] = np.diag([10.0, 10.0, 1.0])
    _, other = spahgc.pl.alignment(sdata)
    assert "spots are further out" in other.texts[0].get_text()
    assert len(points(other)) < table.n_obs


def test_which_slide() -> None:
    both = concatenate([make("A"), make("B", swapped=True)], concatenate_tables=True)
    spahgc.pp.check_alignment(both)
    with pytest.raises(ValueError, match=r"There are 2 slides. Pass slide=<one of them>; available: 'A', 'B'"):
        spahgc.pl.alignment(both)
    with pytest.raises(KeyError, match="No slide 'C'. Available: 'A', 'B'"):
        spahgc.pl.alignment(both, slide="C")
    assert spahgc.pl.alignment(both, slide="B")[0].get_title() == "B: x and y swapped"


def test_needs_the_check_and_two_axes() -> None:
    sdata = make()
    with pytest.raises(KeyError, match=r"Run spahgc.pp.check_alignment\(sdata\) first"):
        spahgc.pl.alignment(sdata)
    spahgc.pp.check_alignment(sdata)
    figure, axes = plt.subplots(1, 2)
    assert spahgc.pl.alignment(sdata, ax=axes) == list(axes)
    assert len(figure.axes) == 2
    with pytest.raises(ValueError, match="`ax` must hold 2 Axes, one per panel, got 1"):
        spahgc.pl.alignment(sdata, ax=axes[0])
