"""Check whether spots lie on their image as they should, and correct what is wrong."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from .. import _keys as keys
from .._checks import between, checked
from .._geometry import DIFFERS, PLAUSIBLE_MPP, VISIUM_PITCH_UM, lattice, scale_of, side_of, transformed
from .._links import (
    RegionSpots,
    affine_between,
    check_slides,
    microns_per_unit,
    pick_table,
    regions,
    shallow_copy,
    systems_of,
)
from .._slides import Float64, normalize, spot_depth
from .._tables._slots import are_counts, check_table, expression
from ..io._image import resolutions
from . import _alignment as kernel
from ._images import PlacedImage, finest, levels_of, obsm_map, placed_images
from ._tissue import block_means, mask_factor, tissue_level, tissue_mask, under_tissue

ON_TISSUE = 0.2  # share of spots on tissue that some candidate has to reach
LEAST_SPOTS = 10
LONGEST_UM = (4e3, 1e5)  # plausible longest side of an image; the mask of others is made as if it were USUAL_UM
USUAL_UM = 8e3
PITCH_OFF = 0.25  # largest relative difference between the pitch and the platform's
# Legacy arrays: pitch, spot diameter, and the most rows. Square arrays of another pitch may be as small.
LEGACY_PITCH_UM, LEGACY_SPOT_UM, LEGACY_SIDE = 200.0, 100.0, 80
UNCLEAR = "unclear"
_TABLE = f"obsm['{keys.SPATIAL}'] is not where the shapes are"


class _Verdict(NamedTuple):
    """Verdict on one slide, as it is written (`entry`) and as it is acted upon."""

    spots: RegionSpots
    entry: dict[str, Any]
    pitch: float  # in the shapes' coordinates
    is_moved: bool  # whether a fix moves the shapes, by the affine map of the entry
    to_obsm: Float64 | None  # map from the shapes' coordinates to ``obsm["spatial"]``, if a fix writes it
    left: str  # what a fix leaves undone


@checked(microns_per_pixel=between(*PLAUSIBLE_MPP))
def check_alignment(
    sdata: SpatialData,
    *,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | Mapping[str, float] | None = None,
    layer: str | None = None,
    fix: bool = False,
    copy: bool = False,
) -> SpatialData | None:
    """Check whether the spots lie on the tissue as they should; name what is wrong, and correct it.

    Spots are compared with the image as they are and as they would lie if a common mistake were undone: x and y
    swapped, flipped, rotated by 90 or 180 degrees, in pixels of another image, 2 or 4 times too large or too small. The
    score of a candidate is the overlap of the area of the spots with the tissue of the image (``outline``, Dice), plus
    the adjusted R2 of expression on the colors of the image at the spots (``expression``; 0 without counts).

    A verdict requires a lead of 0.08 over all other candidates, and an outline of 0.85 or an expression of 0.1;
    otherwise it is ``"unclear"``. If the best candidate gains as much again by a shift, the verdict includes
    ``"shifted"``, and the fix names the approximate shift, which is left to the user. *Are the spots where they should
    be?* in the user guide explains candidates, scores, accuracy and limitations.

    Parameters
    ----------
    sdata
        Slides with images, shapes and a table that annotates the shapes.
    table_key, image_key, microns_per_pixel
        As in :func:`image_embedding`, except that the image does not have to hold the spots, and the micrometers per
        pixel may be unknown: then the pitch is not judged.
    layer
        Layer with expression; `None` takes ``X``, if the table has genes.
    fix
        Undo the faults that are named: move the shapes, and ``obsm["spatial"]`` with them. A slide that is unclear or
        shifted is not changed, with a warning. Write a SpatialData that is on disk again to keep the result.
    copy
        Return a SpatialData with a copy of the table (and of moved shapes), and leave `sdata` unchanged.

    Returns
    -------
    `None`, or with `copy` the SpatialData with the result, which :func:`spahgc.get.alignment` returns as a table.
    Written into the table:

    ``uns["alignment"]["slides"]``
        By slide: ``verdict``, ``fix``, ``fixed``, ``image``, ``pitch_um``, ``platform_um``, the evidence for the
        coordinates as given and for the best other candidate, and its ``affine`` (3, 3) on coordinates of the shapes.
    ``uns["alignment"]["fixes"]``
        By slide, what was undone with `fix`: ``fault``, ``fix``, ``affine``; kept by later checks.
    ``uns["alignment"]["params"]``
        ``margin``, ``fits``, ``layer``, version of spahgc.

    Raises
    ------
    KeyError
        If the table, its link to shapes, the shapes, an image or the layer are missing.
    ValueError
        If a slide has no image or several, or fewer than ten spots, the image shows no tissue, or no candidate puts
        spots on tissue. In all cases nothing is written.

    Examples
    --------
    >>> import spahgc
    >>> sdata = spahgc.datasets.synthetic_cohort(n_slides=1, n_patients=1)
    >>> spahgc.pp.check_alignment(sdata)
    >>> spahgc.get.alignment(sdata["table"])["given_on_tissue"].tolist()
    [1.0]
    """
    key = pick_table(sdata, table_key)
    table = check_table(sdata.tables[key], what=f"sdata[{key!r}]")
    of_slides = regions(sdata, table)
    check_slides([spots.name for spots in of_slides], microns_per_pixel=microns_per_pixel, image_key=image_key)
    verdicts = [_judged(sdata, table, spots, microns_per_pixel, image_key, layer) for spots in of_slides]
    # Everything is computed before anything is written, so that a failure leaves the object unchanged.
    if copy:
        sdata = shallow_copy(sdata, key)
        table = sdata.tables[key]
    fixes = dict(table.uns.get(keys.ALIGNMENT, {}).get("fixes", {}))
    for found in verdicts:
        name, entry = found.spots.name, found.entry
        if fix and (found.is_moved or entry["verdict"] == _TABLE):
            _fix(sdata, table, found, copy=copy)
            entry["fixed"] = True
            fixes[name] = {"fault": entry["verdict"], "fix": entry["fix"]}
            if found.is_moved:
                fixes[name]["affine"] = entry["affine"]
        if fix and found.left:
            warnings.warn(f"Slide {name!r}{found.left}", UserWarning, stacklevel=3)
    params = {"margin": kernel.MARGIN, "fits": list(kernel.FITS), "layer": layer or "X", "version": version("spahgc")}
    slides = {found.spots.name: found.entry for found in verdicts}
    table.uns[keys.ALIGNMENT] = {keys.PARAMS: params, "slides": slides, "fixes": fixes}
    return sdata if copy else None


def _judged(
    sdata: SpatialData,
    table: AnnData,
    spots: RegionSpots,
    given_mpp: float | Mapping[str, float] | None,
    image_key: str | Mapping[str, str] | None,
    layer: str | None,
) -> _Verdict:
    """Verdict on one slide."""
    name, rows, _, centers = spots
    if len(rows) < LEAST_SPOTS:
        raise ValueError(f"Slide {name!r} has {len(rows)} spots; an alignment needs at least {LEAST_SPOTS}.")
    try:
        mpp = microns_per_unit(table, *spots, given=given_mpp)[0]
    except ValueError:
        if given_mpp.get(name) if isinstance(given_mpp, Mapping) else given_mpp:
            raise
        # With coordinates of another resolution, the measured scale may be absurd. Only the pitch is judged by it.
        mpp = float("nan")
    wanted = image_key.get(name) if isinstance(image_key, Mapping) else image_key
    image = finest(placed_images(sdata, spots, wanted), name)
    to_pixels = image.affines[0]
    pixels = transformed(to_pixels, centers)
    cell, pitch = lattice(pixels)
    pitch /= image.pixels_per_unit
    mirrored, platform_um = _by_array(table, spots, pixels, pitch, mpp)
    some = np.arange(len(rows))
    if len(rows) > kernel.MAX_SPOTS:
        some = np.sort(np.random.default_rng(0).choice(len(rows), kernel.MAX_SPOTS, replace=False))
    scene = kernel.Scene(
        *_picture(image, name, mpp),
        pixels=pixels[some],
        cell=cell,
        covered=under_tissue(table, rows)[some],
        n=len(rows),
        expression=_components(table, rows[some], layer),
        mirrored=mirrored,
    )
    tried = kernel.placements(*image.size, _scales(sdata, table, name, image, mpp, platform_um / (pitch * mpp)))
    evidence = [kernel.judge(scene, placement.affine) for placement in tried]
    best_on = max(agreement.on_tissue for agreement in evidence)
    if best_on < ON_TISSUE:
        raise ValueError(
            f"None of the {len(evidence)} candidates puts spots of slide {name!r} on tissue of image {image.key!r} "
            f"({best_on:.0%} of the spots at best). Is it the image of this slide (image_key), whole and not cropped, "
            "and are the coordinates pixels of it?"
        )
    best, rivals = kernel.decide(tried, evidence, scene)
    shifted = _shifted(scene, tried, evidence, best, rivals)
    best = best if shifted is None else shifted[0]
    other = best or max(range(1, len(evidence)), key=lambda k: evidence[k].score)
    affine = np.asarray(np.linalg.inv(to_pixels) @ tried[other].affine @ to_pixels)
    verdict, fix, is_moved, left = tried[best].fault, tried[best].fix, best > 0, ""
    to_obsm = obsm_map(sdata, table, spots, 0.25 * pitch) if keys.SPATIAL in table.obsm else None
    is_apart = keys.SPATIAL in table.obsm and to_obsm is None
    # NaN compares false: there is no advice if the pitch of the platform or the micrometers per pixel are unknown.
    right_mpp = platform_um / (pitch * (scale_of(affine) if best else 1.0))
    if shifted is not None:
        verdict, is_moved = f"{verdict}; shifted" if best else "shifted", False
        fix = f"{fix}; then {shifted[1]}" if best else shifted[1]
        left = f": left to you: {fix}."
    elif rivals or not evidence[best].fits:
        names = (
            f"{tried[k].fault} {evidence[k].score:.2f}" if k else f"as given {evidence[k].score:.2f}"
            for k in [best, *rivals][:4]
        )
        fix = f"cannot be told apart by score: {', '.join(names)}; look at spahgc.pl.alignment"
        if not evidence[best].fits:
            fix = (
                f"nothing fits well: best is {verdict if best else 'as given'!r} with outline "
                f"{evidence[best].outline:.2f} and expression {evidence[best].expression:.2f}; is {image.key!r} the "
                "image of this slide?"
            )
        verdict, is_moved, left = UNCLEAR, False, f" is left as it is: {fix}."
    elif best == 0 and is_apart:
        verdict, fix, to_obsm = _TABLE, f"obsm['{keys.SPATIAL}'] = centers of the shapes", np.eye(3)
    elif abs(np.log(right_mpp / mpp)) > np.log(1 + PITCH_OFF):
        advice = f"set microns_per_pixel to {right_mpp:.4g}: the platform's spots are {platform_um:g} um apart"
        verdict = verdict if best else "microns_per_pixel wrong"
        fix, left = f"{fix}; {advice}" if fix else advice, f": left to you: {advice}."
    if is_moved and is_apart:
        left = f": obsm['{keys.SPATIAL}'] was not where the shapes were; only the shapes are moved. Check again."
    entry = {
        "verdict": verdict,
        "fix": fix,
        "fixed": False,
        "image": image.key,
        "pitch_um": pitch * mpp,
        "platform_um": platform_um,
        **{f"given_{part}": value for part, value in evidence[0].as_dict().items()},
        "candidate": tried[other].fault,
        **{f"candidate_{part}": value for part, value in evidence[other].as_dict().items()},
        "affine": affine,
    }
    return _Verdict(spots, entry, pitch, is_moved, to_obsm, left)


def _shifted(
    scene: kernel.Scene,
    placements: Sequence[kernel.Placement],
    evidence: Sequence[kernel.Agreement],
    best: int,
    rivals: Sequence[int],
) -> tuple[int, str] | None:
    """Placement that leads by the margin once it is shifted, and what would have to be added, if there is one."""
    tried = {best: kernel.shift(scene, placements[best].affine)}
    needed = evidence[best].score + kernel.MARGIN
    if not rivals and tried[best][1].score < needed:
        return None
    # With a shift another of the eight symmetries may suit better than the one that led without.
    first = best // 8 * 8
    for k in {*range(first, first + 8), *rivals} - {best}:
        tried[k] = kernel.shift(scene, placements[k].affine)
    top, second = sorted(tried, key=lambda k: -tried[k][1].score)[:2]
    if tried[top][1].score < max(needed, tried[second][1].score + kernel.MARGIN):
        return None
    dx, dy = tried[top][0]
    return top, f"add about {dx:.0f} to x, {dy:.0f} to y (was the image cropped, or is it another slide's?)"


def _fix(sdata: SpatialData, table: AnnData, found: _Verdict, *, copy: bool) -> None:
    """Move the shapes of a slide, and ``obsm["spatial"]`` with them."""
    name, rows, _, centers = found.spots
    if found.is_moved:
        affine = found.entry["affine"]
        (a, b, x), (c, d, y), _ = affine
        shapes = sdata.shapes[name].copy() if copy else sdata.shapes[name]
        shapes["geometry"] = shapes.geometry.affine_transform([a, b, c, d, x, y])
        if "radius" in shapes:
            # Coordinates in the wrong unit may come with a radius in the right one: spots are about half a pitch wide.
            stretch, radius = scale_of(affine), float(shapes["radius"].median())
            half = found.pitch * stretch / 4
            if abs(np.log(stretch * radius / half)) < abs(np.log(radius / half)):
                shapes["radius"] = shapes["radius"] * stretch
        if copy:
            sdata.shapes[name] = shapes
        centers = transformed(affine, centers)
    if found.to_obsm is not None:
        moved = np.array(table.obsm[keys.SPATIAL], dtype=np.float64)
        moved[rows] = transformed(found.to_obsm, centers)
        table.obsm[keys.SPATIAL] = moved


# From a SpatialData to what the alignment is judged by.


def _picture(image: PlacedImage, name: str, microns_per_unit: float) -> tuple[Float64, Float64]:
    """Sums of the image at about 8 um per pixel, and the map from full-resolution pixels to its pixels."""
    mpp, longest = microns_per_unit / image.pixels_per_unit, max(image.size)
    low, high = LONGEST_UM
    mpp = mpp if low <= mpp * longest <= high else USUAL_UM / longest
    level = tissue_level(levels_of(image.arrays, image.affines, mpp * image.pixels_per_unit))
    factor = mask_factor(level.microns_per_pixel)
    rgb = block_means(level.array, factor)
    small = np.moveaxis(np.round(rgb * 255).astype(np.uint8), -1, 0)
    tissue, _ = tissue_mask(small, level.microns_per_pixel * factor)
    if not tissue.any() or np.ptp(small) == 0:
        raise ValueError(
            f"Image {image.key!r} of slide {name!r} shows no tissue: nothing on it is darker than the glass, or it has "
            "one color only. Is it the right image (image_key)?"
        )
    to_level = level.affine @ np.linalg.inv(image.affines[0])
    return kernel.summed_image(rgb, tissue), kernel.scaling(1 / factor) @ to_level


def _scales(
    sdata: SpatialData, table: AnnData, name: str, image: PlacedImage, mpp: float, by_pitch: float
) -> dict[str, tuple[str, Float64]]:
    """Usual mistakes of scale: fault to fix in words, and the map in full-resolution pixels."""
    scales: dict[str, tuple[str, Float64]] = {}
    entry: Mapping[str, Any] = table.uns.get(keys.SPATIAL, {}).get(name, {})
    for resolution in ("hires", "lowres"):
        factor = keys.part(entry, "scalefactors").get(f"tissue_{resolution}_scalef")
        small = entry.get("images", {}).get(resolution)
        if factor is None and small is not None:
            factor = np.shape(small)[1] / image.size[0]
        if factor:
            scales[f"in pixels of the {resolution} image"] = (f"divide by {factor:.6g}", kernel.scaling(1 / factor))
            scales[f"the image is the {resolution} one"] = (f"multiply by {factor:.6g}", kernel.scaling(factor))
    for key in sdata.images:
        other = resolutions(sdata.images[key])[0]
        if key != image.key and image.system in systems_of(other):
            # Coordinates that are pixels of the other image, brought to this one as the images are registered.
            affine = affine_between(other, image.arrays[0], image.system) @ np.linalg.inv(image.affines[0])
            scales[f"in pixels of image {key!r}"] = (f"apply the transformation of image {key!r}", affine)
    if np.isfinite(mpp):
        mpp /= image.pixels_per_unit
        scales["in micrometers"] = (f"divide by {mpp:.6g}", kernel.scaling(1 / mpp))
    factors = {2.0: "", 0.5: "", 4.0: "", 0.25: ""}
    # Last, because it is measured: a round factor near it is more likely, and exact.
    if np.isfinite(by_pitch) and abs(np.log(by_pitch)) > np.log(1 + PITCH_OFF):
        factors.setdefault(by_pitch, ", by the pitch")
    for factor, source in factors.items():
        too = f"{factor:.3g} times too small" if factor > 1 else f"{1 / factor:.3g} times too large"
        scales[f"{too}{source}"] = (f"multiply by {factor:.4g}", kernel.scaling(factor))
    return scales


def _components(table: AnnData, rows: NDArray[np.intp], layer: str | None) -> Any:
    """Components of expression, or `None` if the table has no expression."""
    if layer is None and (table.n_vars == 0 or table.X is None):
        return None
    matrix = expression(table, layer, what="reference")[rows]
    if not are_counts(matrix):
        return kernel.components(normalize(matrix, "none"), None)
    depth = spot_depth(matrix)
    return kernel.components(normalize(matrix), depth) if depth.any() else None


def _by_array(
    table: AnnData, spots: RegionSpots, pixels: Float64, pitch: float, mpp: float
) -> tuple[bool | None, float]:
    """Whether array columns and rows run against x and y, if known, and the pitch in micrometers that they imply."""
    grid = table.obs.reindex(columns=["array_col", "array_row"]).iloc[spots.rows].to_numpy(dtype=np.float64)
    if not np.isfinite(grid).all() or not (np.ptp(grid, axis=0) > 0).all():
        return None, float("nan")
    design = np.column_stack([grid, np.ones(len(grid))])
    affine, *_ = np.linalg.lstsq(design, pixels, rcond=None)
    follows = ((design @ affine - pixels).std(axis=0) < 0.1 * pixels.std(axis=0)).all()
    mirrored = bool(np.linalg.det(affine[:2]) < 0) if follows else None
    # Spots that spahgc laid out (virtual ones, or sums of bins) have the pitch that the user chose.
    if keys.TISSUE in table.obs or keys.N_BINS in table.obs or (grid != np.round(grid)).any():
        return mirrored, float("nan")
    if (grid.sum(axis=1) % 2 == 0).all():  # Visium: every other column, in turn
        return mirrored, VISIUM_PITCH_UM
    is_legacy = (
        (np.ptp(grid, axis=0) < LEGACY_SIDE).all()
        and all(re.search(r"(^|_)\d+x\d+$", name) for name in table.obs_names[spots.rows])
        and abs(side_of(spots.shapes) * mpp / LEGACY_SPOT_UM - 1) <= DIFFERS
        and abs(pitch * mpp / VISIUM_PITCH_UM - 1) > DIFFERS  # square arrays at 100 um
    )
    return mirrored, LEGACY_PITCH_UM if is_legacy else float("nan")
