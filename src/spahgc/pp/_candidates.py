"""The images that hold the spots of a slide, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._checks import format_names
from .._links import affine_between, systems_of
from .._slides import Float64

if TYPE_CHECKING:
    from spatialdata import SpatialData

_RGB = {"r", "g", "b", "red", "green", "blue"}


@dataclass(frozen=True, eq=False)
class Candidate:
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
        return stretch(self.affines[0])

    def footprint(self) -> Float64:
        """Its corners in spot coordinates, (2, 2)."""
        height, width = self.arrays[0].shape[1:]
        back = np.linalg.inv(self.affines[0])
        return np.asarray(np.array([[0, 0, 1], [width, height, 1]]) @ back[:2].T)


def candidates(sdata: SpatialData, shapes: Any, centres: Float64, name: str, wanted: str | None) -> list[Candidate]:
    """The images that hold spots of a slide; an error that says why each does not, if none does."""
    if wanted is not None and wanted not in sdata.images:
        raise KeyError(f"image_key of slide {name!r}: no image {wanted!r}. Available: {format_names(sdata.images)}.")
    systems = systems_of(shapes)
    reasons: list[str] = []
    found: list[Candidate] = []
    for key in [wanted] if wanted is not None else list(sdata.images):
        element = sdata.images[key]
        own = systems_of(element)
        problem = _problem(key, _arrays(element)[0], named=wanted is not None)
        if not systems & own:
            problem = (
                f"shares no coordinate system with the spots (the image is in {format_names(sorted(own))}, the spots in "
                f"{format_names(sorted(systems))})"
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
            f"has the channels {format_names(names)}, as fluorescence has, and not r, g, b; if it is H&E all the same, pass "
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


def _placed(element: Any, shapes: Any, centres: Float64, key: str, name: str, shared: set[str]) -> Candidate:
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
    return Candidate(key, ordered, affines, np.asarray(inside))


def stretch(affine: Float64) -> float:
    """Pixels per unit."""
    return float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))


def _pixels(affine: Float64, centres: Float64) -> Float64:
    return np.asarray(centres @ affine[:2, :2].T + affine[:2, 2])


def _size(image: Candidate) -> str:
    height, width = image.arrays[0].shape[1:]
    return f"{width} x {height} pixels"


def _spans(image: Candidate, centres: Float64) -> str:
    low, high = (part(_pixels(image.affines[0], centres), axis=0) for part in (np.min, np.max))
    return f"lie around x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}"
