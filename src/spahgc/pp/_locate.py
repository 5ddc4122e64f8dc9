"""From a table to its slides' images: which image, where the spots lie in it, and how large a pixel is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import format_names
from .._geometry import PLAUSIBLE_MPP, side_of
from .._links import centres_of, microns_per_unit, regions, shapes_of
from .._slides import Float64
from ._candidates import Candidate, candidates, stretch
from ._tiles import Level

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")

COARSE_MPP = 3.0
"""Micrometres per pixel above which cells are not seen: Space Ranger's hires image has 4 to 6."""
LARGE = 16 * 2**20
"""Pixels of an image from which on it takes minutes to read as whole pages."""
_SAME = 1.001  # ratio of resolutions that count as one


@dataclass(frozen=True, eq=False)
class LocatedSlide:
    """Spots of one slide and the image they lie in."""

    name: str
    rows: NDArray[np.intp]
    """Rows of the table."""
    centres: Float64
    """Spot centres in the coordinates of the shapes, (n, 2)."""
    image: str
    levels: tuple[Level, ...]
    """The image, finest resolution first."""
    microns_per_pixel: float
    """Micrometres per unit of the shapes' coordinates: per full-resolution pixel."""
    mpp_source: str
    """Where `microns_per_pixel` is from."""
    spot_diameter: float
    """Diameter of the spots, or side of square bins, in the coordinates of the shapes; the median."""


def locate(
    sdata: SpatialData,
    table: AnnData,
    *,
    microns_per_pixel: float | Mapping[str, float] | None,
    image_key: str | Mapping[str, str] | None,
) -> list[LocatedSlide]:
    """The slides of a table, each with its spots and its image.

    The image is the one that shares a coordinate system with the shapes, is 8-bit RGB, holds the spots, and has the
    most pixels per micrometre. The micrometres per pixel are, in this order: given; those of ``uns["spatial"]``; those
    that ``sdata.attrs["microns_per_pixel"]`` records for the image; those that the format proves (Visium's pitch,
    Visium HD's bins, Xenium's cell areas).
    """
    parts = []
    for name, rows, instances in regions(table):
        shapes = shapes_of(sdata, table, name, rows, instances)
        centres = centres_of(shapes, name)
        wanted = image_key.get(name) if isinstance(image_key, Mapping) else image_key
        parts.append((name, rows, shapes, centres, wanted, candidates(sdata, shapes, centres, name, wanted)))
    holders: dict[str, int] = {}
    for *_, found in parts:
        for candidate in found:
            holders[candidate.key] = holders.get(candidate.key, 0) + 1
    recorded = sdata.attrs.get(keys.MPP)
    slides = []
    for name, rows, shapes, centres, wanted, found in parts:
        image = _choice(found, name, holders)
        scales = [
            (f"sdata.attrs['{keys.MPP}'][{part.key!r}]", recorded.get(part.key), part.pixels_per_unit)
            for part in (image, *found)
            if isinstance(recorded, Mapping)
        ]
        mpp, source = microns_per_unit(table, name, rows, shapes, centres, given=microns_per_pixel, recorded=scales)
        levels = _levels(image, name, mpp, wanted)
        _warn_of_pages(image)
        slides.append(LocatedSlide(name, rows, centres, image.key, levels, mpp, source, side_of(shapes)))
        logger.info(
            "%s: %d spots in image %r, %.4g um per pixel (%.4g um per unit of the spots' coordinates, from %s).",
            name, len(rows), image.key, levels[0].microns_per_pixel, mpp, source,
        )  # fmt: skip
    return slides


def _choice(found: list[Candidate], name: str, holders: Mapping[str, int]) -> Candidate:
    """The image with the most pixels per unit; an error where that does not settle it."""
    # The scan of a section at several resolutions covers one area. Images that cover different areas and hold the spots
    # of several slides may be those of other slides that lie in the same coordinate system.
    first = found[0].footprint()
    apart = [part for part in found if np.abs(part.footprint() - first).max() > 0.01 * np.ptp(first, axis=0).max()]
    if apart and max(holders[part.key] for part in found) > 1:
        own = [part for part in found if part.key.startswith(name)]
        if not own:
            raise ValueError(
                f"Several images hold the spots of slide {name!r}, and those of other slides too: "
                f"{format_names(part.key for part in found)}. Pass image_key={{{name!r}: <name>, ...}}, or give each slide a "
                "coordinate system of its own."
            )
        found = own
    same = [part.key for part in found if part.pixels_per_unit * _SAME >= found[0].pixels_per_unit]
    if len(same) > 1:
        raise ValueError(
            f"Several images fit slide {name!r} at the same resolution: {format_names(same)}. Pass image_key=<name>, or a "
            "dict by slide."
        )
    return found[0]


def _levels(image: Candidate, name: str, mpp: float, wanted: str | None) -> tuple[Level, ...]:
    finest = mpp / image.pixels_per_unit
    low, high = PLAUSIBLE_MPP
    if not low <= finest <= high:
        raise ValueError(
            f"Image {image.key!r} would have {finest:.3g} um per pixel, with {mpp:g} um per unit of the "
            f"spots' coordinates; an H&E image has between {low:g} and {high:g}. Check microns_per_pixel and the "
            "transformations."
        )
    if finest > COARSE_MPP and wanted is None:
        logger.warning(
            "The finest image of slide %r is %r with %.2g um per pixel, too coarse to see cells. Add the image at full "
            "resolution (spatialdata_io.visium and visium_hd: fullres_image_file=...), or pass image_key=%r if this "
            "is meant.",
            name, image.key, finest, image.key,
        )  # fmt: skip
    return tuple(
        Level(array, affine, mpp / stretch(affine)) for array, affine in zip(image.arrays, image.affines, strict=True)
    )


def _warn_of_pages(image: Candidate) -> None:
    """An image as dask-image reads it decodes the whole page of its TIFF anew for every block."""
    array = image.arrays[0]
    names = getattr(getattr(array, "dask", None), "layers", ())
    if array[0].size > LARGE and any(str(name).startswith("_map_read_frame") for name in names):
        logger.warning(
            "Image %r is read from a file of whole pages, decoded anew for every block: this takes many times as long. "
            "Write the slide first: sdata.write('slide.zarr'); sdata = spatialdata.read_zarr('slide.zarr').",
            image.key,
        )
