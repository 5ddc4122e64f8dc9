"""Compiled kernels of the texture encoder: differences of Gaussians, gradients, peaks and nuclei."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

SIGMAS = (1, 2, 4, 8)  # pixels; each band lies between two of them
PEAKS = np.array([0.005, 0.01, 0.02, 0.04])  # height of a peak of a band, in units of stain
STAIN_TOP = 0.5
SMALLEST = 8  # pixels; smaller blobs are noise
SCALE_NAMES = (
    *(
        f"band_{p}_{sigma}_{w}"
        for p in ("hematoxylin", "gray")
        for sigma in SIGMAS[:-1]
        for w in ("energy", "rms", "skew")
    ),
    *(
        f"gradient_{plane}_{sigma}_{what}"
        for plane in ("hematoxylin", "gray")
        for sigma in SIGMAS[:-1]
        for what in ("mean", "sd", "coherence")
    ),
    *(f"peaks_hematoxylin_{sigma}_above_{height:g}" for sigma in SIGMAS[:-1] for height in PEAKS),
    *(f"nuclei_{what}" for what in ("share", "count", "area_mean", "area_sd", "contrast", "eosin", "threshold")),
)


def _taps(sigma: float) -> NDArray[np.float32]:
    """Half of a Gaussian kernel, from the center outwards, cut at three standard deviations."""
    taps = np.exp(-0.5 * (np.arange(3 * sigma + 1) / sigma) ** 2)
    return (taps / (taps[0] + 2 * taps[1:].sum())).astype(np.float32)


_TAPS1, _TAPS2, _TAPS4, _TAPS8 = (_taps(sigma) for sigma in SIGMAS)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def blur(plane: NDArray[np.float32], taps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Separable convolution with symmetric `taps`; borders mirrored (`scipy.ndimage` mode ``"reflect"``)."""
    height, width = plane.shape
    reach = taps.size - 1
    padded = np.empty(width + 2 * reach, np.float32)
    rows = np.empty((height, width), np.float32)
    for y in range(height):
        padded[reach : reach + width] = plane[y]
        for t in range(reach):
            padded[reach - 1 - t] = plane[y, t]
            padded[reach + width + t] = plane[y, width - 1 - t]
        for x in range(width):
            rows[y, x] = taps[0] * padded[x + reach]
        for t in range(1, reach + 1):
            for x in range(width):
                rows[y, x] += taps[t] * (padded[x + reach - t] + padded[x + reach + t])
    out = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            out[y, x] = taps[0] * rows[y, x]
        for t in range(1, reach + 1):
            up, down = y - t, y + t
            up = -up - 1 if up < 0 else up
            down = 2 * height - 1 - down if down >= height else down
            for x in range(width):
                out[y, x] += taps[t] * (rows[up, x] + rows[down, x])
    return out


@numba.njit(nogil=True, cache=True)
def band_statistics(band: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """Write mean absolute value, root mean square and skewness about 0 of a band into `out` (3,)."""
    flat = band.ravel()
    absolute = second = third = 0.0
    for i in range(flat.size):
        value = flat[i]
        absolute += abs(value)
        second += value * value
        third += value * value * value
    sd = np.sqrt(second / flat.size)
    out[0], out[1] = absolute / flat.size, sd
    out[2] = third / flat.size / sd**3 if sd > 1e-4 else 0.0


@numba.njit(nogil=True, cache=True)
def gradient_statistics(plane: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """Write mean and deviation of the gradient length, and its coherence (0 to 1), into `out` (3,)."""
    height, width = plane.shape
    total = xx = yy = xy = 0.0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            gx = 0.5 * (plane[y, x + 1] - plane[y, x - 1])
            gy = 0.5 * (plane[y + 1, x] - plane[y - 1, x])
            total += np.sqrt(gx * gx + gy * gy)
            xx += gx * gx
            yy += gy * gy
            xy += gx * gy
    n = (height - 2) * (width - 2)
    mean, square = total / n, (xx + yy) / n
    out[0] = mean
    out[1] = np.sqrt(max(square - mean * mean, 0.0))
    out[2] = np.sqrt((xx - yy) ** 2 + 4 * xy * xy) / (xx + yy) if square > 1e-8 else 0.0


@numba.njit(nogil=True, cache=True)
def count_peaks(band: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """Write the number of local maxima (3 x 3) of a band above each of :data:`PEAKS` into `out` (4,)."""
    height, width = band.shape
    out[:] = 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            value = band[y, x]
            if value <= PEAKS[0]:
                continue
            peak = True
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    # Of equal neighbors the first in reading order is the peak.
                    first = dy < 0 or (dy == 0 and dx < 0)
                    other = band[y + dy, x + dx]
                    if other > value or (first and other == value):
                        peak = False
            if peak:
                for k in range(PEAKS.size):
                    out[k] += value > PEAKS[k]


@numba.njit(nogil=True, cache=True)
def otsu(plane: NDArray[np.float32]) -> float:
    """Otsu threshold (1979) of a plane, from 256 bins up to :data:`STAIN_TOP`."""
    counts = np.zeros(256, np.int64)
    flat = plane.ravel()
    total = 0.0
    for i in range(flat.size):
        k = min(int(flat[i] * (256 / STAIN_TOP)), 255)
        counts[k] += 1
        total += k
    best, threshold = -1.0, 0
    below, below_sum = 0, 0.0
    for k in range(255):
        below += counts[k]
        below_sum += k * counts[k]
        above = flat.size - below
        if below > 0 and above > 0:
            gap = below_sum / below - (total - below_sum) / above
            between = float(below) * above * gap * gap
            if between > best:
                best, threshold = between, k
    return (threshold + 1) * (STAIN_TOP / 256)


@numba.njit(nogil=True, cache=True)
def _root(parent: NDArray[np.int64], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@numba.njit(nogil=True, cache=True)
def blob_areas(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Areas in pixels of the 4-connected blobs of a mask that have at least :data:`SMALLEST` pixels."""
    height, width = mask.shape
    parent = np.arange(height * width)
    area = np.zeros(height * width, np.int64)
    for y in range(height):
        for x in range(width):
            if mask[y, x]:
                here = y * width + x
                if x > 0 and mask[y, x - 1]:
                    parent[here] = _root(parent, here - 1)
                if y > 0 and mask[y - 1, x]:
                    a, b = _root(parent, here), _root(parent, here - width)
                    parent[max(a, b)] = min(a, b)
    for i in range(height * width):
        if mask[i // width, i % width]:
            area[_root(parent, i)] += 1
    return area[area >= SMALLEST]


@numba.njit(nogil=True, cache=True)
def nuclei(
    smooth: NDArray[np.float32], haem: NDArray[np.float32], eosin: NDArray[np.float32], out: NDArray[np.float64]
) -> None:
    """Write share, number and areas of dense hematoxylin blobs, and stains inside minus outside, into `out` (7,)."""
    height, width = smooth.shape
    threshold = otsu(smooth)
    mask = smooth > threshold
    inside = 0
    sums = np.zeros((2, 2))
    for y in range(height):
        for x in range(width):
            k = 1 if mask[y, x] else 0
            inside += k
            sums[k, 0] += haem[y, x]
            sums[k, 1] += eosin[y, x]
    outside = height * width - inside
    out[:] = 0
    out[0] = inside / (height * width)
    areas = blob_areas(mask)
    out[1] = areas.size
    if areas.size > 0:
        out[2], out[3] = areas.mean(), areas.std()
    if inside > 0 and outside > 0:
        out[4] = sums[1, 0] / inside - sums[0, 0] / outside
        out[5] = sums[1, 1] / inside - sums[0, 1] / outside
    out[6] = threshold


@numba.njit(nogil=True, cache=True)
def scales(four: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """Write the :data:`SCALE_NAMES` of the gray, saturation and stain planes of a tile (4, h, w) into `out`."""
    for p in range(2):
        plane = four[2 - 2 * p]
        fine = blur(plane, _TAPS1)
        if p == 0:
            nuclei(fine, four[2], four[3], out[48:55])
        for k in range(3):
            coarse = blur(plane, _TAPS2 if k == 0 else (_TAPS4 if k == 1 else _TAPS8))
            band = fine - coarse
            at = 9 * p + 3 * k
            band_statistics(band, out[at : at + 3])
            gradient_statistics(fine, out[18 + at : 21 + at])
            if p == 0:
                count_peaks(band, out[36 + 4 * k : 40 + 4 * k])
            fine = coarse
