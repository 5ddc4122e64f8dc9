"""Judge whether spots lie on their image as they should, and mend what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _keys as keys
from .._links import centres_of, microns_per_unit, pick_table, regions, shapes_of
from .._slides import Float64
from .._tables._slots import check_table
from . import _alignment as kernel
from ._alignment_slide import PITCH_OFF, Situation, situation

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

ON_TISSUE = 0.2
"""Share of spots on tissue that some candidate has to reach."""
UNCLEAR = "unclear"
_TABLE = f"obsm['{keys.SPATIAL}'] is not where the shapes are"


@dataclass(frozen=True, eq=False)
class _Finding:
    """The verdict on one slide, and what it rests on."""

    slide: Situation
    verdict: str
    fix: str
    affine: Float64 | None
    """What `fix` does to the coordinates of the shapes, (3, 3); `None` if it does nothing to them."""
    advice: str
    """What is to be done beside, by the user; empty if nothing."""
    obsm: str
    """What ``obsm["spatial"]`` holds: ``"shapes"`` (their coordinates), ``"pixels"`` of the image, ``"other"`` or
    ``"none"``."""
    given: kernel.Evidence
    rival: kernel.Evidence
    candidate: kernel.Candidate
    """The best candidate other than the coordinates as given."""


def check_alignment(
    sdata: SpatialData,
    *,
    table_key: str | None = None,
    image_key: str | Mapping[str, str] | None = None,
    microns_per_pixel: float | Mapping[str, float] | None = None,
    layer: str | None = None,
    fix: bool = False,
) -> pd.DataFrame:
    """Check whether the spots lie on the tissue as they should, say what is wrong, and mend it.

    The spots are laid on the image as they are, and as they would lie if a usual mistake were undone: x and y swapped,
    flipped, turned by 90 or 180 degrees, each with the coordinates in pixels of the hires, lowres or another image of
    the object, at the pitch of the platform, and 2 or 4 times too large or small. A candidate's score is

    - ``outline``: agreement of the area of the spots with the tissue of the image, ``2 both / (spots + tissue)``;
      with an ``obs["in_tissue"]`` that is 0 somewhere, inside the array only;
    - plus ``expression``: the share of the spots' expression (ten leading components and total counts) that the
      colour of the image at their place explains, beyond smooth trends over the slide (adjusted R2); 0 without counts.

    A fault is named where its candidate leads all others by at least 0.08, and slides are said to be right where the
    coordinates as given do; either has to reach an outline of 0.85 or an expression of 0.1. Else the verdict is
    ``"unclear"``: tissue that fills the image, or is as good as symmetric, cannot be judged without counts, and the
    image may be that of another slide. ``array_row`` and ``array_col``, if there, say whether a candidate
    mirrors the array; that settles between candidates that cannot be told apart, and never raises an alarm alone.

    Where the best candidate gains as much again by a shift, ``"shifted"`` is part of the verdict, and `fix` says by how
    much, as well as the outline can tell; that is left to the user.

    Parameters
    ----------
    sdata
        Slides with images, shapes and a table that annotates the shapes.
    table_key
        Name of the table; `None` takes the only one, or ``"table"``, or the only one that is linked to shapes.
    image_key
        Name of the image, or a dict by slide; `None` takes the image that shares a coordinate system with the spots
        and has the most pixels.
    microns_per_pixel
        Micrometres per unit of the spots' coordinates, a number or a dict by slide; `None` takes what
        :func:`image_embedding` takes. They need not be known: then the pitch is not judged.
    layer
        Layer with expression; `None` takes ``X``, if the table has genes.
    fix
        Undo the faults that are named: move the shapes, and ``obsm["spatial"]`` with them. Nothing else is changed; a
        slide that is unclear or shifted is left as it is, with a warning. A SpatialData on disk is changed in memory
        only: write the shapes and the table again.

    Returns
    -------
    DataFrame, a row a slide:

    ``verdict``
        ``"ok"``, the fault in words, or ``"unclear"``.
    ``fix``
        What undoes it, in words, in full-resolution pixels; empty if nothing is to be done.
    ``fixed``
        Whether it was done.
    ``image``
        Name of the image.
    ``pitch_um``, ``platform_um``
        Distance of neighbouring spots by the coordinates as given and the micrometres per pixel, and on the platform
        (Visium 100, legacy arrays 200, by ``array_row`` and ``array_col``); NaN where not known.
    ``given_inside``, ``given_on_tissue``, ``given_outline``, ``given_expression``, ``given_score``
        Evidence for the coordinates as given; the first two are shares of spots.
    ``candidate``, ``candidate_inside``, ...
        The best other candidate, by the fault it undoes, and its evidence.

    Written into the table:

    ``uns["alignment"]["params"]``
        ``margin``, ``fits``, ``layer``, version of spahgc.
    ``uns["alignment"]["slides"]``
        By slide, the row of the report, and the candidate's ``affine`` (3, 3) on the coordinates of the shapes.
    ``uns["alignment"]["fixes"]``
        By slide, what was undone with `fix`: ``fault``, ``fix``, ``affine``; kept by later checks.

    Raises
    ------
    KeyError
        If the table, the link to its shapes, the shapes, an image or the layer are missing.
    TypeError
        If `sdata` is not a SpatialData.
    ValueError
        If there is no image for a slide, several fit, it shows no tissue, no candidate puts spots on tissue, a slide
        has fewer than ten spots, or micrometres per pixel are not plausible. In all cases nothing is written.

    Examples
    --------
    >>> spahgc.pp.check_alignment(sdata)[["verdict", "fix"]]
    >>> spahgc.pp.check_alignment(sdata, fix=True)
    >>> spahgc.pl.alignment(sdata, slide="C2")
    """
    from spatialdata import SpatialData

    if not isinstance(sdata, SpatialData):
        raise TypeError(f"sdata is a SpatialData, which holds image, shapes and table, not {type(sdata).__name__}.")
    key = pick_table(sdata, table_key)
    table = check_table(sdata.tables[key], what=f"sdata[{key!r}]")
    findings = []
    for name, rows, instances in regions(table):
        shapes = shapes_of(sdata, table, name, rows, instances)
        centres = centres_of(shapes, name)
        slide = situation(
            sdata,
            table,
            name,
            rows,
            shapes=shapes,
            centres=centres,
            microns_per_pixel=_mpp(table, name, rows, shapes, centres, microns_per_pixel),
            image_key=image_key.get(name) if isinstance(image_key, Mapping) else image_key,
            layer=layer,
        )
        findings.append(_judged(slide, table))
    # All is made before anything is written, so that a failure leaves the object as it was.
    moves = [_moved(sdata, finding) if fix else None for finding in findings]
    report = _report(findings, fixed=[move is not None for move in moves])
    record = _record(table, findings, report, layer)
    for finding, move in zip(findings, moves, strict=True):
        said = _left(finding) if fix else ""
        if said:
            warnings.warn(f"Slide {finding.slide.name!r}{said}", UserWarning, stacklevel=2)
        if move is not None:
            shapes = sdata.shapes[finding.slide.name]
            for column, values in move["shapes"].items():
                shapes[column] = values
            if move["obsm"] is not None:
                coordinates = np.array(table.obsm[keys.SPATIAL], dtype=np.float64)
                coordinates[finding.slide.rows] = move["obsm"]
                table.obsm[keys.SPATIAL] = coordinates
    table.uns[keys.ALIGNMENT] = record
    return report


def _mpp(
    table: AnnData,
    name: str,
    rows: NDArray[np.intp],
    shapes: Any,
    centres: Float64,
    given: float | Mapping[str, float] | None,
) -> float:
    """Micrometres per unit of the spots' coordinates; NaN where nothing plausible says so."""
    try:
        return microns_per_unit(table, name, rows, shapes, centres, given=given)[0]
    except ValueError:
        if given.get(name) if isinstance(given, Mapping) else given:
            raise
        # With coordinates of another resolution what was measured on them may well be absurd: that is what we are
        # here to find out, and nothing but the pitch is judged by it.
        return float("nan")


def _judged(slide: Situation, table: AnnData) -> _Finding:
    evidence = [kernel.judge(slide.spots, slide.picture, candidate) for candidate in slide.candidates]
    best_on = max(found.on_tissue for found in evidence)
    if best_on < ON_TISSUE:
        raise ValueError(
            f"None of the {len(evidence)} candidates puts spots of slide {slide.name!r} on tissue of image "
            f"{slide.image!r} ({best_on:.0%} of the spots at best). Is it the image of this slide (image_key), whole "
            "and not cropped, and are the coordinates pixels of it?"
        )
    best, rivals = kernel.decide(slide.candidates, evidence, slide.spots)
    advice = ""
    moved = _shift(slide, evidence, best, rivals)
    if moved is not None:
        best, advice = moved
    other = best or max(range(1, len(evidence)), key=lambda k: evidence[k].score)
    to_pixels = slide.to_pixels
    affine = np.linalg.inv(to_pixels) @ slide.candidates[best].affine @ to_pixels if best else None
    holds = _obsm_holds(slide, table)
    verdict, fix = slide.candidates[best].fault, slide.candidates[best].fix
    if moved is not None:
        verdict = f"{verdict}; shifted" if best else "shifted"
        fix = f"{fix}; then {advice}" if best else advice
        affine, advice = None, fix
    elif not evidence[best].fits:
        named = verdict if best else "as given"
        verdict, affine = UNCLEAR, None
        fix = (
            f"nothing fits well: best is {named!r} with outline {evidence[best].outline:.2f} and expression "
            f"{evidence[best].expression:.2f}; is {slide.image!r} the image of this slide?"
        )
    elif rivals:
        names = (
            f"{slide.candidates[k].fault if k else 'as given'} {evidence[k].score:.2f}" for k in [best, *rivals][:4]
        )
        verdict, affine = UNCLEAR, None
        fix = f"cannot be told apart by score: {', '.join(names)}; look at spahgc.pl.alignment"
    elif best == 0 and holds == "other":
        verdict = _TABLE
        fix = f"obsm['{keys.SPATIAL}'] = centres of the shapes"
    elif advice := _pitch(slide, affine):
        verdict = "microns_per_pixel wrong" if best == 0 else verdict
        fix = f"{fix}; {advice}" if fix else advice
    return _Finding(slide, verdict, fix, affine, advice, holds, evidence[0], evidence[other], slide.candidates[other])


def _shift(
    slide: Situation, evidence: Sequence[kernel.Evidence], best: int, rivals: Sequence[int]
) -> tuple[int, str] | None:
    """Candidate that leads by the margin once shifted, and what would have to be added; `None` where none does."""

    def shifted(k: int) -> tuple[Float64, kernel.Evidence]:
        return kernel.shift(slide.spots, slide.picture, slide.candidates[k])

    needed = evidence[best].score + kernel.MARGIN
    found = {best: shifted(best)}
    if not rivals and found[best][1].score < needed:
        return None
    # With a shift another of the symmetries may suit better than the one that led without.
    first = best // 8 * 8
    found |= {k: shifted(k) for k in {*range(first, first + 8), *rivals} - {best}}
    top, second = sorted(found, key=lambda k: -found[k][1].score)[:2]
    if found[top][1].score < max(needed, found[second][1].score + kernel.MARGIN):
        return None
    dx, dy = found[top][0]
    return top, f"add about {dx:.0f} to x, {dy:.0f} to y (was the image cropped, or is it another slide's?)"


def _pitch(slide: Situation, affine: Float64 | None) -> str:
    """What is to be done about micrometres per pixel, by the pitch of the platform."""
    stretch = 1.0 if affine is None else float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
    right = slide.platform_um / (slide.pitch * stretch)
    # NaN compares false: nothing is said where either is not known.
    if abs(np.log(right / slide.microns_per_pixel)) > np.log(1 + PITCH_OFF):
        return f"set microns_per_pixel to {right:.4g}: the platform's spots are {slide.platform_um:g} um apart"
    return ""


def _obsm_holds(slide: Situation, table: AnnData) -> str:
    if keys.SPATIAL not in table.obsm:
        return "none"
    coordinates = np.asarray(table.obsm[keys.SPATIAL])[slide.rows, :2].astype(np.float64)
    if np.abs(coordinates - slide.centres).max() <= 0.25 * slide.pitch:
        return "shapes"
    pixels = _apply(slide.to_pixels, slide.centres)
    unit = float(np.sqrt(abs(np.linalg.det(slide.to_pixels[:2, :2]))))
    return "pixels" if np.abs(coordinates - pixels).max() <= 0.25 * slide.pitch * unit else "other"


def _apply(affine: Float64, points: Float64) -> Float64:
    return np.asarray(points @ affine[:2, :2].T + affine[:2, 2])


def _moved(sdata: SpatialData, finding: _Finding) -> dict[str, Any] | None:
    """New columns of the shapes, and new coordinates of the table's rows; `None` where nothing is to be done."""
    slide = finding.slide
    if finding.affine is None:
        return {"shapes": {}, "obsm": slide.centres} if finding.verdict == _TABLE else None
    (a, b, x), (c, d, y), _ = finding.affine
    shapes = sdata.shapes[slide.name]
    columns: dict[str, Any] = {"geometry": shapes.geometry.affine_transform([a, b, c, d, x, y])}
    if "radius" in shapes:
        # Coordinates in the wrong unit may come with a radius in the right one: the spots are about half a pitch wide.
        stretch = float(np.sqrt(abs(np.linalg.det(finding.affine[:2, :2]))))
        half = slide.pitch * stretch / 4
        columns["radius"] = min(
            (shapes["radius"] * factor for factor in (1.0, stretch)),
            key=lambda radius: abs(np.log(float(radius.median()) / half)),
        )
    centres = _apply(finding.affine, slide.centres)
    new = {"shapes": centres, "pixels": _apply(slide.to_pixels, centres)}.get(finding.obsm)
    return {"shapes": columns, "obsm": new}


def _left(finding: _Finding) -> str:
    """What a fix leaves undone; empty if nothing."""
    if finding.verdict == UNCLEAR:
        return f" is left as it is: {finding.fix}."
    if finding.affine is not None and finding.obsm == "other":
        return f": obsm['{keys.SPATIAL}'] was not where the shapes were; only the shapes are moved. Check again."
    return f": left to you: {finding.advice}." if finding.advice else ""


def _report(findings: list[_Finding], fixed: list[bool]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for finding, done in zip(findings, fixed, strict=True):
        slide = finding.slide
        rows.append(
            {
                "slide": slide.name,
                "verdict": finding.verdict,
                "fix": finding.fix,
                "fixed": done,
                "image": slide.image,
                "pitch_um": slide.pitch * slide.microns_per_pixel,
                "platform_um": slide.platform_um,
                **{f"given_{name}": value for name, value in _numbers(finding.given).items()},
                "candidate": finding.candidate.fault,
                **{f"candidate_{name}": value for name, value in _numbers(finding.rival).items()},
            }
        )
    return pd.DataFrame(rows).set_index("slide")


def _numbers(evidence: kernel.Evidence) -> dict[str, float]:
    return {**asdict(evidence), "score": evidence.score}


def _record(table: AnnData, findings: list[_Finding], report: pd.DataFrame, layer: str | None) -> dict[str, Any]:
    """What goes into ``uns``."""
    slides: dict[str, Any] = {}
    fixes = dict(table.uns.get(keys.ALIGNMENT, {}).get("fixes", {}))
    for finding in findings:
        name = finding.slide.name
        to_pixels = finding.slide.to_pixels
        slides[name] = {
            **{str(key): value for key, value in report.loc[name].items()},
            "affine": np.linalg.inv(to_pixels) @ finding.candidate.affine @ to_pixels,
        }
        if report.loc[name, "fixed"]:
            fixes[name] = {"fault": finding.verdict, "fix": finding.fix}
            if finding.affine is not None:
                fixes[name]["affine"] = finding.affine
    params = {"margin": kernel.MARGIN, "fits": list(kernel.FITS), "layer": layer or "X", "version": version("spahgc")}
    return {keys.PARAMS: params, "slides": slides, "fixes": fixes}
