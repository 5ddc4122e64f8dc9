"""Bring a piece of an image to a fixed size."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(nogil=True, cache=True)
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
    first = np.empty(pixels, np.int64)
    if step >= 1:
        low, high = np.empty(pixels), np.empty(pixels)
        taps = 1
        for i in range(pixels + 1):
            edge = centre - width / 2 + step * i
            # Edges that miss a pixel border by rounding only are put on it: no tap, and no read, for 1e-12 of a pixel.
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
            left = centre - width / 2 + step * i
            middle = (left + (centre - width / 2 + step * (i + 1))) / 2 - 0.5
            first[i] = int(np.floor(middle))
            weights[i, 0], weights[i, 1] = first[i] + 1 - middle, middle - first[i]
    out = np.empty(weights.shape, np.float32)
    for i in range(pixels):
        total = weights[i].sum()
        for t in range(weights.shape[1]):
            out[i, t] = weights[i, t] / total
    start = first[0]
    return start, first - start, out


@numba.njit(nogil=True, cache=True)
def extent(first: NDArray[np.int64], weights: NDArray[np.float32]) -> int:
    """Number of image pixels that weights of :func:`axis_weights` reach over."""
    reach = 0
    for i in range(first.size):
        for t in range(weights.shape[1]):
            if weights[i, t] > 0:
                reach = max(reach, first[i] + t + 1)
    return reach


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
    # At scale 1 each output pixel starts one pixel on from the last: the compiler makes vectors of that.
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
    """Indices start..stop - 1 of an axis that goes on as its mirror image beyond both ends."""
    index = np.mod(np.arange(start, stop), 2 * size)
    return np.where(index >= size, 2 * size - 1 - index, index)
