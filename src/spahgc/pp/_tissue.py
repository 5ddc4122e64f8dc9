"""Where the tissue is on an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._slides import Float32
from ._tiles import Level

MASK_MPP = 8.0
"""Micrometres per pixel of a mask: about a nucleus, and a slide of 25 mm has 10 million pixels."""
CLOSE_UM = 20.0
"""Radius of the closing: gaps between fibres."""
HOLE_UM2 = 3e4
"""Holes below this area, in square micrometres, are fat cells and small vessels and count as tissue."""
OBJECT_UM2 = 1e5
"""Objects below this area, in square micrometres, are debris and the fiducial marks of arrays."""
GLASS_CHROMA = 13.0
"""CIELAB chroma of glass, at most: 1 to 10 on ten scans, the palest tissue without glass has 15 and more."""
CONTRAST = 0.1
"""Share of the green light that tissue takes from what glass lets through, at least (0.18 on a pale scan)."""
REACH = 0.25
"""How far towards glass the threshold moves beside tissue, for pale rims and fat; not elsewhere, where eosin runs."""


def tissue_level(levels: Sequence[Level]) -> Level:
    """The resolution to find tissue on: the coarsest with at most 8 um per pixel, or the finest."""
    fits = [level for level in levels if level.microns_per_pixel <= MASK_MPP]
    return max(fits, key=lambda level: level.microns_per_pixel) if fits else levels[0]


def tissue_mask(image: Any, microns_per_pixel: float) -> tuple[NDArray[np.bool_], float]:
    """Tissue of an H&E image.

    Otsu's threshold on the green channel, which both stains absorb and smeared eosin hardly does, at about 8 um per
    pixel; then closing, filling of small holes, and removal of small objects (scikit-image). What is black or grey and
    dark, or green to blue and saturated (borders, dust, pens), is no tissue and has no part in the threshold. An image
    without glass is all tissue, one without tissue has none.

    Parameters
    ----------
    image
        uint8 (3, y, x), NumPy, dask or xarray. It is read whole, block by block: take a coarse level.
    microns_per_pixel
        Of `image`.

    Returns
    -------
    The mask, bool (rows, columns), and its micrometres per pixel: a whole multiple of `microns_per_pixel`. Pixel i of
    the mask covers the pixels ``i * multiple`` to ``(i + 1) * multiple`` of the image; the last may be cut.
    """
    from skimage.color import rgb2hsv
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import reconstruction

    factor = max(1, int(MASK_MPP / microns_per_pixel + 1e-6))
    mpp = microns_per_pixel * factor
    rgb = gaussian(_reduced(image, factor), sigma=MASK_MPP / mpp, channel_axis=-1)
    hue, saturation, value = np.moveaxis(rgb2hsv(rgb), -1, 0)
    ink = (value < 0.4) & (saturation < 0.2)
    ink |= (hue > 0.12) & (hue < 0.6) & (saturation > 0.2)
    ink |= (hue >= 0.6) & (hue < 0.68) & (saturation > 0.6)
    green, valid = rgb[..., 1], ~ink
    if not valid.any() or np.ptp(green[valid]) == 0:
        return valid & (not _is_glass(rgb[valid])), mpp
    threshold = threshold_otsu(green[valid])
    dark = (green <= threshold) & valid
    bright = valid & ~dark
    if not _is_glass(rgb[bright]):
        return valid, mpp
    glass = float(np.median(green[bright]))
    if glass - float(np.median(green[dark])) < CONTRAST:
        return np.zeros_like(valid), mpp
    sure = _clean(dark, mpp) & valid
    pale = (green < threshold + REACH * (glass - threshold)) & valid
    return _clean(reconstruction(sure, sure | pale).astype(bool), mpp) & valid, mpp


def _reduced(image: Any, factor: int) -> Float32:
    """Means over squares of the image, float32 (rows, columns, 3), from 0 to 1."""
    array = getattr(image, "data", image) if hasattr(image, "dims") else image
    if hasattr(array, "rechunk"):
        side = factor * max(1, 1024 // factor)
        array = array.rechunk((-1, side, side))
        chunks = (array.chunks[0], *(tuple(-(-size // factor) for size in sizes) for sizes in array.chunks[1:]))
        array = array.map_blocks(_means, factor, dtype=np.float32, chunks=chunks).compute()
    else:
        array = _means(np.asarray(array), factor)
    return np.asarray(np.moveaxis(array, 0, -1))


def _means(block: NDArray[np.uint8], factor: int) -> Float32:
    from skimage.measure import block_reduce

    rest = [(0, -size % factor) for size in block.shape[1:]]
    padded = np.pad(block, [(0, 0), *rest], mode="edge")
    return np.asarray(block_reduce(padded, (1, factor, factor), np.mean) / 255, dtype=np.float32)


def _is_glass(colours: Float32) -> bool:
    """Whether the median of colours (n, 3) is as colourless as glass."""
    from skimage.color import rgb2lab

    if not len(colours):
        return False
    _, a, b = rgb2lab(np.median(colours, axis=0)[None, None])[0, 0]
    return bool(np.hypot(a, b) <= GLASS_CHROMA)


def _clean(mask: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    from skimage.morphology import isotropic_closing, remove_small_holes, remove_small_objects

    closed = isotropic_closing(mask, CLOSE_UM / mpp)
    filled = remove_small_holes(closed, max_size=int(HOLE_UM2 / mpp**2))
    return np.asarray(remove_small_objects(filled, max_size=int(OBJECT_UM2 / mpp**2)), dtype=bool)
