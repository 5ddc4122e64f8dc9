"""Images in memory: checks of their pixels, pyramids and thumbnails."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask.array as da
import numpy as np
import tifffile
import xarray as xr
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, set_transformation

CHUNK = 512  # side of image chunks in pixels: a few tiles each, and little waste on a single one
THUMBNAIL = 1000  # longest side of a thumbnail in pixels


def read_image(image: str | PathLike[str] | NDArray[np.uint8]) -> Image.Image:
    """Read a file or an array as 8-bit RGB; transparent pixels become white."""
    if isinstance(image, np.ndarray):
        return _from_array(image, "image (array)")
    path = Path(image)
    source = f"image ({path.name})"
    if not path.is_file():
        raise FileNotFoundError(f"image: no file {str(path)!r}.")
    if path.suffix.lower() in {".tif", ".tiff"}:
        return _from_array(tifffile.imread(path), source)
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # slides are large, and chosen by the user
    try:
        opened = Image.open(io.BytesIO(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path)
        raw_modes = [str(tile[3]) for tile in opened.tile]  # which loading deletes
        opened.load()
    except UnidentifiedImageError:
        raise ValueError(f"{source} is not an image in a supported format (JPEG, PNG, TIFF).") from None
    except (EOFError, OSError) as error:
        raise OSError(f"{source} is damaged or truncated ({error}). Copy or fetch it again.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    # Pillow silently reduces 16-bit RGB to 8 bits; only the raw mode of its decoder shows it.
    if opened.mode.startswith("I") or any("16" in mode for mode in raw_modes):
        check_samples(np.uint16, 3, source)
    if opened.mode == "RGBA":
        return _from_array(np.asarray(opened), source)
    if opened.mode != "RGB":
        raise ValueError(
            f"{source} is a {opened.mode} image, not RGB. If it is H&E in other colors, convert it with "
            "PIL.Image.open(path).convert('RGB') and inspect them; a grayscale image holds no stain colors."
        )
    return opened


def check_samples(dtype: Any, n_channels: Any, source: str) -> None:
    """Raise unless an image has 8-bit RGB or RGBA pixels."""
    if dtype != np.uint8:
        raise ValueError(
            f"{source} has dtype {np.dtype(dtype)}; expected uint8. Convert 16-bit values with (image // "
            "257).astype('uint8'), and values from 0 to 1 with (image * 255).round().astype('uint8')."
        )
    if n_channels not in {3, 4}:
        raise ValueError(
            f"{source} has {n_channels} channels; expected 3 (RGB). Is it grayscale, a stack, a fluorescence image or "
            "a mask?"
        )


def _from_array(array: NDArray[Any], source: str) -> Image.Image:
    if array.ndim != 3 or array.shape[2] not in {3, 4} or array.size == 0:
        channels_first = array.ndim == 3 and array.shape[0] in {3, 4}
        advice = " The channels come first: numpy.moveaxis(image, 0, -1)." if channels_first else ""
        raise ValueError(f"{source} has shape {array.shape}; expected (height, width, 3).{advice}")
    check_samples(array.dtype, array.shape[2], source)
    return Image.fromarray(np.ascontiguousarray(on_white(array)))


def on_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Composite RGBA pixels (y, x, 4) onto white; RGB pixels are returned unchanged."""
    if pixels.shape[-1] == 3:
        return pixels
    rgb, clear = pixels[..., :3], pixels[..., 3] < 255
    if clear.any():
        rgb = rgb.copy()
        opacity = pixels[clear, 3:].astype(np.float32) / 255
        rgb[clear] = (rgb[clear] * opacity + 255 * (1 - opacity)).round()
    return rgb


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
    """Resolutions of an image element as DataArrays, finest first."""
    if not hasattr(element, "children"):
        return [element]
    arrays = [next(iter(level.data_vars.values())) for level in element.children.values()]
    return sorted(arrays, key=lambda array: -array.sizes["x"])


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
