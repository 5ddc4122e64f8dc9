"""The drawn slides: their layout, and that planted genes follow the image and the others do not."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from spahgc.datasets import synthetic_cohort

from ..refusals import refused


@pytest.fixture(scope="module")
def cohort() -> sd.SpatialData:
    return synthetic_cohort()


@pytest.fixture(scope="module")
def small() -> sd.SpatialData:
    return synthetic_cohort(n_slides=3, n_patients=2, n_spots=30, n_genes=24, rng=1)


def pixels(sdata: sd.SpatialData, slide: str) -> NDArray[np.uint8]:
    return np.moveaxis(sdata[f"{slide}_image"]["scale0"]["image"].values, 0, -1)


def test_layout(cohort: sd.SpatialData) -> None:
    table = cohort["table"]
    assert table.shape == (600, 200)
    assert table.obs["region"].value_counts().to_dict() == dict.fromkeys(["S1", "S2", "S3", "S4"], 150)
    patients = table.obs.groupby("region", observed=True)["patient"].first().to_dict()
    assert patients == {"S1": "P1", "S2": "P1", "S3": "P2", "S4": "P2"}
    assert table.var["planted"].dtype == bool
    assert table.var["planted"].sum() == 100
    drivers = ["density", "color", "size", "context"]
    assert table.var["driver"].value_counts().to_dict() == {"none": 100, **dict.fromkeys(drivers, 25)}
    assert (table.var["planted"] == (table.var["driver"] != "none")).all()
    assert (table.X.data == np.floor(table.X.data)).all()
    for slide in patients:
        image = pixels(cohort, slide)
        assert image.shape == (1600, 1600, 3)
        factors = table.uns["spatial"][slide]["scalefactors"]
        assert factors["microns_per_pixel"] == 1.0
        assert factors["spot_diameter_fullres"] == 55.0
        positions = table[table.obs["region"] == slide].obsm["spatial"]
        assert ((positions > 50) & (positions < 1550)).all()


def test_looks_like_stained_tissue(cohort: sd.SpatialData) -> None:
    """Glass is bright and grey, tissue pink to purple, and there are dark nuclei under the spots."""
    for slide in ("S1", "S2", "S3", "S4"):
        image = pixels(cohort, slide).astype(float)
        glass = image[:20, :20].reshape(-1, 3)
        assert glass.min() > 220
        spots = cohort["table"].obsm["spatial"][(cohort["table"].obs["region"] == slide).to_numpy()].round().astype(int)
        tissue = np.concatenate([image[y - 20 : y + 20, x - 20 : x + 20].reshape(-1, 3) for x, y in spots])
        red, green, blue = tissue.mean(axis=0)
        assert min(red, blue) - green > 15
        assert 0.01 < (tissue[:, 0] < 130).mean() < 0.4


def statistics(image: NDArray[np.uint8], positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """What can be seen at each spot: number of dark blobs, their size, redness between them, number of blobs around."""
    density = -np.log((image.astype(float) + 1) / 245)
    nuclear = density[..., 0] > 0.62
    labels, n = ndimage.label(nuclear)
    area = np.bincount(labels.ravel())[1:]
    centres = np.array(ndimage.center_of_mass(nuclear, labels, np.arange(1, n + 1)))[area > 12, ::-1]
    area, blobs = area[area > 12], cKDTree(centres)
    near, inner, outer = (blobs.query_ball_point(positions, reach) for reach in (55, 90, 230))
    redness = []
    for x, y in positions.round().astype(int):
        tile = np.s_[y - 45 : y + 45, x - 45 : x + 45]
        redness.append((density[tile][..., 2] - density[tile][..., 0])[~nuclear[tile]].mean())
    count = [len(own) for own in near]
    size = [np.median(area[own]) if own else np.median(area) for own in near]
    around = [len(wide) - len(close) for wide, close in zip(outer, inner, strict=True)]
    return np.column_stack([count, size, redness, around])


def test_planted_genes_follow_the_image_and_others_do_not(cohort: sd.SpatialData) -> None:
    table = cohort["table"]
    counts = table.X.toarray()
    normalized = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    per_slide = []
    for slide in ("S1", "S2", "S3", "S4"):
        rows = (table.obs["region"] == slide).to_numpy()
        seen = statistics(pixels(cohort, slide), table.obsm["spatial"][rows])
        expression = normalized[rows]
        seen = (seen - seen.mean(axis=0)) / seen.std(axis=0)
        expression = (expression - expression.mean(axis=0)) / expression.std(axis=0)
        per_slide.append(seen.T @ expression / rows.sum())
    names = ["count", "size", "redness", "around"]
    r = pd.DataFrame(np.abs(np.mean(per_slide, axis=0)), index=names, columns=table.var_names)
    driver = table.var["driver"]
    for name, statistic in {"density": "count", "color": "redness", "size": "size", "context": "around"}.items():
        found = r.loc[:, driver == name]
        assert (found.loc[statistic] > 0.4).mean() > 0.75, name
        assert found.mean(axis=1).idxmax() == statistic, name
    unplanted = r.loc[:, driver == "none"].to_numpy()
    assert unplanted.max() < 0.35
    assert unplanted.mean() < 0.08


def test_smooth_genes_vary_over_the_slide_and_noise_does_not(cohort: sd.SpatialData) -> None:
    table = cohort["table"]
    part = table[table.obs["region"] == "S1"]
    counts = part.to_df()
    values = np.log1p(counts.div(counts.sum(axis=1), axis=0) * 1e4)
    values = (values - values.mean()) / values.std()
    distance = np.linalg.norm(part.obsm["spatial"][:, None] - part.obsm["spatial"][None], axis=2)
    near = (distance > 0) & (distance < 130)
    moran = values.mul((near @ values.to_numpy()) / near.sum(axis=1)[:, None]).mean()
    assert moran[moran.index.str.startswith("smooth")].mean() > 0.25
    assert abs(moran[moran.index.str.startswith("noise")].mean()) < 0.05


def test_batch_effects(cohort: sd.SpatialData) -> None:
    table = cohort["table"]
    regions = table.obs["region"].to_numpy()
    slides = ("S1", "S2", "S3", "S4")
    colours = np.array([pixels(cohort, slide)[::7, ::7].reshape(-1, 3).mean(axis=0) for slide in slides])
    assert np.linalg.norm(colours - colours.mean(axis=0), axis=1).max() > 3
    total = np.asarray(table.X.sum(axis=1)).ravel()
    assert np.log(total).std() > 0.25
    share = pd.DataFrame(np.log1p(table.X.toarray() / total[:, None] * 1e4), columns=table.var_names)
    noise = share.loc[:, share.columns.str.startswith("noise")].groupby(regions).mean()
    within = np.abs(noise.loc["S1"] - noise.loc["S2"]).mean()
    between = np.abs(noise.loc["S1"] - noise.loc["S3"]).mean()
    assert between > 1.2 * within > 0.05


def test_same_seed_same_slides(small: sd.SpatialData) -> None:
    again = synthetic_cohort(n_slides=3, n_patients=2, n_spots=30, n_genes=24, rng=1)
    assert (again["table"].X != small["table"].X).nnz == 0
    np.testing.assert_array_equal(again["table"].obsm["spatial"], small["table"].obsm["spatial"])
    np.testing.assert_array_equal(pixels(again, "S2"), pixels(small, "S2"))
    generator = np.random.default_rng(1)
    drawn = synthetic_cohort(n_slides=3, n_patients=2, n_spots=30, n_genes=24, rng=generator)
    assert (drawn["table"].X != small["table"].X).nnz == 0
    other = synthetic_cohort(n_slides=3, n_patients=2, n_spots=30, n_genes=24, rng=2)
    assert (other["table"].X != small["table"].X).nnz > 100
    assert (pixels(other, "S2") != pixels(small, "S2")[:800, :800]).mean() > 0.5


def test_round_trip(small: sd.SpatialData, tmp_path: Path) -> None:
    small.write(tmp_path / "cohort.zarr")
    back = sd.read_zarr(tmp_path / "cohort.zarr")
    small["table"].write_h5ad(tmp_path / "cohort.h5ad")
    for table in (back["table"], ad.read_h5ad(tmp_path / "cohort.h5ad")):
        assert (table.X != small["table"].X).nnz == 0
        pd.testing.assert_frame_equal(table.var, small["table"].var, check_index_type=False)
        pd.testing.assert_frame_equal(table.obs, small["table"].obs, check_index_type=False)
        params = {"n_slides": 3, "n_patients": 2, "n_spots": 30, "n_genes": 24, "microns_per_pixel": 1.0, "rng": 1}
        assert table.uns["synthetic"]["params"] == params
        assert set(table.uns["spatial"]) == {"S1", "S2", "S3"}
    for slide in ("S1", "S2", "S3"):
        np.testing.assert_array_equal(pixels(back, slide), pixels(small, slide))
        assert back[slide].radius.to_numpy() == pytest.approx(27.5)


def test_squidpy_draws_the_table_with_its_defaults(small: sd.SpatialData) -> None:
    import matplotlib.pyplot as plt
    import squidpy as sq

    sq.pl.spatial_scatter(small["table"], library_key="region", color="density-00")
    axes = [ax for ax in plt.gcf().axes if ax.images]
    assert len(axes) == 3
    one = small["table"][small["table"].obs["region"] == "S2"].copy()
    one.uns["spatial"] = {"S2": one.uns["spatial"]["S2"]}
    ax = sq.pl.spatial_scatter(one, return_ax=True)
    assert len(ax.images) == 1
    # 30 circles of the spot's size, in pixels of the thumbnail
    assert len(ax.collections[0].get_paths()) == 30
    plt.close("all")


def test_scale(small: sd.SpatialData) -> None:
    sdata = synthetic_cohort(n_slides=1, n_patients=1, n_spots=9, n_genes=16, microns_per_pixel=0.5)
    assert pixels(sdata, "S1").shape == (1000, 1000, 3)
    assert sdata["S1"].radius.to_numpy() == pytest.approx(55.0)
    spacing = np.diff(np.sort(np.unique(sdata["table"].obsm["spatial"][:, 0].round(-2))))
    assert set(spacing) == {200.0}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n_slides": 0}, "`n_slides` must be an integer of at least 1, got 0"),
        ({"n_patients": 5}, "`n_patients` must be at most n_slides=4, got 5"),
        ({"n_spots": 3}, "`n_spots` must be an integer of at least 4, got 3"),
        ({"n_genes": 8}, "`n_genes` must be an integer of at least 16, got 8"),
        ({"microns_per_pixel": 10}, "`microns_per_pixel` must be a finite number between 0.2 and 4, got 10"),
    ],
)
def test_refusals(wrong: dict[str, float], said: str) -> None:
    refused(ValueError, said, synthetic_cohort, **wrong)
