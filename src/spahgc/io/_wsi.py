"""Whole-slide images, read block by block through OpenSlide or tifffile."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import dask.array as da
import numpy as np
import tifffile
import zarr
from dask.base import tokenize
from numpy.typing import NDArray
from PIL import Image
from spatialdata import SpatialData
from xarray import DataTree

from .. import _keys
from .._checks import between, checked
from .._geometry import PLAUSIBLE_MPP
from .._settings import logger
from ._concat import check_slide_name
from ._image import CHUNK, STRAIGHT, Samples, as_rgb, channels_last, multiscale, pyramid, read_image, tiff_scan

Backend = Literal["openslide", "tifffile"]
Levels = list[tuple[tuple[int, int], tuple[int, int]]]  # size and stored block (rows, columns) of each level
# Micrometers per pixel in x and y that a file states, and whether to trust them: resolution tags are often those of a
# printer or screen.
PixelSize = tuple[float | None, float | None, bool]

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp"}
_COARSEST = 2048  # longest side of the coarsest level in pixels; levels that a file lacks are computed on access
_ONE_PIECE = 4096**2  # pixels per stored block from which on the whole image is decoded at once
_STRIP_PIXELS = 4 * 2**20  # pixels per block of a file that is stored in strips
_MICROMETERS = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3, "in": 25400.0}


@checked(microns_per_pixel=between(*PLAUSIBLE_MPP))
def read_wsi(
    path: str | PathLike[str],
    *,
    slide: str | None = None,
    microns_per_pixel: float | None = None,
    backend: Backend | None = None,
) -> SpatialData:
    """Read a whole-slide image as a lazy pyramid.

    Only metadata are read. Blocks of about 512 x 512 pixels (whole tiles of the file) are decoded on access, by any
    thread or process, and levels that the file lacks are computed from the one above. JPEG and PNG files, and TIFF
    files that are compressed in one piece, are decoded now and held in memory, 4 bytes per pixel in all.

    Parameters
    ----------
    path
        Slide file: formats of OpenSlide (``.svs``, ``.ndpi``, ``.mrxs``, ``.scn``, ``.bif``, ...), TIFF, OME-TIFF, JPEG
        or PNG, 8-bit RGB. The SpatialData refers to it: do not move it.
    slide
        Name of the slide. Defaults to the file name without its ending, with ``_`` for characters that are not allowed.
    microns_per_pixel
        Micrometers per full-resolution pixel. Defaults to the value in the file.
    backend
        Library to read with. Defaults to tifffile for TIFF without a scanner's layout, else OpenSlide, which comes with
        the extra ``wsi``.

    Returns
    -------
    SpatialData with the image ``{slide}_image`` in the layout of :func:`read_st`; areas that were not scanned are
    white. ``attrs["microns_per_pixel"]`` holds the scale by name of image, without an entry if it is unknown.

    Raises
    ------
    FileNotFoundError, ImportError, OSError, ValueError
        If there is no such file, OpenSlide is not installed, the file is damaged (for a block, when it is read), or the
        image is not 8-bit RGB with square pixels.

    Examples
    --------
    >>> sdata = spahgc.io.read_wsi("biopsy.svs")  # doctest: +SKIP
    >>> spahgc.pp.tissue_grid(sdata, reference=adata_ref)  # doctest: +SKIP
    """
    sdata = load(path, slide=slide, microns_per_pixel=microns_per_pixel, backend=backend)
    if not sdata.attrs:
        logger.warning(
            "%s does not state the micrometers per pixel. Pass `microns_per_pixel`. An objective of 20x or 40x does "
            "not determine them: scanners differ.", Path(path).name,
        )  # fmt: skip
    return sdata


def load(
    path: str | PathLike[str], *, slide: str | None, microns_per_pixel: float | None, backend: Backend | None = None
) -> SpatialData:
    """Slide of a file; see :func:`read_wsi`."""
    path = Path(path)
    if not path.is_file():
        hint = " It is a folder: read a SpatialData zarr with spatialdata.read_zarr." if path.is_dir() else ""
        raise FileNotFoundError(f"No slide file {str(path)!r}.{hint}")
    slide = slide_name(path) if slide is None else slide
    check_slide_name(slide)
    if path.suffix.lower() in _PICTURES and backend is None:
        picture = read_image(path)
        x, y = (25400 / float(value) if value else None for value in picture.info.get("dpi", (0, 0)))
        tree, size = pyramid(picture, slide), (x, y, False)
    else:
        tree, size = _read_levels(path, slide, backend or _backend(path))
    mpp = _scale(size, path.name) if microns_per_pixel is None else float(microns_per_pixel)
    height, width = tree["scale0"]["image"].shape[1:]
    logger.info("%s: %d x %d pixels, %d levels, %s um per pixel.", path.name, width, height, len(tree.children), mpp)
    name = f"{slide}_image"
    return SpatialData(images={name: tree}, attrs={} if mpp is None else {_keys.MPP: {name: mpp}})


def slide_name(path: Path) -> str:
    """Name of a slide from that of its file."""
    stem = re.sub(r"(\.ome)?\.[^.]+$", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]", "_", stem).lstrip("._-") or "slide"


def _read_levels(path: Path, slide: str, backend: Backend) -> tuple[DataTree, PixelSize]:
    source = str(path.resolve())
    try:
        handle = _open(backend, source)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"{backend} cannot read {path.name} ({type(error).__name__}: {error}). Supported formats: svs, ndpi, mrxs, "
            "scn, bif and others of OpenSlide; TIFF, OME-TIFF, JPEG, PNG. Is the copy complete?"
        ) from error
    with handle:
        described, pixel_size, image = (_describe_tiff if backend == "tifffile" else _describe_scan)(handle, path.name)
    stamp = (path.stat().st_size, path.stat().st_mtime_ns)
    levels = []
    for number, (size, block) in enumerate(described):
        level = SlideLevel(source, backend, number, (3, *size), stamp, *image)
        if number == 0 and block[0] * block[1] >= _ONE_PIECE:
            logger.info("%s is stored in one piece: it is decoded as a whole and held in memory.", path.name)
            picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(level[:, :, :], 0, -1)))
            return pyramid(picture, slide), pixel_size
        array = da.from_array(
            level,
            chunks=(3, *_block_shape(block, size)),
            name="slide-" + tokenize(level, block),
            asarray=False,
            fancy=False,
            meta=np.empty((0, 0, 0), np.uint8),
        )
        levels.append(array)
    # At least two: SpatialData reads an image of one level back as another type.
    while len(levels) < 2 or max(levels[-1].shape[1:]) > _COARSEST:
        levels.append(halved(levels[-1]))
    return multiscale(levels, slide), pixel_size


def _backend(path: Path) -> Backend:
    """Library that reads a file: tifffile for a generic TIFF, OpenSlide for the formats of scanners."""
    tiff = path.suffix.lower() in {".tif", ".tiff", ".btf"}
    try:
        from openslide import OpenSlide
    except ImportError:
        return "tifffile" if tiff else "openslide"
    vendor = OpenSlide.detect_format(str(path))
    return "tifffile" if tiff and vendor in {None, "generic-tiff"} else "openslide"


def _open(backend: Backend, path: str) -> Any:
    """File opened with a library; an ImportError names the missing extra."""
    if backend == "tifffile":
        return tifffile.TiffFile(path)
    try:
        from openslide import OpenSlide
    except ImportError as error:
        raise ImportError(
            f"Reading {Path(path).name} requires openslide. Install it with: pip install 'spahgc[wsi]'."
        ) from error
    return OpenSlide(path)


def _describe_scan(handle: Any, name: str) -> tuple[Levels, PixelSize, tuple[int, Samples]]:  # noqa: ARG001
    """Levels, pixel size and samples from OpenSlide."""
    found = {key.partition(".")[2]: value for key, value in handle.properties.items() if value not in (None, "")}
    levels = []
    for level, (width, height) in enumerate(handle.level_dimensions):
        rows, columns = (int(found.get(f"level[{level}].tile-{side}", 0)) for side in ("height", "width"))
        levels.append(((height, width), (rows or CHUNK, columns or CHUNK)))
    x, y = (float(found[key]) if key in found else None for key in ("mpp-x", "mpp-y"))
    return levels, (x, y, found.get("vendor") not in {None, "generic-tiff"}), (0, Samples(alpha=STRAIGHT))


def _describe_tiff(handle: tifffile.TiffFile, name: str) -> tuple[Levels, PixelSize, tuple[int, Samples]]:
    """Levels and pixel size of the scan from tifffile, its series and samples."""
    levels: Levels = []
    number, samples = tiff_scan(handle, name)
    for level in handle.series[number].levels:
        shape = dict(zip(level.axes, level.shape, strict=True))
        page = level.keyframe
        block = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, shape["X"])
        blocked = page.is_tiled or not page.is_memmappable
        levels.append(((shape["Y"], shape["X"]), block if blocked else (CHUNK, CHUNK)))
    page = handle.series[number].keyframe
    unit = {2: 25400.0, 3: 1e4, 4: 1e3, 5: 1.0}.get(int(page.resolutionunit))
    x, y = (unit / value if unit and value else None for value in page.resolution)
    return levels, _ome_size(handle.ome_metadata, number) or (x, y, False), (number, samples)


def _ome_size(xml: str | None, image: int) -> PixelSize | None:
    pixels = None if xml is None else ElementTree.fromstring(xml).find(f".//{{*}}Image[{image + 1}]/{{*}}Pixels")
    if pixels is None:
        return None
    sides = []
    for axis in "XY":
        length = pixels.get(f"PhysicalSize{axis}") or pixels.get("PhysicalSizeX")
        unit = _MICROMETERS.get((pixels.get(f"PhysicalSize{axis}Unit") or "µm").replace("μ", "µ"))
        if length is None or unit is None:  # "pixel" and "reference frame" are not lengths
            return None
        sides.append(float(length) * unit)
    return sides[0], sides[1], True


def _scale(size: PixelSize, name: str) -> float | None:
    """Micrometers per pixel that a file states; raises if a scanner's value is implausible."""
    low, high = PLAUSIBLE_MPP
    x, y, trusted = size
    if x is None or y is None:
        return None
    if not (low <= x <= high and low <= y <= high):
        problem = f"{name} states {x:.4g} x {y:.4g} um per pixel; an H&E image has between {low:g} and {high:g}."
        if trusted:
            raise ValueError(f"{problem} Pass `microns_per_pixel`.")
        logger.info("%s It may be the resolution of a printer or screen, and is ignored.", problem)
        return None
    if abs(x / y - 1) > 0.01:
        raise ValueError(
            f"{name} has pixels of {x:.4g} x {y:.4g} um: square tiles would not be square. Resample the image first, "
            "or pass `microns_per_pixel` if that is wrong."
        )
    return (x + y) / 2


@dataclass(frozen=True)
class SlideLevel:
    """Resolution of a slide file, sliced like an array (3, y, x); each thread of each process opens the file itself."""

    path: str
    backend: Backend
    level: int
    shape: tuple[int, int, int]
    stamp: tuple[int, int]  # size and time of the file, which tell it from an earlier file under the same path
    series: int  # image of a TIFF
    samples: Samples

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        _, (top, bottom, _), (left, right, _) = (part.indices(n) for part, n in zip(key, self.shape, strict=True))
        tiff = self.backend == "tifffile"
        level = self.level if tiff else 0  # OpenSlide reads all levels from one open file
        try:
            file = (self.backend, self.path, self.series, level, self.stamp)
            opened = _opened(file, os.getpid(), threading.get_ident())
            if tiff:
                axes, array = opened
                window = {"Y": slice(top, bottom), "X": slice(left, right)}
                block = channels_last(np.asarray(array[tuple(window.get(axis, slice(None)) for axis in axes)]), axes)
            else:
                downsample = opened.level_downsamples[self.level]
                corner = (round(left * downsample), round(top * downsample))
                block = np.asarray(opened.read_region(corner, self.level, (right - left, bottom - top)))
        except Exception as error:
            _opened.cache_clear()  # OpenSlide reads nothing more after an error
            raise OSError(
                f"{self.path}: rows {top} to {bottom}, columns {left} to {right} of level {self.level} cannot be read "
                f"({type(error).__name__}: {error}). The file is damaged or truncated: copy it again."
            ) from error
        return np.ascontiguousarray(np.moveaxis(as_rgb(block, self.samples), -1, 0)[key[0]])


@lru_cache(maxsize=64)
def _opened(file: tuple[Backend, str, int, int, Any], process: int, thread: int) -> Any:  # noqa: ARG001
    """Open file of one thread of one process; after a fork the parent's share their position in the file.

    With tifffile, axes and array of a level: memory-mapped if it is stored uncompressed in one piece, else zarr.
    """
    backend, path, number, level, _ = file
    handle = _open(backend, path)
    if backend != "tifffile":
        return handle
    series = handle.series[number].levels[level]
    if series.keyframe.is_memmappable and series.dataoffset is not None:
        handle.close()
        return series.axes, tifffile.memmap(path, series=number, level=level, mode="r")
    return series.axes, zarr.open_array(handle.series[number].aszarr(level=level), mode="r")


def _block_shape(block: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Blocks of whole tiles (rows, columns) of a file: about 512 pixels wide, or strips of the image's width."""
    if block[1] >= size[1] and block[0] < size[0]:
        return min(size[0], block[0] * max(1, _STRIP_PIXELS // (block[0] * block[1]))), size[1]
    high, wide = (side * max(1, round(CHUNK / side)) for side in block)
    return min(size[0], high), min(size[1], wide)


def halved(array: Any) -> Any:
    """Level of half the size (box means), computed from the one above on access."""
    sides = (max(2 * CHUNK, size[0] + size[0] % 2) for size in array.chunks[1:])  # even, and of whole blocks
    padded = da.pad(array, [(0, 0), *((0, size % 2) for size in array.shape[1:])], mode="edge")
    return da.coarsen(_mean, padded.rechunk((3, *sides)), {1: 2, 2: 2})


def _mean(pixels: NDArray[np.uint8], axis: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
    return np.asarray((pixels.sum(axis, dtype=np.uint16) + 2) // 4, dtype=np.uint8)
