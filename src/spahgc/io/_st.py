"""Legacy Spatial Transcriptomics arrays: count and spot tables, and the slide that they make with an image."""

from __future__ import annotations

import csv
import gzip
import logging
import zlib
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

from .. import _keys
from .._checks import above, between, checked, format_names
from .._geometry import PLAUSIBLE_MPP, Float64, legacy_pitch
from .._settings import logger
from ._concat import check_inside, check_slide_name, link_spots
from ._image import pyramid, read_image

# Name of a spot on a legacy array: ``{x}x{y}``, integers or real numbers.
SPOT_NAME = r"\s*(-?\d+(?:\.\d+)?)x(-?\d+(?:\.\d+)?)\s*"
_REQUIRED = ["x", "y", "pixel_x", "pixel_y"]


@checked(microns_per_pixel=between(*PLAUSIBLE_MPP), pitch_um=above(0), spot_diameter_um=above(0))
def read_st(
    counts: str | PathLike[str] | pd.DataFrame | None,
    spots: str | PathLike[str] | pd.DataFrame,
    image: str | PathLike[str] | NDArray[np.uint8],
    *,
    slide: str,
    patient: str | None = None,
    microns_per_pixel: float | None = None,
    pitch_um: float = 200.0,
    spot_diameter_um: float = 100.0,
) -> SpatialData:
    """Read one slide of a legacy Spatial Transcriptomics array.

    Parameters
    ----------
    counts
        Raw counts, spots x genes: a tab- or comma-separated file (``.tsv``, ``.csv``, optionally ``.gz``) or a data
        frame. Rows are named ``{x}x{y}`` by array position (``10x14``) or adjusted array position (``10.02x13.97``).
        `None` for a slide with H&E only.
    spots
        Spot table, a file or a data frame with the columns ``x``, ``y`` (integer array position) and ``pixel_x``,
        ``pixel_y`` (pixels of `image`); optionally ``new_x``, ``new_y`` (adjusted array position) and ``selected`` (0
        for spots to leave out). Spots that only one of `counts` and `spots` has are left out.
    image
        H&E image at full resolution, 8-bit RGB: a file (JPEG, PNG, TIFF) or an array (height, width, 3). It is held in
        memory.
    slide
        Name of the slide: letters, digits, ``_``, ``-`` and ``.``.
    patient
        Patient (donor) of the slide, written to ``obs["patient"]``. Training and cross-validation by patient need it.
    microns_per_pixel
        Micrometers per pixel. By default measured as `pitch_um` over the spot pitch in pixels, which is the scale of
        the affine map from array to pixel positions.
    pitch_um
        Center-to-center distance of neighboring spots in micrometers.
    spot_diameter_um
        Spot diameter in micrometers.

    Returns
    -------
    SpatialData with, in the coordinate system ``{slide}`` (full-resolution pixels):

    - image ``{slide}_image``: multiscale, (c, y, x) uint8, channels r, g, b;
    - shapes ``{slide}``: circles of the true spot radius;
    - table ``table``: ``X`` raw counts (CSR float32), names ``{slide}_{x}x{y}``, ``obs["region"]`` and
      ``obs["spot_id"]`` (link to the shapes), ``obs["patient"]``, ``obs["array_row"]``, ``obs["array_col"]``,
      ``obsm["spatial"]`` (x, y) in pixels, float64, and ``uns["spatial"][slide]`` with a thumbnail and the scale
      factors that squidpy reads, ``microns_per_pixel`` among them.

    Raises
    ------
    FileNotFoundError, KeyError, ValueError
        If a file or column is missing, counts are not raw counts, counts and spots have no spot in common, or positions
        lie outside the image.

    References
    ----------
    Stahl et al., Visualization and analysis of gene expression in tissue sections by spatial transcriptomics, Science
    2016.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import spahgc
    >>> x, y = [1, 2, 1, 2], [1, 1, 2, 2]
    >>> spots = pd.DataFrame({"x": x, "y": y, "pixel_x": [50, 90, 50, 90], "pixel_y": [50, 50, 90, 90]})
    >>> counts = pd.DataFrame({"ERBB2": [3, 0, 1, 2]}, index=["1x1", "2x1", "1x2", "2x2"])
    >>> image = np.full((140, 140, 3), 255, np.uint8)
    >>> spahgc.io.read_st(counts, spots, image, slide="A1")["table"].shape
    (4, 1)
    """
    check_slide_name(slide)
    frame = read_spots(spots)
    if counts is not None:
        measured = read_counts(counts)
        rows, kept = match_spots(measured.index, frame, source_of(counts, "counts"))
        matrix, genes = sparse.csr_matrix(measured.to_numpy()[rows]), measured.columns.astype(object)
        frame = frame.iloc[kept]
    else:
        matrix, genes = sparse.csr_matrix((len(frame), 0), dtype=np.float32), pd.Index([], dtype=object)
    array = frame[["x", "y"]].to_numpy(dtype=np.int64)
    pixel = frame[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    rgb = read_image(image)
    check_inside(pixel, spot_names(array), rgb.size, "spots (pixel_x, pixel_y)")
    mpp = microns_per_pixel
    try:
        pitch = legacy_pitch(array, pixel)
    except ValueError as error:
        if mpp is None:
            raise ValueError(f"{error} Otherwise pass `microns_per_pixel`.") from None
        logger.warning("%s: %s", slide, error)
    if mpp is None:
        mpp = pitch_um / pitch
        if not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
            raise ValueError(
                f"The spot pitch ({pitch:.1f} pixels for {pitch_um:g} um) implies {mpp:.3g} um per pixel, outside the "
                f"plausible range of {PLAUSIBLE_MPP[0]:g} to {PLAUSIBLE_MPP[1]:g}. Are the pixel positions those of "
                "the full-resolution image? Otherwise pass `pitch_um` or `microns_per_pixel`."
            )
    logger.info("%s: %d spots, %.3f um per pixel, image of %d x %d pixels.", slide, len(frame), mpp, *rgb.size)
    names = pd.Index([f"{slide}_{x}x{y}" for x, y in array], dtype=object)
    obs = pd.DataFrame({"array_row": array[:, 1], "array_col": array[:, 0]}, index=names)
    if patient is not None:
        obs[_keys.PATIENT] = pd.Categorical([patient] * len(obs))
    table = AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=genes), obsm={_keys.SPATIAL: pixel})
    tree = pyramid(rgb, slide)
    shapes = link_spots(table, slide, tree, diameter=spot_diameter_um / mpp, microns_per_pixel=mpp)
    return SpatialData(images={f"{slide}_image": tree}, shapes={slide: shapes}, tables={_keys.TABLE: table})


def source_of(table: str | PathLike[str] | pd.DataFrame, parameter: str) -> str:
    """Name of a table in messages."""
    return f"{parameter} ({'data frame' if isinstance(table, pd.DataFrame) else Path(table).name})"


def separator(path: Path) -> str:
    """Column separator of a text table: comma for ``.csv`` (``.gz``), tab otherwise."""
    return "," if ".csv" in [suffix.lower() for suffix in path.suffixes] else "\t"


def read_counts(counts: str | PathLike[str] | pd.DataFrame) -> pd.DataFrame:
    """Raw counts as float32 with unique row names ``{x}x{y}``; raises if they are anything else."""
    source = source_of(counts, "counts")
    frame = counts if isinstance(counts, pd.DataFrame) else _read_table(Path(counts), source)
    spots, genes = frame.index.astype(str), frame.columns.astype(str)
    other = spots[~spots.str.fullmatch(SPOT_NAME).astype(bool)]
    if len(other):
        raise ValueError(
            f"{source}: {len(other)} of {len(spots)} rows are not named '{{x}}x{{y}}' (such as '10x14'), for instance "
            f"{format_names(other, most=3)}. Expected spots x genes: transpose genes x spots (counts.T)."
        )
    for kind, names in (("spot", spots), ("gene", genes)):
        if names.has_duplicates:
            duplicates = names[names.duplicated()].unique()
            raise ValueError(
                f"{source} has {len(duplicates)} duplicate {kind} names, for instance "
                f"{format_names(duplicates, most=3)}. Sum or rename them first."
            )
    try:
        values = frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} holds non-numeric values: {error}.") from error
    wrong = ~((values >= 0) & (values == np.floor(values)) & np.isfinite(values))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"{source} holds {int(wrong.sum())} values that are not raw counts, the first {values[row, column]:g} at "
            f"spot {spots[row]!r}, gene {genes[column]!r}. Raw counts are required: integers of at least 0, neither "
            "normalized nor log-transformed."
        )
    return pd.DataFrame(values.astype(np.float32), index=spots, columns=genes)


def _read_table(path: Path, source: str) -> pd.DataFrame:
    """Read row by row: pandas is several times slower with thousands of columns, and renames duplicate ones."""
    opener = gzip.open if path.suffix == ".gz" else open
    names, values = [], []
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = filter(None, csv.reader(file, delimiter=separator(path)))
            head = next(rows, [])
            for name, *fields in rows:
                # R writes no name for the column of row names.
                genes = head if len(head) == len(fields) else head[1:]
                if len(genes) != len(fields):
                    raise ValueError(
                        f"{source}: the header names {len(genes)} genes, but row {name!r} has {len(fields)} values. "
                        "Expected fields separated by a tab, or by a comma in a file named .csv."
                    )
                names.append(name)
                try:
                    values.append(np.array(fields, dtype=np.float64))
                except ValueError as error:
                    raise ValueError(f"{source} holds non-numeric values at spot {name!r}: {error}.") from None
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{source} is truncated or damaged: {error}.") from error
    if not values:
        raise ValueError(f"{source} is empty: expected a row per spot and a column per gene.")
    return pd.DataFrame(np.stack(values), index=names, columns=pd.Index(genes, dtype=object))


def read_spots(spots: str | PathLike[str] | pd.DataFrame) -> pd.DataFrame:
    """Selected spots of a spot table, with unique integer array positions and numeric pixel positions."""
    source = source_of(spots, "spots")
    frame = spots if isinstance(spots, pd.DataFrame) else pd.read_csv(spots, sep=separator(Path(spots)))
    missing = [name for name in _REQUIRED if name not in frame.columns]
    if missing:
        raise KeyError(
            f"{source} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}. Required: "
            "x, y (position on the array) and pixel_x, pixel_y (position in the image)."
        )
    if "selected" in frame.columns:
        frame = frame[frame["selected"].astype(float) == 1]
    if frame.empty:
        raise ValueError(f"{source} has no spots, or none that are selected (column 'selected').")
    frame = frame.astype(dict.fromkeys(_REQUIRED, np.float64)).reset_index(drop=True)
    array = frame[["x", "y"]].to_numpy()
    if not np.array_equal(array, np.round(array)):
        raise ValueError(
            f"{source}: x and y must be integer positions on the array. Adjusted positions belong into new_x, new_y."
        )
    duplicates = spot_names(array)[frame.duplicated(["x", "y"]).to_numpy()]
    if len(duplicates):
        raise ValueError(
            f"{source} has {len(duplicates)} duplicate spots, for instance {format_names(duplicates, most=3)}."
        )
    return frame


def spot_names(array: NDArray[Any]) -> pd.Index:
    """Names ``{x}x{y}`` of array positions."""
    return pd.Index([f"{x:g}x{y:g}" for x, y in array], dtype=object)


def match_spots(names: pd.Index, frame: pd.DataFrame, source: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of a count table and of a spot table with the same spots.

    Names are compared with array positions, adjusted positions, and rounded positions; the most matches win.
    """
    named = names.str.extract(SPOT_NAME).astype(np.float64).to_numpy()
    array = frame[["x", "y"]].to_numpy()
    found = {"x, y": _pairs(named, array)}
    if {"new_x", "new_y"} <= set(frame.columns):
        # Adjusted positions are printed with a few digits only.
        found["new_x, new_y"] = _pairs(named.round(3), frame[["new_x", "new_y"]].to_numpy(np.float64).round(3))
    found["rounded x, y"] = _pairs(np.floor(named + 0.5), array)
    best = max(found, key=lambda way: len(found[way]))
    pairs = found[best]
    tally = "; ".join(f"{len(rows)} by {way}" for way, rows in found.items())
    if not len(pairs):
        raise ValueError(
            f"{source} and the spots have no spot in common (matched of {len(names)}: {tally}). Spots of the counts: "
            f"{format_names(names, most=3)}; of the spot table: {format_names(spot_names(array), most=3)}. Do they "
            "belong to the same slide?"
        )
    if len(pairs) < max(len(names), len(array)):
        logger.log(
            logging.WARNING if len(pairs) < 0.5 * len(names) else logging.INFO,
            "%s: %d of %d spots matched to %d spots of the spot table by %s (%s). The others are left out.",
            source, len(pairs), len(names), len(array), best, tally,
        )  # fmt: skip
    return pairs[:, 0], pairs[:, 1]


def _pairs(left: Float64, right: Float64) -> NDArray[np.intp]:
    """Pairs of rows with the same position, (n, 2); a position that several rows share matches nothing."""
    unique = [
        pd.DataFrame(positions, columns=["x", "y"]).drop_duplicates(keep=False).reset_index()
        for positions in (left, right)
    ]
    return unique[0].merge(unique[1], on=["x", "y"])[["index_x", "index_y"]].to_numpy(np.intp)
