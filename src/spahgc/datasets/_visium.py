"""Visium sections in the files that Space Ranger writes."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import _keys
from .._checks import format_names
from .._geometry import VISIUM_PITCH_UM, visium_pitch
from ._fetch import SlideFiles

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")

SPOT_DIAMETER_UM = 55.0
COLUMNS = [_keys.IN_TISSUE, "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
"""Columns of a position table after the barcode; before Space Ranger 2 it has no header."""


def read_section(slide: str, paths: SlideFiles, *, patient: str) -> SpatialData:
    """Read counts (HDF5 or Matrix Market), positions, image and labels of a section."""
    import scanpy as sc

    from ..io import from_anndata

    counts, positions, image = paths["counts"], paths["positions"], paths["image"]
    adata = sc.read_10x_h5(counts) if counts.suffix == ".h5" else _read_mtx(counts.parent)
    adata.var_names_make_unique()
    _add_positions(adata, positions, slide)
    adata.obs[_keys.PATIENT] = patient
    if "labels" in paths:
        table = pd.read_csv(paths["labels"], index_col=0)
        adata.obs = adata.obs.join(table[table.columns.intersection(["subtype", "Classification"])].astype("category"))
    pitch = visium_pitch(adata.obs, adata.obsm[_keys.SPATIAL])
    if pitch is None:
        raise ValueError(
            f"Slide {slide!r}: the spots do not lie on a Visium array, so the micrometers per pixel are unknown. Do "
            "counts, positions and image belong to the same slide?"
        )
    mpp = VISIUM_PITCH_UM / pitch
    if image.name == "tissue_hires_image.png":
        factors = json.loads((positions.parent / "scalefactors_json.json").read_text(encoding="utf-8"))
        adata.obsm[_keys.SPATIAL] *= factors["tissue_hires_scalef"]
        mpp /= factors["tissue_hires_scalef"]
        logger.warning(
            "%s has no full-resolution image: the small one is used, with %.2g um per pixel, which does not show "
            "cells. Get the full-resolution image, and pass images={%r: <file>}.", slide, mpp, slide,
        )  # fmt: skip
    return from_anndata(adata, image, slide=slide, microns_per_pixel=mpp, spot_diameter_um=SPOT_DIAMETER_UM)


def _add_positions(adata: AnnData, path: Path, slide: str) -> None:
    """Add array and pixel positions to a table of barcodes, in place."""
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
            f"instance {format_names(lost, most=3)}. Do they belong to the same slide?"
        )
    table = table.loc[adata.obs_names].astype(np.float64)
    adata.obs = adata.obs.join(table[COLUMNS[:3]].astype(np.int64))
    adata.obsm[_keys.SPATIAL] = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()


def _read_mtx(folder: Path) -> AnnData:
    """Counts in Matrix Market format; features have one column (symbol) or three (id, symbol, type)."""
    from anndata import AnnData
    from scipy.io import mmread
    from scipy.sparse import csr_matrix

    with _open(folder / "matrix.mtx.gz") as handle:
        matrix = csr_matrix(mmread(handle).T, dtype=np.float32)
    tables = {}
    for name in ("features", "barcodes"):
        with _open(folder / f"{name}.tsv.gz") as handle:
            tables[name] = pd.read_csv(handle, sep="\t", header=None, dtype=str, keep_default_na=False)
    features, barcodes = tables["features"], tables["barcodes"]
    if matrix.shape != (len(barcodes), len(features)):
        raise ValueError(
            f"{folder}: the matrix has {matrix.shape[1]} genes x {matrix.shape[0]} spots, but there are "
            f"{len(features)} features and {len(barcodes)} barcodes. Do the files belong to the same slide?"
        )
    symbols = features[1 if features.shape[1] > 1 else 0].to_numpy()
    return AnnData(matrix, obs=pd.DataFrame(index=barcodes[0].to_numpy()), var=pd.DataFrame(index=symbols))


def _open(path: Path) -> IO[bytes]:
    """Open a file that may be plain text in spite of its name."""
    with path.open("rb") as handle:
        compressed = handle.read(2) == b"\x1f\x8b"
    opened: Any = gzip.open(path) if compressed else path.open("rb")  # noqa: SIM115
    return opened
