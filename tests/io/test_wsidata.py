"""Slides that LazySlide tiled and embedded, taken as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import spatialdata as sd

import spahgc
from spahgc.io import concat, from_wsidata

from ..refusals import refused
from ..slide_files import pyramid_tiff, scene

SIDE, TILE = 1400, 96
GENES = [f"G{k}" for k in range(6)]


@pytest.fixture(scope="module")
def toy(torchvision: None) -> Any:
    """A small network; its transform is LazySlide's own business."""
    import torch

    class Toy(torch.nn.Module):
        def forward(self, tiles: Any) -> Any:
            return torch.cat([tiles.mean((2, 3)), tiles.std((2, 3)), tiles.amax((2, 3))], dim=1)

    return Toy()


def transform(tile: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(tile, -1, 0))).float() / 255


def run_lazyslide(path: Any, model: Any, *, tile_px: int = TILE, mpp: float = 0.5) -> Any:
    """As in LazySlide's tutorials."""
    import lazyslide as zs
    import wsidata

    wsi = wsidata.open_wsi(path) if isinstance(path, Path) else path
    zs.pp.find_tissues(wsi)
    zs.pp.tile_tissues(wsi, tile_px, mpp=mpp)
    zs.tl.feature_extraction(wsi, model, model_name="toy", transform=transform, pbar=False)
    return wsi


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy: Any) -> Path:
    """Two slides with their stores."""
    folder = tmp_path_factory.mktemp("lazyslide")
    for seed, name in enumerate("AB"):
        run_lazyslide(pyramid_tiff(folder / f"{name}.tif", scene(SIDE, SIDE, seed), mpp=0.5), toy).write()
    return folder


def counts(sdata: sd.SpatialData, seed: int) -> ad.AnnData:
    """Counts per tile that follow the embedding, in an order of their own."""
    table = sdata["table"]
    z = table.obsm["image_toy"][:, :6]
    values = np.random.default_rng(seed).poisson(np.exp(3 + (z - z.mean(0)) / z.std(0)))
    made = ad.AnnData(sp.csr_matrix(values.astype(np.float32)))
    made.var_names = GENES
    made.obs["tile_id"] = table.obs["tile_id"].to_numpy()
    return made[np.random.default_rng(9).permutation(len(made))].copy()


def test_layout(folder: Path, tmp_path: Path) -> None:
    store = sd.read_zarr(folder / "A.zarr")
    sdata = from_wsidata(folder / "A.zarr", patient="P")
    table, tiles = sdata["table"], store["tiles"]
    assert (list(sdata.images), list(sdata.shapes), sdata.coordinate_systems) == (["A_image"], ["A"], ["A"])
    assert table.shape == (len(tiles), 0)
    assert list(table.obs.columns) == ["region", "spot_id", "tissue_id", "tile_id", "patient"]
    np.testing.assert_array_equal(table.obsm["image_toy"], store["toy_tiles"].X)
    assert table.obsm["image_toy"].dtype == np.float32
    # the centre of a tile, where LazySlide's own table of features has its corner
    bounds = tiles.bounds.to_numpy()
    np.testing.assert_allclose(table.obsm["spatial"], (bounds[:, :2] + bounds[:, 2:]) / 2)
    np.testing.assert_allclose(bounds[:, 2:] - bounds[:, :2], TILE)
    assert sdata["A"].geometry.to_numpy()[3].equals(tiles.geometry.iloc[3])
    assert list(sdata["A"].index) == list(table.obs["spot_id"])
    assert table.uns["spatial"]["A"]["scalefactors"] == {
        "tissue_hires_scalef": pytest.approx(1000 / SIDE), "spot_diameter_fullres": TILE, "microns_per_pixel": 0.5
    }  # fmt: skip
    assert sdata.attrs["microns_per_pixel"] == {"A_image": 0.5}
    params = table.uns["image_toy"]["params"]
    assert (params["encoder"], params["tile_um"], params["tile_px"]) == ("toy", TILE * 0.5, TILE)
    assert params["recipe"] == {
        "source": "lazyslide", "model": "toy", "weights": "not recorded", "transform": "not recorded",
        "pooling": "not recorded", "versions": "not recorded"
    }  # fmt: skip
    sdata.write(tmp_path / "out.zarr")
    assert sd.read_zarr(tmp_path / "out.zarr")["table"].uns["image_toy"]["params"]["tile_um"] == TILE * 0.5


def test_features_are_those_of_the_tiles(folder: Path) -> None:
    """The mean colour of each tile, read anew around its spot, is what the network saw."""
    sdata = from_wsidata(folder / "A.zarr")

    def mean_colour(tiles: np.ndarray) -> np.ndarray:
        return tiles.mean(axis=(2, 3)) / 255

    spahgc.pp.image_embedding(sdata, mean_colour, tile_um=TILE * 0.5, tile_px=TILE)
    table = sdata["table"]
    np.testing.assert_allclose(table.obsm["image_mean_colour"], table.obsm["image_toy"][:, :3], atol=0.01)
    assert np.ptp(table.obsm["image_toy"][:, 0]) > 0.1


def test_object_is_as_the_store(folder: Path, toy: Any, tmp_path: Path) -> None:
    shutil.copy(folder / "A.tif", tmp_path / "A.tif")
    wsi = run_lazyslide(tmp_path / "A.tif", toy)
    sdata, stored = from_wsidata(wsi), from_wsidata(folder / "A.zarr")
    np.testing.assert_array_equal(sdata["table"].obsm["image_toy"], stored["table"].obsm["image_toy"])
    np.testing.assert_array_equal(sdata["table"].obsm["spatial"], stored["table"].obsm["spatial"])
    assert list(sdata.images) == ["A_image"]
    assert set(wsi.tables) == {"toy_tiles"}  # as it was


def test_target_and_reference(folder: Path) -> None:
    """Two slides with counts per tile predict a third; then the tiles of the target get spahgc's own embedding."""
    bare = {name: from_wsidata(folder / f"{name}.zarr") for name in "AB"}
    parts = [
        from_wsidata(folder / f"{name}.zarr", expression=counts(bare[name], seed), slide=f"R{name}", patient=name)
        for seed, name in enumerate("AB")
    ]
    for name, part in zip("AB", parts, strict=True):  # rows of the counts went to their tiles
        expected = counts(bare[name], "AB".index(name))
        expected = expected[np.argsort(expected.obs["tile_id"].to_numpy())].X.toarray()
        np.testing.assert_array_equal(part["table"].X.toarray(), expected)
    reference = concat(parts)["table"]
    target = bare["A"]["table"]
    spahgc.tl.predict(reference, target, method="ridge", panel=GENES)
    predicted = spahgc.get.predicted(target)
    measured = parts[0]["table"].X.toarray()
    truth = np.log1p(1e4 * measured / measured.sum(axis=1, keepdims=True))
    found = [np.corrcoef(np.asarray(predicted.X)[:, gene], truth[:, gene])[0, 1] for gene in range(len(GENES))]
    assert np.mean(found) > 0.5
    spahgc.pp.image_embedding(bare["A"], "texture", tile_um=48)
    assert target.obsm["image_texture"].shape == (target.n_obs, 378)


def test_other_tiles_are_another_recipe(folder: Path, toy: Any, tmp_path: Path) -> None:
    shutil.copy(folder / "B.tif", tmp_path / "B.tif")
    other = from_wsidata(run_lazyslide(tmp_path / "B.tif", toy, mpp=1.0))
    plain = from_wsidata(folder / "A.zarr")
    reference = from_wsidata(folder / "A.zarr", expression=counts(plain, 0), patient="A")["table"]
    with pytest.raises(ValueError, match=r"were made differently .*tile_um: reference 48.0, target 96"):
        spahgc.tl.predict(reference, other["table"], method="ridge", panel=GENES)
    spahgc.pp.image_embedding(plain, "texture", tile_um=48, key_added="image_toy")
    plain["table"].obsm["image_toy"] = plain["table"].obsm["image_toy"][:, :9]
    with pytest.raises(ValueError, match="were made differently"):
        spahgc.tl.predict(reference, plain["table"], method="ridge", panel=GENES)


def test_expression_of_some_tiles(folder: Path) -> None:
    """By the names of rows; tiles without are left out."""
    made = counts(from_wsidata(folder / "A.zarr"), 0)
    made.obs_names = made.obs.pop("tile_id").astype(str).to_numpy()
    part = from_wsidata(folder / "A.zarr", expression=made[:20].copy())["table"]
    assert part.n_obs == 20
    ids = part.obs["tile_id"].astype(str)
    np.testing.assert_array_equal(part.X.toarray(), made[ids.to_numpy()].X.toarray())
    assert ids.astype(int).is_monotonic_increasing
    made.obs_names = [f"x{name}" for name in made.obs_names]
    with pytest.raises(ValueError, match="No row of `expression` belongs to a tile: .* like 'x"):
        from_wsidata(folder / "A.zarr", expression=made)


def test_which_features(folder: Path, toy: Any, tmp_path: Path) -> None:
    import lazyslide as zs

    shutil.copy(folder / "A.tif", tmp_path / "A.tif")
    wsi = run_lazyslide(tmp_path / "A.tif", toy)
    zs.tl.feature_extraction(wsi, toy, model_name="toy-2", transform=transform, pbar=False)
    with pytest.raises(
        KeyError, match="several features of 'tiles'. Available: 'toy_tiles', 'toy-2_tiles'. Pass `features`"
    ):
        from_wsidata(wsi)
    assert "image_toy-2" in from_wsidata(wsi, features="toy-2")["table"].obsm
    wsi["toy_tiles"].obs["cluster"] = "c1"
    table = from_wsidata(wsi, features="toy_tiles")["table"]
    assert "image_toy" in table.obsm
    assert set(table.obs["cluster"]) == {"c1"}
    refused(KeyError, "no features 'uni' of 'tiles'. Available: 'toy_tiles'", from_wsidata, wsi, features="uni")
    with pytest.raises(KeyError, match=r"no tiles 'small' \(tile_key\). Available shapes: 'tissues', 'tiles'"):
        from_wsidata(wsi, tile_key="small")
    wsi["toy_tiles"].X[3] = np.nan
    refused(ValueError, "'toy_tiles'` has NaN or infinite values in 1 of", from_wsidata, wsi, features="toy")


def test_without_the_slide_file(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(folder / "A.zarr", tmp_path / "A.zarr")
    sdata = from_wsidata(tmp_path / "A.zarr")
    assert list(sdata.images) == []
    assert "No slide file belongs to the tiles" in caplog.text
    table = sdata["table"]
    assert table.uns["spatial"]["A"]["scalefactors"]["microns_per_pixel"] == 0.5
    np.testing.assert_array_equal(table.obsm["image_toy"], from_wsidata(folder / "A.zarr")["table"].obsm["image_toy"])
    sdata.write(tmp_path / "out.zarr")
    assert list(from_wsidata(tmp_path / "A.zarr", image=folder / "A.tif").images) == ["A_image"]
    pyramid_tiff(tmp_path / "other.tif", scene(600, 500))
    with pytest.raises(ValueError, match=r"other\.tif has 500 x 600 pixels, but the slide of the tiles 1400 x 1400"):
        from_wsidata(tmp_path / "A.zarr", image=tmp_path / "other.tif")


def test_refusals(folder: Path, tmp_path: Path) -> None:
    refused(FileNotFoundError, r"none\.zarr' is no zarr store", from_wsidata, tmp_path / "none.zarr")
    refused(FileNotFoundError, r"A\.tif' is no zarr store. Pass <slide>\.zarr", from_wsidata, folder / "A.tif")
    refused(TypeError, "`wsi` must be a string or a path or a SpatialData, got 3", from_wsidata, 3)
    refused(KeyError, "The store has no tiles 'tiles'", from_wsidata, sd.SpatialData())
