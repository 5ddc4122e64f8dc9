"""Colour and texture statistics of H&E tiles: an encoder without weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import _colour, _patterns, _scales

MIN_PIXELS = 32
"""Smallest side of a tile; the widest filter reaches 24 pixels."""

_NAMES = (*_colour.NAMES, *_patterns.NAMES, *_scales.NAMES)
_PATTERNS = len(_colour.NAMES)
_SCALES = _PATTERNS + len(_patterns.NAMES)


def texture_names() -> list[str]:
    """Names of the features of :func:`texture`, in their order."""
    return list(_NAMES)


def texture(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Colour and texture statistics of H&E tiles.

    Moments and quantiles of the colour channels, the saturation and the haematoxylin and eosin stains; correlations
    between them; uniform local binary patterns; co-occurrence of haematoxylin and saturation levels at two distances;
    energies, gradients and peaks of haematoxylin and brightness at three scales; and number, area and contrast of
    nuclei-like blobs. Only the last digits change when a tile is turned by 90 degrees or mirrored.

    Parameters
    ----------
    tiles
        RGB tiles, uint8 (n, 3, h, w), `h` and `w` at least 32. Scales are in pixels: about 1 to 4 um per pixel is
        right.

    Returns
    -------
    float32 (n, 126), one column for each of :func:`texture_names`. Areas are in pixels, stains in the unit of
    `skimage.color.rgb2hed`. All values are finite for every tile.

    Raises
    ------
    TypeError
        If `tiles` is not a uint8 array.
    ValueError
        If its shape is not (n, 3, h, w) or the tiles are too small.

    Notes
    -----
    Stain separation after Ruifrok & Johnston (2001), local binary patterns after Ojala et al. (2002), co-occurrence
    after Haralick et al. (1973). Runs on one thread without the interpreter lock; call it from several threads to use
    several cores.
    """
    if getattr(tiles, "dtype", None) != np.uint8:
        found = getattr(tiles, "dtype", type(tiles).__name__)
        raise TypeError(f"tiles is a uint8 array (n, 3, h, w), not {found}.")
    if tiles.ndim != 4 or tiles.shape[1] != 3 or min(tiles.shape[2:]) < MIN_PIXELS:
        raise ValueError(f"tiles has the shape (n, 3, h, w), h and w at least {MIN_PIXELS} pixels, not {tiles.shape}.")
    out = np.empty((len(tiles), len(_NAMES)))
    for tile, row in zip(np.ascontiguousarray(tiles), out, strict=True):
        planes = _colour.planes(tile)
        _colour.colour(tile, planes, row[:_PATTERNS])
        _patterns.patterns(planes, row[_PATTERNS:_SCALES])
        _scales.scales(planes, row[_SCALES:])
    return out.astype(np.float32)
