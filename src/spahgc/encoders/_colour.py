"""Compiled kernels: the planes of a tile (grey, saturation, stains) and statistics of their values.

Every kernel module of the texture encoder stands alone: numba's cache on disk does not notice a change in another file.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

QUANTILES = np.array([0.05, 0.5, 0.95])
PLANES = ("red", "green", "blue", "saturation", "haematoxylin", "eosin")
NAMES = (
    *(f"{plane}_{statistic}" for plane in PLANES for statistic in ("mean", "sd", "skew", "q05", "q50", "q95")),
    *("red_green_correlation", "red_blue_correlation", "green_blue_correlation", "haematoxylin_eosin_correlation"),
    "white_share",
)
STAIN_TOP = 0.5  # stain above this (less than 0.1 % of the light passes) is counted as this in quantiles
WHITE = 200  # a pixel with all channels above this is background, lumen or fat
N_BINS = 1024

# Ruifrok & Johnston (2001): optical densities of haematoxylin, eosin and DAB in red, green and blue.
_RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_HED_FROM_RGB = np.linalg.inv(_RGB_FROM_HED).astype(np.float32)
# Density of each 8-bit value, in the unit of skimage.color.rgb2hed (1 at a transmission of 1e-6).
_DENSITY = (np.log(np.maximum(np.arange(256) / 255, 1e-6)) / np.log(1e-6)).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def planes(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey, saturation, haematoxylin and eosin of an RGB tile: (3, h, w) uint8 -> (4, h, w) float32.

    Grey (0..1) as `skimage.color.rgb2gray`, saturation (0..1) as in `rgb2hsv`, the stains as in `rgb2hed`.
    """
    _, height, width = tile.shape
    out = np.empty((4, height, width), np.float32)
    for y in range(height):
        for x in range(width):
            red, green, blue = tile[0, y, x], tile[1, y, x], tile[2, y, x]
            out[0, y, x] = (0.2125 * red + 0.7154 * green + 0.0721 * blue) / 255
            high = max(red, green, blue)
            out[1, y, x] = (high - min(red, green, blue)) / high if high > 0 else 0.0
            for stain in range(2):
                density = (
                    _DENSITY[red] * _HED_FROM_RGB[0, stain]
                    + _DENSITY[green] * _HED_FROM_RGB[1, stain]
                    + _DENSITY[blue] * _HED_FROM_RGB[2, stain]
                )
                out[2 + stain, y, x] = max(density, np.float32(0))
    return out


@numba.njit(nogil=True, cache=True)
def haematoxylin(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean haematoxylin of RGB tiles, in the unit of `skimage.color.rgb2hed`: (n, 3, h, w) uint8 -> (n,) float32."""
    out = np.empty(tiles.shape[0], np.float32)
    for i in range(tiles.shape[0]):
        plane = planes(tiles[i])[2]
        total = 0.0
        for y in range(plane.shape[0]):
            for x in range(plane.shape[1]):
                total += plane[y, x]
        out[i] = total / plane.size
    return out


@numba.njit(nogil=True, cache=True)
def moments(plane: NDArray[np.float32], top: float, out: NDArray[np.float64]) -> None:
    """Mean, standard deviation, skewness and quantiles of a plane with values in [0, top], into `out` (6,).

    Quantiles are read from a histogram of 1024 bins; values above `top` fall into the last.
    """
    counts = np.zeros(N_BINS, np.int64)
    flat = plane.ravel()
    n = flat.size
    total = 0.0
    for i in range(n):
        total += flat[i]
        counts[min(int(flat[i] * (N_BINS / top)), N_BINS - 1)] += 1
    mean = total / n
    second = third = 0.0
    for i in range(n):
        deviation = flat[i] - mean
        second += deviation * deviation
        third += deviation * deviation * deviation
    sd = np.sqrt(second / n)
    out[0], out[1] = mean, sd
    # The skewness of a nearly constant plane would be rounding noise.
    out[2] = third / n / sd**3 if sd > 1e-3 * top else 0.0
    k, seen = 0, 0
    for j in range(QUANTILES.size):
        wanted = QUANTILES[j] * n
        while seen + counts[k] < wanted and k < N_BINS - 1:
            seen += counts[k]
            k += 1
        out[3 + j] = (k + (wanted - seen) / max(counts[k], 1)) * (top / N_BINS)


@numba.njit(nogil=True, cache=True)
def correlation(a: NDArray[np.float32], b: NDArray[np.float32], floor: float) -> float:
    """Pearson correlation of two planes; 0 where one of them varies by no more than `floor` (standard deviation)."""
    x, y = a.ravel(), b.ravel()
    n = x.size
    mean_x = mean_y = 0.0
    for i in range(n):
        mean_x += x[i]
        mean_y += y[i]
    mean_x, mean_y = mean_x / n, mean_y / n
    xx = yy = xy = 0.0
    for i in range(n):
        dx, dy = x[i] - mean_x, y[i] - mean_y
        xx += dx * dx
        yy += dy * dy
        xy += dx * dy
    if min(xx, yy) <= n * floor * floor:
        return 0.0
    return xy / np.sqrt(xx * yy)


@numba.njit(nogil=True, cache=True)
def colour(tile: NDArray[np.uint8], four: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """Statistics of the values of a tile, in the order of :data:`NAMES`, into `out`.

    Parameters
    ----------
    tile
        RGB, (3, h, w).
    four
        Its :func:`planes`.
    out
        Receives the features.
    """
    _, height, width = tile.shape
    for c in range(3):
        moments(tile[c], 256.0, out[6 * c : 6 * c + 6])
    moments(four[1], 1.0, out[18:24])
    moments(four[2], STAIN_TOP, out[24:30])
    moments(four[3], STAIN_TOP, out[30:36])
    out[36] = correlation(tile[0], tile[1], 1.0)
    out[37] = correlation(tile[0], tile[2], 1.0)
    out[38] = correlation(tile[1], tile[2], 1.0)
    out[39] = correlation(four[2], four[3], 1e-3)
    white = 0
    for y in range(height):
        for x in range(width):
            white += min(tile[0, y, x], tile[1, y, x], tile[2, y, x]) > WHITE
    out[40] = white / (height * width)
