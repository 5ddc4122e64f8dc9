"""Cut the tiles of spots out of an image that may be larger than memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray

from .._geometry import transformed
from .._settings import compiled
from .._slides import Float64

CACHE_BYTES = 256 * 2**20  # decoded blocks that a reader keeps, over all resolutions
_BAND = 512  # pixels; taller blocks are traversed in several bands


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


class _Block:
    """Place for the decoded block of a level, row and column; the first thread that needs it decodes it."""

    def __init__(self, *_key: Any) -> None:
        self.lock = threading.Lock()
        self.pixels: NDArray[np.uint8] | None = None


class BlockReader:
    """Read rectangles of an image (c, y, x).

    Blocks of a dask array are decoded whole, and kept in the slot of a cache that `place` returns.
    """

    def __init__(self, array: Any, name: str, place: Callable[[str, int, int], _Block]) -> None:
        self.array, self.name, self._place = array, name, place
        self.height, self.width = (int(size) for size in array.shape[1:])
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
                block = self._place(self.name, i, j)
                with block.lock:
                    if block.pixels is None:
                        block.pixels = self._decode(i, j)
                out[:, y0 - top : y1 - top, x0 - left : x1 - left] = block.pixels[
                    :, y0 - dy : y1 - dy, x0 - dx : x1 - dx
                ]
        return out

    def _decode(self, i: int, j: int) -> NDArray[np.uint8]:
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
                f"Cannot read the block in row {i}, column {j} of the blocks of {self.name} (pixels y {rows[i]} to "
                f"{rows[i + 1] - 1}, x {columns[j]} to {columns[j + 1] - 1}): {type(error).__name__}: {error}. Its "
                "file is damaged or cannot be reached. Copy or write the image again from its source."
            ) from error


def _touched(borders: NDArray[np.int64], start: int, stop: int) -> tuple[int, int]:
    """First block, and one past the last block, that holds pixels start..stop - 1."""
    return int(np.searchsorted(borders, start, side="right")) - 1, int(np.searchsorted(borders, stop, side="left"))


class TileReader:
    """Tiles of `pixels` x `pixels` around centers (n, 2) in spot coordinates, from the levels of an image.

    `image` is its name in messages. Of the decoded blocks, the last used `cache_bytes` are kept.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        centers: Float64,
        pixels: int,
        *,
        cache_bytes: int = CACHE_BYTES,
        image: str = "image",
    ) -> None:
        self.levels, self.pixels = list(levels), pixels
        largest = max(level.block[0] * level.block[1] * level.array.shape[0] for level in levels)
        self._n_blocks = max(1, cache_bytes // largest)
        place = lru_cache(self._n_blocks)(_Block)
        self._images = [
            BlockReader(level.array, f"image {image!r}, level {k}", place) for k, level in enumerate(levels)
        ]
        self._centers = [transformed(level.affine, centers) for level in levels]

    def level_for(self, width_um: float) -> int:
        """Coarsest level with at least two pixels per pixel of a tile, or the finest level."""
        wanted = width_um / self.pixels / 2
        fits = [k for k, level in enumerate(self.levels) if level.microns_per_pixel <= wanted * (1 + 1e-9)]
        return max(fits, key=lambda k: self.levels[k].microns_per_pixel) if fits else 0

    def order(self, widths_um: Sequence[float]) -> NDArray[np.intp]:
        """Order of the tiles in which few blocks are decoded twice.

        The image is cut into vertical strips, and each is traversed back and forth by rows of blocks. Strips are so
        wide that the cache holds the blocks that the tiles of two rows touch.
        """
        levels = {width: self.level_for(width) for width in widths_um}
        # The finest level that is read has the most blocks.
        finest = min(levels.values(), key=lambda k: self.levels[k].microns_per_pixel)
        height, width = self.levels[finest].block
        reach = max(width for width, k in levels.items() if k == finest) / self.levels[finest].microns_per_pixel
        # Coarser levels have at most half as many blocks along a row each: together no more than the finest.
        n_blocks = self._n_blocks // (1 if len(set(levels.values())) == 1 else 2)
        rows = 2 * int(np.ceil(reach / 2 / height)) + 2
        sides = 2 * int(np.ceil(reach / 2 / width))
        x, y = self._centers[finest].T
        strip = np.floor(x / (width * max(1, n_blocks // rows - sides)))
        band = np.floor(y / (height / max(1, round(height / _BAND))))
        return np.lexsort([y, np.where(band % 2 == 0, x, -x), band, strip])

    def read(self, spot: int, width_um: float) -> tuple[NDArray[np.uint8], bool]:
        """One tile, uint8 (3, pixels, pixels), and whether it was padded.

        Area averaging, or linear interpolation where the image is coarser. Beyond the border the image is mirrored,
        because a white or black margin would add texture.
        """
        k = self.level_for(width_um)
        image = self._images[k]
        x, y = self._centers[k][spot]
        width = width_um / self.levels[k].microns_per_pixel
        left, right, first_x, weights_x = axis_weights(float(x), width, self.pixels)
        top, bottom, first_y, weights_y = axis_weights(float(y), width, self.pixels)
        above, below = max(0, -top), max(0, bottom - image.height)
        before, after = max(0, -left), max(0, right - image.width)
        patch = image.read(top + above, bottom - below, left + before, right - after)
        padded = above + below + before + after > 0
        if padded:
            patch = np.pad(patch, [(0, 0), (above, below), (before, after)], mode="symmetric")
        return resample(patch, first_y, weights_y, first_x, weights_x), padded


@compiled()
def axis_weights(center: float, width: float, pixels: int) -> tuple[int, int, NDArray[np.int64], NDArray[np.float32]]:
    """Weights that resample one axis of an image around `center` to `pixels` pixels.

    Image pixel i covers [i, i + 1). An output pixel at least as large as an image pixel is the exact mean over its
    extent; a smaller one is interpolated linearly between the centers of image pixels.

    Returns the first image pixel that is needed (may be negative), and one past the last; for each output pixel its
    first image pixel relative to the first, (pixels,), and the weights from there on, (pixels, taps), which sum to 1.
    """
    step = width / pixels
    edges = center - width / 2 + step * np.arange(pixels + 1)
    if step >= 1:
        for i in range(pixels + 1):
            # Snap edges that miss a pixel border by rounding: no tap, and no read, for 1e-12 of a pixel.
            if abs(edges[i] - np.round(edges[i])) < 1e-6:
                edges[i] = np.round(edges[i])
        first = np.floor(edges[:-1]).astype(np.int64)
        taps = int((np.ceil(edges[1:]) - first).max())
        weights = np.empty((pixels, taps))
        for i in range(pixels):
            for t in range(taps):
                pixel = first[i] + t
                weights[i, t] = max(0.0, min(pixel + 1, edges[i + 1]) - max(pixel, edges[i]))
    else:
        middles = (edges[:-1] + edges[1:]) / 2 - 0.5
        first = np.floor(middles).astype(np.int64)
        weights = np.column_stack((first + 1 - middles, middles - first))
    out = np.empty(weights.shape, np.float32)
    for i in range(pixels):
        total = weights[i].sum()
        for t in range(weights.shape[1]):
            out[i, t] = weights[i, t] / total
    return first[0], first[-1] + np.count_nonzero(out[-1]), first - first[0], out


@compiled(fastmath={"reassoc", "contract", "nsz"})
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
