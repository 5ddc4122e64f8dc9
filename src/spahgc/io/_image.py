"""Images in memory: checks of their pixels, pyramids and thumbnails."""

from __future__ import annotations

import gzip
import io
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4
from xml.etree import ElementTree

import dask.array as da
import numpy as np
import tifffile
import xarray as xr
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, set_transformation

from .._checks import format_names
from .._settings import logger

CHUNK = 512  # side of image chunks in pixels: a few tiles each, and little waste on a single one
THUMBNAIL = 1000  # longest side of a thumbnail in pixels
RGB_NAMES = {"r", "g", "b", "red", "green", "blue", "a", "alpha"}  # of channels, in lower case
_ORIENTATION, _TURNED = 274, range(2, 9)  # tag of EXIF and TIFF, and its values for turned and mirrored images
_BESIDE = re.compile(r"\b(label|macro|thumbnail|overview)\b", re.IGNORECASE)  # names of images that are no scan
_UNNAMED = re.compile(r"r(ed)?|g(reen)?|b(lue)?|(c|ch|channel)?[\W_]*\d*", re.IGNORECASE)  # channels of H&E
_MODES = {"RGB": "RGB", "YCBCR": "YCbCr", "SEPARATED": "CMYK", "CIELAB": "LAB"}  # of Pillow, by name in TIFF
_JPEG = {6, 7, 34892, 33007}  # compressions of which tifffile decodes YCbCr to RGB
STRAIGHT = 2  # alpha that colors are not multiplied by, as in TIFF; 1 if they are
_ALPHA = 0.9  # least share of 0 and 255 in a band that is taken for alpha without a name


def read_image(image: str | PathLike[str] | NDArray[np.uint8]) -> Image.Image:
    """Read a file or an array as 8-bit RGB; transparent pixels become white."""
    if isinstance(image, np.ndarray):
        return _from_array(image, "image (array)")
    path = Path(image)
    source = f"image ({path.name})"
    if not path.is_file():
        raise FileNotFoundError(f"image: no file {str(path)!r}.")
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # slides are large, and chosen by the user
    try:
        if path.suffix.lower() in {".tif", ".tiff"}:
            with tifffile.TiffFile(path) as handle:
                number, samples = tiff_scan(handle, source)
                pixels = channels_last(handle.asarray(series=number), handle.series[number].axes)
                return Image.fromarray(as_rgb(pixels, samples))
        opened: Any = Image.open(io.BytesIO(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path)
        raw_modes = [str(tile[3]) for tile in opened.tile]  # which loading deletes
        opened.load()
    except (UnidentifiedImageError, tifffile.TiffFileError):
        raise ValueError(f"{source} is not an image in a supported format (JPEG, PNG, TIFF).") from None
    except (EOFError, OSError) as error:
        raise OSError(f"{source} is damaged or truncated ({error}). Copy or fetch it again.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    # Pillow silently reduces 16-bit RGB to 8 bits; only the raw mode of its decoder shows it.
    if opened.mode.startswith("I") or any("16" in mode for mode in raw_modes):
        check_samples(np.uint16, 3, source)
    if opened.mode not in {"RGB", "RGBA", "CMYK"}:
        raise ValueError(
            f"{source} is a {opened.mode} image, not RGB. If it is H&E in other colors, convert it with "
            "PIL.Image.open(path).convert('RGB') and inspect them; a grayscale image holds no stain colors."
        )
    if getattr(opened, "n_frames", 1) > 1:
        logger.warning("%s holds %d images, of which the first is read.", source, opened.n_frames)
    if (turned := opened.getexif().get(_ORIENTATION)) in _TURNED:
        logger.warning("%s is turned upright (EXIF orientation %s). Positions must refer to this.", source, turned)
        opened = ImageOps.exif_transpose(opened)
    alpha = STRAIGHT if opened.mode == "RGBA" else 0
    samples = declared(opened.mode.removesuffix("A"), alpha, opened.info.get("icc_profile"), source)
    return opened if samples == Samples() else Image.fromarray(as_rgb(np.asarray(opened), samples))


def check_samples(dtype: Any, n_channels: Any, source: str) -> None:
    """Raise unless an image has 8-bit RGB or RGBA pixels."""
    if dtype != np.uint8:
        raise ValueError(
            f"{source} has dtype {np.dtype(dtype)}; expected uint8. Convert 16-bit values with (image // "
            "257).astype('uint8'), and values from 0 to 1 with (image * 255).round().astype('uint8')."
        )
    if n_channels not in {3, 4}:
        raise ValueError(f"{source} has {n_channels} channels; expected 3 (RGB). Is it gray, fluorescence or a mask?")


def _from_array(array: NDArray[Any], source: str) -> Image.Image:
    if array.ndim != 3 or array.shape[2] not in {3, 4} or array.size == 0:
        channels_first = array.ndim == 3 and array.shape[0] in {3, 4}
        advice = " The channels come first: numpy.moveaxis(image, 0, -1)." if channels_first else ""
        raise ValueError(f"{source} has shape {array.shape}; expected (height, width, 3).{advice}")
    check_samples(array.dtype, array.shape[2], source)
    if array.shape[2] == 4 and not _is_alpha(array[..., 3]):
        raise ValueError(f"{source} has a fourth channel that is no alpha. If the others are RGB: image[..., :3].")
    return Image.fromarray(np.ascontiguousarray(on_white(array)))


def _is_alpha(band: NDArray[np.uint8]) -> bool:
    """Whether a fourth band without a name is alpha: almost all pixels are opaque or transparent."""
    return bool(band.any() and np.isin(band, (0, 255)).mean() >= _ALPHA)


class Samples(NamedTuple):
    """What the samples of a pixel mean: mode of Pillow, alpha that follows, ICC profile."""

    mode: str = "RGB"
    alpha: int = 0
    icc: bytes | None = None


def declared(mode: str, alpha: int, icc: Any, source: str) -> Samples:
    """Samples as a file declares them, without a profile of no effect or use; logs what is converted."""
    if icc is not None:
        colors = np.random.default_rng(0).integers(0, 256, (64, 64, Image.getmodebands(mode)), np.uint8)
        try:
            change = np.subtract(*(as_rgb(colors, Samples(mode, icc=by)) for by in (icc, None)), dtype=np.int16)
            icc = icc if np.abs(change).max() > 2 else None  # sRGB, but for rounding
        except (ImageCms.PyCMSError, OSError) as error:
            logger.warning("%s has an unusable ICC profile (%s), which is ignored.", source, error)
            icc = None
    if mode == "CMYK" and icc is None:
        logger.warning("%s is CMYK without an ICC profile, so its colors are approximate. Export it as RGB.", source)
    elif mode != "RGB" or icc is not None:
        logger.info("%s is converted from %s%s to sRGB.", source, mode, " with an ICC profile" if icc else "")
    return Samples(mode, alpha, icc)


def as_rgb(pixels: NDArray[np.uint8], samples: Samples) -> NDArray[np.uint8]:
    """Convert samples (y, x, n) to sRGB (y, x, 3), transparent pixels to white."""
    if samples.alpha:
        pixels = on_white(pixels, premultiplied=samples.alpha != STRAIGHT)
    if samples == Samples(alpha=samples.alpha):
        return pixels
    image = Image.frombytes(samples.mode, pixels.shape[1::-1], pixels.tobytes())
    image = image.convert("RGB") if samples.mode == "YCbCr" else image
    transform = _to_srgb(image.mode, samples.icc)
    return np.asarray(image.convert("RGB") if transform is None else ImageCms.applyTransform(image, transform))


@lru_cache(maxsize=8)
def _to_srgb(mode: str, icc: bytes | None) -> Any:
    if icc is None and mode != "LAB":
        return None
    profile = ImageCms.createProfile("LAB") if mode == "LAB" else ImageCms.ImageCmsProfile(io.BytesIO(icc or b""))
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")


def on_white(pixels: NDArray[np.uint8], *, premultiplied: bool = False) -> NDArray[np.uint8]:
    """Composite RGBA pixels (y, x, 4) onto white; RGB pixels are returned unchanged."""
    if pixels.shape[-1] == 3:
        return pixels
    rgb, clear = pixels[..., :3], pixels[..., 3] < 255
    if clear.any():
        rgb = rgb.copy()
        opacity = pixels[clear, 3:].astype(np.float32) / 255
        color = rgb[clear] * (1 if premultiplied else opacity)
        rgb[clear] = np.minimum(color + 255 * (1 - opacity), 255).round()
    return rgb


def channels_last(pixels: NDArray[Any], axes: str) -> NDArray[Any]:
    """Pixels of a TIFF as (y, x, n), whatever the order of its axes; others than x, y and one have length 1."""
    pixels = np.moveaxis(pixels, (axes.index("Y"), axes.index("X")), (0, 1))
    return pixels.reshape(*pixels.shape[:2], -1)


def tiff_scan(handle: tifffile.TiffFile, source: str) -> tuple[int, Samples]:
    """Series of the largest scan of a TIFF, and what its samples mean; logs the images that are not read."""
    images, usable, refused = handle.series, [], []
    area = [image.keyframe.imagewidth * image.keyframe.imagelength for image in images]
    names = [f"{image.name} {'' if handle.is_ome else image.keyframe.description}" for image in images]
    order = sorted(range(len(images)), key=lambda k: -area[k])
    scans = [k for k in order if not images[k].keyframe.is_reduced and not _BESIDE.search(names[k])]
    for number in scans or order:
        try:
            usable.append((number, *_meaning(handle, number, source)))
        except ValueError as error:
            refused.append((area[number], error))
    # A small image cannot stand in for a scan that was refused.
    if refused and (not usable or 4 * area[usable[0][0]] < refused[0][0]):
        raise refused[0][1]
    (scan, mode, alpha), *others = usable
    if left := [f"{images[k].name or k} {images[k].shape}" for k in order if k != scan]:
        log = logger.warning if any(2 * area[number] > area[scan] for number, *_ in others) else logger.info
        log("%s: the largest scan, %r, is read, and not %s.", source, images[scan].name or scan, format_names(left))
    page = images[scan].keyframe
    try:
        _ = tifffile.TIFF.DECOMPRESSORS[page.compression], tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError as error:
        raise ImportError(f"{source} cannot be decoded: {error.args[0]}. Run: pip install -U imagecodecs.") from None
    pages = [level.keyframe for level in images[scan].levels]
    end = max(at + n for page in pages for at, n in zip(page.dataoffsets, page.databytecounts, strict=True))
    if end > handle.filehandle.size:
        raise OSError(f"{source} is truncated: it has {handle.filehandle.size} of at least {end} bytes. Copy it again.")
    return scan, declared(mode, alpha, page.iccprofile, source)


def _meaning(handle: tifffile.TiffFile, number: int, source: str) -> tuple[str, int]:
    """Mode and alpha of the samples of a TIFF series; raises if they are no colors that can be converted."""
    series = handle.series[number]
    page, sides = series.keyframe, dict(zip(series.axes, series.shape, strict=True))
    if stack := {axis: n for axis, n in sides.items() if axis not in "YXSC" and n > 1}:
        raise ValueError(f"{source} is a stack of images {stack}. Save the one that shows the section as RGB.")
    n = math.prod(n for axis, n in sides.items() if axis not in "YX")
    check_samples(series.dtype, n, source)
    if (turned := page.tags.valueof(_ORIENTATION)) in _TURNED:
        raise ValueError(f"{source} is stored turned (TIFF orientation {turned}). Save it upright, with vips autorot.")
    colors = getattr(page.photometric, "name", str(page.photometric))
    mode = _MODES.get(colors)
    if mode == "YCbCr" and page.compression in _JPEG and page.planarconfig == 1 and not page.extrasamples:
        mode = "RGB"
    elif mode in {"YCbCr", "CMYK"}:
        luma, black, inks = (page.tags.valueof(*tag) for tag in ((529, (299, 1000)), (532, (0,)), (332, 1)))
        usual = abs(luma[0] / luma[1] - 0.299) < 1e-3 and black[0] == 0 and inks == 1 and not page.is_subsampled
        mode = mode if usual else None
    elif colors == "MINISBLACK" and n == 3 and handle.is_ome and "C" in sides:
        xml = ElementTree.fromstring(str(handle.ome_metadata))
        colors = [item.get("Name", "") for item in xml.iterfind(f".//{{*}}Image[{number + 1}]//{{*}}Channel")]
        reverse = "".join(name[:1].lower() for name in colors) == "bgr"
        mode = "RGB" if all(map(_UNNAMED.fullmatch, colors)) and not reverse else None
    if mode is None:
        raise ValueError(f"{source} has the colors {colors}, not RGB. If it is H&E, save it as RGB, or as JPEG.")
    alpha = page.extrasamples[0] if page.extrasamples and mode == "RGB" and n == 4 else 0
    if n > Image.getmodebands(mode) and not alpha:
        raise ValueError(f"{source} has a fourth band that is not declared as alpha. Save the first three as RGB.")
    return mode, int(alpha)


def pyramid(image: Image.Image, slide: str) -> xr.DataTree:
    """Multiscale image element, (c, y, x) uint8, in memory: box means, halved to at most 1024 pixels."""
    # At least two levels: SpatialData reads an image of one level back as another type.
    levels = [image, image.reduce(2)]
    while max(image.size) > 1024 * 2 ** (len(levels) - 1):
        levels.append(levels[-1].reduce(2))
    return multiscale([_in_chunks(level) for level in levels], slide)


def _in_chunks(level: Image.Image) -> da.Array:
    """Pixels of an image, (c, y, x), cut chunk by chunk: an array of the whole would double the memory."""
    name, (width, height) = f"image-{uuid4().hex}", level.size
    graph = {
        (name, 0, y // CHUNK, x // CHUNK): np.moveaxis(
            np.asarray(level.crop((x, y, min(x + CHUNK, width), min(y + CHUNK, height)))), -1, 0
        ).copy()
        for y in range(0, height, CHUNK)
        for x in range(0, width, CHUNK)
    }
    chunks = da.core.normalize_chunks((3, CHUNK, CHUNK), (3, height, width))
    return da.Array(graph, name, chunks, np.uint8)


def multiscale(levels: Sequence[Any], slide: str) -> xr.DataTree:
    """Multiscale image element from the dask arrays (3, y, x) of its levels, in the coordinate system `slide`."""
    datasets = {}
    height, width = levels[0].shape[1:]
    for index, level in enumerate(levels):
        element = Image2DModel.parse(
            level, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={slide: Identity()}
        )
        # Pixel centers in full-resolution pixels, as in spatialdata. Sizes that do not divide give fractional factors.
        xs = (np.arange(level.shape[2]) + 0.5) * (width / level.shape[2])
        ys = (np.arange(level.shape[1]) + 0.5) * (height / level.shape[1])
        datasets[f"scale{index}"] = xr.Dataset({"image": element.assign_coords(y=ys, x=xs)})
    tree = xr.DataTree.from_dict(datasets)
    set_transformation(tree, Identity(), slide)
    return tree


def resolutions(element: Any) -> list[Any]:
    """Resolutions of an image element as DataArrays, finest first; named colors are in order, alpha is on white."""
    arrays = [element]
    if hasattr(element, "children"):
        arrays = [next(iter(level.data_vars.values())) for level in element.children.values()]
        arrays.sort(key=lambda array: -array.sizes["x"])
    finest = arrays[0]
    names = [str(name).lower() for name in finest.coords["c"].values] if "c" in finest.coords else []
    letters = "".join(name[0] for name in names if name in RGB_NAMES)
    if finest.dims != ("c", "y", "x") or finest.dtype != np.uint8:
        return arrays
    if len(names) == 4 and all(map(str.isdigit, names)):
        middle = (slice(max(0, n // 2 - 64), n // 2 + 64) for n in finest.shape[1:])
        letters = "rgba" if _is_alpha(np.asarray(finest[3, *middle])) else ""
    if "".join(sorted(letters)) not in {"bgr", "abgr"} or letters == "rgb" or len(letters) < len(names):
        return arrays
    arrays = [array.isel(c=[letters.index(letter) for letter in "rgba"[: len(letters)]]) for array in arrays]
    return [array[:3].copy(data=_opaque(array.data)) if len(array) == 4 else array for array in arrays]


def _opaque(pixels: Any) -> Any:
    """RGBA pixels (4, y, x), dask or NumPy, on white: (3, y, x)."""
    if not hasattr(pixels, "rechunk"):
        return np.moveaxis(on_white(np.moveaxis(pixels, 0, -1)), -1, 0)
    pixels = pixels.rechunk({0: -1})
    return pixels.map_blocks(_opaque, dtype=np.uint8, chunks=((3,), *pixels.chunks[1:]))


def thumbnail(element: Any) -> tuple[NDArray[np.uint8], float]:
    """Thumbnail of an image element, uint8 (h, w, 3), and its pixels per full-resolution pixel."""
    arrays = resolutions(element)
    longest = [max(array.sizes["x"], array.sizes["y"]) for array in arrays]
    side = min(THUMBNAIL, max(longest))
    array = [array for array, pixels in zip(arrays, longest, strict=True) if pixels >= side][-1]
    picture = Image.fromarray(np.ascontiguousarray(array.transpose("y", "x", "c").data.compute()))
    scale = side / max(longest)
    size = (max(1, round(arrays[0].sizes["x"] * scale)), max(1, round(arrays[0].sizes["y"] * scale)))
    return np.asarray(picture if picture.size == size else picture.resize(size, Image.Resampling.BOX)), scale
