"""From slides to their images: which image, where the spots lie in it, and how large a pixel is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from .. import _keys as keys
from .._checks import format_names
from .._geometry import scale_of, side_of, transformed
from .._links import RegionSpots, affine_between, microns_per_unit, plausible_mpp, regions, systems_of
from .._settings import logger
from .._slides import Float64
from ..io._image import RGB_NAMES, resolutions
from ._tiles import Level

COARSE_MPP = 3.0  # above, cells cannot be seen; Space Ranger's hires image has 4 to 6 um per pixel
LARGE = 16 * 2**20  # pixels from which an image takes minutes to read as whole pages
_SAME = 1.001  # ratio of resolutions that count as one


@dataclass(frozen=True, eq=False)
class PlacedImage:
    """An image, its resolutions (finest first), and the maps from spot coordinates to the pixels of each."""

    key: str
    arrays: tuple[Any, ...]
    affines: tuple[Float64, ...]
    system: str
    inside: NDArray[np.bool_]  # whether each spot lies in the image

    @property
    def pixels_per_unit(self) -> float:
        """Pixels of the finest resolution per unit of the spots' coordinates."""
        return scale_of(self.affines[0])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the finest resolution."""
        return self.arrays[0].sizes["x"], self.arrays[0].sizes["y"]

    def footprint(self) -> Float64:
        """Two opposite corners in spot coordinates, (2, 2)."""
        return transformed(np.linalg.inv(self.affines[0]), np.array([(0, 0), self.size], dtype=np.float64))


def levels_of(arrays: Sequence[Any], affines: Sequence[Float64], microns_per_unit: float) -> tuple[Level, ...]:
    """Resolutions to read tiles from, finest first."""
    return tuple(
        Level(array.transpose("c", "y", "x").data, affine, microns_per_unit / scale_of(affine))
        for array, affine in zip(arrays, affines, strict=True)
    )


@dataclass(frozen=True, eq=False)
class LocatedSlide:
    """Spots of one slide, and the image in which they lie."""

    name: str
    rows: NDArray[np.intp]  # of the table
    centers: Float64  # (n, 2), in the coordinates of the shapes
    image: str
    levels: tuple[Level, ...]  # finest first
    microns_per_pixel: float  # per unit of the shapes' coordinates, that is per full-resolution pixel
    mpp_source: str
    spot_diameter: float  # median diameter of the spots, or side of square bins, in the shapes' coordinates


def locate(
    sdata: SpatialData,
    table: AnnData,
    *,
    microns_per_pixel: float | Mapping[str, float] | None = None,
    image_key: str | Mapping[str, str] | None = None,
) -> list[LocatedSlide]:
    """Find the image of each slide of a table: 8-bit RGB, holding the spots, with the most pixels per micrometer."""
    parts = []
    for spots in regions(sdata, table):
        wanted = image_key.get(spots.name) if isinstance(image_key, Mapping) else image_key
        images = placed_images(sdata, spots, wanted)
        parts.append((spots, wanted, _holding_all(images, spots)))
    holders = Counter(image.key for *_, images in parts for image in images)
    recorded = sdata.attrs.get(keys.MPP)
    slides = []
    for spots, wanted, images in parts:
        name, rows, shapes, centers = spots
        image = finest(_own(images, name, holders), name)
        scales = [
            (f"sdata.attrs['{keys.MPP}'][{other.key!r}]", recorded.get(other.key), other.pixels_per_unit)
            for other in (image, *images)
            if isinstance(recorded, Mapping)
        ]
        mpp, source = microns_per_unit(table, *spots, given=microns_per_pixel, recorded=scales)
        levels = levels_of(image.arrays, image.affines, mpp)
        origin = f"Micrometers per pixel of image {image.key!r} (from {source} and the transformations)"
        finest_mpp = plausible_mpp(levels[0].microns_per_pixel, origin)
        if wanted is None and (refused := _refused(sdata, spots, image)):
            logger.warning("Slide %r: image %r is used, because %s.", name, image.key, "; ".join(refused))
        elif finest_mpp > COARSE_MPP and wanted is None:
            logger.warning(
                "The finest image of slide %r is %r with %.2g um per pixel, too coarse to see cells. Add the image at "
                "full resolution (spatialdata_io.visium and visium_hd: fullres_image_file=...), or pass image_key=%r "
                "if this is intended.",
                name, image.key, finest_mpp, image.key,
            )  # fmt: skip
        _check_pages(levels[0].array, image.key)
        slides.append(LocatedSlide(name, rows, centers, image.key, levels, mpp, source, side_of(shapes)))
        logger.info(
            "%s: %d spots in image %r, %.4g um per pixel (%.4g um per unit of the spots' coordinates, from %s).",
            name, len(rows), image.key, finest_mpp, mpp, source,
        )  # fmt: skip
    return slides


def placed_images(sdata: SpatialData, spots: RegionSpots, wanted: str | None) -> list[PlacedImage]:
    """H&E images that share a coordinate system with the spots of a slide; raises if there is none."""
    name = spots.name
    if wanted is not None and wanted not in sdata.images:
        raise KeyError(f"image_key of slide {name!r}: no image {wanted!r}. Available: {format_names(sdata.images)}.")
    systems = systems_of(spots.shapes)
    reasons: list[str] = []
    images: list[PlacedImage] = []
    advice = ""
    for key in [wanted] if wanted is not None else list(sdata.images):
        element = sdata.images[key]
        own = systems_of(element)
        problem = not_he(key, resolutions(element)[0], named=wanted is not None)
        if not systems & own:
            problem = (
                f"shares no coordinate system with the spots (the image is in {format_names(sorted(own))}, the spots "
                f"in {format_names(sorted(systems))})"
            )
            advice = (
                " If one of them is the slide's image in the same pixels, run spatialdata.transformations."
                f"set_transformation(sdata.images[<name>], Identity(), {min(systems)!r})."
            )
        if problem:
            reasons.append(f"{key!r} {problem}")
        else:
            images.append(_placed(element, spots, key, systems & own))
    if not images:
        raise ValueError(
            f"No image for slide {name!r}. " + ("; ".join(reasons) or "There are no images") + f".{advice}"
        )
    return images


def _refused(sdata: SpatialData, spots: RegionSpots, taken: PlacedImage) -> list[str]:
    """Larger images of a slide that are not 8-bit RGB, unless they are named as fluorescence."""
    reasons = {}
    for key in (key for key, element in sdata.images.items() if systems_of(spots.shapes) & systems_of(element)):
        array = resolutions(sdata.images[key])[0]
        if array.sizes.get("c") in {3, 4} and array.sizes["x"] > taken.size[0]:
            reasons[key] = {not_he(key, array, named=named) for named in (True, False)}
    return [f"{key!r} {problem}" for key, (problem, *other) in reasons.items() if problem and not other]


def not_he(key: str, array: Any, *, named: bool) -> str:
    """Why an image cannot be used as H&E and how to convert it; empty if it can. `named` images are trusted more."""
    if set(array.dims) != {"c", "y", "x"}:
        return f"has the dimensions {array.dims}, not (c, y, x)"
    names = [str(name) for name in array.coords["c"].values] if "c" in array.coords else []
    if not named and any(not name.isdigit() and name.lower() not in RGB_NAMES for name in names):
        return (
            f"has the channels {format_names(names)}, as fluorescence has, and not r, g, b; if it is H&E, pass "
            f"image_key={key!r}"
        )
    if not named and key.startswith("morphology_"):
        return "is Xenium's fluorescence image, not H&E"
    if array.sizes["c"] not in {3, 4}:
        return f"has {array.sizes['c']} channels, and H&E has three (RGB)"
    if array.dtype != np.uint8:
        convert = "(image // 257)" if array.dtype == np.uint16 else "(image * 255).round()"
        return f"is {array.dtype}: convert it to 8-bit, e.g. with {convert}.astype('uint8'), and parse it again"
    if array.sizes["c"] == 4:
        return "has a fourth channel that is not named alpha: Image2DModel.parse(image, c_coords=['r', 'g', 'b', 'a'])"
    return ""


def _placed(element: Any, spots: RegionSpots, key: str, shared: set[str]) -> PlacedImage:
    """Place an image; each resolution has its own map, because sizes that do not divide make odd factors."""
    name, _, shapes, centers = spots
    arrays = tuple(resolutions(element))
    system = name if name in shared else min(sorted(shared), key=len)
    affines = tuple(affine_between(shapes, array, system) for array in arrays)
    pixels = transformed(affines[0], centers)
    for other in shared - {system}:
        off = np.abs(transformed(affine_between(shapes, arrays[0], other), centers) - pixels).max()
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
    size = (arrays[0].sizes["x"], arrays[0].sizes["y"])
    inside = np.asarray(((pixels >= -1) & (pixels <= np.array(size) + 1)).all(axis=1))
    return PlacedImage(key, arrays, affines, system, inside)


def _holding_all(images: Sequence[PlacedImage], spots: RegionSpots) -> list[PlacedImage]:
    """Images that hold all spots, finest first; raises if there is none."""
    ordered = sorted(images, key=lambda image: (not image.inside.any(), -image.pixels_per_unit))
    best = ordered[0]
    whole = [image for image in ordered if image.inside.all()]
    # A much coarser picture cannot stand in for the image that was meant.
    if not best.inside.all() and not any(image.pixels_per_unit > 0.5 * best.pixels_per_unit for image in whole):
        low, high = (part(transformed(best.affines[0], spots.centers), axis=0) for part in (np.min, np.max))
        raise ValueError(
            f"{int((~best.inside).sum())} of {len(best.inside)} spots of slide {spots.name!r} lie outside its image "
            f"{best.key!r} ({best.size[0]} x {best.size[1]} pixels); the centers lie around x {low[0]:.0f} to "
            f"{high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}. Are x and y swapped, or are the coordinates those of "
            "another resolution? If the image shows only a part of the tissue, remove the other spots from the table."
        )
    return whole


def _own(images: list[PlacedImage], name: str, holders: Mapping[str, int]) -> list[PlacedImage]:
    """Images of this slide, without those of other slides in the same coordinate system."""
    # The scan of a section at several resolutions covers one area. Images that cover different areas and hold the spots
    # of several slides may be those of other slides.
    first = images[0].footprint()
    apart = any(np.abs(image.footprint() - first).max() > 0.01 * np.ptp(first, axis=0).max() for image in images)
    if not apart or max(holders[image.key] for image in images) == 1:
        return images
    own = [image for image in images if image.key.startswith(name)]
    if not own:
        raise ValueError(
            f"Several images hold the spots of slide {name!r}, and those of other slides too: "
            f"{format_names(image.key for image in images)}. Pass image_key={{{name!r}: <name>, ...}}, or give each "
            "slide a coordinate system of its own."
        )
    return own


def finest(images: Sequence[PlacedImage], name: str) -> PlacedImage:
    """Image with the most pixels per unit; raises if several have as many."""
    most = max(image.pixels_per_unit for image in images)
    same = [image for image in images if image.pixels_per_unit * _SAME >= most]
    if len(same) > 1:
        raise ValueError(
            f"Several images fit slide {name!r} at the same resolution: {format_names(image.key for image in same)}. "
            "Pass image_key=<name>, or a dict by slide."
        )
    return same[0]


def obsm_map(sdata: SpatialData, table: AnnData, spots: RegionSpots, within: float) -> Float64 | None:
    """Map from shapes to ``obsm["spatial"]``: to pixels of an image, or none. `None` if 5 % of spots miss by more."""
    given = np.asarray(table.obsm[keys.SPATIAL], dtype=np.float64)[spots.rows, :2]
    maps = [np.eye(3)]
    for image in sdata.images.values():
        if shared := systems_of(spots.shapes) & systems_of(image):
            maps.append(affine_between(spots.shapes, image, min(shared)))
    for to_obsm in maps:
        off = np.abs(transformed(np.linalg.inv(to_obsm), given) - spots.centers).max(axis=1)
        if np.quantile(off, 0.95) <= within:
            return to_obsm
    return None


def warn_left_behind(sdata: SpatialData, table: AnnData) -> None:
    """Warn of slides whose ``obsm["spatial"]`` is not where their shapes are."""
    slides = regions(sdata, table) if keys.SPATIAL in table.obsm else []
    names = [spots.name for spots in slides if obsm_map(sdata, table, spots, side_of(spots.shapes) / 2) is None]
    if names:
        logger.warning(
            "obsm['%s'] of slide %s is neither where its shapes are nor in pixels of its image, as after a "
            "transformation of the SpatialData. spahgc.pp.check_alignment(sdata, fix=True) moves it.",
            keys.SPATIAL, format_names(names),
        )  # fmt: skip


def _check_pages(array: Any, key: str) -> None:
    """Warn if a large image is read from whole pages, as dask-image reads a TIFF."""
    layers = getattr(getattr(array, "dask", None), "layers", ())
    if array[0].size > LARGE and any(str(layer).startswith("_map_read_frame") for layer in layers):
        logger.warning(
            "Image %r is read from a file of whole pages, decoded anew for every block: this takes many times as long. "
            "Write the slide first: sdata.write('slide.zarr'); sdata = spatialdata.read_zarr('slide.zarr').",
            key,
        )


# Images of slides without spots.


def scans_of(
    sdata: SpatialData, image_key: str | Sequence[str] | None, given: float | Mapping[str, float] | None
) -> dict[str, tuple[Level, ...]]:
    """H&E images to lay spots on, one per slide, with their levels from full-resolution pixels."""
    wanted = [image_key] if isinstance(image_key, str) else list(sdata.images if image_key is None else image_key)
    missing = [key for key in wanted if key not in sdata.images]
    if missing or not wanted:
        problem = f"no image {format_names(missing)} (image_key)" if missing else "no image"
        raise KeyError(f"sdata has {problem}. Available: {format_names(sdata.images)}.")
    arrays = {key: resolutions(sdata.images[key]) for key in wanted}
    problems = {key: not_he(key, arrays[key][0], named=image_key is not None) for key in wanted}
    reasons = "; ".join(f"{key!r} {problem}" for key, problem in problems.items() if problem)
    if all(problems.values()) or (image_key is not None and reasons):
        raise ValueError(f"No H&E image: {reasons}.")
    chosen = (
        wanted
        if image_key is not None
        else _one_per_slide({key: arrays[key][0] for key in wanted if not problems[key]})
    )
    recorded = sdata.attrs.get(keys.MPP, {})
    scans = {}
    for key in chosen:
        mpp = given.get(key) if isinstance(given, Mapping) else given
        mpp = recorded.get(key) if mpp is None else mpp
        if mpp is None:
            raise ValueError(
                f"The micrometers per pixel of image {key!r} are not known: sdata.attrs['{keys.MPP}'] has no entry for "
                "it. Pass microns_per_pixel=<number>, or a dict by image."
            )
        mpp = plausible_mpp(mpp, f"{keys.MPP} of image {key!r}")
        system = min(systems_of(sdata.images[key]))
        affines = [affine_between(arrays[key][0], array, system) for array in arrays[key]]
        scans[key] = levels_of(arrays[key], affines, mpp)
    return scans


def _one_per_slide(arrays: Mapping[str, Any]) -> list[str]:
    """Finest image of each slide; raises if images that share a coordinate system are not scans of one slide."""
    kept: list[str] = []
    for key, array in sorted(arrays.items(), key=lambda item: -item[1].sizes["x"] * item[1].sizes["y"]):
        size = np.array([array.sizes["x"], array.sizes["y"]], dtype=np.float64)
        systems = {other: systems_of(array) & systems_of(arrays[other]) for other in kept}
        for other in (other for other in kept if systems[other]):
            finer = np.array([arrays[other].sizes["x"], arrays[other].sizes["y"]])
            to_finer = affine_between(array, arrays[other], min(systems[other]))
            off = np.abs(transformed(to_finer, np.array([0 * size, size])) - [(0, 0), finer]).max()
            if off >= 0.01 * finer.max() or size[0] == finer[0]:
                raise ValueError(
                    f"The images {format_names(sorted((other, key)))} share a coordinate system: are they scans of "
                    "one slide, or several slides? Pass image_key=<name or names>."
                )
        if not any(systems.values()):
            kept.append(key)
    return sorted(kept, key=list(arrays).index)
