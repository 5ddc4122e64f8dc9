"""The H&E images of slides that have no spots yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _keys as keys
from .._checks import format_names
from .._geometry import PLAUSIBLE_MPP
from .._links import affine_between, systems_of
from .._slides import Float64
from ..io._image import resolutions
from ._tiles import Level

if TYPE_CHECKING:
    from spatialdata import SpatialData


@dataclass(frozen=True, eq=False)
class Scan:
    """An image to lay spots on."""

    key: str
    element: Any
    levels: tuple[Level, ...]
    """From full-resolution pixels."""


def scans_of(
    sdata: SpatialData, image_key: str | Sequence[str] | None, given: float | Mapping[str, float] | None
) -> list[Scan]:
    """The images, each with its levels."""
    wanted = [image_key] if isinstance(image_key, str) else list(sdata.images if image_key is None else image_key)
    missing = [key for key in wanted if key not in sdata.images]
    if missing or not wanted:
        problem = f"no image {format_names(missing)} (image_key)" if missing else "no image"
        raise KeyError(f"sdata has {problem}. Available: {format_names(sdata.images)}.")
    problems = {key: _problem(resolutions(sdata.images[key])[0]) for key in wanted}
    usable = [key for key in wanted if not problems[key]]
    if not usable or (image_key is not None and len(usable) < len(wanted)):
        told = "; ".join(f"{key!r} {problem}" for key, problem in problems.items() if problem)
        raise ValueError(f"No H&E image: {told}.")
    kept = usable if image_key is not None else _one_a_slide(sdata, usable)
    recorded = sdata.attrs.get(keys.MPP, {})
    scans = []
    for key in kept:
        value = given.get(key) if isinstance(given, Mapping) else given
        mpp = _plausible(recorded.get(key) if value is None else value, key)
        arrays = resolutions(sdata.images[key])
        system = min(systems_of(sdata.images[key]))
        levels = []
        for array in arrays:
            affine = affine_between(arrays[0], array, system)
            scale = float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
            levels.append(Level(array.transpose("c", "y", "x").data, affine, mpp / scale))
        scans.append(Scan(key, sdata.images[key], tuple(levels)))
    return scans


def _problem(array: Any) -> str:
    """Why an image is no H&E; empty if it may be."""
    if set(array.dims) != {"c", "y", "x"} or array.sizes["c"] != 3:
        return f"has the dimensions {dict(array.sizes)}, and H&E has three channels (RGB)"
    return "" if array.dtype == np.uint8 else f"is {array.dtype}, not uint8"


def _plausible(value: Any, key: str) -> float:
    low, high = PLAUSIBLE_MPP
    if value is None:
        raise ValueError(
            f"How many micrometres a pixel of image {key!r} measures is not known: sdata.attrs['{keys.MPP}'] has no "
            f"entry for it. Pass microns_per_pixel=<number>, or a dict by image."
        )
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not low <= value <= high:
        raise ValueError(
            f"microns_per_pixel of image {key!r} is {value!r}; an H&E image has between {low:g} and {high:g} um per "
            "pixel (a 20x scan about 0.5)."
        )
    return float(value)


def _one_a_slide(sdata: SpatialData, names: list[str]) -> list[str]:
    """Of each slide the finest image; an error where images that share a coordinate system are no scans of one."""
    groups: list[list[str]] = []
    for name in names:
        own = systems_of(sdata.images[name])
        with_it = [group for group in groups if any(own & systems_of(sdata.images[other]) for other in group)]
        groups = [group for group in groups if group not in with_it]
        groups.append([*(other for group in with_it for other in group), name])
    kept = []
    for group in groups:
        arrays = {name: resolutions(sdata.images[name])[0] for name in group}
        first = arrays[group[0]]
        shared = systems_of(first).intersection(*(systems_of(array) for array in arrays.values()))
        places = {name: _place(first, array, min(shared)) for name, array in arrays.items()} if shared else {}
        best = max(group, key=lambda name: arrays[name].sizes["x"] * arrays[name].sizes["y"])
        same = places and all(
            np.abs(place - places[best]).max() < 0.01 * places[best][1].max() for place in places.values()
        )
        ties = [name for name in group if arrays[name].sizes["x"] == arrays[best].sizes["x"]]
        if not same or len(ties) > 1:
            raise ValueError(
                f"The images {format_names(group)} share a coordinate system: are they scans of one slide, or several "
                "slides? Pass image_key=<name or names>."
            )
        kept.append(best)
    return kept


def _place(first: Any, array: Any, system: str) -> Float64:
    """Corners of an image in the pixels of another, (2, 2)."""
    affine = affine_between(array, first, system)
    size = (array.sizes["x"], array.sizes["y"])
    return np.asarray(np.array([[0, 0, 1], [*size, 1]]) @ affine[:2].T)
