"""Whole-slide images."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _keys
from .._geometry import PLAUSIBLE_MPP
from ._assemble import check_slide_name, image_name
from ._image import multiscale, picture, pyramid
from ._slide_file import Backend, SlideLevel, TiffLevels, as_dask, block_shape, halved, open_file

if TYPE_CHECKING:
    from spatialdata import SpatialData
    from xarray import DataTree

logger = logging.getLogger("spahgc")

PICTURES = {".jpg", ".jpeg", ".png", ".bmp"}
TIFFS = {".tif", ".tiff", ".btf"}
COARSEST = 2048
"""Longest side in pixels of the coarsest level; what a file lacks is made when it is read."""
ONE_PIECE = 4096**2
"""Pixels of a block of a file from which on the whole image is decoded at once instead."""
SQUARE = 0.01
"""Share by which the micrometres per pixel of x and y may differ."""
_METRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "in": 25400.0}


@dataclass(frozen=True)
class _Scale:
    """What a file says about the size of its pixels."""

    x: float | None = None
    y: float | None = None
    trusted: bool = True
    """False for resolution tags, which often hold that of a printer or a screen."""
    objective: float | None = None


def read_wsi(
    path: str | PathLike[str],
    *,
    slide: str | None = None,
    microns_per_pixel: float | None = None,
    backend: Backend | None = None,
) -> SpatialData:
    """Read a whole-slide image as a lazy pyramid.

    Nothing but the metadata is read now. A block of the image (about 512 x 512 pixels, whole tiles of the file) is
    decoded when it is asked for, by any thread or process. Levels that the file lacks are halved from the one above
    when they are read.

    JPEG and PNG files, and TIFF files that are compressed in one piece, cannot be read in blocks: they are decoded now
    and held in memory, 4 bytes per pixel in all.

    Parameters
    ----------
    path
        Slide file: what OpenSlide reads (``.svs``, ``.ndpi``, ``.mrxs``, ``.scn``, ``.bif``, ...), TIFF, OME-TIFF, JPEG
        or PNG, 8-bit RGB. The SpatialData refers to it: keep it where it is.
    slide
        Name of the slide; `None` takes the file's without its ending, with ``_`` for what a name cannot hold.
    microns_per_pixel
        Micrometres per pixel at full resolution; `None` takes the file's.
    backend
        Library to read with; `None` takes tifffile for TIFF without a scanner's layout, else OpenSlide, else TiffSlide.
        OpenSlide and TiffSlide come with the extra ``wsi``.

    Returns
    -------
    SpatialData with, in the coordinate system ``{slide}`` (full-resolution pixels):

    - image ``{slide}_image``: multiscale, (c, y, x) uint8, channels r, g, b; what a scanner left out is white.
    - ``attrs["microns_per_pixel"]``: micrometres per full-resolution pixel by name of image. Without an entry they are
      not known, and functions that need them say so.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If the file takes OpenSlide or TiffSlide and they are not installed.
    OSError
        If the file is damaged or cut off; of a block, when it is read.
    ValueError
        If it is no slide that the backend can read, the image is not 8-bit RGB, its pixels are not square, or the
        micrometres per pixel are absurd.

    See Also
    --------
    spahgc.pp.tissue_grid : puts spots on the tissue.

    Examples
    --------
    >>> sdata = spahgc.io.read_wsi("biopsy.svs")
    >>> spahgc.pp.tissue_grid(sdata, reference=adata_ref)
    """
    from spatialdata import SpatialData

    found = load(path, slide=slide, microns_per_pixel=microns_per_pixel, backend=backend)
    if found.microns_per_pixel is None:
        logger.warning("%s", found.unknown)
    attrs = {} if found.microns_per_pixel is None else {_keys.MPP: {image_name(found.slide): found.microns_per_pixel}}
    return SpatialData(images={image_name(found.slide): found.tree}, attrs=attrs)


@dataclass(frozen=True)
class Loaded:
    """A slide file as an image element."""

    slide: str
    tree: DataTree
    microns_per_pixel: float | None
    unknown: str
    """Why the micrometres per pixel are not known; empty if they are."""


def load(
    path: str | PathLike[str], *, slide: str | None, microns_per_pixel: float | None, backend: Backend | None = None
) -> Loaded:
    """What :func:`read_wsi` says, before it is put into a SpatialData."""
    path = Path(path)
    if not path.is_file():
        hint = " It is a folder: a zarr of SpatialData's is read with spatialdata.read_zarr." if path.is_dir() else ""
        raise FileNotFoundError(f"No slide file {str(path)!r}.{hint}")
    if slide is None:
        stem = re.sub(r"(\.ome)?\.[^.]+$", "", path.name, flags=re.IGNORECASE)
        slide = re.sub(r"[^A-Za-z0-9._-]", "_", stem).lstrip("._-") or "slide"
    check_slide_name(slide)
    tree, scale = _read(path, slide, backend)
    mpp, unknown = _microns_per_pixel(scale, microns_per_pixel, path.name)
    height, width = tree["scale0"]["image"].shape[1:]
    told = "unknown" if mpp is None else f"{mpp:.4g}"
    logger.info("%s: %d x %d pixels, %d levels, %s um per pixel.", path.name, width, height, len(tree.children), told)
    return Loaded(slide, tree, mpp, unknown)


def _read(path: Path, slide: str, backend: Backend | None) -> tuple[DataTree, _Scale]:
    if path.suffix.lower() in PICTURES and backend is None:
        try:
            image = picture(path)
        except OSError as error:
            raise OSError(
                f"{path.name} cannot be read ({error}): it is damaged or was cut off. Copy it again."
            ) from error
        dpi = image.info.get("dpi", (0, 0))
        x, y = (25400 / float(value) if value else None for value in dpi)
        return pyramid(image, slide)[0], _Scale(x, y, trusted=False)
    chosen = _backend(path) if backend is None else backend
    source = str(path.resolve())
    try:
        handle = open_file(chosen, source)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path.name} is no slide that {chosen} can read ({type(error).__name__}: {error}). Formats: svs, ndpi, "
            "mrxs, scn, bif and others of OpenSlide; TIFF, OME-TIFF, JPEG, PNG. Is the copy complete?"
        ) from error
    try:
        if isinstance(handle, TiffLevels):
            sizes, tiles, scale = _tiff(handle, path.name)
        else:
            sizes, tiles, scale = _openslide(handle)
    finally:
        handle.close()
    stat = path.stat()
    stamp = (stat.st_size, stat.st_mtime_ns)
    files = [SlideLevel(source, chosen, level, (3, *size), stamp) for level, size in enumerate(sizes)]
    if tiles[0][0] * tiles[0][1] >= ONE_PIECE:
        from PIL import Image as pil

        logger.info("%s is stored in one piece: it is decoded as a whole and held in memory.", path.name)
        return pyramid(pil.fromarray(np.ascontiguousarray(np.moveaxis(files[0][:, :, :], 0, -1))), slide)[0], scale
    levels = [as_dask(file, block_shape(tile, size)) for file, tile, size in zip(files, tiles, sizes, strict=True)]
    # at least two: SpatialData reads an image of one level back as another type
    while len(levels) < 2 or max(levels[-1].shape[1:]) > COARSEST:
        levels.append(halved(levels[-1]))
    return multiscale(levels, slide), scale


def _backend(path: Path) -> Backend:
    """The library for a file: tifffile reads the stored tiles of a TIFF as they are, the others know scanners."""
    tiff = path.suffix.lower() in TIFFS
    try:
        from openslide import OpenSlide
    except ImportError:
        if path.suffix.lower() in {".svs", ".ndpi", ".scn", ".bif"}:
            return "tiffslide"
        return "tifffile" if tiff else "openslide"
    vendor = OpenSlide.detect_format(str(path))
    return "tifffile" if tiff and vendor in {None, "generic-tiff"} else "openslide"


def _openslide(handle: Any) -> tuple[list[tuple[int, int]], list[tuple[int, int]], _Scale]:
    """Sizes and tiles of the levels (rows, columns) and scale, of a slide opened with OpenSlide or TiffSlide."""
    said = {key.partition(".")[2]: value for key, value in handle.properties.items() if value not in (None, "")}
    sizes, tiles = [], []
    for level, (width, height) in enumerate(handle.level_dimensions):
        sizes.append((height, width))
        rows, columns = (int(said.get(f"level[{level}].tile-{side}", 0)) for side in ("height", "width"))
        tiles.append((rows or 512, columns or 512))
    x, y, objective = (float(said[key]) if key in said else None for key in ("mpp-x", "mpp-y", "objective-power"))
    return sizes, tiles, _Scale(x, y, said.get("vendor") not in {None, "generic-tiff"}, objective)


def _tiff(handle: TiffLevels, name: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]], _Scale]:
    """The same of a TIFF opened with tifffile; an error if it is not 8-bit RGB."""
    sizes, tiles = [], []
    end = 0
    for level in handle.series.levels:
        shape = dict(zip(level.axes, level.shape, strict=True))
        channels = [size for axis, size in shape.items() if axis not in "YX" and size > 1]
        if level.dtype != "uint8" or channels not in ([3], [4]):
            raise ValueError(
                f"{name} has {level.dtype} pixels of shape {level.shape} (axes {level.axes}); an H&E image is 8-bit "
                "RGB, uint8 with three channels. Is it a stack, a fluorescence image or a mask?"
            )
        sizes.append((shape["Y"], shape["X"]))
        page = level.keyframe
        end = max(end, *(at + n for at, n in zip(page.dataoffsets, page.databytecounts, strict=True)))
        if page.is_tiled:
            tiles.append((page.tilelength, page.tilewidth))
        elif page.is_memmappable:
            tiles.append((512, 512))
        else:
            tiles.append((page.rowsperstrip, shape["X"]))
    if end > handle.file.filehandle.size:
        raise OSError(
            f"{name} is cut off: it has {handle.file.filehandle.size} bytes, and its image goes on to byte {end}. Copy "
            "it again."
        )
    return sizes, tiles, _ome_scale(handle.file.ome_metadata) or _tag_scale(handle.series.keyframe)


def _ome_scale(xml: str | None) -> _Scale | None:
    from xml.etree import ElementTree

    pixels = None if xml is None else ElementTree.fromstring(xml).find(".//{*}Pixels")
    if pixels is None or pixels.get("PhysicalSizeX") is None:
        return None
    values = []
    for axis in "XY":
        unit = (pixels.get(f"PhysicalSize{axis}Unit") or "µm").replace("μ", "µ")
        if unit not in _METRES:  # "pixel" and "reference frame" are no lengths
            return None
        values.append(float(pixels.get(f"PhysicalSize{axis}") or pixels.get("PhysicalSizeX") or 0) * _METRES[unit])
    return _Scale(x=values[0], y=values[1])


def _tag_scale(page: Any) -> _Scale:
    unit = {2: 25400.0, 3: 1e4, 4: 1e3, 5: 1.0}.get(int(page.resolutionunit))
    if unit is None or not all(page.resolution):
        return _Scale()
    x, y = (unit / value for value in page.resolution)
    return _Scale(x, y, trusted=False)


def _microns_per_pixel(scale: _Scale, given: float | None, name: str) -> tuple[float | None, str]:
    """Micrometres per pixel, given or the file's, and why there are none."""
    low, high = PLAUSIBLE_MPP
    if given is not None:
        if not low <= given <= high:
            raise ValueError(
                f"microns_per_pixel={given!r}: an H&E image has between {low:g} and {high:g} um per pixel (a 20x scan "
                "about 0.5)."
            )
        return float(given), ""
    if scale.x is None or scale.y is None:
        told = f"{name} does not say how many micrometres a pixel measures. Pass microns_per_pixel=<number>."
        if scale.objective is not None:
            told += (
                f" It names an objective of {scale.objective:g}x, from which the size does not follow: scanners differ."
            )
        return None, told
    if not (low <= scale.x <= high and low <= scale.y <= high):
        told = (
            f"{name} says {scale.x:.4g} x {scale.y:.4g} um per pixel; an H&E image has between {low:g} and {high:g}. "
            "Pass microns_per_pixel=<number>."
        )
        if scale.trusted:
            raise ValueError(told)
        return None, f"{told} It may be the resolution of a print or screen, and is not taken."
    if abs(scale.x / scale.y - 1) > SQUARE:
        raise ValueError(
            f"{name} has pixels of {scale.x:.4g} x {scale.y:.4g} um: square tiles would not be square. Resample the "
            "image first, or pass microns_per_pixel=<number> if that is wrong."
        )
    return (scale.x + scale.y) / 2, ""
