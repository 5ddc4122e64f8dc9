"""A squidpy-style table and its image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import spatialdata as sd
from PIL import Image
from spatialdata.transformations import get_transformation

import spahgc
from spahgc.io import concat, from_anndata, read_wsi

from ..refusals import refused
from ..slide_files import pyramid_tiff, scene

PICTURE = scene(700, 900)
GIVEN: dict[str, Any] = {"slide": "S1", "microns_per_pixel": 0.5, "spot_diameter_um": 55}


@pytest.fixture
def adata() -> ad.AnnData:
    """30 spots on a Visium array with a pitch of 80 pixels, 5 genes."""
    rng = np.random.default_rng(0)
    row, column = (part.ravel() for part in np.mgrid[:6, :5])
    adata = ad.AnnData(sp.csr_matrix(rng.poisson(2, (30, 5)).astype(np.float32)))
    adata.obs_names = [f"AC{k}-1" for k in range(30)]
    adata.var_names = [f"G{k}" for k in range(5)]
    adata.obs["array_row"], adata.obs["array_col"] = row, 2 * column + row % 2
    adata.obs["cluster"] = rng.choice(["a", "b"], 30)
    xy = np.column_stack([100 + 80 * (column + (row % 2) / 2), 80 + 80 * np.sqrt(3) / 2 * row])
    adata.obsm["spatial"] = xy
    adata.obsm["pca"] = rng.normal(size=(30, 2))
    return adata


@pytest.fixture
def visium(adata: ad.AnnData) -> ad.AnnData:
    """The same with what scanpy.read_visium puts into `uns`."""
    adata.uns["spatial"] = {
        "V1": {
            "images": {"hires": np.zeros((70, 90, 3), np.uint8)},
            "scalefactors": {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 52.0},
            "metadata": {"chemistry_description": "Spatial 3' v1"},
        }
    }
    return adata


@pytest.mark.parametrize("kind", ["file", "array", "read_wsi"])
def test_layout(adata: ad.AnnData, tmp_path: Path, snapshot: Callable[[Any], Any], kind: str) -> None:
    path = pyramid_tiff(tmp_path / "slide.tif", PICTURE, compression=None)
    image: Any = {"file": path, "array": PICTURE, "read_wsi": read_wsi(path, slide="S1")}[kind]
    before = snapshot(adata)
    sdata = from_anndata(adata, image, **GIVEN)
    assert snapshot(adata) == before
    table = sdata["table"]
    assert list(sdata.images), list(sdata.shapes) == (["S1_image"], ["S1"])
    assert sdata.coordinate_systems == ["S1"]
    assert list(table.obs.columns) == ["region", "spot_id", "array_row", "array_col", "cluster"]
    assert list(table.obs["spot_id"]) == list(table.obs_names) == list(sdata["S1"].index) == list(adata.obs_names)
    np.testing.assert_array_equal(table.X.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(table.obsm["pca"], adata.obsm["pca"])
    np.testing.assert_array_equal(table.obsm["spatial"], adata.obsm["spatial"])
    np.testing.assert_array_equal(sdata["S1"].get_coordinates(), adata.obsm["spatial"])
    assert sdata["S1"].radius.to_numpy() == pytest.approx(55)
    entry = table.uns["spatial"]["S1"]
    assert entry["images"]["hires"].shape == (700, 900, 3)
    assert entry["scalefactors"] == {
        "tissue_hires_scalef": 1.0, "spot_diameter_fullres": 110.0, "microns_per_pixel": 0.5
    }  # fmt: skip
    assert sdata.attrs["microns_per_pixel"] == {"S1_image": 0.5}
    pixels = sdata["S1_image"]["scale0"]["image"].data.compute()
    np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), PICTURE)
    sdata.write(tmp_path / "out.zarr")
    back = sd.read_zarr(tmp_path / "out.zarr")
    assert back["table"].uns["spatialdata_attrs"]["region"] == "S1"
    assert list(get_transformation(back["S1_image"], get_all=True)) == ["S1"]
    assert back.attrs["microns_per_pixel"] == {"S1_image": 0.5}


def test_names_and_diameter_of_visium(visium: ad.AnnData, tmp_path: Path) -> None:
    """The scale follows from the pitch of the array where nothing else says it."""
    sdata = from_anndata(visium, PICTURE)
    factors = sdata["table"].uns["spatial"]["V1"]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(100 / 80)
    assert factors["spot_diameter_fullres"] == 52.0
    # what `uns` says goes before, and the user before that
    visium.uns["spatial"]["V1"]["scalefactors"]["microns_per_pixel"] = 1.2
    assert from_anndata(visium, PICTURE).attrs == {"microns_per_pixel": {"V1_image": 1.2}}
    assert from_anndata(visium, PICTURE, microns_per_pixel=1.3).attrs == {"microns_per_pixel": {"V1_image": 1.3}}


def test_scale_of_the_image(adata: ad.AnnData, tmp_path: Path) -> None:
    del adata.obs["array_row"]
    path = pyramid_tiff(tmp_path / "slide.tif", PICTURE, mpp=0.75)
    sdata = from_anndata(adata, path, spot_diameter_um=55)
    assert sdata.attrs["microns_per_pixel"] == {"slide_image": pytest.approx(0.75)}
    assert list(sdata.shapes) == ["slide"]
    again = from_anndata(adata, read_wsi(path), spot_diameter_um=55)
    assert again.attrs == sdata.attrs


def test_without_genes(adata: ad.AnnData) -> None:
    for bare in (adata[:, []].copy(), ad.AnnData(obs=adata.obs, obsm=dict(adata.obsm))):
        table = from_anndata(bare, PICTURE, **GIVEN)["table"]
        assert table.shape == (30, 0)
        assert table.X.shape == (30, 0)


def test_joined_with_another(adata: ad.AnnData) -> None:
    """Barcodes are the same on every array: the slides' names come in front."""
    two = {**GIVEN, "slide": "S2"}
    joined = concat([from_anndata(adata, PICTURE, **GIVEN), from_anndata(adata, PICTURE, **two)])
    table = joined["table"]
    assert list(table.obs_names[[0, 30]]) == ["S1_AC0-1", "S2_AC0-1"]
    assert list(table.obs["spot_id"].iloc[[0, 30]]) == ["AC0-1", "AC0-1"]
    assert joined.attrs["microns_per_pixel"] == {"S1_image": 0.5, "S2_image": 0.5}


def test_embeddings_are_joined_with_their_recipe(adata: ad.AnnData) -> None:
    slides = [from_anndata(adata, PICTURE, **{**GIVEN, "slide": name}) for name in ("S1", "S2")]
    for slide in slides:
        spahgc.pp.image_embedding(slide, tile_um=40)
    params = concat(slides)["table"].uns["image_texture"]["params"]
    assert params["tile_um"] == 40.0
    assert params["microns_per_pixel"] == {"S1": 0.5, "S2": 0.5}
    spahgc.pp.image_embedding(slides[1], tile_um=50)
    refused(ValueError, "'image_texture' was made differently on the slides", concat, slides)


def test_refusals(adata: ad.AnnData, visium: ad.AnnData, tmp_path: Path) -> None:
    del visium  # the fixture has filled adata.uns
    refused(TypeError, "`adata` must be an AnnData, got", from_anndata, PICTURE, PICTURE)
    refused(FileNotFoundError, r"none\.jpg", from_anndata, adata, tmp_path / "none.jpg")
    with pytest.raises(ValueError, match="`spot_diameter_um` must be a finite number greater than 0"):
        from_anndata(adata, PICTURE, spot_diameter_um=0)
    with pytest.raises(ValueError, match="`microns_per_pixel` must be .* between 0.05 and 20 or None, got 40"):
        from_anndata(adata, PICTURE, microns_per_pixel=40)
    Image.fromarray(PICTURE).save(tmp_path / "he.png")
    with pytest.raises(ValueError, match="slide='X', but the image was read as 'he'"):
        from_anndata(adata, read_wsi(tmp_path / "he.png"), slide="X")
    adata.uns["spatial"]["V2"] = adata.uns["spatial"]["V1"]
    refused(ValueError, "holds several slides: 'V1', 'V2'. Select the spots of one", from_anndata, adata, PICTURE)
    assert list(from_anndata(adata, PICTURE, slide="V2").shapes) == ["V2"]
    del adata.uns["spatial"]
    refused(ValueError, "Pass slide=<name>", from_anndata, adata, PICTURE)
    refused(ValueError, "The spot diameter is unknown", from_anndata, adata, PICTURE, slide="S1", microns_per_pixel=1)
    with pytest.raises(KeyError, match="adata.obsm has no 'spatial'"):
        from_anndata(ad.AnnData(np.ones((3, 2), np.float32)), PICTURE, **GIVEN)
    adata.obs["region"] = "cortex"
    with pytest.raises(ValueError, match="adata.obs has an unrelated column 'region', where the link"):
        from_anndata(adata, PICTURE, **GIVEN)
    del adata.obs["region"], adata.obs["array_col"]
    with pytest.raises(ValueError, match="micrometers per full-resolution pixel of slide 'S1' are not known"):
        from_anndata(adata, PICTURE, slide="S1", spot_diameter_um=55)


@pytest.mark.parametrize(("section", "shape"), [(1, (2604, 4338)), (2, (3630, 0))])
def test_colon(data_dir: Path, section: int, shape: tuple[int, int]) -> None:
    """Real Visium slides, one without expression; their coordinates are pixels of the picture."""
    folder = data_dir / "colon_visium"
    adata = ad.read_h5ad(folder / f"section{section}.h5ad")
    sdata = from_anndata(adata, folder / f"section{section}.jpg", microns_per_pixel=0.97, spot_diameter_um=55)
    table = sdata["table"]
    assert table.shape == shape
    assert set(adata.obsm) <= set(table.obsm)
    factors = table.uns["spatial"][f"section{section}"]["scalefactors"]
    assert factors["spot_diameter_fullres"] == pytest.approx(55 / 0.97)
    assert sdata[f"section{section}"].radius.iloc[0] == pytest.approx(55 / 0.97 / 2)
    # measured spots are darker than the glass around: the coordinates fit the picture
    green = sdata[f"section{section}_image"]["scale3"]["image"].data[1].compute()
    x, y = (table.obsm["spatial"] / 8).astype(int).T
    assert np.median(green[y, x]) < np.median(green) - 20 or np.median(green[y, x]) < 160
