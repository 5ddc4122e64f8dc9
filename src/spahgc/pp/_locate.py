"""From a table to its slides' images: which image, where the spots lie in it, and how large a pixel is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _keys as keys
from .._slides import Float64
from .._validate import listed
from ._tiles import Level

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

PLAUSIBLE_MPP = (0.05, 20.0)
"""Micrometres per pixel of an H&E image; beyond, a cell is smaller than a pixel or a tile larger than memory."""


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


def locate(
    sdata: SpatialData,
    table: AnnData,
    *,
    microns_per_pixel: float | Mapping[str, float] | None,
    image_key: str | Mapping[str, str] | None,
) -> list[LocatedSlide]:
    """The slides of a table, each with its spots and its image."""
    slides = []
    for name, rows, instances in _regions(table):
        shapes = _shapes(sdata, name)
        centres = _centres(shapes, instances, name)
        mpp = _microns_per_pixel(table, name, microns_per_pixel)
        wanted = image_key.get(name) if isinstance(image_key, Mapping) else image_key
        image, levels = _image(sdata, shapes, centres, name, mpp, wanted)
        slides.append(LocatedSlide(name, rows, centres, image, levels, mpp))
    return slides


def _regions(table: AnnData) -> list[tuple[str, NDArray[np.intp], Any]]:
    """Slide name, rows and instance ids of each region of a table."""
    attrs = table.uns.get(keys.SPATIALDATA_ATTRS)
    if not attrs or any(attrs.get(key) is None for key in ("region", "region_key", "instance_key")):
        raise KeyError(
            f"The table is not linked to shapes: uns['{keys.SPATIALDATA_ATTRS}'] is missing or incomplete. Read the "
            "slide with spahgc.io.read_st or spatialdata_io, or link it: spatialdata.models.TableModel.parse(table, "
            "region=<shapes>, region_key=<column>, instance_key=<column>)."
        )
    names = [attrs["region"]] if isinstance(attrs["region"], str) else list(attrs["region"])
    for key in ("region_key", "instance_key"):
        if attrs[key] not in table.obs:
            raise KeyError(
                f"table.obs has no column {attrs[key]!r}, its {key} in uns['{keys.SPATIALDATA_ATTRS}']. Available: "
                f"{listed(table.obs.columns)}."
            )
    of_spot = table.obs[attrs["region_key"]].astype(str).to_numpy()
    unknown = ~np.isin(of_spot, names)
    if unknown.any():
        raise ValueError(
            f"{int(unknown.sum())} spots have a {attrs['region_key']!r} that is not among the table's regions "
            f"({listed(names)}): {listed(sorted(set(of_spot[unknown])))}."
        )
    instances = table.obs[attrs["instance_key"]].to_numpy()
    found = ((name, np.flatnonzero(of_spot == name)) for name in names)
    return [(name, rows, instances[rows]) for name, rows in found if len(rows)]


def _shapes(sdata: SpatialData, name: str) -> Any:
    if name in sdata.shapes:
        return sdata.shapes[name]
    where = " It is a labels element: spahgc needs circles or polygons." if name in sdata.labels else ""
    raise KeyError(
        f"The table annotates {name!r}, which is not among the shapes.{where} Available shapes: {listed(sdata.shapes)}."
    )


def _centres(shapes: Any, instances: Any, name: str) -> Float64:
    """Centres of the shapes that belong to the spots, in the shapes' coordinates."""
    if not shapes.index.is_unique:
        raise ValueError(f"The index of shapes {name!r} has duplicates: spots cannot be told apart.")
    at = shapes.index.get_indexer(instances)
    if (at < 0).any():
        raise KeyError(
            f"{int((at < 0).sum())} of {len(at)} spots of slide {name!r} have no shape, e.g. "
            f"{listed(instances[at < 0], most=3)}; the shapes' index is like {listed(shapes.index[:3])} "
            f"({shapes.index.dtype})."
        )
    points = shapes.geometry.iloc[at].centroid
    centres = np.column_stack([points.x, points.y]).astype(np.float64)
    if not np.isfinite(centres).all():
        bad = ~np.isfinite(centres).all(axis=1)
        raise ValueError(
            f"{int(bad.sum())} spots of slide {name!r} have no coordinates, e.g. {listed(instances[bad], most=3)}."
        )
    return centres


def _microns_per_pixel(table: AnnData, name: str, given: float | Mapping[str, float] | None) -> float:
    """Micrometres per full-resolution pixel: given, or as the table says."""
    source = "microns_per_pixel"
    value: Any = given.get(name) if isinstance(given, Mapping) else given
    if value is None:
        source = f"uns['{keys.SPATIAL}'][{name!r}]['scalefactors']['{keys.MPP}']"
        value = table.uns.get(keys.SPATIAL, {}).get(name, {}).get("scalefactors", {}).get(keys.MPP)
    if value is None:
        raise ValueError(
            f"How many micrometres a full-resolution pixel of slide {name!r} measures is not known: {source} is "
            f"missing. Pass microns_per_pixel=<number>, or a dict by slide: {{{name!r}: <number>}}. On Visium it is "
            "65 / spot_diameter_fullres; else distance of neighbouring spots in um over the same in pixels."
        )
    low, high = PLAUSIBLE_MPP
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not low <= float(value) <= high:
        raise ValueError(
            f"{source} of slide {name!r} is {value!r}; an H&E image has between {low:g} and {high:g} um per pixel (a "
            "20x scan about 0.5). Pass microns_per_pixel=<number>."
        )
    return float(value)


def _image(
    sdata: SpatialData, shapes: Any, centres: Float64, name: str, mpp: float, wanted: str | None
) -> tuple[str, tuple[Level, ...]]:
    """The image of a slide: 3-channel uint8, holds the spots, and has the most pixels per unit."""
    from spatialdata.transformations import get_transformation

    if wanted is not None and wanted not in sdata.images:
        raise KeyError(f"image_key of slide {name!r}: no image {wanted!r}. Available: {listed(sdata.images)}.")
    systems = set(get_transformation(shapes, get_all=True))
    reasons: list[str] = []
    found: list[tuple[float, str, tuple[Level, ...]]] = []
    for key in [wanted] if wanted is not None else list(sdata.images):
        element = sdata.images[key]
        shared = systems & set(get_transformation(element, get_all=True))
        problem = _problem(_arrays(element)[0]) if shared else "shares no coordinate system with the spots"
        if problem:
            reasons.append(f"{key!r} {problem}")
            continue
        levels = _levels(element, shapes, name if name in shared else min(shared), key, mpp)
        inside = _inside(levels[0], centres)
        if not inside.any():
            height, width = levels[0].array.shape[1:]
            reasons.append(
                f"{key!r} ({width} x {height} pixels) holds none of the spots, whose centres lie around "
                f"x {_span(levels[0], centres, 0)}, y {_span(levels[0], centres, 1)}"
            )
            continue
        found.append((levels[0].microns_per_pixel, key, levels))
    if not found:
        raise ValueError(
            f"No image for slide {name!r}. " + ("; ".join(reasons) + "." if reasons else "There are no images.")
        )
    found.sort(key=lambda item: item[0])
    if len(found) > 1 and found[1][0] <= found[0][0] * 1.001:
        same = [key for size, key, _ in found if size <= found[0][0] * 1.001]
        raise ValueError(
            f"Several images fit slide {name!r} at the same resolution: {listed(same)}. Pass image_key=<name>, or a "
            "dict by slide."
        )
    _, key, levels = found[0]
    inside = _inside(levels[0], centres)
    if not inside.all():
        height, width = levels[0].array.shape[1:]
        raise ValueError(
            f"{int((~inside).sum())} of {len(inside)} spots of slide {name!r} lie outside its image {key!r} ({width} x "
            f"{height} pixels); the centres lie around x {_span(levels[0], centres, 0)}, y "
            f"{_span(levels[0], centres, 1)}. Are x and y swapped, or the coordinates those of another resolution?"
        )
    return key, levels


def _arrays(element: Any) -> list[Any]:
    """The resolutions of an image element as DataArrays, finest first."""
    if hasattr(element, "data_vars") and hasattr(element, "children"):
        arrays = [next(iter(child.data_vars.values())) for child in element.children.values()]
        return sorted(arrays, key=lambda array: -array.sizes["x"])
    return [element]


def _problem(array: Any) -> str:
    """Why an image cannot be used, and how to convert it; empty if it can."""
    if set(array.dims) != {"c", "y", "x"}:
        return f"has the dimensions {array.dims}, not (c, y, x)"
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


def _levels(element: Any, shapes: Any, system: str, key: str, mpp: float) -> tuple[Level, ...]:
    """Each resolution with its own affine map from spot coordinates: sizes that do not divide make odd factors."""
    from spatialdata.transformations import get_transformation

    axes = ("x", "y")
    levels = []
    to_system = get_transformation(shapes, system).to_affine_matrix(axes, axes)
    for array in _arrays(element):
        affine = np.linalg.inv(get_transformation(array, system).to_affine_matrix(axes, axes)) @ to_system
        stretch = np.linalg.svd(affine[:2, :2], compute_uv=False)
        if not stretch[0] <= 1.05 * stretch[1]:
            raise ValueError(
                f"The transformation from the spots to image {key!r} stretches x and y differently "
                f"({stretch[0]:.3g} and {stretch[1]:.3g}): square tiles would not be square. Resample the image first."
            )
        unit = float(np.sqrt(stretch.prod()))
        data = array.transpose("c", "y", "x").data
        levels.append(Level(data, affine, mpp / unit))
    low, high = PLAUSIBLE_MPP
    if not low <= levels[0].microns_per_pixel <= high:
        raise ValueError(
            f"Image {key!r} would have {levels[0].microns_per_pixel:.3g} um per pixel, with {mpp:g} um per unit of the "
            f"spots' coordinates; an H&E image has between {low:g} and {high:g}. Check microns_per_pixel and the "
            "transformations."
        )
    return tuple(levels)


def _pixels(level: Level, centres: Float64) -> Float64:
    return np.asarray(centres @ level.affine[:2, :2].T + level.affine[:2, 2])


def _inside(level: Level, centres: Float64) -> NDArray[np.bool_]:
    height, width = level.array.shape[1:]
    pixels = _pixels(level, centres)
    return np.asarray(((pixels >= 0) & (pixels <= (width, height))).all(axis=1))


def _span(level: Level, centres: Float64, axis: int) -> str:
    values = _pixels(level, centres)[:, axis]
    return f"{values.min():.0f} to {values.max():.0f}"
