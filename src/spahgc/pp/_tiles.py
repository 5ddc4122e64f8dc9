"""Cut the tiles of spots out of an image that may be larger than memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._slides import Float64
from ._resample import axis_weights, extent, mirrored, resample

CACHE_BYTES = 256 * 2**20
"""Decoded blocks that are kept, for each level of an image."""
NEIGHBOURHOOD = 2048
"""Side in pixels of the squares that :func:`reading_order` goes through one by one."""


class Blocks:
    """Read pieces of an image (c, y, x), decoding each of its blocks as few times as possible.

    A NumPy array is sliced. Of a dask array, whole blocks are computed and the last ones used are kept; several threads
    may read at once.
    """

    def __init__(self, array: Any, cache_bytes: int = CACHE_BYTES) -> None:
        self.array = array
        self.height, self.width = (int(size) for size in array.shape[1:])
        self.decoded = 0
        self._lazy = hasattr(array, "blocks")
        self._cache: OrderedDict[tuple[int, int], Future[NDArray[np.uint8]]] = OrderedDict()
        self._lock = threading.Lock()
        if self._lazy:
            self._rows, self._columns = (np.concatenate([[0], np.cumsum(sizes)]) for sizes in array.chunks[1:])
            largest = int(np.diff(self._rows).max() * np.diff(self._columns).max()) * array.shape[0]
            self._capacity = max(4, cache_bytes // largest)

    def read(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        """Rows top..bottom - 1 and columns left..right - 1, all inside the image: (c, h, w), C-contiguous."""
        if not self._lazy:
            return np.ascontiguousarray(self.array[:, top:bottom, left:right])
        out = np.empty((self.array.shape[0], bottom - top, right - left), np.uint8)
        for i in range(*_touched(self._rows, top, bottom)):
            y0, y1 = max(top, self._rows[i]), min(bottom, self._rows[i + 1])
            for j in range(*_touched(self._columns, left, right)):
                x0, x1 = max(left, self._columns[j]), min(right, self._columns[j + 1])
                dy, dx = self._rows[i], self._columns[j]
                out[:, y0 - top : y1 - top, x0 - left : x1 - left] = self._block(i, j)[
                    :, y0 - dy : y1 - dy, x0 - dx : x1 - dx
                ]
        return out

    def _block(self, i: int, j: int) -> NDArray[np.uint8]:
        with self._lock:
            block = self._cache.get((i, j))
            mine = block is None
            if block is None:
                block = self._cache[i, j] = Future()
                self.decoded += 1
                while len(self._cache) > self._capacity:
                    self._cache.popitem(last=False)
            else:
                self._cache.move_to_end((i, j))
        if mine:
            # Outside the lock: other threads wait for this block only if they need it.
            try:
                block.set_result(np.asarray(self.array.blocks[:, i, j].compute(scheduler="synchronous")))
            except BaseException as error:
                block.set_exception(error)
                raise
        return block.result()


def _touched(borders: NDArray[np.int64], start: int, stop: int) -> tuple[int, int]:
    """First and one past the last block that holds pixels start..stop - 1."""
    return int(np.searchsorted(borders, start, side="right")) - 1, int(np.searchsorted(borders, stop, side="left"))


@dataclass(frozen=True)
class Level:
    """An image at one resolution, and where spots lie in it."""

    array: Any
    """uint8 (3, y, x), NumPy or dask."""
    affine: Float64
    """From spot coordinates (x, y, 1) to pixels of this level; pixel i covers [i, i + 1)."""
    microns_per_pixel: float


class TileReader:
    """Tiles of one slide around given centres.

    Parameters
    ----------
    levels
        The image, finest resolution first.
    centres
        Tile centres in spot coordinates, (n, 2).
    pixels
        Side of the tiles in pixels.
    """

    def __init__(self, levels: Sequence[Level], centres: Float64, pixels: int) -> None:
        self.levels = list(levels)
        self.pixels = pixels
        self._blocks: dict[int, Blocks] = {}
        self._lock = threading.Lock()
        self._centres = [centres @ level.affine[:2, :2].T + level.affine[:2, 2] for level in self.levels]

    def level_for(self, width_um: float) -> int:
        """The coarsest level that still has two pixels for each pixel of a tile; the finest if none has."""
        wanted = width_um / self.pixels / 2
        fits = [k for k, level in enumerate(self.levels) if level.microns_per_pixel <= wanted * (1 + 1e-9)]
        return max(fits, key=lambda k: self.levels[k].microns_per_pixel) if fits else 0

    def read(self, spot: int, width_um: float) -> tuple[NDArray[np.uint8], bool]:
        """One tile, resampled (area averaging; linear where the image is coarser), and whether it was padded.

        Beyond the image its mirror image goes on: a white or black border would be texture that is not there.

        Parameters
        ----------
        spot
            Index into the centres.
        width_um
            Side of the tile in micrometres.

        Returns
        -------
        uint8 (3, pixels, pixels), and True if it leaves the image.
        """
        k = self.level_for(width_um)
        with self._lock:
            if k not in self._blocks:
                self._blocks[k] = Blocks(self.levels[k].array)
        blocks = self._blocks[k]
        x, y = self._centres[k][spot]
        width = width_um / self.levels[k].microns_per_pixel
        left, first_x, weights_x = axis_weights(float(x), width, self.pixels)
        top, first_y, weights_y = axis_weights(float(y), width, self.pixels)
        right, bottom = left + extent(first_x, weights_x), top + extent(first_y, weights_y)
        padded = top < 0 or left < 0 or bottom > blocks.height or right > blocks.width
        if padded:
            rows, columns = mirrored(top, bottom, blocks.height), mirrored(left, right, blocks.width)
            patch = blocks.read(rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
            patch = np.ascontiguousarray(patch[:, rows - rows.min()][:, :, columns - columns.min()])
        else:
            patch = blocks.read(top, bottom, left, right)
        return resample(patch, first_y, weights_y, first_x, weights_x), padded


def reading_order(centres: Float64, side: float = NEIGHBOURHOOD) -> NDArray[np.intp]:
    """Order of tile centres (pixels) that goes through the image square by square, so that blocks are reused."""
    square = np.floor(centres / side).astype(np.int64)
    return np.lexsort([centres[:, 0], centres[:, 1], square[:, 0], square[:, 1]])
