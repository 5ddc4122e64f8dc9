"""Bring a piece of an image to a fixed size."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


def axis_weights(centre: float, width: float, pixels: int) -> tuple[int, NDArray[np.int64], NDArray[np.float32]]:
    """Weights that resample one axis of an image.

    Image pixel i covers [i, i + 1). An output pixel at least as large as an image pixel takes the exact mean over its
    extent (area averaging); a smaller one is interpolated linearly between the centres of image pixels.

    Parameters
    ----------
    centre, width
        Centre and extent of the tile on this axis, in image pixels.
    pixels
        Number of output pixels.

    Returns
    -------
    start
        First image pixel that is needed; may be negative.
    first
        For each output pixel, its first image pixel relative to `start`; int64 (pixels,).
    weights
        Weights of the image pixels from there on, each row summing to 1; float32 (pixels, taps).
    """
    step = width / pixels
    edges = centre - width / 2 + step * np.arange(pixels + 1)
    if step >= 1:
        # Edges that miss a pixel border by rounding only are put on it: no tap, and no read, for 1e-12 of a pixel.
        edges = np.where(np.abs(edges - np.round(edges)) < 1e-6, np.round(edges), edges)
        low, high = edges[:-1], edges[1:]
        first = np.floor(low).astype(np.int64)
        taps = int((np.ceil(high).astype(np.int64) - first).max())
        pixel = first[:, None] + np.arange(taps)
        weights = np.minimum(pixel + 1, high[:, None]) - np.maximum(pixel, low[:, None])
        weights = np.clip(weights, 0, None)
    else:
        middle = (edges[:-1] + edges[1:]) / 2 - 0.5
        first = np.floor(middle).astype(np.int64)
        weights = np.column_stack([first + 1 - middle, middle - first])
    weights = weights / weights.sum(axis=1, keepdims=True)
    start = int(first[0])
    return start, first - start, weights.astype(np.float32)


def extent(first: NDArray[np.int64], weights: NDArray[np.float32]) -> int:
    """Number of image pixels that weights of :func:`axis_weights` reach over."""
    taps = np.arange(weights.shape[1])
    return int((first[:, None] + np.where(weights > 0, taps, 0)).max()) + 1


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
    row = np.empty(width, np.float32)
    out = np.empty((channels, first_y.size, first_x.size), np.uint8)
    for c in range(channels):
        for i in range(first_y.size):
            row[:] = 0
            for t in range(weights_y.shape[1]):
                weight = weights_y[i, t]
                if weight > 0:
                    y = first_y[i] + t
                    for x in range(width):
                        row[x] += weight * patch[c, y, x]
            for j in range(first_x.size):
                value = np.float32(0)
                for t in range(weights_x.shape[1]):
                    weight = weights_x[j, t]
                    if weight > 0:
                        value += weight * row[first_x[j] + t]
                out[c, i, j] = np.uint8(min(value + np.float32(0.5), np.float32(255)))
    return out


def mirrored(start: int, stop: int, size: int) -> NDArray[np.int64]:
    """Indices start..stop - 1 of an axis that goes on as its mirror image beyond both ends."""
    index = np.mod(np.arange(start, stop), 2 * size)
    return np.where(index >= size, 2 * size - 1 - index, index)
