"""What plots need to draw spots on their tissue: a small picture and the scales of a slide, in squidpy's layout."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _keys as keys
from .._slides import Float64
from ._locate import LocatedSlide

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("spahgc")

LONGEST = 1000
"""Longest side of a picture in pixels."""
MOST_PIXELS = 16 * 2**20
"""Pixels of an image that are read for its picture; a larger one without smaller levels gets none."""


def add_pictures(table: AnnData, slides: Sequence[LocatedSlide]) -> None:
    """Write into ``uns["spatial"][slide]`` what is missing there: picture, micrometres per pixel, spot diameter.

    What is there stays. Readers of spatialdata-io leave it empty, and tables of other tools may have a part of it.

    Parameters
    ----------
    table
        Table whose ``obsm["spatial"]`` is in the coordinates of the shapes.
    slides
        Its slides.
    """
    spatial = dict(table.uns.get(keys.SPATIAL, {}))
    for slide in slides:
        entry = dict(spatial.get(slide.name, {}))
        factors = dict(entry.get("scalefactors", {}))
        images = dict(entry.get("images", {}))
        factors.setdefault(keys.MPP, float(slide.microns_per_pixel))
        factors.setdefault(keys.SPOT_DIAMETER, float(slide.spot_diameter))
        if not any(f"tissue_{name}_scalef" in factors and name in images for name in ("hires", "lowres")):
            found = picture(slide)
            if found is not None:
                images["hires"], factors["tissue_hires_scalef"] = found
            else:
                factors.setdefault("tissue_hires_scalef", 1.0)
        spatial[slide.name] = {**entry, "images": images, "scalefactors": factors}
    table.uns[keys.SPATIAL] = spatial


def picture(slide: LocatedSlide, longest: int = LONGEST) -> tuple[NDArray[np.uint8], float] | None:
    """The slide's image, small, with x and y of the spots' coordinates along its sides.

    An image that lies turned or shifted against the spots is turned back; what it does not show is white.

    Returns
    -------
    uint8 (height, width, 3) from the origin of the spots' coordinates on, and its pixels per unit; `None` where the
    image has no level that is small enough.
    """
    from scipy.ndimage import affine_transform

    height, width = slide.levels[0].array.shape[1:]
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], dtype=np.float64)
    ends = (corners @ np.linalg.inv(slide.levels[0].affine)[:2].T).max(axis=0)
    if not (ends > 0).all():
        return None
    scale = longest / float(ends.max())
    # The coarsest level that is as fine as the picture, or else the coarsest of all.
    fine = [level for level in slide.levels if _pixels_per_unit(level.affine) >= scale]
    level = fine[-1] if fine else slide.levels[0]
    rows, columns = level.array.shape[1:]
    if rows * columns > MOST_PIXELS:
        logger.info(
            "%s: no level of image %r is small enough for a picture of the slide; plots show the spots without tissue. "
            "Parse the image with scale_factors.",
            slide.name, slide.image,
        )  # fmt: skip
        return None
    scale = min(scale, _pixels_per_unit(level.affine))
    shape = tuple(max(1, round(float(end) * scale)) for end in ends[::-1])
    # From rows and columns of the picture to those of the level, between the centres of pixels.
    to_level = level.affine @ np.diag([1 / scale, 1 / scale, 1])
    turned: Float64 = to_level[:2, :2][::-1, ::-1]
    shift = to_level[:2, 2][::-1] + turned @ [0.5, 0.5] - 0.5
    pixels = np.asarray(level.array)
    parts = [
        affine_transform(channel, turned, shift, output_shape=shape, order=1, mode="constant", cval=255)
        for channel in pixels
    ]
    return np.stack(parts, axis=-1), scale


def _pixels_per_unit(affine: Float64) -> float:
    return float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
