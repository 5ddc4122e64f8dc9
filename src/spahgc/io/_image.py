"""Images: a file or an array to a checked RGB image, a multiscale element, and a thumbnail."""

from __future__ import annotations

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

CHUNK = 512
"""Side of the image chunks in pixels: a few tiles each, and little waste on a single one."""
THUMBNAIL = 1000
"""Longest side of the thumbnail in pixels."""


def read_image(image: str | PathLike[str] | NDArray[np.uint8]) -> Image:
    """Read an image and make sure that it is 8-bit RGB.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    TypeError
        If `image` is neither a path nor an array.
    ValueError
        If it is not an 8-bit image with three channels; the message says how to convert it.
    """
    from PIL import Image as pil

    if isinstance(image, np.ndarray):
        return _from_array(image, "image (array)")
    if not isinstance(image, str | PathLike):
        raise TypeError(f"image is a path or a numpy array (height, width, 3) of uint8, not {type(image).__name__}.")
    path = Path(image)
    source = f"image ({path.name})"
    if not path.is_file():
        raise FileNotFoundError(f"image: no file {str(path)!r}.")
    if path.suffix.lower() in {".tif", ".tiff"}:
        import tifffile

        return _from_array(tifffile.imread(path), source)
    with _no_size_limit():
        try:
            opened = pil.open(path)
        except pil.UnidentifiedImageError:
            raise ValueError(f"{source} is not an image in a format that can be read (JPEG, PNG, TIFF).") from None
        # Pillow cuts 16-bit RGB down to 8 bits without a word; its decoder's raw mode still tells
        if opened.mode.startswith("I") or any("16" in str(tile[3]) for tile in opened.tile):
            raise ValueError(_sixteen_bit(source))
        if opened.mode == "RGB":
            opened.load()
            return opened
        if opened.mode == "RGBA":
            return _from_array(np.asarray(opened), source)
    if opened.mode in {"1", "L", "LA"}:
        raise ValueError(_grey(source, f"mode {opened.mode}"))
    raise ValueError(
        f"{source} is a {opened.mode} image, not RGB. Convert it: PIL.Image.open(path).convert('RGB'), and look at "
        "the colours."
    )


def picture(path: Path) -> Image:
    """Read an image file whole as 8-bit RGB, as :func:`read_image` does; what is transparent becomes white."""
    from PIL import Image as pil

    if path.suffix.lower() == ".png":
        with _no_size_limit(), pil.open(path) as opened:
            if opened.mode == "RGBA":
                return pil.alpha_composite(pil.new("RGBA", opened.size, "white"), opened).convert("RGB")
    return read_image(path)


def _from_array(array: NDArray[Any], source: str) -> Image:
    from PIL import Image as pil

    if array.dtype == np.uint16:
        raise ValueError(_sixteen_bit(source))
    if array.dtype != np.uint8:
        raise ValueError(
            f"{source} is {array.dtype}, not uint8. Convert it: (image * 255).round().astype('uint8') for values "
            "from 0 to 1."
        )
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        raise ValueError(_grey(source, f"shape {array.shape}"))
    if array.ndim != 3 or array.shape[2] not in {3, 4}:
        channels_first = array.ndim == 3 and array.shape[0] in {3, 4}
        advice = " The channels come first: numpy.moveaxis(image, 0, -1)." if channels_first else ""
        raise ValueError(f"{source} has the shape {array.shape}; expected (height, width, 3).{advice}")
    if array.shape[2] == 4:
        if not (array[..., 3] == 255).all():
            raise ValueError(
                f"{source} is RGBA and partly transparent. Put it on a white ground first: "
                "ground = PIL.Image.new('RGBA', im.size, 'white'); PIL.Image.alpha_composite(ground, "
                "im).convert('RGB')."
            )
        logger.warning("%s is RGBA, opaque everywhere: the alpha channel is dropped.", source)
        array = array[..., :3]
    if 0 in array.shape:
        raise ValueError(f"{source} has the shape {array.shape}: no pixels.")
    return pil.fromarray(np.ascontiguousarray(array))


def _sixteen_bit(source: str) -> str:
    return (
        f"{source} is a 16-bit image; expected 8 bits. "
        "Convert it: (image // 257).astype('uint8') if it fills the 16 bits."
    )


def _grey(source: str, found: str) -> str:
    return (
        f"{source} is grey ({found}); an H&E image has three channels (RGB). Is it the right file? "
        "A grey image holds no stain colours."
    )


@contextmanager
def _no_size_limit() -> Iterator[None]:
    """Lift Pillow's guard against huge images from the web: slides are huge, and named by the user."""
    from PIL import Image as pil

    limit = pil.MAX_IMAGE_PIXELS
    pil.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        pil.MAX_IMAGE_PIXELS = limit


def pyramid(
    image: Image, slide: str, scale_factors: Sequence[int] | None = None
) -> tuple[DataTree, NDArray[np.uint8], float]:
    """A multiscale image element, a thumbnail, and the thumbnail's scale.

    Every level is a box mean of the one above, made here and kept in memory as chunked uint8: a lazy pyramid would read
    the full resolution again on every access to a coarse level.

    Parameters
    ----------
    image
        RGB image.
    slide
        Name of the coordinate system.
    scale_factors
        Factor of each level to the one above; `None` halves until the longest side is at most 1024 pixels.

    Returns
    -------
    The element (c, y, x), uint8 (h, w, 3) with the longest side at most 1000 pixels, and thumbnail over full-resolution
    pixels.
    """
    from PIL import Image as pil

    width, height = image.size
    if scale_factors is None:
        # at least one: SpatialData reads an image of one level back as another type
        scale_factors = [2] * max(1, int(np.ceil(np.log2(max(width, height) / 1024))))
    if not len(scale_factors) or any(factor != int(factor) or factor < 2 for factor in scale_factors):
        raise ValueError(f"scale_factors are one or more whole numbers of at least 2, not {list(scale_factors)}.")
    levels = [image]
    for factor in scale_factors:
        levels.append(levels[-1].reduce(int(factor)))
    thumb_scale = min(1.0, THUMBNAIL / max(width, height))
    size = (max(1, round(width * thumb_scale)), max(1, round(height * thumb_scale)))
    nearest = min(
        (level for level in levels if level.size[0] >= size[0] and level.size[1] >= size[1]),
        key=lambda level: level.size[0],
    )
    thumbnail = np.array(nearest if nearest.size == size else nearest.resize(size, pil.Resampling.BOX))
    return multiscale([_chunked(level) for level in levels], slide), thumbnail, thumb_scale


def _chunked(level: Image) -> Any:
    """The image as a dask array (c, y, x) of chunks that lie in memory.

    Cut chunk by chunk out of Pillow's image: an array of the whole slide in between would double the memory at its
    peak.
    """
    import dask.array as da

    width, height = level.size
    name = f"image-{uuid4().hex}"
    rows, columns = range(0, height, CHUNK), range(0, width, CHUNK)
    graph = {}
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            crop = np.asarray(level.crop((x, y, min(x + CHUNK, width), min(y + CHUNK, height))))
            graph[name, 0, i, j] = np.ascontiguousarray(np.moveaxis(crop, -1, 0))
    chunks = ((3,), tuple(min(CHUNK, height - y) for y in rows), tuple(min(CHUNK, width - x) for x in columns))
    return da.Array(graph, name, chunks=chunks, dtype=np.uint8)


def multiscale(levels: Sequence[Any], slide: str) -> DataTree:
    """A multiscale image element of the dask arrays (3, y, x) of its levels, in the coordinate system `slide`.

    The factor of a level is that of its size to the finest one's: sizes that do not divide make odd factors.
    """
    import xarray as xr
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, set_transformation

    datasets = {}
    height, width = levels[0].shape[1:]
    for index, level in enumerate(levels):
        element = Image2DModel.parse(
            level, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={slide: Identity()}
        )
        # pixel centres in full-resolution pixels, as spatialdata has them
        xs = (np.arange(level.shape[2]) + 0.5) * (width / level.shape[2])
        ys = (np.arange(level.shape[1]) + 0.5) * (height / level.shape[1])
        datasets[f"scale{index}"] = xr.Dataset({"image": element.assign_coords(y=ys, x=xs)})
    tree = xr.DataTree.from_dict(datasets)
    set_transformation(tree, Identity(), slide)
    Image2DModel().validate(tree)
    return tree


def resolutions(element: Any) -> list[Any]:
    """The resolutions of an image element as DataArrays, finest first."""
    if not hasattr(element, "children"):
        return [element]
    arrays = [next(iter(level.data_vars.values())) for level in element.children.values()]
    return sorted(arrays, key=lambda array: -array.sizes["x"])


def thumbnail(element: Any) -> tuple[NDArray[np.uint8], float]:
    """Of an image element: uint8 (h, w, 3) with the longest side at most 1000 pixels, and its scale to full resolution.

    Made from the coarsest level that is not smaller.
    """
    from PIL import Image as pil

    arrays = resolutions(element)
    longest = [max(array.sizes["x"], array.sizes["y"]) for array in arrays]
    size = min(THUMBNAIL, max(longest))
    array = min(
        (array for array, side in zip(arrays, longest, strict=True) if side >= size), key=lambda array: array.sizes["x"]
    )
    picture = pil.fromarray(np.ascontiguousarray(array.transpose("y", "x", "c").data.compute()))
    scale = size / max(longest)
    full = arrays[0]
    target = (max(1, round(full.sizes["x"] * scale)), max(1, round(full.sizes["y"] * scale)))
    return np.asarray(picture if picture.size == target else picture.resize(target, pil.Resampling.BOX)), scale
