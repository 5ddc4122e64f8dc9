"""Compiled kernels: local binary patterns and grey-level co-occurrence, both indifferent to the direction."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

DISTANCES = (1, 3)
LEVELS = 16
TOPS = (0.3, 1.0)  # upper end of the levels: of haematoxylin (nuclei lie at 0.1 to 0.25), and of saturation
PROPERTIES = ("contrast", "homogeneity", "energy", "correlation", "entropy")
NAMES = (
    *(f"lbp_grey_{pattern}" for pattern in (*range(9), "other")),
    *(
        f"glcm_{plane}_d{distance}_{name}"
        for plane in ("haematoxylin", "saturation")
        for distance in DISTANCES
        for name in PROPERTIES
    ),
)

# Eight points on a circle of radius 1, counter-clockwise from the right; rounded as scikit-image does.
_ANGLES = 2 * np.pi * np.arange(8) / 8
_DY, _DX = np.round(-np.sin(_ANGLES), 5), np.round(np.cos(_ANGLES), 5)
_TOP, _LEFT = np.floor(_DY).astype(np.int64), np.floor(_DX).astype(np.int64)
_FY, _FX = (_DY - _TOP).astype(np.float32), (_DX - _LEFT).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def lbp(plane: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """Shares of the rotation-invariant uniform local binary patterns (8 neighbours at radius 1), into `out` (10,).

    Numbered as in `skimage.feature.local_binary_pattern(method="uniform")`; the border pixels are left out. Ojala et
    al. (2002).
    """
    height, width = plane.shape
    out[:] = 0
    brighter = np.empty(8, np.int64)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            centre = plane[y, x]
            ones = 0
            for k in range(8):
                i, j = y + _TOP[k], x + _LEFT[k]
                # Differences, not weighted sums: a flat neighbourhood interpolates to itself exactly.
                value = plane[i, j]
                if _FX[k] > 0:
                    value += _FX[k] * (plane[i, j + 1] - value)
                if _FY[k] > 0:
                    below = plane[i + 1, j]
                    if _FX[k] > 0:
                        below += _FX[k] * (plane[i + 1, j + 1] - below)
                    value += _FY[k] * (below - value)
                brighter[k] = 1 if value >= centre else 0
                ones += brighter[k]
            changes = 0
            for k in range(8):
                changes += brighter[k] != brighter[(k + 1) % 8]
            out[ones if changes <= 2 else 9] += 1
    out /= (height - 2) * (width - 2)


@numba.njit(nogil=True, cache=True)
def quantize(plane: NDArray[np.float32], top: float) -> NDArray[np.uint8]:
    """A plane in :data:`LEVELS` equal steps from 0 to `top`; values above it take the highest."""
    height, width = plane.shape
    out = np.empty((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            out[y, x] = min(int(plane[y, x] * (LEVELS / top)), LEVELS - 1)
    return out


@numba.njit(nogil=True, cache=True)
def cooccurrence(levels: NDArray[np.uint8], distance: int) -> NDArray[np.float64]:
    """Symmetric co-occurrence matrix, the mean over 0, 45, 90 and 135 degrees: (h, w) -> (LEVELS, LEVELS).

    Haralick et al. (1973); offsets as in `skimage.feature.graycomatrix`.
    """
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
        for i in range(LEVELS):
            for j in range(LEVELS):
                out[i, j] += (counts[i, j] + counts[j, i]) / pairs / 4
    return out


@numba.njit(nogil=True, cache=True)
def properties(matrix: NDArray[np.float64], out: NDArray[np.float64]) -> None:
    """The :data:`PROPERTIES` of a co-occurrence matrix, into `out` (5,); entropy in bits, correlation 1 if flat."""
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


@numba.njit(nogil=True, cache=True)
def patterns(four: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """Local binary patterns and co-occurrence, in the order of :data:`NAMES`, into `out`.

    Parameters
    ----------
    four
        Grey, saturation, haematoxylin and eosin, (4, h, w).
    out
        Receives the features.
    """
    lbp(four[0], out[:10])
    position = 10
    for k in range(2):
        # Saturation rather than eosin, which has too little range to be cut into levels on purple slides.
        levels = quantize(four[2 - k], TOPS[k])
        for distance in DISTANCES:
            properties(cooccurrence(levels, distance), out[position : position + 5])
            position += 5
