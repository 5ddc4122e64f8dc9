"""Cut the tiles of spots out of an image that may be larger than memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._slides import Float64
from ._chunk_files import chunk_files
from ._resample import axis_weights, extent, mirrored, resample

CACHE_BYTES = 256 * 2**20
"""Decoded blocks that are kept, over all images and levels that are read at a time."""
_BAND = 512  # pixels: rows that are gone along at a time where blocks are taller


class Cache:
    """The blocks used last, up to a number of bytes, but at least the one in use; several threads may ask at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._blocks: OrderedDict[Any, tuple[int, Future[NDArray[np.uint8]]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, size: int, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The block `key` of `size` bytes, from `decode` if it is not here."""
        with self._lock:
            mine = key not in self._blocks
            if mine:
                self._blocks[key] = size, Future()
                self.held += size
                while self.held > self.limit and len(self._blocks) > 1:
                    self.held -= self._blocks.popitem(last=False)[1][0]
            else:
                self._blocks.move_to_end(key)
            block = self._blocks[key][1]
        if mine:
            # Outside the lock: other threads wait for this block only if they need it.
            try:
                block.set_result(decode())
            except BaseException as error:
                with self._lock:  # what failed may work the next time
                    self.held -= self._blocks.pop(key, (0,))[0]
                block.set_exception(error)
                raise
        return block.result()


class Blocks:
    """Read pieces of an image (c, y, x), decoding each of its blocks as few times as possible.

    A NumPy array is sliced. Of a dask array, whole blocks are computed and kept in a cache.

    Parameters
    ----------
    array
        The image.
    cache
        Where decoded blocks are kept.
    name
        What to call the image in messages.
    """

    def __init__(self, array: Any, cache: Cache, name: str = "the image") -> None:
        self.array = array
        self.name = name
        self.height, self.width = (int(size) for size in array.shape[1:])
        self.decoded = 0
        self._cache = cache
        self._lazy = hasattr(array, "__dask_graph__")
        if self._lazy:
            self._rows, self._columns = (np.concatenate([[0], np.cumsum(sizes)]) for sizes in array.chunks[1:])
            # Taken once: dask's own `array.blocks[...]` goes through the keys of the whole image for each block.
            self._graph = dict(array.__dask_graph__())
            self._files = chunk_files(array, self._graph)

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
                size = int((self._rows[i + 1] - dy) * (self._columns[j + 1] - dx)) * self.array.shape[0]
                block = self._cache.get((self, i, j), size, lambda i=i, j=j: self._decode(i, j))  # type: ignore[misc]
                out[:, y0 - top : y1 - top, x0 - left : x1 - left] = block[:, y0 - dy : y1 - dy, x0 - dx : x1 - dx]
        return out

    def _decode(self, i: int, j: int) -> NDArray[np.uint8]:
        self.decoded += 1
        files = self._files
        found = None if files is None else files.read(i, j)
        if files is not None and files.trusted and found is not None:
            return found
        block = self._compute(i, j)
        if files is not None and found is not None:
            files.trusted = np.array_equal(found, block)
            if not files.trusted:
                self._files = None
        return block

    def _compute(self, i: int, j: int) -> NDArray[np.uint8]:
        import dask
        from dask.optimization import cull

        keys = [(self.array.name, c, i, j) for c in range(len(self.array.chunks[0]))]
        try:
            parts = dask.get(cull(self._graph, keys)[0], keys)
            return np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=0))
        except MemoryError:
            raise
        except Exception as error:
            rows, columns = self._rows, self._columns
            raise OSError(
                f"The block in row {i}, column {j} of the blocks of {self.name} (pixels y {rows[i]} to "
                f"{rows[i + 1] - 1}, x {columns[j]} to {columns[j + 1] - 1}) cannot be read: "
                f"{type(error).__name__}: {error}. Its file is damaged, or cannot be reached: copy or write the image "
                "again from its source."
            ) from error


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

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of its largest blocks; those of a NumPy array are of no matter."""
        chunks = getattr(self.array, "chunks", None)
        return (_BAND, _BAND) if chunks is None else (max(chunks[1]), max(chunks[2]))


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
    cache
        Where decoded blocks are kept; `None` makes one of :data:`CACHE_BYTES`.
    image
        Name of the image, for messages.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        centres: Float64,
        pixels: int,
        *,
        cache: Cache | None = None,
        image: str = "image",
    ) -> None:
        self.levels = list(levels)
        self.pixels = pixels
        self.image = image
        self.cache = Cache(CACHE_BYTES) if cache is None else cache
        self._blocks: dict[int, Blocks] = {}
        self._lock = threading.Lock()
        self._centres = [centres @ level.affine[:2, :2].T + level.affine[:2, 2] for level in self.levels]

    def level_for(self, width_um: float) -> int:
        """The coarsest level that still has two pixels for each pixel of a tile; the finest if none has."""
        wanted = width_um / self.pixels / 2
        fits = [k for k, level in enumerate(self.levels) if level.microns_per_pixel <= wanted * (1 + 1e-9)]
        return max(fits, key=lambda k: self.levels[k].microns_per_pixel) if fits else 0

    def order(self, widths_um: Sequence[float]) -> NDArray[np.intp]:
        """Order in which to read the tiles, so that blocks are found in the cache: :func:`reading_order`.

        It follows the blocks of the finest level that is read, which has the most of them.
        """
        levels = {width: self.level_for(width) for width in widths_um}
        finest = min(levels.values(), key=lambda k: self.levels[k].microns_per_pixel)
        level = self.levels[finest]
        reach = max(width for width, k in levels.items() if k == finest) / level.microns_per_pixel
        # Coarser levels have at most half as many blocks along a row each: together no more than the finest.
        share = self.cache.limit // (1 if len(set(levels.values())) == 1 else 2)
        n_blocks = share // (level.block[0] * level.block[1] * level.array.shape[0])
        return reading_order(self._centres[finest], block=level.block, reach=reach, n_blocks=n_blocks)

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
                self._blocks[k] = Blocks(self.levels[k].array, self.cache, f"image {self.image!r}, level {k}")
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


def reading_order(centres: Float64, *, block: tuple[int, int], reach: float, n_blocks: int) -> NDArray[np.intp]:
    """Order of tiles in which few blocks are decoded twice, however large the image.

    The image is cut into upright strips, and each is gone through row of blocks by row of blocks, to and fro. A strip
    is so wide that the blocks that the tiles of two rows touch fit the cache: each block of it is then decoded once.

    Parameters
    ----------
    centres
        Tile centres in pixels (x, y), (n, 2).
    block
        Height and width of the image's blocks.
    reach
        Side of the tiles in pixels of the image.
    n_blocks
        Number of blocks that the cache holds.
    """
    height, width = block
    rows = 2 * int(np.ceil(reach / 2 / height)) + 2
    sides = 2 * int(np.ceil(reach / 2 / width))
    strip = np.floor(centres[:, 0] / (width * max(1, n_blocks // rows - sides)))
    band = np.floor(centres[:, 1] / (height / max(1, round(height / _BAND))))
    along = np.where(band % 2 == 0, centres[:, 0], -centres[:, 0])
    return np.lexsort([centres[:, 1], along, band, strip])
