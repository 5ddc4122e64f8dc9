"""Blocks of whole-slide files, read when they are asked for, through OpenSlide, TiffSlide or tifffile."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ._image import CHUNK

Backend = Literal["openslide", "tiffslide", "tifffile"]
HANDLES = 8
"""Files that a thread keeps open."""
STRIP_PIXELS = 4 * 2**20
"""Pixels of a block of a file that is stored in strips."""


@dataclass(frozen=True)
class SlideLevel:
    """One resolution of a slide file, to be sliced like an array (3, y, x) of uint8.

    It holds the path and no handle: each thread of each process opens the file for itself, so that blocks can be read
    by threads, by forked processes, and by workers elsewhere that see the same path.
    """

    path: str
    backend: Backend
    level: int
    shape: tuple[int, int, int]
    stamp: tuple[int, int]
    """Size and time of the file: another file under the same path has other names in dask's graphs."""

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __getitem__(self, key: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
        (_, _, _), (top, bottom, _), (left, right, _) = (
            part.indices(n) for part, n in zip(key, self.shape, strict=True)
        )
        try:
            handle = _handles.get(self.backend, self.path)
            block = _READ[self.backend](handle, self.level, top, bottom, left, right)
        except Exception as error:
            _handles.drop(self.backend, self.path)  # OpenSlide reads nothing any more after an error
            raise OSError(
                f"{self.path}: rows {top} to {bottom}, columns {left} to {right} of level {self.level} cannot be read "
                f"({type(error).__name__}: {error}). The file is damaged or was cut off: copy it again."
            ) from error
        return np.ascontiguousarray(np.moveaxis(on_white(block), -1, 0)[key[0]])


def on_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB or RGBA (y, x, c) as RGB on white: what a scanner left out is transparent."""
    if pixels.shape[-1] == 3:
        return pixels
    rgb, alpha = pixels[..., :3], pixels[..., 3:]
    if (alpha == 255).all():
        return rgb
    opacity = alpha.astype(np.float32) / 255
    return np.asarray((rgb * opacity + 255 * (1 - opacity)).round(), dtype=np.uint8)


class _Handles(threading.local):
    """Open files of one thread. After a fork the parent's are left alone: they share its position in the file."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.files: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def get(self, backend: Backend, path: str) -> Any:
        if self.process != os.getpid():
            self.__init__()  # type: ignore[misc]
        key = (backend, path)
        if key not in self.files:
            self.files[key] = open_file(backend, path)
            if len(self.files) > HANDLES:
                self.files.popitem(last=False)[1].close()
        self.files.move_to_end(key)
        return self.files[key]

    def drop(self, backend: Backend, path: str) -> None:
        handle = self.files.pop((backend, path), None)
        if handle is not None:
            handle.close()


_handles = _Handles()


class TiffLevels:
    """The levels of a TIFF's first image, opened with tifffile."""

    def __init__(self, path: str) -> None:
        import tifffile

        self.file = tifffile.TiffFile(path)
        self.series = self.file.series[0]
        self._arrays: dict[int, Any] = {}

    def array(self, level: int) -> Any:
        """A level as something that is sliced: mapped into memory where it lies there in one piece, else zarr."""
        import tifffile
        import zarr

        if level not in self._arrays:
            series = self.series.levels[level]
            if series.keyframe.is_memmappable and series.dataoffset is not None:
                path = self.file.filehandle.path
                self._arrays[level] = tifffile.memmap(path, series=0, level=level, mode="r")
            else:
                self._arrays[level] = zarr.open_array(self.series.aszarr(level=level), mode="r")
        return self._arrays[level]

    def close(self) -> None:
        """Close the file."""
        self._arrays.clear()
        self.file.close()


def open_file(backend: Backend, path: str) -> Any:
    """A file opened with one of the libraries.

    Raises
    ------
    ImportError
        If the library is not installed; the message names the extra.
    """
    try:
        if backend == "openslide":
            import openslide

            return openslide.OpenSlide(path)
        if backend == "tiffslide":
            import tiffslide

            return tiffslide.TiffSlide(path)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{Path(path).name} is read with {backend}, which is missing: pip install 'spahgc[wsi]'."
        ) from error
    return TiffLevels(path)


def _read_openslide(handle: Any, level: int, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
    downsample = handle.level_downsamples[level]
    corner = (round(left * downsample), round(top * downsample))
    return np.asarray(handle.read_region(corner, level, (right - left, bottom - top)))


def _read_tifffile(handle: TiffLevels, level: int, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
    array = handle.array(level)
    axes = handle.series.levels[level].axes
    where = {"Y": slice(top, bottom), "X": slice(left, right)}
    block = np.asarray(array[tuple(where.get(axis, slice(None)) for axis in axes)])
    last = [axes.index(axis) for axis in ("Y", "X")]
    rest = [k for k in range(len(axes)) if k not in last]
    block = block.transpose(
        [*(k for k in rest if block.shape[k] == 1), *last, *(k for k in rest if block.shape[k] > 1)]
    )
    return block.reshape(bottom - top, right - left, -1)


_READ = {"openslide": _read_openslide, "tiffslide": _read_openslide, "tifffile": _read_tifffile}


def block_shape(tile: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Blocks of whole tiles (rows, columns) of a file: about 512 pixels wide, or strips of the image's width."""
    rows, columns = tile
    if columns >= size[1] and rows < size[0]:
        return min(size[0], rows * max(1, STRIP_PIXELS // (rows * columns))), size[1]
    return tuple(min(n, side * max(1, round(CHUNK / side))) for side, n in zip((rows, columns), size, strict=True))  # type: ignore[return-value]


def as_dask(level: SlideLevel, blocks: tuple[int, int]) -> Any:
    """A level as a dask array (3, y, x), in blocks of that many rows and columns."""
    import dask.array as da
    from dask.base import tokenize

    name = "slide-" + tokenize(level.path, level.backend, level.level, level.shape, level.stamp, blocks)
    meta = np.empty((0, 0, 0), np.uint8)
    return da.from_array(level, chunks=(3, *blocks), name=name, asarray=False, fancy=False, meta=meta)


def halved(array: Any) -> Any:
    """A level of half the size (box means), made of the one above when it is read."""
    sides = (max(2 * CHUNK, size[0] + size[0] % 2) for size in array.chunks[1:])  # even, and of whole blocks
    array = array.rechunk((3, *sides))
    chunks = ((3,), *(tuple(-(-size // 2) for size in sizes) for sizes in array.chunks[1:]))
    return array.map_blocks(_halved, dtype=np.uint8, chunks=chunks, meta=np.empty((0, 0, 0), np.uint8))


def _halved(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rest = [(0, size % 2) for size in block.shape[1:]]
    padded = np.pad(block, [(0, 0), *rest], mode="edge").astype(np.uint16)
    rows = padded[:, ::2] + padded[:, 1::2]
    return np.asarray((rows[:, :, ::2] + rows[:, :, 1::2] + 2) // 4, dtype=np.uint8)
