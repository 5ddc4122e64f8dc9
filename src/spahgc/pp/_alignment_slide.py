"""From a SpatialData to what the alignment is judged by: spots, picture and candidates of a slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import format_names
from .._links import affine_between, systems_of
from .._slides import Float64, normalize, spot_depth
from .._tables import _slots as check
from . import _alignment as kernel
from ._alignment_quick import under_tissue
from ._candidates import _arrays, _problem
from ._tissue import MASK_MPP, _reduced, tissue_mask

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

MIN_SPOTS = 10
LONGEST_UM = (4e3, 1e5)
"""Plausible longest side of an image in micrometres; of others the mask is made as if it were :data:`USUAL_UM`."""
USUAL_UM = 8e3
PITCH_OFF = 0.25
"""How far the pitch may be from the platform's."""
LEGACY_SIDE = 80
"""Square arrays with at most this many rows are legacy ones: 200 um between spots."""


@dataclass(frozen=True, eq=False)
class Situation:
    """One slide as its alignment is judged."""

    name: str
    rows: NDArray[np.intp]
    centres: Float64
    """Spot centres in the coordinates of the shapes, (n, 2)."""
    image: str
    to_pixels: Float64
    """From coordinates of the shapes (x, y, 1) to full-resolution pixels of the image, (3, 3)."""
    spots: kernel.Spots
    picture: kernel.Picture
    candidates: list[kernel.Candidate]
    pitch: float
    """Distance of neighbouring spots in the shapes' coordinates."""
    platform_um: float
    """What that distance is on the platform, in micrometres; NaN if it is not known."""
    microns_per_pixel: float
    """Micrometres per unit of the shapes' coordinates; NaN if not known."""


def situation(
    sdata: SpatialData,
    table: AnnData,
    name: str,
    rows: NDArray[np.intp],
    *,
    shapes: Any,
    centres: Float64,
    microns_per_pixel: float,
    image_key: str | None,
    layer: str | None,
) -> Situation:
    """All that is needed to judge one slide; the image is read at about 8 um per pixel."""
    if len(rows) < MIN_SPOTS:
        raise ValueError(f"Slide {name!r} has {len(rows)} spots; an alignment is judged from {MIN_SPOTS} on.")
    image, system = _image_of(sdata, shapes, name, image_key)
    arrays = _arrays(sdata.images[image])
    to_pixels = affine_between(shapes, arrays[0], system)
    height, width = arrays[0].sizes["y"], arrays[0].sizes["x"]
    pixels = centres @ to_pixels[:2, :2].T + to_pixels[:2, 2]
    cell, pitch = kernel.lattice(pixels)
    unit = float(np.sqrt(abs(np.linalg.det(to_pixels[:2, :2]))))
    pitch /= unit

    grid = _grid(table, rows)
    sample = np.arange(len(rows))
    if len(rows) > kernel.MAX_SPOTS:
        sample = np.sort(np.random.default_rng(0).choice(len(rows), kernel.MAX_SPOTS, replace=False))
    covered = under_tissue(table, rows)
    spots = kernel.Spots(
        pixels=pixels[sample],
        cell=cell,
        covered=covered[sample],
        n=len(rows),
        expression=_components(table, rows[sample], layer),
        mirrored=_mirrored(grid, pixels),
    )
    # Spots that spahgc laid itself (virtual ones, bins summed over spots) have the pitch that was asked for.
    own = keys.TISSUE in table.obs or keys.N_BINS in table.obs
    platform_um = float("nan") if own else _platform(grid)
    by_pitch = platform_um / (pitch * microns_per_pixel)
    scales = _scales(sdata, table, name, image, system, to_pixels, by_pitch)
    return Situation(
        name=name,
        rows=rows,
        centres=centres,
        image=image,
        to_pixels=to_pixels,
        spots=spots,
        picture=_picture(arrays, system, microns_per_pixel / unit, image, name),
        candidates=kernel.candidates(width, height, scales),
        pitch=pitch,
        platform_um=platform_um,
        microns_per_pixel=microns_per_pixel,
    )


def _image_of(sdata: SpatialData, shapes: Any, name: str, wanted: str | None) -> tuple[str, str]:
    """The image with the most pixels per unit, whether it holds the spots or not, and a system that both are in."""
    if wanted is not None and wanted not in sdata.images:
        raise KeyError(f"image_key of slide {name!r}: no image {wanted!r}. Available: {format_names(sdata.images)}.")
    systems = systems_of(shapes)
    reasons: list[str] = []
    found: list[tuple[float, str, str]] = []
    for key in [wanted] if wanted is not None else list(sdata.images):
        array = _arrays(sdata.images[key])[0]
        shared = systems & systems_of(array)
        problem = _problem(key, array, named=wanted is not None)
        problem = problem if shared else "shares no coordinate system with the spots"
        if problem:
            reasons.append(f"{key!r} {problem}")
            continue
        system = name if name in shared else min(shared, key=lambda system: (len(system), system))
        to_pixels = affine_between(shapes, array, system)
        found.append((-abs(np.linalg.det(to_pixels)), key, system))
    if not found:
        raise ValueError(
            f"No image for slide {name!r}. " + ("; ".join(reasons) + "." if reasons else "There are no images.")
        )
    found.sort()
    same = [key for size, key, _ in found if size <= found[0][0] * 0.998]
    if len(same) > 1:
        raise ValueError(
            f"Several images fit slide {name!r} at the same resolution: {format_names(same)}. Pass image_key=<name>, or a "
            "dict by slide."
        )
    return found[0][1], found[0][2]


def _picture(arrays: list[Any], system: str, microns_per_pixel: float, image: str, name: str) -> kernel.Picture:
    """The image at about 8 um per pixel, from the level that fits."""
    longest = max(arrays[0].sizes["x"], arrays[0].sizes["y"])
    low, high = LONGEST_UM
    mpp = microns_per_pixel if low <= microns_per_pixel * longest <= high else USUAL_UM / longest
    to_level = [affine_between(arrays[0], array, system) for array in arrays]
    level_mpp = [mpp / float(np.sqrt(abs(np.linalg.det(affine[:2, :2])))) for affine in to_level]
    fits = [k for k, size in enumerate(level_mpp) if size <= MASK_MPP * (1 + 1e-6)]
    k = max(fits, key=lambda index: level_mpp[index]) if fits else 0
    factor = max(1, int(MASK_MPP / level_mpp[k] + 1e-6))
    rgb = _reduced(arrays[k].transpose("c", "y", "x"), factor)
    small = np.moveaxis(np.round(rgb * 255).astype(np.uint8), -1, 0)
    tissue, _ = tissue_mask(small, level_mpp[k] * factor)
    if not tissue.any() or np.ptp(small) == 0:
        raise ValueError(
            f"Image {image!r} of slide {name!r} shows no tissue: nothing on it is darker than the glass"
            f"{', it has one colour only' if np.ptp(small) == 0 else ''}. Is it the right image (image_key)?"
        )
    return kernel.picture(rgb, tissue, kernel.scale(1 / factor) @ to_level[k])


def _scales(
    sdata: SpatialData, table: AnnData, name: str, image: str, system: str, to_pixels: Float64, by_pitch: float
) -> dict[str, tuple[str, Float64]]:
    """Usual mistakes of scale: fault -> fix in words, and the affine map in full-resolution pixels."""
    found: dict[str, tuple[str, Float64]] = {}
    entry: Mapping[str, Any] = table.uns.get(keys.SPATIAL, {}).get(name, {})
    main = _arrays(sdata.images[image])[0]
    for resolution in ("hires", "lowres"):
        factor = entry.get("scalefactors", {}).get(f"tissue_{resolution}_scalef")
        thumbnail = entry.get("images", {}).get(resolution)
        if factor is None and thumbnail is not None:
            factor = np.shape(thumbnail)[1] / main.sizes["x"]
        if factor:
            found[f"in pixels of the {resolution} image"] = (f"divide by {factor:.6g}", kernel.scale(1 / factor))
            found[f"the image is the {resolution} one"] = (f"multiply by {factor:.6g}", kernel.scale(factor))
    for key in sdata.images:
        other = _arrays(sdata.images[key])[0]
        if key != image and system in systems_of(other):
            # Coordinates that are pixels of the other image, brought to this one as the images are registered.
            affine = affine_between(other, main, system) @ np.linalg.inv(to_pixels)
            found[f"in pixels of image {key!r}"] = (f"apply the transformation of image {key!r}", affine)
    for factor in (2.0, 0.5, 4.0, 0.25):
        too = f"{1 / factor:g} times too large" if factor < 1 else f"{factor:g} times too small"
        found[too] = (f"multiply by {factor:g}", kernel.scale(factor))
    # Last, as it is measured: a round factor near it is the more likely one, and exact.
    if np.isfinite(by_pitch) and abs(np.log(by_pitch)) > np.log(1 + PITCH_OFF):
        too = f"{by_pitch:.3g} times too small" if by_pitch > 1 else f"{1 / by_pitch:.3g} times too large"
        found[f"{too}, by the pitch"] = (f"multiply by {by_pitch:.4g}", kernel.scale(by_pitch))
    return found


def _components(table: AnnData, rows: NDArray[np.intp], layer: str | None) -> Any:
    """Components of expression; `None` where the table has none."""
    if layer is None and (table.n_vars == 0 or table.X is None):
        return None
    matrix = check.expression(table, layer, what="reference")[rows]
    if check.are_counts(matrix):
        depth = spot_depth(matrix)
        return kernel.components(normalize(matrix), depth) if depth.any() else None
    return kernel.components(normalize(matrix, "none"), None)


def _grid(table: AnnData, rows: NDArray[np.intp]) -> Float64 | None:
    """Array column and row of each spot, (n, 2); `None` if the table lacks them."""
    if not {"array_row", "array_col"} <= set(table.obs.columns):
        return None
    grid = table.obs[["array_col", "array_row"]].iloc[rows].to_numpy(dtype=np.float64)
    return grid if np.isfinite(grid).all() and (np.ptp(grid, axis=0) > 0).all() else None


def _mirrored(grid: Float64 | None, pixels: Float64) -> bool | None:
    """Whether array columns and rows run against x and y, by the affine map between them; `None` if there is none."""
    if grid is None:
        return None
    design = np.column_stack([grid, np.ones(len(grid))])
    affine, *_ = np.linalg.lstsq(design, pixels, rcond=None)
    error = (design @ affine - pixels).std(axis=0)
    return bool(np.linalg.det(affine[:2]) < 0) if (error < 0.1 * pixels.std(axis=0)).all() else None


def _platform(grid: Float64 | None) -> float:
    """Distance of neighbouring spots by the layout of the array, in micrometres; NaN where it tells nothing."""
    if grid is None or (grid != np.round(grid)).any():
        return float("nan")
    if (grid.sum(axis=1) % 2 == 0).all():  # Visium: every other column, in turn
        return 100.0
    return 200.0 if (np.ptp(grid, axis=0) < LEGACY_SIDE).all() else float("nan")


def thumbnail(element: Any, longest: int = 1000) -> tuple[NDArray[np.uint8], float, Any]:
    """A small picture (rows, columns, 3) of an image, its pixels per full-resolution pixel, and the full resolution."""
    arrays = _arrays(element)
    sizes = [max(array.sizes["x"], array.sizes["y"]) for array in arrays]
    fits = [k for k, size in enumerate(sizes) if size >= longest]
    k = max(fits, key=lambda index: -sizes[index]) if fits else 0
    factor = max(1, sizes[k] // longest)
    rgb = _reduced(arrays[k].transpose("c", "y", "x"), factor)
    small = np.round(rgb * 255).astype(np.uint8)
    return small, float(arrays[k].sizes["x"] / factor / arrays[0].sizes["x"]), arrays[0]
