"""What pixels mean: files that state other samples than RGB are converted, or refused by name."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from spatialdata.models import Image2DModel

from spahgc.io import read_wsi
from spahgc.io._image import read_image, resolutions

from ..refusals import refused
from ..slide_files import scene

PICTURE = scene(320, 300)
PIL = Image.fromarray(PICTURE)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# A profile that declares blue as the first channel: tags of the primaries swapped.
BLUE_FIRST = SRGB.replace(b"rXYZ", b"tmpX").replace(b"bXYZ", b"rXYZ").replace(b"tmpX", b"bXYZ")


def lab() -> np.ndarray:
    to_lab: Any = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    return np.asarray(ImageCms.applyTransform(PIL, to_lab))


def tiff(pixels: np.ndarray | None = None, **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tifffile.imwrite(folder / "s.tif", PICTURE if pixels is None else pixels, **{"tile": (128, 128), **options})
        return folder / "s.tif"

    return write


def picture(name: str, mode: str = "RGB", **options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        PIL.convert(mode).save(folder / name, **options)
        return folder / name

    return write


def both(path: Path) -> list[np.ndarray]:
    """Pixels as both readers give them."""
    array = resolutions(next(iter(read_wsi(path, microns_per_pixel=0.5).images.values())))[0]
    return [np.moveaxis(array.data.compute(), 0, -1), np.asarray(read_image(path))]


def with_band(value: int) -> np.ndarray:
    return np.dstack([PICTURE, np.full(PICTURE.shape[:2], value, np.uint8)])


TO_CMYK, TO_YCBCR = np.asarray(PIL.convert("CMYK")), np.asarray(PIL.convert("YCbCr"))


@pytest.mark.parametrize(
    ("write", "within"),
    [
        (tiff(TO_CMYK, photometric="separated"), 0),
        (tiff(np.moveaxis(TO_CMYK, -1, 0), photometric="separated", planarconfig="separate", compression="lzw"), 0),
        (tiff(lab(), photometric="cielab"), 3),
        (tiff(TO_YCBCR, photometric="ycbcr", subsampling=(1, 1)), 3),
        (tiff(np.moveaxis(TO_YCBCR, -1, 0), photometric="ycbcr", planarconfig="separate", compression="deflate"), 3),
        (tiff(with_band(255), photometric="rgb", extrasamples=["unassalpha"]), 0),
        (tiff(photometric="rgb", iccprofile=SRGB), 0),
        (tiff(PICTURE[..., ::-1], photometric="rgb", iccprofile=BLUE_FIRST), 3),
        (tiff(TO_YCBCR[..., :3], photometric="ycbcr", subsampling=(1, 1), compression="lzw", iccprofile=SRGB), 3),
        (picture("s.jpg", "CMYK", quality=100, subsampling=0), 8),
        (picture("s.png", "RGBA"), 0),
        (picture("s.png", icc_profile=SRGB), 0),
        (picture("s.bmp"), 0),
    ],
)  # fmt: skip
def test_colors_are_those_of_the_picture(tmp_path: Path, write: Callable[[Path], Path], within: int) -> None:
    for pixels in both(write(tmp_path)):
        assert np.abs(pixels.astype(int) - PICTURE).max() <= within


@pytest.mark.parametrize("kind", ["assocalpha", "unassalpha"])
def test_both_kinds_of_alpha_are_put_on_white(tmp_path: Path, kind: str) -> None:
    rgba = with_band(255)
    rgba[:100, :, 3], rgba[100:150, :, 3] = 0, 128
    expected = PICTURE.astype(float)
    expected[:100], expected[100:150] = 255, (expected[100:150] * 128 + 255 * 127) / 255
    if kind == "assocalpha":
        rgba[..., :3] = (rgba[..., :3] * (rgba[..., 3:] / 255)).round()
    for pixels in both(tiff(rgba, photometric="rgb", extrasamples=[kind])(tmp_path)):
        assert np.abs(pixels - expected).max() <= 1.5


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (tiff(with_band(30), photometric="rgb", extrasamples=["unspecified"]), "a fourth band that is not declared"),
        (tiff(TO_CMYK, photometric="separated", extratags=[(332, 3, 1, 2, True)]), "has the colors SEPARATED"),
        (tiff(np.dstack([TO_CMYK, TO_CMYK[..., :1]]), photometric="separated"), "has 5 channels"),
        (tiff(lab(), photometric="icclab"), "has the colors ICCLAB"),
        (tiff(lab(), photometric="itulab"), "has the colors ITULAB"),
        (tiff(photometric="minisblack", planarconfig="contig"), "has the colors MINISBLACK"),
        (tiff(np.moveaxis(PICTURE, -1, 0), photometric="minisblack"), "is a stack of images {'Q': 3}"),
        (tiff(PICTURE[..., 0], photometric="palette", colormap=np.zeros((3, 256), np.uint16)), "has 1 channels"),
        (tiff(np.stack([PICTURE, PICTURE]), photometric="rgb"), "is a stack of images"),
        (tiff(photometric="rgb", extratags=[(274, 3, 1, 3, True)]), r"TIFF orientation 3"),
        (picture("s.png", "P"), "is a P image"),
        (picture("s.png", "LA"), "is a LA image"),
        (picture("s.jpg", "L"), "is a L image"),
    ],
)  # fmt: skip
def test_other_samples_are_refused_by_name(tmp_path: Path, write: Callable[[Path], Path], said: str) -> None:
    for reader in (read_wsi, read_image):
        refused(ValueError, said, reader, write(tmp_path))


@pytest.mark.parametrize(
    ("names", "taken"),
    [(None, True), (["Red", "Green", "Blue"], True), (["C1", "C2", "C3"], True), (["DAPI", "CD3", "CD8"], False)],
)
def test_planes_of_ome(tmp_path: Path, names: list[str] | None, taken: bool) -> None:
    path = tmp_path / "s.ome.tif"
    metadata = {"axes": "CYX"} | ({} if names is None else {"Channel": {"Name": names}})
    tifffile.imwrite(path, np.moveaxis(PICTURE, -1, 0), photometric="minisblack", metadata=metadata)
    if taken:
        np.testing.assert_array_equal(both(path), [PICTURE, PICTURE])
    else:
        refused(ValueError, r"has the colors \['DAPI', 'CD3', 'CD8'\], not RGB", read_wsi, path)


def test_what_is_said_of_colors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_image(picture("s.jpg", "CMYK")(tmp_path))
    assert "is CMYK without an ICC profile, so its colors are approximate" in caplog.text
    pixels = np.asarray(read_image(picture("t.jpg", icc_profile=b"none")(tmp_path)))
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(tmp_path / "t.jpg")))
    assert "has an unusable ICC profile" in caplog.text
    caplog.clear()
    read_wsi(tiff(photometric="rgb", compression="jpeg", iccprofile=SRGB)(tmp_path), microns_per_pixel=0.5)
    assert caplog.records == []


@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    expected = np.rot90(PICTURE, {3: 2, 6: -1, 8: 1}.get(orientation, 0))
    for pixels in both(picture("s.png", exif=exif)(tmp_path)):
        np.testing.assert_array_equal(pixels, expected)
    assert ("is turned upright" in caplog.text) == (orientation > 1)


def several(path: Path, *images: tuple[str, np.ndarray], ome: bool = True) -> Path:
    with tifffile.TiffWriter(path, ome=ome) as file:
        for name, pixels in images:
            options: dict[str, Any] = {"metadata": {"Name": name}} if ome else {"metadata": None, "description": name}
            file.write(pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", tile=(128, 128), **options)
    return path


BIG = np.tile(PICTURE[:200], (2, 2, 1))


@pytest.mark.parametrize(
    ("images", "level"),
    [
        ([("label", PICTURE[:90, :90]), ("scan", PICTURE)], logging.INFO),
        ([("thumbnail", PICTURE[::4, ::4]), ("macro image", BIG), ("scan", PICTURE)], logging.INFO),
        ([("mask", PICTURE[..., 0]), ("scan", PICTURE)], logging.INFO),
        ([("cells", BIG.astype(np.uint16)), ("scan", PICTURE)], logging.INFO),
        ([("section 1", PICTURE[:250]), ("section 2", PICTURE)], logging.WARNING),
    ],
)
@pytest.mark.parametrize("ome", [True, False])
def test_the_largest_scan_is_read(
    tmp_path: Path, images: list[tuple[str, np.ndarray]], level: int, ome: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "spahgc")
    path = several(tmp_path / ("s.ome.tif" if ome else "s.tif"), *images, ome=ome)
    np.testing.assert_array_equal(both(path), [PICTURE, PICTURE])
    said = next(record for record in caplog.records if "the largest scan" in record.message)
    assert said.levelno == level
    if ome:
        assert all(name in said.message for name, _ in images)


def test_a_small_image_does_not_stand_in_for_a_scan_that_is_refused(tmp_path: Path) -> None:
    path = several(tmp_path / "s.tif", ("label", PICTURE[:90, :90]), ("", BIG.astype(np.uint16)), ome=False)
    for reader in (read_wsi, read_image):
        refused(ValueError, "has dtype uint16; expected uint8", reader, path)


@pytest.mark.parametrize("options", [{"compression": "jpeg"}, {"compression": "lzw"}])
def test_a_missing_codec_is_named(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tiff(photometric="rgb", **options)(tmp_path)
    code = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from spahgc.io._wsi import load; from spahgc.io._image import read_image\n"
        f"for read in (lambda p: load(p, slide=None, microns_per_pixel=1.0), read_image):\n"
        f"    try: read({str(path)!r})\n"
        "    except ImportError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.count("cannot be decoded") == said.count("Run: pip install -U imagecodecs.") == 2
    assert "damaged" not in said


@pytest.mark.parametrize(("band", "taken"), [(255, True), (30, False), (0, False)])
def test_a_fourth_channel_without_a_name(band: int, taken: bool) -> None:
    array = with_band(band)
    element = Image2DModel.parse(np.moveaxis(array, -1, 0), dims=("c", "y", "x"))
    (found,) = resolutions(element)
    assert found.sizes["c"] == (3 if taken else 4)
    if taken:
        np.testing.assert_array_equal(found.transpose("y", "x", "c"), PICTURE)
        np.testing.assert_array_equal(read_image(array), PICTURE)
    else:
        refused(ValueError, "has a fourth channel that is no alpha", read_image, array)


@pytest.mark.parametrize("names", ["bgr", "rgba", "abgr", ["blue", "green", "red"], ["Red", "Green", "Blue"]])
def test_named_channels_are_put_in_order(names: Any) -> None:
    order = ["rgba".index(name[0].lower()) for name in names]
    array = np.moveaxis(with_band(255)[..., order], -1, 0)
    element = Image2DModel.parse(array, dims=("c", "y", "x"), c_coords=list(names), scale_factors=[2])
    for level in resolutions(element):
        assert [str(name)[0].lower() for name in level.coords["c"].values] == ["r", "g", "b"]
    np.testing.assert_array_equal(resolutions(element)[0].transpose("y", "x", "c"), PICTURE)
