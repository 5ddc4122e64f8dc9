"""Images in memory: checks of their pixels, pyramids and thumbnails."""

from __future__ import annotations

import gzip
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image
    from xarray import DataTree

logger = logging.getLogger("spahgc")

CHUNK = 512  # side of image chunks in pixels: a few tiles each, and little waste on a single one
THUMBNAIL = 1000  # longest side of a thumbnail in pixels
_STRIP = 64  # rows that are copied from Pillow at a time


def read_image(image: str | PathLike[str] | NDArray[np.uint8], *, flatten: bool = False) -> Image:
    """Read a file or an array as 8-bit RGB; transparent pixels become white if `flatten`, else they are refused."""
    from PIL import Image as pil

    if isinstance(image, np.ndarray):
        return _from_array(image, "image (array)", flatten)
    if not isinstance(image, str | PathLike):
        raise TypeError(
            f"`image` must be a path or an array (height, width, 3) of dtype uint8, got {type(image).__name__}."
        )
    path = Path(image)
    source = f"image ({path.name})"
    if not path.is_file():
        raise FileNotFoundError(f"image: no file {str(path)!r}.")
    if path.suffix.lower() in {".tif", ".tiff"}:
        import tifffile

        return _from_array(tifffile.imread(path), source, flatten)
    with _no_size_limit():
        try:
            opened = pil.open(io.BytesIO(gzip.decompress(path.read_bytes())) if path.suffix == ".gz" else path)
        except pil.UnidentifiedImageError:
            raise ValueError(f"{source} is not an image in a supported format (JPEG, PNG, TIFF).") from None
        except (EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{source} is damaged or truncated ({error}). Fetch it again.") from error
        # Pillow silently reduces 16-bit RGB to 8 bits; only the raw mode of its decoder shows it.
        if opened.mode.startswith("I") or any("16" in str(tile[3]) for tile in opened.tile):
            check_samples(np.uint16, 3, source)
        if opened.mode in {"1", "L", "LA"}:
            check_samples(np.uint8, 1, source)
        if opened.mode == "RGBA":
            return _from_array(np.asarray(opened), source, flatten)
        if opened.mode != "RGB":
            raise ValueError(
                f"{source} is a {opened.mode} image, not RGB. Convert it with PIL.Image.open(path).convert('RGB') and "
                "inspect the colors."
            )
        opened.load()
        return opened


def check_samples(dtype: Any, n_channels: Any, source: str) -> None:
    """Raise unless an image has 8-bit RGB or RGBA pixels."""
    if dtype == np.uint16:
        raise ValueError(
            f"{source} is a 16-bit image; expected 8 bits. Convert it: (image // 257).astype('uint8') if it uses the "
            "full 16-bit range."
        )
    if dtype != np.uint8:
        raise ValueError(
            f"{source} has dtype {dtype}; expected uint8. Convert values from 0 to 1 with (image * "
            "255).round().astype('uint8')."
        )
    if n_channels == 1:
        raise ValueError(
            f"{source} is grayscale, but an H&E image has three channels (RGB). Is it the right file? A grayscale "
            "image holds no stain colors."
        )
    if n_channels not in {3, 4}:
        raise ValueError(
            f"{source} has {n_channels} channels; expected 3 (RGB). Is it a stack, a fluorescence image or a mask?"
        )


def _from_array(array: NDArray[Any], source: str, flatten: bool) -> Image:
    from PIL import Image as pil

    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {1, 3, 4}):
        channels_first = array.ndim == 3 and array.shape[0] in {3, 4}
        advice = " The channels come first: numpy.moveaxis(image, 0, -1)." if channels_first else ""
        raise ValueError(f"{source} has shape {array.shape}; expected (height, width, 3).{advice}")
    check_samples(array.dtype, 1 if array.ndim == 2 else array.shape[2], source)
    if 0 in array.shape:
        raise ValueError(f"{source} has shape {array.shape}: no pixels.")
    if array.shape[2] == 4 and not flatten:
        if (array[..., 3] < 255).any():
            raise ValueError(
                f"{source} is RGBA and partly transparent. Composite it onto a white background first: "
                "background = PIL.Image.new('RGBA', im.size, 'white'); "
                "PIL.Image.alpha_composite(background, im).convert('RGB')."
            )
        logger.warning("%s is RGBA and opaque everywhere: the alpha channel is dropped.", source)
    return pil.fromarray(np.ascontiguousarray(on_white(array)))


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


@contextmanager
def _no_size_limit() -> Iterator[None]:
    """Lift Pillow's limit on image size: slides are large, and chosen by the user."""
    from PIL import Image as pil

    limit = pil.MAX_IMAGE_PIXELS
    pil.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        pil.MAX_IMAGE_PIXELS = limit


def pyramid(image: Image, slide: str) -> DataTree:
    """Multiscale image element, (c, y, x) uint8, in memory: box means, halved to at most 1024 pixels."""
    # At least two levels: SpatialData reads an image of one level back as another type.
    levels = [image, image.reduce(2)]
    while max(image.size) > 1024 * 2 ** (len(levels) - 1):
        levels.append(levels[-1].reduce(2))
    return multiscale([_chunked(level) for level in levels], slide)


def _chunked(level: Image) -> Any:
    """Image as a dask array (3, y, x) in memory, copied in strips to save memory."""
    import dask.array as da

    width, height = level.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _STRIP):
        pixels[top : top + _STRIP] = np.asarray(level.crop((0, top, width, min(top + _STRIP, height))))
    return da.from_array(np.moveaxis(pixels, -1, 0), chunks=(3, CHUNK, CHUNK), name=f"image-{uuid4().hex}")


def multiscale(levels: Sequence[Any], slide: str) -> DataTree:
    """Multiscale image element from the dask arrays (3, y, x) of its levels, in the coordinate system `slide`."""
    import xarray as xr
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, set_transformation

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
    Image2DModel().validate(tree)
    return tree


def resolutions(element: Any) -> list[Any]:
    """Resolutions of an image element as DataArrays, finest first."""
    if not hasattr(element, "children"):
        return [element]
    arrays = [next(iter(level.data_vars.values())) for level in element.children.values()]
    return sorted(arrays, key=lambda array: -array.sizes["x"])


def thumbnail(element: Any) -> tuple[NDArray[np.uint8], float]:
    """Thumbnail of an image element, uint8 (h, w, 3), and its pixels per full-resolution pixel."""
    from PIL import Image as pil

    arrays = resolutions(element)
    longest = [max(array.sizes["x"], array.sizes["y"]) for array in arrays]
    side = min(THUMBNAIL, max(longest))
    array = [array for array, pixels in zip(arrays, longest, strict=True) if pixels >= side][-1]
    picture = pil.fromarray(np.ascontiguousarray(array.transpose("y", "x", "c").data.compute()))
    scale = side / max(longest)
    size = (max(1, round(arrays[0].sizes["x"] * scale)), max(1, round(arrays[0].sizes["y"] * scale)))
    return np.asarray(picture if picture.size == size else picture.resize(size, pil.Resampling.BOX)), scale
