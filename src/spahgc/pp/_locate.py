"""From a table to its slides' images: which image, where the spots lie in it, and how large a pixel is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _keys as keys
from .._links import affine_between, centres_of, regions, shapes_of, systems_of
from .._scale import PLAUSIBLE_MPP, microns_per_unit, side_of
from .._slides import Float64
from .._validate import listed
from ._tiles import Level

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")

COARSE_MPP = 3.0
"""Micrometres per pixel above which cells are not seen: Space Ranger's hires image has 4 to 6."""
_SAME = 1.001  # ratio of resolutions that count as one
_RGB = {"r", "g", "b", "red", "green", "blue"}


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


@dataclass(frozen=True, eq=False)
class _Candidate:
    """An image that holds spots of a slide."""

    key: str
    arrays: tuple[Any, ...]
    """Its resolutions, finest first, (3, y, x)."""
    affines: tuple[Float64, ...]
    """From spot coordinates to pixels of each."""
    inside: NDArray[np.bool_]
    """Which spots lie in it."""

    @property
    def pixels_per_unit(self) -> float:
        return _stretch(self.affines[0])

    def footprint(self) -> Float64:
        """Its corners in spot coordinates, (2, 2)."""
        height, width = self.arrays[0].shape[1:]
        back = np.linalg.inv(self.affines[0])
        return np.asarray(np.array([[0, 0, 1], [width, height, 1]]) @ back[:2].T)


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
        parts.append((name, rows, shapes, centres, wanted, _candidates(sdata, shapes, centres, name, wanted)))
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
        slides.append(LocatedSlide(name, rows, centres, image.key, levels, mpp, source, side_of(shapes)))
        logger.info(
            "%s: %d spots in image %r, %.4g um per pixel (%.4g um per unit of the spots' coordinates, from %s).",
            name, len(rows), image.key, levels[0].microns_per_pixel, mpp, source,
        )  # fmt: skip
    return slides


def _candidates(sdata: SpatialData, shapes: Any, centres: Float64, name: str, wanted: str | None) -> list[_Candidate]:
    """The images that hold spots of a slide; an error that says why each does not, if none does."""
    if wanted is not None and wanted not in sdata.images:
        raise KeyError(f"image_key of slide {name!r}: no image {wanted!r}. Available: {listed(sdata.images)}.")
    systems = systems_of(shapes)
    reasons: list[str] = []
    found: list[_Candidate] = []
    for key in [wanted] if wanted is not None else list(sdata.images):
        element = sdata.images[key]
        own = systems_of(element)
        problem = _problem(key, _arrays(element)[0], named=wanted is not None)
        if not systems & own:
            problem = (
                f"shares no coordinate system with the spots (the image is in {listed(sorted(own))}, the spots in "
                f"{listed(sorted(systems))})"
            )
        if problem:
            reasons.append(f"{key!r} {problem}")
            continue
        candidate = _placed(element, shapes, centres, key, name, systems & own)
        if candidate.inside.any():
            found.append(candidate)
        else:
            reasons.append(
                f"{key!r} ({_size(candidate)}) holds none of the spots, whose centres {_spans(candidate, centres)}"
            )
    if not found:
        hint = (
            " If one of them is the slide's image in the same pixels, say so: spatialdata.transformations."
            f"set_transformation(sdata.images[<name>], Identity(), {min(systems)!r})."
            if any("shares no" in reason for reason in reasons)
            else ""
        )
        raise ValueError(
            f"No image for slide {name!r}. " + ("; ".join(reasons) + "." if reasons else "There are no images.") + hint
        )
    found.sort(key=lambda candidate: -candidate.pixels_per_unit)
    best = found[0]
    whole = [part for part in found if part.inside.all()]
    # A much coarser picture is no way out: the image that was meant is this one.
    if not best.inside.all() and not any(part.pixels_per_unit > 0.5 * best.pixels_per_unit for part in whole):
        raise ValueError(
            f"{int((~best.inside).sum())} of {len(best.inside)} spots of slide {name!r} lie outside its image "
            f"{best.key!r} ({_size(best)}); the centres {_spans(best, centres)}. Are x and y swapped, or the "
            "coordinates those of another resolution? If the image shows a part of the tissue only, take the other "
            "spots out of the table."
        )
    return whole


def _choice(found: list[_Candidate], name: str, holders: Mapping[str, int]) -> _Candidate:
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
                f"{listed(part.key for part in found)}. Pass image_key={{{name!r}: <name>, ...}}, or give each slide a "
                "coordinate system of its own."
            )
        found = own
    same = [part.key for part in found if part.pixels_per_unit * _SAME >= found[0].pixels_per_unit]
    if len(same) > 1:
        raise ValueError(
            f"Several images fit slide {name!r} at the same resolution: {listed(same)}. Pass image_key=<name>, or a "
            "dict by slide."
        )
    return found[0]


def _arrays(element: Any) -> list[Any]:
    """The resolutions of an image element as DataArrays, finest first."""
    if hasattr(element, "data_vars") and hasattr(element, "children"):
        arrays = [next(iter(child.data_vars.values())) for child in element.children.values()]
        return sorted(arrays, key=lambda array: -array.sizes["x"])
    return [element]


def _problem(key: str, array: Any, *, named: bool) -> str:
    """Why an image cannot be used, and how to convert it; empty if it can."""
    if set(array.dims) != {"c", "y", "x"}:
        return f"has the dimensions {array.dims}, not (c, y, x)"
    names = [str(name) for name in array.coords["c"].values] if "c" in array.coords else []
    if not named and any(not name.isdigit() and name.lower() not in _RGB | {"a", "alpha"} for name in names):
        return (
            f"has the channels {listed(names)}, as fluorescence has, and not r, g, b; if it is H&E all the same, pass "
            f"image_key={key!r}"
        )
    if not named and key.startswith("morphology_"):
        return "is Xenium's fluorescence image, not H&E"
    channels = array.sizes["c"]
    if channels == 4:
        return "has four channels (RGBA): put it on white and parse it again with three, e.g. PIL's alpha_composite"
    if channels != 3:
        return f"has {channels} channel{'s' if channels > 1 else ''}, and H&E has three (RGB)"
    if array.dtype == np.uint16:
        return "is 16-bit: convert it with (image // 257).astype('uint8') if it fills the 16 bits, and parse it again"
    if array.dtype != np.uint8:
        return f"is {array.dtype}: convert it with (image * 255).round().astype('uint8') if it goes from 0 to 1"
    return ""


def _placed(element: Any, shapes: Any, centres: Float64, key: str, name: str, shared: set[str]) -> _Candidate:
    """An image with the affine map from spot coordinates to each of its resolutions.

    Each has its own, because sizes that do not divide make odd factors.
    """
    arrays = _arrays(element)
    system = name if name in shared else min(shared, key=lambda system: (len(system), system))
    affines = tuple(affine_between(shapes, array, system) for array in arrays)
    for other in shared - {system}:
        off = np.abs(_pixels(affine_between(shapes, arrays[0], other), centres) - _pixels(affines[0], centres)).max()
        if off > 1:
            raise ValueError(
                f"The spots of slide {name!r} lie at other places of image {key!r} in the coordinate system {other!r} "
                f"than in {system!r} ({off:.0f} pixels apart). Remove the wrong one: spatialdata.transformations."
                f"remove_transformation(sdata.images[{key!r}], <system>)."
            )
    stretch = np.linalg.svd(affines[0][:2, :2], compute_uv=False)
    if not stretch[0] <= 1.05 * stretch[1]:
        raise ValueError(
            f"The transformation from the spots to image {key!r} stretches x and y differently "
            f"({stretch[0]:.3g} and {stretch[1]:.3g}): square tiles would not be square. Resample the image first."
        )
    ordered = tuple(array.transpose("c", "y", "x").data for array in arrays)
    height, width = ordered[0].shape[1:]
    pixels = _pixels(affines[0], centres)
    inside = ((pixels >= 0) & (pixels <= (width, height))).all(axis=1)
    return _Candidate(key, ordered, affines, np.asarray(inside))


def _levels(image: _Candidate, name: str, mpp: float, wanted: str | None) -> tuple[Level, ...]:
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
        Level(array, affine, mpp / _stretch(affine)) for array, affine in zip(image.arrays, image.affines, strict=True)
    )


def _stretch(affine: Float64) -> float:
    """Pixels per unit."""
    return float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))


def _pixels(affine: Float64, centres: Float64) -> Float64:
    return np.asarray(centres @ affine[:2, :2].T + affine[:2, 2])


def _size(image: _Candidate) -> str:
    height, width = image.arrays[0].shape[1:]
    return f"{width} x {height} pixels"


def _spans(image: _Candidate, centres: Float64) -> str:
    low, high = (part(_pixels(image.affines[0], centres), axis=0) for part in (np.min, np.max))
    return f"lie around x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}"
