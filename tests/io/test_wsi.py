"""Reading whole-slide files: the same pixels as their libraries give, in blocks, and errors that tell what is wrong."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import spatialdata as sd
import tifffile
from PIL import Image
from spatialdata.transformations import get_transformation

from spahgc.io import read_wsi
from spahgc.io._image import on_white
from spahgc.io._wsi import _opened

from ..refusals import refused
from ..slide_files import ome_tiff, pyramid_tiff, reduced, scene

PICTURE = scene(900, 1203)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    pyramid_tiff(folder / "pyramid.tif", PICTURE)
    ome_tiff(folder / "slide.ome.tif", PICTURE)
    Image.fromarray(PICTURE).save(folder / "he.jpg")
    tifffile.imwrite(folder / "plain.tif", PICTURE, photometric="rgb")
    tifffile.imwrite(folder / "strips.tif", PICTURE, photometric="rgb", compression="deflate", rowsperstrip=16)
    tifffile.imwrite(folder / "planar.tif", np.moveaxis(PICTURE, -1, 0), photometric="rgb", planarconfig="separate")
    return folder


def levels(sdata: sd.SpatialData) -> list[Any]:
    (tree,) = sdata.images.values()
    return [tree[name]["image"] for name in tree]


def pixels(level: Any) -> np.ndarray:
    return np.moveaxis(level.data.compute(scheduler="synchronous"), 0, -1)


@pytest.mark.parametrize(
    ("file", "backend", "n_stored"),
    [
        ("pyramid.tif", None, 2),
        ("pyramid.tif", "openslide", 2),
        ("slide.ome.tif", None, 2),
        ("plain.tif", None, 1),
        ("strips.tif", None, 1),
        ("planar.tif", None, 1),
    ],
)
def test_pixels_are_those_of_the_file(folder: Path, file: str, backend: Any, n_stored: int) -> None:
    found = levels(read_wsi(folder / file, backend=backend, microns_per_pixel=0.5))
    assert len(found) == 2
    full = tifffile.imread(folder / file, level=0)
    full = np.moveaxis(full, 0, -1) if full.shape[0] == 3 else full
    np.testing.assert_array_equal(pixels(found[0]), full)
    if n_stored == 1:  # halved from the one above
        assert np.abs(pixels(found[1]).astype(int) - reduced(full, 2)).max() <= 1
    elif backend != "openslide":  # which moves levels by parts of a pixel where sizes do not divide
        np.testing.assert_array_equal(pixels(found[1]), tifffile.imread(folder / file, level=1))


def test_layout(folder: Path, tmp_path: Path) -> None:
    sdata = read_wsi(folder / "slide.ome.tif")
    assert list(sdata.images) == ["slide_image"]
    assert sdata.attrs == {"microns_per_pixel": {"slide_image": pytest.approx(0.5)}}
    tree = sdata["slide_image"]
    assert list(get_transformation(tree, get_all=True)) == ["slide"]
    fine, coarse = levels(sdata)
    assert fine.dtype == np.uint8
    assert list(fine.coords["c"].values) == ["r", "g", "b"]
    # 1203 / 301 and 900 / 225: the exact factors, not four
    affine = get_transformation(coarse, "slide").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(affine, np.diag([1203 / 301, 4, 1]))
    assert fine.data.chunksize == (3, 512, 512)
    sdata.write(tmp_path / "slide.zarr")
    back = sd.read_zarr(tmp_path / "slide.zarr")
    np.testing.assert_array_equal(pixels(levels(back)[1]), pixels(coarse))
    assert back.attrs["microns_per_pixel"] == sdata.attrs["microns_per_pixel"]


def test_names(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "TCGA 01-A (2).ome.tif"
    path.write_bytes((folder / "slide.ome.tif").read_bytes())
    assert list(read_wsi(path).images) == ["TCGA_01-A__2__image"]
    assert read_wsi(path, slide="A1").coordinate_systems == ["A1"]
    refused(ValueError, "slide='a/b' is not a valid name", read_wsi, path, slide="a/b")


def test_pictures(folder: Path) -> None:
    found = levels(read_wsi(folder / "he.jpg", microns_per_pixel=0.5))
    np.testing.assert_array_equal(pixels(found[0]), np.asarray(Image.open(folder / "he.jpg")))
    assert found[1].shape == (3, 450, 602)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    """Scanners leave out parts of the glass: OpenSlide gives these as transparent."""
    rgba = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    rgba[:300, :400] = 0
    rgba[500, 600] = (200, 100, 0, 51)
    expected = PICTURE.copy()
    expected[:300, :400] = 255
    expected[500, 600] = (244, 224, 204)
    np.testing.assert_array_equal(on_white(rgba), expected)
    Image.fromarray(rgba).save(tmp_path / "he.png")
    np.testing.assert_array_equal(pixels(levels(read_wsi(tmp_path / "he.png"))[0]), expected)
    tifffile.imwrite(tmp_path / "he.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(256, 256))
    np.testing.assert_array_equal(pixels(levels(read_wsi(tmp_path / "he.tif"))[0]), expected)


@pytest.mark.parametrize("backend", ["openslide", "tifffile"])
def test_threads_and_processes_open_the_file_for_themselves(folder: Path, backend: Any) -> None:
    array = levels(read_wsi(folder / "pyramid.tif", backend=backend))[0].data
    expected = array.compute(scheduler="synchronous")
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda k: array.blocks[0, k % 2, k // 2].compute(scheduler="synchronous"), range(6)))
    for k, part in enumerate(parts):
        y, x = 512 * (k % 2), 512 * (k // 2)
        np.testing.assert_array_equal(part, expected[:, y : y + 512, x : x + 512])
    again = pickle.loads(pickle.dumps(array))  # noqa: S301
    np.testing.assert_array_equal(again.compute(scheduler="synchronous"), expected)
    with multiprocessing.get_context("fork").Pool(1) as pool:  # after this process has the file open
        block, opened_anew = pool.apply(_block, (array,))
    np.testing.assert_array_equal(block, expected[:, :512, :512])
    assert opened_anew


def _block(array: Any) -> tuple[np.ndarray, bool]:
    before = _opened.cache_info()
    block = array.blocks[0, 0, 0].compute(scheduler="synchronous")
    return block, before.currsize > 0 and _opened.cache_info().misses == before.misses + 1


@pytest.mark.parametrize("name", ["pyramid.tif", "plain.tif", "strips.tif"])
def test_a_block_is_read_without_the_image(tmp_path: Path, name: str) -> None:
    """Of a picture of 48 MB."""
    picture = np.tile(scene(1024, 1024), (4, 4, 1))
    path = tmp_path / name
    if name == "pyramid.tif":
        pyramid_tiff(path, picture)
    else:
        options = {"compression": "deflate", "rowsperstrip": 16} if name == "strips.tif" else {}
        tifffile.imwrite(path, picture, photometric="rgb", **options)
    tracemalloc.start()
    try:
        level = levels(read_wsi(path, microns_per_pixel=0.5))[0]
        block = np.moveaxis(level.data.blocks[:, 1, 0].compute(scheduler="synchronous"), 0, -1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    top = level.data.chunks[1][0]
    expected = tifffile.imread(path, level=0)[top : top + block.shape[0], : block.shape[1]]
    np.testing.assert_array_equal(block, expected)
    # a block of strips is as wide as the image: 12 MB, held twice while its channels are put first
    assert peak < (30e6 if name == "strips.tif" else 8e6)


def test_scale_of_the_file(tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def scale(path: Path, **options: Any) -> float | None:
        return read_wsi(path, **options).attrs.get("microns_per_pixel", {}).get("s_image")

    small = PICTURE[:512, :512]
    assert scale(pyramid_tiff(tmp_path / "s.tif", small, mpp=0.25)) == pytest.approx(0.25)
    assert scale(tmp_path / "s.tif", backend="openslide") == pytest.approx(0.25)
    assert scale(tmp_path / "s.tif", microns_per_pixel=0.3) == 0.3
    assert scale(ome_tiff(tmp_path / "s.ome.tif", small, size=345, unit="nm")) == pytest.approx(0.345)
    assert caplog.records == []
    caplog.set_level(logging.INFO, "spahgc")
    # a unit that is no length, the resolution of a printer, none
    assert scale(ome_tiff(tmp_path / "s.ome.tif", small, size=1, unit="pixel")) is None
    assert scale(pyramid_tiff(tmp_path / "s.tif", small, mpp=25400 / 300)) is None
    assert scale(tmp_path / "s.tif", backend="openslide") is None
    assert "84.67 x 84.67 um per pixel; an H&E image has between 0.05 and 20" in caplog.text
    assert "resolution of a printer or screen, and is ignored" in caplog.text
    assert scale(pyramid_tiff(tmp_path / "s.tif", small, mpp=None)) is None
    assert caplog.records[-1].levelno == logging.WARNING
    assert "s.tif does not state the micrometers per pixel. Pass `microns_per_pixel`" in caplog.text


def aperio(path: Path, description: str) -> Path:
    """A TIFF with the description by which Aperio's are known."""
    tifffile.imwrite(
        path, PICTURE[:512, :512], tile=(256, 256), compression="jpeg", photometric="rgb", metadata=None,
        description=f"Aperio Image Library v11\n512x512 (256x256) JPEG/RGB Q=70|{description}"
    )  # fmt: skip
    return path


def test_scanner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = aperio(tmp_path / "s.svs", "AppMag = 40|MPP = 0.2525")
    assert openslide.OpenSlide.detect_format(str(path)) == "aperio"
    assert read_wsi(path).attrs["microns_per_pixel"]["s_image"] == pytest.approx(0.2525)
    np.testing.assert_array_equal(pixels(levels(read_wsi(path))[0]), tifffile.imread(path))
    assert caplog.records == []
    # the objective does not give the size of a pixel
    assert read_wsi(aperio(path, "AppMag = 40")).attrs == {}
    assert "An objective of 20x or 40x does not determine them" in caplog.text
    with pytest.raises(ValueError, match=r"s\.svs states 250 x 250 um per pixel; an H&E image has between"):
        read_wsi(aperio(path, "AppMag = 40|MPP = 250"))


def test_refused_scales(folder: Path, tmp_path: Path) -> None:
    for wrong in (0.0, 30.0, float("nan"), -1.0):
        with pytest.raises(ValueError, match="`microns_per_pixel` must be a finite number between 0.05 and 20"):
            read_wsi(folder / "plain.tif", microns_per_pixel=wrong)
    path = tmp_path / "oblong.tif"
    tifffile.imwrite(
        path, PICTURE, photometric="rgb", tile=(256, 256), resolution=(20000, 18000), resolutionunit="CENTIMETER"
    )
    refused(ValueError, r"pixels of 0\.5 x 0\.5556 um: square tiles would not be square", read_wsi, path)
    assert read_wsi(path, microns_per_pixel=0.5).attrs["microns_per_pixel"] == {"oblong_image": 0.5}


def test_no_slides(tmp_path: Path) -> None:
    refused(FileNotFoundError, r"No slide file .*none\.svs", read_wsi, tmp_path / "none.svs")
    refused(FileNotFoundError, r"It is a folder: read a SpatialData zarr with", read_wsi, tmp_path)
    for name in ("text.svs", "text.tif", "text.mrxs"):
        (tmp_path / name).write_text("no image")
        refused(ValueError, rf"(openslide|tifffile) cannot read {name}", read_wsi, tmp_path / name)
    (tmp_path / "text.jpg").write_text("no image")
    refused(ValueError, r"text\.jpg\) is not an image", read_wsi, tmp_path / "text.jpg")
    tifffile.imwrite(tmp_path / "gray.tif", PICTURE[..., 0])
    refused(ValueError, r"gray\.tif has 1 channels; expected 3", read_wsi, tmp_path / "gray.tif")
    tifffile.imwrite(tmp_path / "deep.tif", PICTURE.astype(np.uint16), photometric="rgb")
    refused(ValueError, r"deep\.tif has dtype uint16; expected uint8", read_wsi, tmp_path / "deep.tif")


@pytest.mark.parametrize("name", ["pyramid.tif", "strips.tif", "plain.tif", "he.jpg"])
def test_cut_off(folder: Path, tmp_path: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    said = (
        r"he\.jpg\) is damaged" if name == "he.jpg" else rf"{name} is truncated: it has {len(whole) // 2} of at least"
    )
    refused(OSError, said, read_wsi, tmp_path / name)


@pytest.mark.parametrize("backend", ["openslide", "tifffile"])
def test_damaged_block(folder: Path, tmp_path: Path, backend: Any) -> None:
    """The other blocks can be read, before and after."""
    path = tmp_path / "s.tif"
    with tifffile.TiffFile(folder / "pyramid.tif") as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content = bytearray((folder / "pyramid.tif").read_bytes())
    content[start : start + length] = bytes(length)
    path.write_bytes(content)
    array = levels(read_wsi(path, backend=backend))[0].data
    for _ in range(2):
        assert array.blocks[0, 1, 1].compute(scheduler="synchronous").any()
        with pytest.raises(OSError, match=r"s\.tif: rows 0 to 512, columns 0 to 512 of level 0 cannot be read"):
            array.blocks[0, 0, 0].compute(scheduler="synchronous")


def test_without_the_libraries(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    svs = aperio(tmp_path / "s.svs", "MPP = 0.25")
    monkeypatch.setitem(sys.modules, "openslide", None)
    assert levels(read_wsi(folder / "pyramid.tif"))[0].shape == (3, 900, 1203)  # tifffile
    refused(ImportError, r"Reading s\.svs requires openslide.*spahgc\[wsi\]", read_wsi, svs)
