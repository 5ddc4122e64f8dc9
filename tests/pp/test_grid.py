"""Virtual spots: their places, their tissue, the reference's pitch, and on to a prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
from scipy.spatial import KDTree
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, get_transformation

import spahgc
from spahgc.io import from_anndata, read_wsi
from spahgc.pp import tissue_grid
from spahgc.pp._images import scans_of
from spahgc.pp._tiles import Level
from spahgc.pp._tissue import check_scale

from ..slide_files import pyramid_tiff, reduced, scene
from .conftest import Make

MPP = 2.0
PICTURE = scene(1000, 1200)  # 2 x 2.4 mm, tissue 1.4 mm across


@pytest.fixture
def slide(tmp_path: Path) -> sd.SpatialData:
    return read_wsi(pyramid_tiff(tmp_path / "T.tif", PICTURE, mpp=MPP))


def centers(sdata: sd.SpatialData, name: str = "T") -> np.ndarray:
    return np.column_stack([sdata[name].geometry.x, sdata[name].geometry.y])


@pytest.mark.parametrize(("layout", "area"), [("hex", 100**2 * np.sqrt(3) / 2), ("grid", 100**2)])
def test_layout(slide: sd.SpatialData, layout: Any, area: float) -> None:
    tissue_grid(slide, pitch_um=100, layout=layout)
    table = slide["table"]
    assert table.n_vars == 0
    assert list(table.obs.columns) == ["region", "spot_id", "array_row", "array_col", "tissue_fraction"]
    assert table.obs_names.is_unique
    np.testing.assert_array_equal(centers(slide), table.obsm["spatial"])
    distance, _ = KDTree(centers(slide)).query(centers(slide), k=2)
    np.testing.assert_allclose(distance[:, 1], 100 / MPP)
    # as many as fit on the disc, and all on it
    assert table.n_obs == pytest.approx(np.pi * 700**2 / area, rel=0.05)
    radius = np.hypot(*(centers(slide) - (600, 500)).T) * MPP
    assert radius.max() < 705
    inner = radius < 660
    assert (table.obs["tissue_fraction"][inner] == 1).all()
    assert 0.5 <= table.obs["tissue_fraction"].min() < 0.9
    # rows and columns number the places
    row, column = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    x = 50 + 100 * (column + (row % 2) / 2 * (layout == "hex"))
    y = 50 + row * 100 * (np.sqrt(3) / 2 if layout == "hex" else 1)
    np.testing.assert_allclose(centers(slide) * MPP, np.column_stack([x, y]))
    factors = table.uns["spatial"]["T"]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(MPP)
    assert factors["spot_diameter_fullres"] == pytest.approx(55 / MPP)
    assert slide["T"].radius.iloc[0] == pytest.approx(55 / MPP / 2)
    params = table.uns["spahgc_grid"]["params"]
    assert {key: params[key] for key in ("pitch_um", "spot_diameter_um", "layout", "min_tissue")} == {
        "pitch_um": 100.0, "spot_diameter_um": pytest.approx(55.0), "layout": layout, "min_tissue": 0.5,
    }  # fmt: skip
    assert params["image"] == {"T": "T_image"}


def test_min_tissue(slide: sd.SpatialData) -> None:
    counts = []
    for least in (0.01, 0.5, 1.0):
        tissue_grid(slide, pitch_um=100, min_tissue=least)
        counts.append(slide["table"].n_obs)
        assert slide["table"].obs["tissue_fraction"].min() >= least
    assert counts[0] > counts[1] > counts[2]


def reference(pitch: float, mpp: float, *, jitter: float = 0.0, name: str = "R") -> ad.AnnData:
    """A table of squarely laid spots, a pitch in micrometers apart."""
    rng = np.random.default_rng(0)
    xy = np.column_stack([part.ravel() for part in np.mgrid[:12, :12]]) * pitch
    xy = (xy + rng.uniform(-jitter, jitter, xy.shape)) / mpp
    table = ad.AnnData(np.ones((len(xy), 1), np.float32), obsm={"spatial": xy})
    table.obs_names = [f"{name}_{k}" for k in range(len(xy))]
    table.obs["slide"] = name
    factors = {"microns_per_pixel": mpp, "spot_diameter_fullres": 0.5 * pitch / mpp, "tissue_hires_scalef": 1.0}
    table.uns["spatial"] = {name: {"images": {}, "scalefactors": factors}}
    return table


def test_pitch_of_the_reference(slide: sd.SpatialData) -> None:
    """In micrometers: its pixels have another size. Positions of legacy arrays scatter by some percent."""
    tissue_grid(slide, adata_ref=reference(200, 0.7, jitter=15), library_key="slide")
    params = slide["table"].uns["spahgc_grid"]["params"]
    assert params["pitch_um"] == pytest.approx(200, rel=0.02)
    assert params["spot_diameter_um"] == pytest.approx(100)
    both = ad.concat([reference(100, 0.5), reference(104, 0.5, name="Q")], uns_merge="unique")
    both.uns["spatial"] = {n: reference(100, 0.5, name=n).uns["spatial"][n] for n in "RQ"}
    tissue_grid(slide, adata_ref=both, library_key="slide")
    assert slide["table"].uns["spahgc_grid"]["params"]["pitch_um"] == pytest.approx(102)
    other = ad.concat([reference(100, 0.5), reference(200, 0.5, name="Q")])
    other.uns["spatial"] = both.uns["spatial"]
    with pytest.raises(ValueError, match="different pitches \\('Q' 200 um, 'R' 100 um\\). Pass pitch_um"):
        tissue_grid(slide, adata_ref=other, library_key="slide")
    bare = reference(100, 0.5)
    del bare.uns["spatial"]
    with pytest.raises(ValueError, match="pitch of reference slide 'R' cannot be measured .*Pass pitch_um"):
        tissue_grid(slide, adata_ref=bare, library_key="slide")
    with pytest.raises(KeyError, match="adata_ref does not say which slide"):
        tissue_grid(slide, adata_ref=bare)


def test_to_a_prediction(slide: sd.SpatialData, planted: Callable[..., ad.AnnData]) -> None:
    """A slide file without spots becomes an AnnData with expression that squidpy takes."""
    import squidpy as sq

    source = reference(150, 1.0)
    rng = np.random.default_rng(1)
    measured = ad.AnnData(rng.poisson(5, (144, 8)).astype(np.float32), obs=source.obs, obsm=dict(source.obsm))
    measured.obsm["spatial"] = measured.obsm["spatial"] + 100
    measured.obs["patient"] = "P"
    known = from_anndata(
        measured, scene(1900, 1900, seed=2, radius=2), slide="R", microns_per_pixel=1.0, spot_diameter_um=75
    )
    tissue_grid(slide, adata_ref=known["table"])
    for sdata in (known, slide):
        spahgc.pp.image_embedding(sdata, tile_um=60, fields_of_view=[1])
    target = slide["table"]
    spahgc.tl.predict(known["table"], target, method="ridge", panel=[f"{k}" for k in range(8)])
    predicted = spahgc.get.predicted(target)
    assert predicted.shape == (target.n_obs, 8)
    assert np.isfinite(predicted.X).all()
    sq.gr.spatial_neighbors(predicted, library_key="region")
    assert predicted.obsp["spatial_connectivities"].nnz > 4 * target.n_obs
    sq.pl.spatial_scatter(predicted, color="3", library_id="T", library_key="region")


def test_again(slide: sd.SpatialData, tmp_path: Path) -> None:
    """A grid of its own is replaced, another table is not."""
    tissue_grid(slide, pitch_um=100)
    first = slide["table"]
    tissue_grid(slide, pitch_um=200)
    assert list(slide.shapes) == ["T"]
    assert slide["table"].n_obs < first.n_obs / 3
    slide.write(tmp_path / "T.zarr")
    back = sd.read_zarr(tmp_path / "T.zarr")
    tissue_grid(back, pitch_um=100)
    np.testing.assert_array_equal(back["table"].obsm["spatial"], first.obsm["spatial"])


def test_beside_measured_spots(make_sdata: Make) -> None:
    sdata = make_sdata(("A",), image=lambda seed: scene(240, 300, seed))
    with pytest.raises(ValueError, match="a table 'table' that is not a grid made by spahgc: it is not overwritten"):
        tissue_grid(sdata, pitch_um=80, microns_per_pixel=4.0)
    before = sdata["table"].obsm["spatial"].copy()
    tissue_grid(sdata, pitch_um=80, microns_per_pixel=4.0, table_key="grid")
    assert set(sdata.shapes) == {"A", "A_grid"}
    assert set(sdata["grid"].obs["region"]) == {"A_grid"}
    np.testing.assert_array_equal(sdata["table"].obsm["spatial"], before)
    spahgc.pp.image_embedding(sdata, table_key="grid", tile_um=40)
    assert "image_texture" in sdata["grid"].obsm
    with pytest.raises(ValueError, match="has an element 'A' already. Pass slide="):
        tissue_grid(sdata, pitch_um=80, slide="A", table_key="grid")


def test_copy(slide: sd.SpatialData) -> None:
    made = tissue_grid(slide, pitch_um=100, copy=True)
    assert made is not None
    assert (list(slide.shapes), list(slide.tables)) == ([], [])
    assert (list(made.shapes), list(made.tables), list(made.images)) == (["T"], ["table"], ["T_image"])


def images(**elements: tuple[np.ndarray, dict[str, Any]]) -> sd.SpatialData:
    return sd.SpatialData(
        images={
            name: Image2DModel.parse(picture, dims=("y", "x", "c"), transformations=transformations)
            for name, (picture, transformations) in elements.items()
        }
    )


def test_several_slides() -> None:
    sdata = images(
        A_image=(PICTURE, {"A": Identity()}), B_image=(scene(600, 600, seed=3), {"B": Identity(), "other": Identity()})
    )
    tissue_grid(sdata, pitch_um=100, microns_per_pixel={"A_image": 2.0, "B_image": 3.0})
    table = sdata["table"]
    assert table.uns["spatialdata_attrs"]["region"] == ["A", "B"]
    assert set(table.uns["spatial"]) == {"A", "B"}
    assert sdata.attrs["microns_per_pixel"] == {"A_image": 2.0, "B_image": 3.0}
    for name, mpp in (("A", 2.0), ("B", 3.0)):
        distance, _ = KDTree(centers(sdata, name)).query(centers(sdata, name), k=2)
        np.testing.assert_allclose(distance[:, 1], 100 / mpp)
    assert set(get_transformation(sdata["B"], get_all=True)) == {"B", "other"}
    spahgc.pp.image_embedding(sdata, tile_um=60, fields_of_view=[1])
    with pytest.raises(ValueError, match="slide='X' names one slide, and there are the images 'A_image', 'B_image'"):
        tissue_grid(sdata, pitch_um=100, slide="X")
    tissue_grid(sdata, pitch_um=100, image_key="B_image", slide="X")
    assert list(sdata.shapes) == ["X"]


def test_one_slide_at_several_resolutions() -> None:
    """As spatialdata-io reads Visium: the finest image is taken."""
    small = reduced(PICTURE, 4)
    sdata = images(
        S_hires_image=(small, {"S": Scale([4, 4], axes=("x", "y"))}), S_full_image=(PICTURE, {"S": Identity()})
    )
    tissue_grid(sdata, pitch_um=100, microns_per_pixel=2.0)
    assert sdata["table"].uns["spahgc_grid"]["params"]["image"] == {"S": "S_full_image"}
    two = images(A_image=(PICTURE, {"global": Identity()}), B_image=(PICTURE[:600, :700], {"global": Identity()}))
    with pytest.raises(ValueError, match="'A_image', 'B_image' share a coordinate system: .*Pass image_key"):
        tissue_grid(two, pitch_um=100, microns_per_pixel=2.0)
    tissue_grid(two, pitch_um=100, microns_per_pixel=2.0, image_key=["A_image"])
    assert list(two.shapes) == ["A"]


def test_refusals(slide: sd.SpatialData) -> None:
    def refused(error: type[Exception], match: str, sdata: Any = slide, **options: Any) -> None:
        with pytest.raises(error, match=match):
            tissue_grid(sdata, **{"pitch_um": 100, **options})
        if isinstance(sdata, sd.SpatialData):
            assert list(sdata.tables) == list(sdata.shapes) == []

    refused(TypeError, "`sdata` must be a SpatialData, got 'T.svs'", "T.svs")
    refused(ValueError, "Pass either adata_ref", pitch_um=None)
    refused(ValueError, "Pass either adata_ref", adata_ref=reference(100, 1))
    refused(ValueError, "`pitch_um` must be a finite number greater than 0 or None, got -5", pitch_um=-5)
    refused(ValueError, "`spot_diameter_um` must be a finite number greater than 0", spot_diameter_um=0)
    refused(ValueError, "`layout` must be one of 'grid', 'hex', got 'round'", layout="round")
    refused(ValueError, "`min_tissue` must be a finite number greater than 0 and at most 1", min_tissue=0)
    refused(KeyError, r"no image 'X' \(image_key\). Available: 'T_image'", image_key="X")
    refused(KeyError, "sdata has no image", sd.SpatialData())
    refused(ValueError, "`microns_per_pixel` must be a finite number between 0.05 and 20", microns_per_pixel=60)
    refused(ValueError, "No spot lies on tissue of image 'G_image': 0 % of it is", images(
        G_image=(scene(400, 400, radius=0), {"G": Identity()})), microns_per_pixel=2.0)  # fmt: skip
    refused(ValueError, "micrometers per pixel of image 'G_image' are not known", images(
        G_image=(PICTURE, {"G": Identity()})))  # fmt: skip
    refused(ValueError, "No H&E image: 'G_image' is uint16: convert", images(
        G_image=(PICTURE.astype(np.uint16), {"G": Identity()})))  # fmt: skip


def nuclei(mpp: float, *, um: float = 9.0) -> np.ndarray:
    """Dark nuclei on a disc of pink tissue, uint8 (900, 900, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:900, :900]
    image = np.where(np.hypot(x - 450, y - 450)[..., None] < 420, [225, 150, 190], [240, 240, 240])
    centers = rng.uniform(50, 850, (int(900**2 * mpp**2 / 600), 2))
    distance, _ = KDTree(centers).query(np.column_stack([x.ravel(), y.ravel()]))
    inside = (distance.reshape(900, 900) < um / mpp / 2) & (image[..., 2] == 190)
    image = np.where(inside[..., None], [95, 60, 140], image) + rng.normal(0, 3, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def with_scale(picture: np.ndarray, mpp: float) -> sd.SpatialData:
    sdata = images(A_image=(picture, {"A": Identity()}))
    sdata.attrs["microns_per_pixel"] = {"A_image": mpp}
    return sdata


@pytest.mark.parametrize(("mpp", "factor"), [(0.25, 10), (0.5, 0.1), (0.5, 0.2), (1.0, 0.1), (1.0, 0.2), (1.7, 0.1)])
def test_a_scale_that_the_nuclei_contradict(mpp: float, factor: float) -> None:
    """Refused if it is a record, believed if the user gives it."""
    wrong, grid = mpp * factor, {"pitch_um": 60 * factor, "min_tissue": 0.1}
    sdata = with_scale(nuclei(mpp), wrong)
    ((image, levels),) = scans_of(sdata, None, None).items()
    middle = np.full((20, 2), 450.0)
    with pytest.raises(ValueError, match=f"records {wrong:.4g} um per pixel for image 'A_image'; nuclei would then"):
        check_scale(levels, middle, image)
    if factor > 1:
        with pytest.raises(ValueError, match="Pass microns_per_pixel=<number>; it is not compared"):
            tissue_grid(sdata, **grid)
        tissue_grid(sdata, **grid, microns_per_pixel=wrong)


def test_an_image_that_is_longer_than_a_slide() -> None:
    """20 mm at 0.5 um per pixel, tagged as 5: nuclei cannot be judged, but no slide is 200 mm long."""
    levels = [Level(np.zeros((3, 10, 40_000), np.uint8), np.eye(3), 5.0)]
    with pytest.raises(ValueError, match="would then be 200 mm long; slides have 75"):
        check_scale(levels, np.full((1, 2), 5.0), "A_image")


@pytest.mark.parametrize("mpp", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("um", [6.0, 9.0, 14.0])
def test_a_right_scale(mpp: float, um: float) -> None:
    tissue_grid(with_scale(nuclei(mpp, um=um), mpp), pitch_um=60)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_the_scale_of_a_real_scan(data_dir: Path, factor: int) -> None:
    """Coarse scans show no nuclei: not judged, and not refused."""
    from PIL import Image

    with Image.open(data_dir / "colon_visium" / "section2.jpg") as scan:
        tissue_grid(with_scale(np.asarray(scan.convert("RGB").reduce(factor)), 0.97 * factor), pitch_um=100)


def test_colon(data_dir: Path) -> None:
    """The second section at the pitch of the first: about as many spots as were measured, over the same tissue."""
    folder = data_dir / "colon_visium"
    measured = ad.read_h5ad(folder / "section1.h5ad")
    measured.obs["slide"] = "section1"
    measured.uns["spatial"] = {"section1": {"scalefactors": {"microns_per_pixel": 0.97}}}
    sdata = read_wsi(folder / "section2.jpg", microns_per_pixel=0.97)
    tissue_grid(sdata, adata_ref=measured, library_key="slide")
    table = sdata["table"]
    assert table.uns["spahgc_grid"]["params"]["pitch_um"] == pytest.approx(100, rel=0.001)
    spots = ad.read_h5ad(folder / "section2.h5ad").obsm["spatial"]
    assert len(spots) < table.n_obs < 1.2 * len(spots)  # tissue goes on where the array ends
    distance, _ = KDTree(table.obsm["spatial"]).query(spots)
    assert (distance * 0.97 < 100 / np.sqrt(3) + 1).mean() > 0.97
