"""Color and texture statistics of H&E tiles: the encoder without weights, as compiled kernels.

Kernels only call kernels of their own file, because numba's cache on disk does not notice changes in other files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._settings import compiled
from .._slides import Float32

MIN_PIXELS = 32  # Smallest side of a tile; the widest filter reaches 24 pixels.
QUANTILES = np.array([0.05, 0.5, 0.95])
STAIN_TOP = 0.5  # Stains above this (less than 0.1 % of the light passes) are clipped to it in quantiles.
WHITE = 200  # A pixel with all channels above this is background, lumen or fat.
N_BINS = 1024
DISTANCES = (1, 3)
LEVELS = 16
TOPS = (0.3, 1.0)  # Upper end of the levels: of hematoxylin (nuclei lie at 0.1 to 0.25), and of saturation.
PROPERTIES = ("contrast", "homogeneity", "energy", "correlation", "entropy")
_COLOR_PLANES = ("red", "green", "blue", "saturation", "hematoxylin", "eosin")
COLOR_NAMES = (
    *(f"{plane}_{statistic}" for plane in _COLOR_PLANES for statistic in ("mean", "sd", "skew", "q05", "q50", "q95")),
    *("red_green_correlation", "red_blue_correlation", "green_blue_correlation", "hematoxylin_eosin_correlation"),
    "white_share",
)
PATTERN_NAMES = (
    *(f"lbp_gray_{pattern}" for pattern in (*range(9), "other")),
    *(f"glcm_{plane}_d{d}_{name}" for plane in ("hematoxylin", "saturation") for d in DISTANCES for name in PROPERTIES),
)
SIGMAS = (1, 2, 4, 8)  # Pixels; each band lies between two of them.
PEAKS = np.array([0.005, 0.01, 0.02, 0.04])  # Height of a peak of a band, in units of stain.
SMALLEST = 8  # Pixels; smaller blobs are noise.
_BANDS = tuple(f"{plane}_{sigma}" for plane in ("hematoxylin", "gray") for sigma in SIGMAS[:-1])
SCALE_NAMES = (
    *(f"band_{band}_{statistic}" for band in _BANDS for statistic in ("energy", "rms", "skew")),
    *(f"gradient_{band}_{statistic}" for band in _BANDS for statistic in ("mean", "sd", "coherence")),
    *(f"peaks_hematoxylin_{sigma}_above_{height:g}" for sigma in SIGMAS[:-1] for height in PEAKS),
    *(f"nuclei_{what}" for what in ("share", "count", "area_mean", "area_sd", "contrast", "eosin", "threshold")),
)
_NAMES = (*COLOR_NAMES, *PATTERN_NAMES, *SCALE_NAMES)

# Ruifrok & Johnston (2001): optical densities of hematoxylin, eosin and DAB in red, green and blue.
_RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_HED_FROM_RGB = np.linalg.inv(_RGB_FROM_HED).astype(np.float32)
# Density of each 8-bit value, in the unit of skimage.color.rgb2hed (1 at a transmission of 1e-6).
_DENSITY = (np.log(np.maximum(np.arange(256) / 255, 1e-6)) / np.log(1e-6)).astype(np.float32)
# Eight points on a circle of radius 1, counter-clockwise from the right; rounded as scikit-image does.
_ANGLES = 2 * np.pi * np.arange(8) / 8
_DY, _DX = np.round(-np.sin(_ANGLES), 5), np.round(np.cos(_ANGLES), 5)
_TOP, _LEFT = np.floor(_DY).astype(np.int64), np.floor(_DX).astype(np.int64)
_FY, _FX = (_DY - _TOP).astype(np.float32), (_DX - _LEFT).astype(np.float32)


def texture_names() -> list[str]:
    """Names of the features of :func:`texture`, in column order.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.encoders.texture_names()[:2]
    ['red_mean', 'red_sd']
    """
    return list(_NAMES)


def texture(tiles: NDArray[np.uint8]) -> Float32:
    """Compute color and texture statistics of H&E tiles.

    Moments and quantiles of the color channels, the saturation and the hematoxylin and eosin stains; correlations
    between them; uniform local binary patterns; co-occurrence of hematoxylin and saturation levels at two distances;
    energies, gradients and peaks of hematoxylin and brightness at three scales; and number, area and contrast of
    nucleus-like blobs. Rotating a tile by 90 degrees or mirroring it changes only the last digits.

    Parameters
    ----------
    tiles
        RGB tiles, uint8 (n, 3, h, w), `h` and `w` at least 32. Scales are in pixels, suited to about 1 to 4 um per
        pixel.

    Returns
    -------
    float32 (n, 126), one column for each of :func:`texture_names`. Areas are in pixels, stains in the unit of
    `skimage.color.rgb2hed`. All values are finite.

    Raises
    ------
    TypeError, ValueError
        If `tiles` is not a uint8 array of that shape.

    Notes
    -----
    Stain separation after Ruifrok & Johnston (2001), local binary patterns after Ojala et al. (2002), co-occurrence
    after Haralick et al. (1973). Runs on one thread without the interpreter lock.

    Examples
    --------
    >>> import numpy as np, spahgc
    >>> spahgc.encoders.texture(np.full((2, 3, 112, 112), 128, np.uint8)).shape
    (2, 126)
    """
    if getattr(tiles, "dtype", None) != np.uint8:
        raise TypeError(
            f"`tiles` must be a uint8 array (n, 3, h, w), got {getattr(tiles, 'dtype', type(tiles).__name__)}."
        )
    if tiles.ndim != 4 or tiles.shape[1] != 3 or min(tiles.shape[2:]) < MIN_PIXELS:
        raise ValueError(f"`tiles` must have shape (n, 3, h, w), h and w at least {MIN_PIXELS}, got {tiles.shape}.")
    first, second = len(COLOR_NAMES), len(COLOR_NAMES) + len(PATTERN_NAMES)
    out = np.empty((len(tiles), len(_NAMES)))
    for tile, row in zip(np.ascontiguousarray(tiles), out, strict=True):
        four = planes(tile)
        color(tile, four, row[:first])
        patterns(four, row[first:second])
        scales(four, row[second:])
    return out.astype(np.float32)


@compiled()
def planes(tile: NDArray[np.uint8]) -> Float32:
    """Gray (as `rgb2gray` of scikit-image), saturation (`rgb2hsv`), hematoxylin and eosin (`rgb2hed`), (4, h, w)."""
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


@compiled()
def hematoxylin(tiles: NDArray[np.uint8]) -> Float32:
    """Mean hematoxylin of RGB tiles, in the unit of `skimage.color.rgb2hed`: (n, 3, h, w) uint8 -> (n,) float32."""
    out = np.empty(tiles.shape[0], np.float32)
    for i in range(tiles.shape[0]):
        plane = planes(tiles[i])[2]
        out[i] = plane.astype(np.float64).sum() / plane.size
    return out


@compiled()
def moments(plane: Float32, top: float, out: NDArray[np.float64]) -> None:
    """Write mean, standard deviation, skewness and histogram quantiles of a plane in [0, top] into `out` (6,)."""
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


@compiled()
def correlation(a: Float32, b: Float32, floor: float) -> float:
    """Pearson correlation of two planes; 0 if the standard deviation of either is at most `floor`."""
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


@compiled()
def color(tile: NDArray[np.uint8], four: Float32, out: NDArray[np.float64]) -> None:
    """Write the :data:`COLOR_NAMES` of a tile (3, h, w) and its :func:`planes` (4, h, w) into `out`."""
    for c in range(3):
        moments(tile[c], 256.0, out[6 * c : 6 * c + 6])
    moments(four[1], 1.0, out[18:24])
    moments(four[2], STAIN_TOP, out[24:30])
    moments(four[3], STAIN_TOP, out[30:36])
    out[36] = correlation(tile[0], tile[1], 1.0)
    out[37] = correlation(tile[0], tile[2], 1.0)
    out[38] = correlation(tile[1], tile[2], 1.0)
    out[39] = correlation(four[2], four[3], 1e-3)
    out[40] = ((tile[0] > WHITE) & (tile[1] > WHITE) & (tile[2] > WHITE)).mean()


@compiled()
def lbp(plane: Float32, out: NDArray[np.float64]) -> None:
    """Write frequencies of rotation-invariant uniform local binary patterns (8 neighbors at radius 1) into `out` (10,).

    Numbered as in `skimage.feature.local_binary_pattern(method="uniform")`, without the border pixels.
    """
    height, width = plane.shape
    out[:] = 0
    brighter = np.empty(8, np.int64)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            center = plane[y, x]
            ones = 0
            for k in range(8):
                i, j = y + _TOP[k], x + _LEFT[k]
                # Differences, not weighted sums: a flat neighborhood interpolates to itself exactly.
                value = plane[i, j]
                if _FX[k] > 0:
                    value += _FX[k] * (plane[i, j + 1] - value)
                if _FY[k] > 0:
                    below = plane[i + 1, j]
                    if _FX[k] > 0:
                        below += _FX[k] * (plane[i + 1, j + 1] - below)
                    value += _FY[k] * (below - value)
                brighter[k] = 1 if value >= center else 0
                ones += brighter[k]
            changes = 0
            for k in range(8):
                changes += brighter[k] != brighter[(k + 1) % 8]
            out[ones if changes <= 2 else 9] += 1
    out /= (height - 2) * (width - 2)


@compiled()
def cooccurrence(levels: NDArray[np.uint8], distance: int) -> NDArray[np.float64]:
    """Symmetric co-occurrence matrix, averaged over four directions, with the offsets of `skimage.graycomatrix`."""
    height, width = levels.shape
    diagonal = int(np.round(distance * np.sqrt(0.5)))
    dys, dxs = (0, diagonal, distance, diagonal), (distance, diagonal, 0, -diagonal)
    out = np.zeros((LEVELS, LEVELS))
    counts = np.empty((LEVELS, LEVELS), np.int64)
    for angle in range(4):
        dy, dx = dys[angle], dxs[angle]
        first, last = max(0, -dx), min(width, width - dx)
        counts[:] = 0
        for y in range(height - dy):
            for x in range(first, last):
                counts[levels[y, x], levels[y + dy, x + dx]] += 1
        pairs = 2 * (height - dy) * (last - first)
        out += (counts + counts.T) / pairs / 4
    return out


@compiled()
def properties(matrix: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """Write :data:`PROPERTIES` of a co-occurrence matrix into `out` (5,): entropy in bits, correlation 1 if flat."""
    n = matrix.shape[0]
    contrast = homogeneity = energy = entropy = mean = 0.0
    for i in range(n):
        for j in range(n):
            p = matrix[i, j]
            if p > 0:
                contrast += p * (i - j) ** 2
                homogeneity += p / (1 + (i - j) ** 2)
                energy += p * p
                entropy -= p * np.log2(p)
                mean += p * i
    variance = covariance = 0.0
    for i in range(n):
        for j in range(n):
            variance += matrix[i, j] * (i - mean) ** 2
            covariance += matrix[i, j] * (i - mean) * (j - mean)
    out[0], out[1], out[2], out[4] = contrast, homogeneity, np.sqrt(energy), entropy
    out[3] = covariance / variance if variance > 1e-12 else 1.0


@compiled()
def patterns(four: Float32, out: NDArray[np.float64]) -> None:
    """Write the :data:`PATTERN_NAMES` of the :func:`planes` of a tile (4, h, w) into `out`."""
    lbp(four[0], out[:10])
    position = 10
    for k in range(2):
        # Saturation rather than eosin, which has too little range to be cut into levels on purple slides.
        levels = np.minimum((four[2 - k] * (LEVELS / TOPS[k])).astype(np.int64), LEVELS - 1).astype(np.uint8)
        for distance in DISTANCES:
            properties(cooccurrence(levels, distance), out[position : position + 5])
            position += 5


def _taps(sigma: float) -> Float32:
    """Half of a Gaussian kernel, from the center outwards, cut at three standard deviations."""
    taps = np.exp(-0.5 * (np.arange(3 * sigma + 1) / sigma) ** 2)
    return (taps / (taps[0] + 2 * taps[1:].sum())).astype(np.float32)


_TAPS1, _TAPS2, _TAPS4, _TAPS8 = (_taps(sigma) for sigma in SIGMAS)


@compiled(fastmath={"reassoc", "contract", "nsz"})
def blur(plane: Float32, taps: Float32) -> Float32:
    """Separable convolution with symmetric `taps`; borders mirrored (`scipy.ndimage` mode ``"reflect"``)."""
    height, width = plane.shape
    reach = taps.size - 1
    padded = np.empty(width + 2 * reach, np.float32)
    rows = np.empty((height, width), np.float32)
    for y in range(height):
        padded[reach : reach + width] = plane[y]
        padded[:reach] = plane[y, :reach][::-1]
        padded[reach + width :] = plane[y, width - reach :][::-1]
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


@compiled()
def band_statistics(band: Float32, out: NDArray[np.float64]) -> None:
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


@compiled()
def gradient_statistics(plane: Float32, out: NDArray[np.float64]) -> None:
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


@compiled()
def count_peaks(band: Float32, out: NDArray[np.float64]) -> None:
    """Write the number of local maxima (3 x 3) of a band above each of :data:`PEAKS` into `out` (4,)."""
    height, width = band.shape
    out[:] = 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            value = band[y, x]
            if value <= PEAKS[0]:
                continue
            # Of equal neighbors the first in reading order is the peak.
            before = max(band[y - 1, x - 1], band[y - 1, x], band[y - 1, x + 1], band[y, x - 1])
            after = max(band[y, x + 1], band[y + 1, x - 1], band[y + 1, x], band[y + 1, x + 1])
            if before < value >= after:
                out += value > PEAKS


@compiled()
def otsu(plane: Float32) -> float:
    """Otsu threshold (1979) of a plane, from 256 bins up to :data:`STAIN_TOP`."""
    counts, bins = np.zeros(256), np.arange(256)
    for value in plane.flat:
        counts[min(int(value * (256 / STAIN_TOP)), 255)] += 1
    below, below_sum = np.cumsum(counts), np.cumsum(bins * counts)
    above = plane.size - below
    gap = below_sum / np.maximum(below, 1) - (below_sum[-1] - below_sum) / np.maximum(above, 1)
    threshold = (below * above * gap * gap).argmax()
    return (threshold + 1) * (STAIN_TOP / 256)


@compiled()
def _root(parent: NDArray[np.int64], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@compiled()
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


@compiled()
def nuclei(smooth: Float32, haem: Float32, eosin: Float32, out: NDArray[np.float64]) -> None:
    """Write share, number and areas of dense hematoxylin blobs, and stains inside minus outside, into `out` (7,)."""
    threshold = otsu(smooth)
    mask = smooth > threshold
    sums = np.zeros((2, 2))
    for dense, h, e in zip(mask.flat, haem.flat, eosin.flat):  # noqa: B905 (numba knows no `strict`)
        sums[int(dense), 0] += h
        sums[int(dense), 1] += e
    inside = mask.sum()
    outside = mask.size - inside
    out[:] = 0
    out[0] = inside / mask.size
    areas = blob_areas(mask)
    out[1] = areas.size
    if areas.size > 0:
        out[2], out[3] = areas.mean(), areas.std()
    if inside > 0 and outside > 0:
        out[4] = sums[1, 0] / inside - sums[0, 0] / outside
        out[5] = sums[1, 1] / inside - sums[0, 1] / outside
    out[6] = threshold


@compiled()
def scales(four: Float32, out: NDArray[np.float64]) -> None:
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
