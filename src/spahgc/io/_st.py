"""Legacy Spatial Transcriptomics arrays."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import _counts, _spots
from ._assemble import assemble, check_slide_name
from ._image import read_image

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")


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
    scale_factors: Sequence[int] | None = None,
) -> SpatialData:
    """Read one slide of a legacy Spatial Transcriptomics array.

    Parameters
    ----------
    counts
        Raw counts, spots x genes: a tab- or comma-separated file (``.tsv``, ``.csv``, with or without ``.gz``) or a
        data frame. Rows are named ``{x}x{y}`` by array position (``10x14``) or adjusted array position
        (``10.02x13.97``). `None` for a slide with H&E only.
    spots
        Spots, as a file or a data frame with the columns ``x``, ``y`` (array position, whole numbers) and ``pixel_x``,
        ``pixel_y`` (pixels of `image`); optionally ``new_x``, ``new_y`` (adjusted array position) and ``selected`` (0
        for spots to leave out). A spot that only one of `counts` and `spots` has is left out.
    image
        H&E image at full resolution, 8-bit RGB: a file (JPEG, PNG, TIFF) or an array (height, width, 3). It is held in
        memory.
    slide
        Name of the slide; letters, digits, ``_``, ``-`` and ``.``.
    patient
        Patient (donor) of the slide; without it the table has no column ``patient``, which training and validation by
        patient need.
    microns_per_pixel
        Micrometres per pixel; `None` measures it: `pitch_um` over the distance of neighbouring spots in pixels, the
        scale of the affine map from array to pixel positions.
    pitch_um
        Distance of neighbouring spots, centre to centre, in micrometres.
    spot_diameter_um
        Diameter of a spot in micrometres.
    scale_factors
        Factor of each level of the multiscale image to the one above; `None` halves until the longest side is at most
        1024 pixels.

    Returns
    -------
    SpatialData with, in the coordinate system ``{slide}`` (full-resolution pixels):

    - image ``{slide}_image``: multiscale, (c, y, x) uint8, channels r, g, b;
    - shapes ``{slide}``: one circle a spot, with the true radius;
    - table ``table``: ``X`` raw counts (CSR float32), names ``{slide}_{x}x{y}``, ``obs["region"]``, ``obs["spot_id"]``
      (link to the shapes), ``obs["patient"]``, ``obs["array_row"]``, ``obs["array_col"]``, ``obsm["spatial"]`` (x, y)
      in pixels, float64, and ``uns["spatial"][slide]`` with a thumbnail and the scale factors that squidpy reads,
      ``microns_per_pixel`` among them.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    KeyError
        If `spots` lacks a column.
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If counts are negative, non-integer, empty, transposed or have duplicate names; if counts and spots have no spot
        in common; if positions are missing or outside the image; if the image is not 8-bit RGB; or if the scale of the
        image is absurd.

    See Also
    --------
    concat : joins slides into one SpatialData.

    References
    ----------
    Stahl et al., Visualization and analysis of gene expression in tissue sections by spatial transcriptomics, Science
    2016.
    """
    check_slide_name(slide)
    if not spot_diameter_um > 0:
        raise ValueError(f"spot_diameter_um={spot_diameter_um:g} is a diameter in micrometres, above 0.")
    frame = _spots.read_spots(spots)
    table = None if counts is None else _counts.read_counts(counts)
    if table is None:
        matrix, var = None, pd.DataFrame(index=pd.Index([], dtype=object))
    else:
        rows, kept = _spots.match(table, frame)
        matrix, var = table.matrix[rows], pd.DataFrame(index=table.genes.astype(object))
        frame = frame.iloc[kept]
    found = _spots.Spots(
        array=frame[["x", "y"]].to_numpy(dtype=np.int64), pixel=frame[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    )
    rgb = read_image(image)
    _spots.check_positions(found, rgb.size)
    mpp = _spots.scale(found, microns_per_pixel=microns_per_pixel, pitch_um=pitch_um)
    logger.info("%s: %d spots, %.3f um per pixel, image of %d x %d pixels.", slide, len(frame), mpp, *rgb.size)
    return assemble(
        slide,
        found,
        rgb,
        counts=matrix,
        var=var,
        microns_per_pixel=mpp,
        spot_diameter_um=spot_diameter_um,
        patient=patient,
        scale_factors=scale_factors,
    )
