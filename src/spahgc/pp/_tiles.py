"""Cut the tiles of spots out of an image that may be larger than memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask
import numba
import numpy as np
from numpy.typing import NDArray

from .._geometry import transformed
from .._slides import Float64

CACHE_BYTES = 256 * 2**20  # decoded blocks that are kept, over all images and resolutions
_BAND = 512  # pixels; taller blocks are traversed in several bands


class BlockCache:
    """Least recently used cache of decoded blocks, limited in bytes and shared by threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._blocks: OrderedDict[Any, tuple[int, Future[NDArray[np.uint8]]]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, size: int, decode: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Return the block `key` of `size` bytes; the first thread that asks for it decodes it."""
        with self._lock:
            is_new = key not in self._blocks
            if is_new:
                self._blocks[key] = size, Future()
                self.held += size
                while self.held > self.limit and len(self._blocks) > 1:
                    self.held -= self._blocks.popitem(last=False)[1][0]
            self._blocks.move_to_end(key)
            block = self._blocks[key][1]
        if is_new:
            # Decoded outside the lock, so that only threads that need this block wait for it.
            try:
                block.set_result(decode())
            except BaseException as error:
                with self._lock:
                    self.held -= self._blocks.pop(key, (0,))[0]
                block.set_exception(error)
                raise
        return block.result()


class BlockReader:
    """Read rectangles of an image (c, y, x); blocks of a dask array are decoded whole and cached."""

    def __init__(self, array: Any, cache: BlockCache, name: str = "the image") -> None:
        self.array = array
        self.name = name
        self.height, self.width = (int(size) for size in array.shape[1:])
        self.decoded = 0
        self._cache = cache
        self._lazy = hasattr(array, "__dask_graph__")
        if self._lazy:
            self._rows, self._columns = (np.concatenate([[0], np.cumsum(sizes)]) for sizes in array.chunks[1:])

    @cached_property
    def _graph(self) -> dict[Any, Any]:
        # Copied once: `array.blocks[...]` would traverse the keys of the whole image for each block.
        return dict(self.array.__dask_graph__())

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
        from dask.optimization import cull

        self.decoded += 1
        keys = [(self.array.name, c, i, j) for c in range(len(self.array.chunks[0]))]
        try:
            parts = dask.get(cull(self._graph, keys)[0], keys)
            return np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=0))
        except MemoryError:
            raise
        except Exception as error:
            rows, columns = self._rows, self._columns
            raise OSError(
                f"Cannot read the block in row {i}, column {j} of the blocks of {self.name} (pixels y {rows[i]} to "
                f"{rows[i + 1] - 1}, x {columns[j]} to {columns[j + 1] - 1}): {type(error).__name__}: {error}. Its "
                "file is damaged or cannot be reached. Copy or write the image again from its source."
            ) from error


def _touched(borders: NDArray[np.int64], start: int, stop: int) -> tuple[int, int]:
    """First block, and one past the last block, that holds pixels start..stop - 1."""
    return int(np.searchsorted(borders, start, side="right")) - 1, int(np.searchsorted(borders, stop, side="left"))


@dataclass(frozen=True)
class Level:
    """One resolution of an image, uint8 (3, y, x), and the map from spot coordinates (x, y, 1) to its pixels."""

    array: Any
    affine: Float64  # pixel i covers [i, i + 1)
    microns_per_pixel: float

    @property
    def block(self) -> tuple[int, int]:
        """Height and width of the largest block."""
        chunks = getattr(self.array, "chunks", None)
        return (_BAND, _BAND) if chunks is None else (max(chunks[1]), max(chunks[2]))


class TileReader:
    """Tiles of `pixels` x `pixels` around centers (n, 2) in spot coordinates, from the levels of an image.

    `image` is its name in messages; without a `cache` of decoded blocks, one of :data:`CACHE_BYTES` is made.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        centers: Float64,
        pixels: int,
        *,
        cache: BlockCache | None = None,
        image: str = "image",
    ) -> None:
        self.levels = list(levels)
        self.pixels = pixels
        self.cache = BlockCache(CACHE_BYTES) if cache is None else cache
        self.blocks = [
            BlockReader(level.array, self.cache, f"image {image!r}, level {k}") for k, level in enumerate(levels)
        ]
        self._centers = [transformed(level.affine, centers) for level in self.levels]

    def level_for(self, width_um: float) -> int:
        """Coarsest level with at least two pixels per pixel of a tile, or the finest level."""
        wanted = width_um / self.pixels / 2
        fits = [k for k, level in enumerate(self.levels) if level.microns_per_pixel <= wanted * (1 + 1e-9)]
        return max(fits, key=lambda k: self.levels[k].microns_per_pixel) if fits else 0

    def order(self, widths_um: Sequence[float]) -> NDArray[np.intp]:
        """Order in which to read the tiles so that blocks are found in the cache, see :func:`reading_order`."""
        levels = {width: self.level_for(width) for width in widths_um}
        # The finest level that is read has the most blocks.
        finest = min(levels.values(), key=lambda k: self.levels[k].microns_per_pixel)
        level = self.levels[finest]
        reach = max(width for width, k in levels.items() if k == finest) / level.microns_per_pixel
        # Coarser levels have at most half as many blocks along a row each: together no more than the finest.
        share = self.cache.limit // (1 if len(set(levels.values())) == 1 else 2)
        n_blocks = share // (level.block[0] * level.block[1] * level.array.shape[0])
        return reading_order(self._centers[finest], block=level.block, reach=reach, n_blocks=n_blocks)

    def read(self, spot: int, width_um: float) -> tuple[NDArray[np.uint8], bool]:
        """One tile, uint8 (3, pixels, pixels), and whether it was padded.

        Area averaging, or linear interpolation where the image is coarser. Beyond the border the image is mirrored,
        because a white or black margin would add texture.
        """
        k = self.level_for(width_um)
        blocks = self.blocks[k]
        x, y = self._centers[k][spot]
        width = width_um / self.levels[k].microns_per_pixel
        left, right, first_x, weights_x = axis_weights(float(x), width, self.pixels)
        top, bottom, first_y, weights_y = axis_weights(float(y), width, self.pixels)
        padded = top < 0 or left < 0 or bottom > blocks.height or right > blocks.width
        if padded:
            rows, columns = mirrored(top, bottom, blocks.height), mirrored(left, right, blocks.width)
            patch = blocks.read(rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
            patch = np.ascontiguousarray(patch[:, rows - rows.min()][:, :, columns - columns.min()])
        else:
            patch = blocks.read(top, bottom, left, right)
        return resample(patch, first_y, weights_y, first_x, weights_x), padded


def reading_order(centers: Float64, *, block: tuple[int, int], reach: float, n_blocks: int) -> NDArray[np.intp]:
    """Order of tiles in which few blocks are decoded twice.

    `block` is the height and width of the blocks, `reach` the side of the tiles in pixels, and the cache holds
    `n_blocks`. The image is cut into vertical strips, and each is traversed back and forth by rows of blocks. Strips
    are so wide that the cache holds the blocks that the tiles of two rows touch.
    """
    height, width = block
    rows = 2 * int(np.ceil(reach / 2 / height)) + 2
    sides = 2 * int(np.ceil(reach / 2 / width))
    strip = np.floor(centers[:, 0] / (width * max(1, n_blocks // rows - sides)))
    band = np.floor(centers[:, 1] / (height / max(1, round(height / _BAND))))
    along = np.where(band % 2 == 0, centers[:, 0], -centers[:, 0])
    return np.lexsort([centers[:, 1], along, band, strip])


@numba.njit(nogil=True, cache=True)
def axis_weights(center: float, width: float, pixels: int) -> tuple[int, int, NDArray[np.int64], NDArray[np.float32]]:
    """Weights that resample one axis of an image around `center` to `pixels` pixels.

    Image pixel i covers [i, i + 1). An output pixel at least as large as an image pixel is the exact mean over its
    extent; a smaller one is interpolated linearly between the centers of image pixels.

    Returns
    -------
    First image pixel that is needed (may be negative), and one past the last; for each output pixel its first image
    pixel relative to the first, int64 (pixels,); weights of the image pixels from there on, each row summing to 1,
    float32 (pixels, taps).
    """
    step = width / pixels
    first = np.empty(pixels, np.int64)
    if step >= 1:
        low, high = np.empty(pixels), np.empty(pixels)
        taps = 1
        for i in range(pixels + 1):
            edge = center - width / 2 + step * i
            # Snap edges that miss a pixel border by rounding: no tap, and no read, for 1e-12 of a pixel.
            if abs(edge - np.round(edge)) < 1e-6:
                edge = np.round(edge)
            if i < pixels:
                low[i], first[i] = edge, int(np.floor(edge))
            if i > 0:
                high[i - 1] = edge
                taps = max(taps, int(np.ceil(edge)) - first[i - 1])
        weights = np.empty((pixels, taps))
        for i in range(pixels):
            for t in range(taps):
                pixel = first[i] + t
                weights[i, t] = max(0.0, min(pixel + 1, high[i]) - max(pixel, low[i]))
    else:
        weights = np.empty((pixels, 2))
        for i in range(pixels):
            left = center - width / 2 + step * i
            middle = (left + (center - width / 2 + step * (i + 1))) / 2 - 0.5
            first[i] = int(np.floor(middle))
            weights[i, 0], weights[i, 1] = first[i] + 1 - middle, middle - first[i]
    out = np.empty(weights.shape, np.float32)
    start, reach = first[0], 0
    for i in range(pixels):
        total = weights[i].sum()
        for t in range(weights.shape[1]):
            out[i, t] = weights[i, t] / total
            if out[i, t] > 0:
                reach = max(reach, first[i] - start + t + 1)
    return start, start + reach, first - start, out


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def resample(
    patch: NDArray[np.uint8],
    first_y: NDArray[np.int64],
    weights_y: NDArray[np.float32],
    first_x: NDArray[np.int64],
    weights_x: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """Resample a patch with the weights of :func:`axis_weights`: (c, h, w) -> (c, pixels, pixels), rounded."""
    channels, _, width = patch.shape
    pixels, taps = first_x.size, weights_x.shape[1]
    across = np.ascontiguousarray(weights_x.T)
    # At scale 1 output pixels start one image pixel apart, which the compiler vectorizes.
    straight = first_x[pixels - 1] - first_x[0] == pixels - 1
    row = np.zeros(width + taps, np.float32)  # taps of weight 0 may lie beyond the patch
    line = np.empty(pixels, np.float32)
    out = np.empty((channels, first_y.size, pixels), np.uint8)
    for c in range(channels):
        for i in range(first_y.size):
            row[:width] = 0
            for t in range(weights_y.shape[1]):
                weight = weights_y[i, t]
                if weight > 0:
                    source = patch[c, first_y[i] + t]
                    for x in range(width):
                        row[x] += weight * source[x]
            line[:] = 0
            for t in range(taps):
                weights = across[t]
                if straight:
                    shifted = row[first_x[0] + t : first_x[0] + t + pixels]
                    for j in range(pixels):
                        line[j] += weights[j] * shifted[j]
                else:
                    for j in range(pixels):
                        line[j] += weights[j] * row[first_x[j] + t]
            for j in range(pixels):
                out[c, i, j] = np.uint8(min(line[j] + np.float32(0.5), np.float32(255)))
    return out


def mirrored(start: int, stop: int, size: int) -> NDArray[np.int64]:
    """Indices start..stop - 1 of an axis that is mirrored at both ends."""
    index = np.mod(np.arange(start, stop), 2 * size)
    return np.where(index >= size, 2 * size - 1 - index, index)
