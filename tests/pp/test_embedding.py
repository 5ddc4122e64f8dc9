"""`pp.image_embedding`: what it writes, and that each spot gets the tile around it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest

import spahgc
from spahgc.encoders import texture, texture_names
from spahgc.encoders._table import resolve
from spahgc.pp._engine import AHEAD, Job, Tiling, embed
from spahgc.pp._images import locate
from spahgc.pp._tiles import TileReader

from .conftest import HEIGHT, WIDTH, Make, picture

KEY = "image_texture"


def first_pixels(tiles: np.ndarray) -> np.ndarray:
    """An encoder that shows its tiles: every fourth pixel."""
    return tiles[:, :, ::4, ::4].reshape(len(tiles), -1).astype(np.float32)


def _expected(sdata: Any, row: int, side: int) -> np.ndarray:
    """Tile of a row by slicing, for centers that lie between pixels: the mean over shifted slices is the linear way."""
    table = sdata["table"]
    image = np.asarray(sdata.images[f"{table.obs['region'].iloc[row]}_image"].data, dtype=float)
    x, y = table.obsm["spatial"][row]
    left, top = x - side / 2, y - side / 2
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    fx, fy = left - x0, top - y0
    cut = image[:, y0 : y0 + side + 1, x0 : x0 + side + 1]
    cut = cut[:, :-1] * (1 - fy) + cut[:, 1:] * fy
    return cut[:, :, :-1] * (1 - fx) + cut[:, :, 1:] * fx


def test_what_is_written(make_sdata: Make) -> None:
    sdata = make_sdata()
    assert spahgc.pp.image_embedding(sdata, tile_px=32) is None
    table = sdata["table"]
    assert table.obsm[KEY].shape == (70, 3 * len(texture_names()))
    assert table.obsm[KEY].dtype == np.float32
    assert table.uns[KEY]["params"] == {
        "encoder": "texture",
        "recipe": dict(resolve("texture").recipe),
        "precision": "float32",
        "tile_um": 112.0,
        "tile_px": 32,
        "fields_of_view": [1.0, 2.0, 4.0],
        "microns_per_pixel": {"A": 2.0, "B": 2.0},
        "microns_per_pixel_from": {
            name: f"uns['spatial']['{name}']['scalefactors']['microns_per_pixel']" for name in "AB"
        },
        "image": {"A": "A_image", "B": "B_image"},
        "n_padded": table.uns[KEY]["params"]["n_padded"],
        "version": spahgc.__version__,
    }
    x, y = table.obsm["spatial"].T
    to_border = np.minimum(np.minimum(x, WIDTH - x), np.minimum(y, HEIGHT - y))
    expected = sum(int((to_border < half).sum()) for half in (28, 56, 112))
    assert table.uns[KEY]["params"]["n_padded"] == expected
    assert 0 < expected < 140


def test_each_spot_gets_its_own_tile(make_sdata: Make) -> None:
    """Slides mixed and rows shuffled in the table; 56 pixels a tile, at scale 1."""
    sdata = make_sdata()
    spahgc.pp.image_embedding(sdata, first_pixels, tile_px=56)
    for row in (0, 17, 69):
        expected = _expected(sdata, row, 56)[:, ::4, ::4].ravel()
        assert np.abs(sdata["table"].obsm["image_first_pixels"][row] - expected).max() <= 0.5 + 1e-3


def test_fields_of_view_are_joined(make_sdata: Make) -> None:
    sdata = make_sdata(("A",))
    embed = spahgc.pp.image_embedding
    embed(sdata, tile_px=32, fields_of_view=(0.5, 1.5), key_added="both")
    embed(sdata, tile_px=32, tile_um=56, fields_of_view=(1,), key_added="one")
    embed(sdata, texture, tile_px=32, tile_um=168, key_added="two")
    table = sdata["table"]
    np.testing.assert_array_equal(table.obsm["both"], np.hstack([table.obsm["one"], table.obsm["two"]]))


def test_the_same_for_any_number_of_threads_and_batch_size(make_sdata: Make) -> None:
    sdata, densities = make_sdata(), []
    for key, jobs, batch in [("a", 1, 7), ("b", 3, 1000), ("c", -1, 1)]:
        for encoder in ("texture", first_pixels):
            name = f"{key}_{encoder if isinstance(encoder, str) else 'pixels'}"
            spahgc.pp.image_embedding(
                sdata, encoder, tile_px=32, n_jobs=jobs, batch_size=batch, key_added=name, fields_of_view=(1,)
            )
            densities.append(sdata["table"].obs["cellularity"].to_numpy())
    assert all(np.array_equal(density, densities[0]) for density in densities)
    for what in ("texture", "pixels"):
        for key in "bc":
            np.testing.assert_array_equal(sdata["table"].obsm[f"{key}_{what}"], sdata["table"].obsm[f"a_{what}"])


def test_batches_have_the_size_asked_for(make_sdata: Make) -> None:
    sizes = []

    def mean(tiles: np.ndarray) -> np.ndarray:
        assert tiles.shape[1:] == (3, 224, 224)
        assert tiles.dtype == np.uint8
        sizes.append(len(tiles))
        return tiles.mean(axis=(2, 3))

    spahgc.pp.image_embedding(make_sdata(), mean, batch_size=16)
    assert sizes == [16, 16, 3, 16, 16, 3]


def test_another_resolution_and_place_of_the_image(make_sdata: Make) -> None:
    """The image is enlarged 1.5-fold and shifted in the coordinate system: tiles are cut where the spots lie in it."""
    from spatialdata.transformations import Scale, Sequence, Translation

    axes = ("x", "y")
    plain = make_sdata(("A",))
    moved = make_sdata(("A",), to_image=Sequence([Scale([1.5, 1.5], axes), Translation([-30, -20], axes)]))
    spahgc.pp.image_embedding(moved, first_pixels, tile_px=40)
    # The same places and sizes in pixels of the image.
    table = plain["table"]
    table.obsm["spatial"] = (table.obsm["spatial"] - [-30, -20]) / 1.5
    geometry = plain.shapes["A"].geometry.translate(30, 20).scale(1 / 1.5, 1 / 1.5, origin=(0, 0))
    plain.shapes["A"].geometry = geometry
    spahgc.pp.image_embedding(plain, first_pixels, tile_px=40, microns_per_pixel=3.0)
    got, expected = (part["table"].obsm["image_first_pixels"] for part in (moved, plain))
    assert np.abs(got - expected).max() <= 1
    assert np.abs(got - expected[::-1]).max() > 50


def test_a_turned_image(make_sdata: Make) -> None:
    """The image lies on its side; the transformation turns it back. Tiles are those of the image that stands."""
    from spatialdata.transformations import Affine

    # A quarter turn to the left takes a pixel at (x, y) to (y, WIDTH - x).
    back = Affine([[0, -1, WIDTH], [1, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    stands = make_sdata(("A",))
    lies = make_sdata(("A",), image=lambda k: np.rot90(picture(k)).copy(), to_image=back)
    for sdata in (stands, lies):
        spahgc.pp.image_embedding(sdata, lambda tiles: tiles.mean(axis=(2, 3)), tile_px=16, key_added="mean")
    np.testing.assert_allclose(lies["table"].obsm["mean"], stands["table"].obsm["mean"], atol=0.2)
    assert stands["table"].obsm["mean"].std(axis=0).min() > 2


def test_a_pyramid_changes_little(make_sdata: Make) -> None:
    def smooth(k: int) -> np.ndarray:
        y, x = np.mgrid[:240, :300]
        return (128 + 60 * np.stack([np.sin(x / 20 + k), np.cos(y / 17), np.sin((x + y) / 30)], -1)).astype(np.uint8)

    flat, tree = make_sdata(image=smooth), make_sdata(image=smooth, scale_factors=[2, 2])
    for sdata in (flat, tree):
        spahgc.pp.image_embedding(sdata, first_pixels, tile_um=400, tile_px=32)
    got, expected = (part["table"].obsm["image_first_pixels"] for part in (tree, flat))
    assert np.abs(got - expected).max() <= 2


def test_the_image_with_most_pixels_is_taken(make_sdata: Make) -> None:
    """As in a Visium folder: full image, two reductions, all in the slide's coordinate system; and a mask."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale

    sdata = make_sdata(("A",))
    fine = np.asarray(sdata.images["A_image"].data)
    half = fine.reshape(3, 120, 2, 150, 2).mean(axis=(2, 4)).astype(np.uint8)
    sdata.images["A_lowres"] = Image2DModel.parse(
        half, dims=("c", "y", "x"), transformations={"A": Scale([2, 2], ("x", "y"))}
    )
    sdata.images["A_mask"] = Image2DModel.parse(fine[:1], dims=("c", "y", "x"), transformations={"A": Identity()})
    sdata.images["other"] = Image2DModel.parse(fine, dims=("c", "y", "x"), transformations={"elsewhere": Identity()})
    spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32)
    assert sdata["table"].uns["image_first_pixels"]["params"]["image"] == {"A": "A_image"}
    spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32, image_key="A_lowres", key_added="low")
    assert sdata["table"].uns["low"]["params"]["image"] == {"A": "A_lowres"}
    low, high = sdata["table"].obsm["low"], sdata["table"].obsm["image_first_pixels"]
    assert np.corrcoef(low.ravel(), high.ravel())[0, 1] > 0.9


def test_polygons_and_integer_ids(make_sdata: Make) -> None:
    """As in Visium HD: squares, integer instance ids."""
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    sdata = make_sdata(("A",))
    spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32)
    expected = sdata["table"].obsm["image_first_pixels"]
    squares = sdata.shapes["A"].geometry.buffer(4, cap_style="square")
    frame = sdata.shapes["A"].drop(columns="radius").set_geometry(squares).reset_index(drop=True)
    frame.attrs.clear()
    table = sdata["table"].copy()
    table.obs["spot_id"] = [int(name.split("_")[1]) for name in table.obs_names]
    del sdata.shapes["A"], sdata.tables["table"]
    sdata.shapes["A"] = ShapesModel.parse(frame, transformations={"A": Identity()})
    sdata.tables["table"] = TableModel.parse(
        table, region="A", region_key="region", instance_key="spot_id", overwrite_metadata=True
    )
    spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32)
    assert np.abs(sdata["table"].obsm["image_first_pixels"] - expected).max() <= 1


def test_microns_per_pixel_given(make_sdata: Make) -> None:
    sdata, bare = make_sdata(), make_sdata(mpp=None)
    spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32)
    expected = sdata["table"].obsm["image_first_pixels"]
    for given in (2.0, {"A": 2.0, "B": 2}):
        spahgc.pp.image_embedding(bare, first_pixels, tile_px=32, microns_per_pixel=given)
        np.testing.assert_array_equal(bare["table"].obsm["image_first_pixels"], expected)
    spahgc.pp.image_embedding(bare, first_pixels, tile_px=32, microns_per_pixel={"A": 2.0, "B": 1.0})
    of_b = bare["table"].obs["region"] == "B"
    values = bare["table"].obsm["image_first_pixels"]
    np.testing.assert_array_equal(values[~of_b], expected[~of_b])
    assert (values[of_b] != expected[of_b]).any()


def test_copy_of_a_table_without_genes(make_sdata: Make, snapshot: Callable[[Any], Any]) -> None:
    from spatialdata.models import TableModel

    sdata = make_sdata(("A",))
    table = sdata["table"][:, :0].copy()
    del sdata.tables["table"]
    sdata.tables["spots"] = TableModel.parse(table)
    before = snapshot(sdata["spots"])
    copied = spahgc.pp.image_embedding(sdata, first_pixels, table_key="spots", tile_px=32, copy=True)
    assert set(copied.images) == set(sdata.images)
    assert len(copied["spots"].obsm["image_first_pixels"]) == len(copied["spots"].obs["cellularity"]) == 35
    assert {"image_first_pixels", "cellularity"} <= set(copied["spots"].uns)
    assert snapshot(sdata["spots"]) == before


def test_many_padded_tiles_are_a_warning(make_sdata: Make, caplog: pytest.LogCaptureFixture) -> None:
    sdata = make_sdata(("A",))
    with caplog.at_level(logging.WARNING, "spahgc"):
        spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32)
        assert not caplog.records
        spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32, tile_um=400)
    assert "of 35 tiles leave the image" in caplog.text


def test_survives_on_disk(make_sdata: Make, tmp_path: Path) -> None:
    from spatialdata import read_zarr

    sdata = make_sdata(scale_factors=[2])
    spahgc.pp.image_embedding(sdata, tile_px=32)
    table = sdata["table"]
    table.write_h5ad(tmp_path / "table.h5ad")
    sdata.write(tmp_path / "slides.zarr")
    stored = read_zarr(tmp_path / "slides.zarr")
    for again in (ad.read_h5ad(tmp_path / "table.h5ad"), stored["table"]):
        np.testing.assert_array_equal(again.obsm[KEY], table.obsm[KEY])
        params = dict(again.uns[KEY]["params"])
        params["fields_of_view"] = list(params["fields_of_view"])
        assert params == table.uns[KEY]["params"]
        np.testing.assert_array_equal(again.obs["cellularity"], table.obs["cellularity"])
        assert again.uns["cellularity"] == table.uns["cellularity"]
    # From disk, block by block, the embeddings are the same.
    spahgc.pp.image_embedding(stored, tile_px=32, key_added="again", n_jobs=2)
    np.testing.assert_array_equal(stored["table"].obsm["again"], table.obsm[KEY])


def test_real_slide(data_dir: Path) -> None:
    """On C4, spots of more haematoxylin have more counts: tiles are cut where the spots are."""
    sdata = spahgc.datasets.her2st(data_dir / "her2st", slides=["C4"])
    spahgc.pp.image_embedding(sdata)
    table = sdata["table"]
    assert table.obsm[KEY].shape == (184, 378)
    assert table.uns[KEY]["params"]["n_padded"] == 0
    names = texture_names()
    total = np.asarray(table.X.sum(axis=1)).ravel()
    dense = table.obsm[KEY][:, 126 + names.index("hematoxylin_mean")]
    assert np.corrcoef(np.log(total), dense)[0, 1] > 0.3


def test_several_objects(make_sdata: Make) -> None:
    """Each gets its own; they are checked before the first is embedded, and one that fails later gets nothing."""
    one, two = make_sdata(), make_sdata(("A",))
    expected = [spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32, copy=True)["table"] for sdata in (one, two)]
    copies = spahgc.pp.image_embedding([one, two], first_pixels, tile_px=32, copy=True)
    assert isinstance(copies, list)
    assert "image_first_pixels" not in one["table"].obsm
    assert spahgc.pp.image_embedding((one, two), first_pixels, tile_px=32) is None
    for sdata, copied, wanted in zip((one, two), copies, expected, strict=True):
        for table in (sdata["table"], copied["table"]):
            np.testing.assert_array_equal(table.obsm["image_first_pixels"], wanted.obsm["image_first_pixels"])
            assert table.uns["image_first_pixels"] == wanted.uns["image_first_pixels"]

    calls = []

    def until(tiles: np.ndarray) -> np.ndarray:
        calls.append(len(tiles))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return tiles.mean(axis=(2, 3))

    objects = [make_sdata(("A",)), make_sdata()]
    with pytest.raises(RuntimeError, match="out of memory"):
        spahgc.pp.image_embedding(objects, until, tile_px=32, batch_size=35)
    assert "image_until" in objects[0]["table"].obsm
    assert set(objects[1]["table"].obsm) == {"spatial"}

    calls.clear()
    broken = make_sdata()
    del broken.images["B_image"]
    with pytest.raises(ValueError, match="No image for slide 'B'") as error:
        spahgc.pp.image_embedding([make_sdata(), broken], until, tile_px=32)
    assert error.value.__notes__ == ["In sdata[1]."]
    assert not calls
    with pytest.raises(ValueError, match="empty list"):
        spahgc.pp.image_embedding([])


def test_the_next_tiles_are_read_while_the_encoder_works(make_sdata: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more of them than a few batches."""
    read: list[int] = []
    original = TileReader.read

    def counted(self: TileReader, spot: int, width_um: float) -> Any:
        read.append(spot)
        return original(self, spot, width_um)

    monkeypatch.setattr(TileReader, "read", counted)
    sizes: list[int] = []
    ahead: list[int] = []
    end = time.monotonic() + 30  # for all batches together

    def slow(tiles: np.ndarray) -> np.ndarray:
        sizes.append(len(tiles))
        # Until as much was read as may be, and a little longer; without reading ahead, it waits in vain.
        while len(read) < min(sum(sizes) + AHEAD * 4, 70) - 2 and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.01)
        ahead.append(len(read) - sum(sizes))
        return tiles.mean(axis=(2, 3))

    sdata = make_sdata()
    job = Job(tuple(locate(sdata, sdata["table"])), resolve(slow), Tiling((112.0,), 32, 4))
    list(embed(job, dict(enumerate(job.parts)), workers=2))
    assert sizes == [4] * 8 + [3] + [4] * 8 + [3]
    assert max(ahead) == ahead[0] == AHEAD * 4
    assert min(ahead[:-AHEAD]) >= AHEAD * 4 - 2


def test_an_encoder_of_another_resolution(make_sdata: Make, caplog: pytest.LogCaptureFixture) -> None:
    sdata = make_sdata(("A",))
    encoder = replace(resolve(first_pixels), microns_per_pixel=1.75, tile_px=64)
    spahgc.pp.image_embedding(sdata, encoder)
    assert "trained" not in caplog.text
    spahgc.pp.image_embedding(sdata, replace(encoder, microns_per_pixel=0.5))
    assert "'first_pixels' was trained at 0.5 um per pixel; tiles of 112 um on 64 pixels have 1.75" in caplog.text
    assert "Pass tile_um=32, or tile_px=224" in caplog.text
    assert spahgc.pp.image_embedding(sdata, replace(encoder, microns_per_pixel=0.5), tile_um=32.0) is None
    assert caplog.text.count("trained") == 1


def test_tiles_and_the_resolution_of_the_image(make_sdata: Make, caplog: pytest.LogCaptureFixture) -> None:
    sdata = make_sdata()
    message = r"A tile of 500 um is 250 pixels wide, but image 'A_image' .* has 300 x 240 pixels, 600 x 480 um at 2 um"
    with pytest.raises(ValueError, match=message):
        spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32, tile_um=500.0)
    assert set(sdata["table"].obsm) == {"spatial"}
    spahgc.pp.image_embedding(sdata, first_pixels, tile_px=112)
    assert "coarser" not in caplog.text
    spahgc.pp.image_embedding(sdata, first_pixels, tile_px=112, microns_per_pixel={"A": 2.0, "B": 3.0})
    assert "1 of 2 slides have coarser images than the tiles ('B: 3' um per pixel; tiles have 1)" in caplog.text


def test_black_tiles(make_sdata: Make, caplog: pytest.LogCaptureFixture) -> None:
    """zarr fills in zeros where it finds no file."""

    def masked(seed: int) -> np.ndarray:
        image = picture(seed)
        image[:100, :100] = 0
        return image

    sdata = make_sdata(("A",), image=masked)
    spahgc.pp.image_embedding(
        sdata, lambda tiles: tiles.max(axis=(2, 3)).astype(float), tile_px=32, tile_um=60.0, key_added="image_max"
    )
    black = (sdata["table"].obsm["image_max"] == 0).all(axis=1).sum()
    assert 0 < black < 10
    assert f"The tiles of {black} of 35 spots are black throughout" in caplog.text
    with pytest.raises(ValueError, match=r"slide 'A' are black throughout: image 'A_image' holds nothing there"):
        spahgc.pp.image_embedding(make_sdata(("A",), image=lambda k: np.zeros((240, 300, 3), np.uint8)), first_pixels)


def test_an_image_whose_files_are_gone(make_sdata: Make, tmp_path: Path) -> None:
    from spatialdata import read_zarr

    make_sdata(("A",)).write(tmp_path / "slides.zarr")
    sdata = read_zarr(tmp_path / "slides.zarr")
    (tmp_path / "slides.zarr").rename(tmp_path / "moved.zarr")
    with pytest.raises(ValueError, match="black throughout.*moved or deleted since it was opened"):
        spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32)


def test_a_corrupted_block(make_sdata: Make, tmp_path: Path) -> None:
    """Blocks of 64 pixels; that of row 1, column 2 is damaged."""
    from spatialdata import read_zarr

    make_sdata(("A",)).write(tmp_path / "slides.zarr")
    (block,) = (tmp_path / "slides.zarr").glob("images/A_image/*/c/0/1/2")
    block.write_bytes(block.read_bytes()[: block.stat().st_size // 2])
    sdata = read_zarr(tmp_path / "slides.zarr")
    message = (
        r"Cannot read the block in row 1, column 2 of the blocks of image 'A_image', level 0 \(pixels y 64 to 127, x "
        r"128 to 191\): .*Its file is damaged.*write the image again"
    )
    with pytest.raises(OSError, match=message):
        spahgc.pp.image_embedding(sdata, first_pixels, tile_px=32)
    assert set(sdata["table"].obsm) == {"spatial"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recipe": {"model": "toy", "weights": "b"}}, "recipe.weights: reference 'a', target 'b'"),
        ({"recipe": {"model": "toy"}}, "recipe.weights: reference 'a', target not recorded"),
        ({"tile_um": 56.0}, "tile_um: reference 112.0, target 56.0"),
        ({"tile_px": 224}, "tile_px: reference 112, target 224"),
        ({"precision": "bfloat16", "microns_per_pixel": {"C": 0.3}}, ""),
    ],
)
def test_predict_refuses_what_another_recipe_made(
    planted: Callable[..., ad.AnnData], change: dict[str, Any], said: str
) -> None:
    """Weights and tile sizes count; precision and the image's own resolution do not."""
    reference, target = planted({"A": "p", "B": "q"}), planted({"C": "r"})
    params = {
        "encoder": "toy",
        "recipe": {"model": "toy", "weights": "a"},
        "precision": "float32",
        "tile_um": 112.0,
        "tile_px": 112,
        "microns_per_pixel": {"A": 0.5},
    }
    reference.uns["image_toy"] = {"params": params}
    target.uns["image_toy"] = {"params": params | change}
    if not said:
        spahgc.tl.predict(reference, target, method="ridge", panel=5)
        return
    with pytest.raises(ValueError, match=rf"of reference and target were made differently \({said}\)"):
        spahgc.tl.predict(reference, target, method="ridge", panel=5)
