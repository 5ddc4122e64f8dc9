"""Legacy Spatial Transcriptomics arrays."""

from __future__ import annotations

import logging
from os import PathLike

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from spatialdata import SpatialData

from .. import _keys
from .._checks import above, between, checked
from .._geometry import PLAUSIBLE_MPP
from ._concat import check_slide_name, no_genes, slide_data
from ._image import pyramid, read_image
from ._spots import check_inside, match_spots, read_counts, read_spots, scale_from_pitch, source_of, spot_names

logger = logging.getLogger("spahgc")


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
    FileNotFoundError, KeyError
        If a file is missing, or `spots` lacks a column.
    ValueError
        If counts are not raw counts, counts and spots have no spot in common, positions are missing or outside the
        image, the image is not 8-bit RGB, or its scale is implausible.

    See Also
    --------
    concat : joins slides into one SpatialData.

    References
    ----------
    Stahl et al., Visualization and analysis of gene expression in tissue sections by spatial transcriptomics, Science
    2016.

    Examples
    --------
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
        matrix, genes = no_genes(len(frame)), pd.Index([], dtype=object)
    array = frame[["x", "y"]].to_numpy(dtype=np.int64)
    pixel = frame[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    rgb = read_image(image)
    check_inside(pixel, spot_names(array), rgb.size, "spots (pixel_x, pixel_y)")
    mpp = scale_from_pitch(array, pixel, pitch_um) if microns_per_pixel is None else float(microns_per_pixel)
    logger.info("%s: %d spots, %.3f um per pixel, image of %d x %d pixels.", slide, len(frame), mpp, *rgb.size)
    names = pd.Index([f"{slide}_{x}x{y}" for x, y in array], dtype=object)
    obs = pd.DataFrame({"array_row": array[:, 1], "array_col": array[:, 0]}, index=names)
    if patient is not None:
        obs[_keys.PATIENT] = pd.Categorical([patient] * len(obs))
    table = AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=genes), obsm={_keys.SPATIAL: pixel})
    return slide_data(table, slide, pyramid(rgb, slide), diameter=spot_diameter_um / mpp, microns_per_pixel=mpp)
