"""What the Visium datasets share: positions, scale, and a table of several slides."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import _keys
from .._checks import format_names
from .._geometry import VISIUM_PITCH_UM, visium_pitch

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")

SPOT_DIAMETER_UM = 55.0
COLUMNS = [_keys.IN_TISSUE, "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
"""Of a Space Ranger position table, after the barcode; before version 2 without a header."""


def place(adata: AnnData, path: Path, slide: str) -> None:
    """Add ``in_tissue``, ``array_row``, ``array_col`` and the pixel coordinates to a table of barcodes, in place."""
    table = pd.read_csv(path, header=None, index_col=0, dtype=str)
    if _keys.IN_TISSUE in table.iloc[0].tolist():
        table = table.iloc[1:]
    if table.shape[1] != len(COLUMNS):
        raise ValueError(f"{path} has {table.shape[1] + 1} columns; expected barcode, {', '.join(COLUMNS)}.")
    table.columns = COLUMNS
    lost = adata.obs_names.difference(table.index)
    if len(lost):
        raise ValueError(
            f"Slide {slide!r}: {len(lost)} of {adata.n_obs} barcodes of the counts have no position in {path}, for "
            f"instance {format_names(lost, most=3)}. Are they of one slide?"
        )
    table = table.loc[adata.obs_names].astype(np.float64)
    adata.obs = adata.obs.join(table[COLUMNS[:3]].astype(np.int64))
    adata.obsm[_keys.SPATIAL] = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()


def visium_mpp(adata: AnnData, slide: str) -> float:
    """Micrometres per pixel, of the distance of neighbouring spots."""
    pitch = visium_pitch(adata.obs, np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64))
    if pitch is None:
        raise ValueError(
            f"Slide {slide!r}: the spots do not lie on a Visium array, so that the micrometres per pixel are not "
            "known. Are counts, positions and image of one slide?"
        )
    return VISIUM_PITCH_UM / pitch


def join(slides: Sequence[SpatialData]) -> SpatialData:
    """Slides in one table, with the genes that all of them measured: a gene that a panel lacks is not a count of 0."""
    from ..io import concat

    tables = [sdata.tables[_keys.TABLE] for sdata in slides]
    common = tables[0].var_names
    for table in tables[1:]:
        common = common[common.isin(table.var_names)]
    most = max(table.n_vars for table in tables)
    if not len(common):
        raise ValueError(
            f"The slides have no gene in common; the first have {format_names(tables[0].var_names, most=3)}."
        )
    if len(common) < most:
        level = logging.WARNING if len(common) < 0.5 * most else logging.INFO
        logger.log(level, "%d genes of up to %d are measured on all %d slides; the others are left out.",
                   len(common), most, len(tables))  # fmt: skip
        for sdata, table in zip(slides, tables, strict=True):
            sdata.tables[_keys.TABLE] = table[:, common].copy()
    return concat(slides)
