"""Samples of HEST-1k."""

from __future__ import annotations

import json
import re
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from anndata import read_h5ad
from scipy.sparse import csr_matrix
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity

from .. import _keys
from .._checks import above, between, checked, format_names
from .._geometry import DIFFERS, PLAUSIBLE_MPP, neighbor_distance
from .._settings import logger
from .._tables._patients import patient_name
from .._tables._slots import coordinates
from ._from_anndata import from_anndata
from ._wsi import read_wsi

# Technologies with printed spots, whose diameter the metadata give; for the others HEST made square bins.
_PRINTED = {"Visium", "Spatial Transcriptomics"}


@checked(microns_per_pixel=between(*PLAUSIBLE_MPP), spot_diameter_um=above(0))
def read_hest(
    path: str | PathLike[str],
    slide: str | None = None,
    *,
    patient: str | None = None,
    microns_per_pixel: float | None = None,
    spot_diameter_um: float | None = None,
) -> SpatialData:
    """Read a sample of HEST-1k, or of a folder in its layout.

    Visium and legacy ST samples keep their spots. For Xenium and Visium HD samples HEST sums transcripts or bins over
    squares (100 and 128 um), which become the spots. The whole-slide image is read lazily.

    Parameters
    ----------
    path
        Folder with ``st/{id}.h5ad``, ``wsis/{id}.tif``, ``metadata/{id}.json``, and optionally
        ``tissue_seg/{id}_contours.geojson``. A table ``HEST_v*.csv`` serves instead of ``metadata``.
    slide
        Name of the sample, such as ``"TENX143"``. Not needed if there is only one.
    patient
        Patient (donor) of the sample. Defaults to that of the metadata. HEST numbers patients within a study:
        ``"Patient 1"`` of two studies are two people. Without a value ``obs["patient"]`` is missing, with a warning.
    microns_per_pixel
        Micrometers per pixel. Defaults to ``pixel_size_um_estimated`` of the metadata, which HEST measured; a warning
        says if the value in the original image differs by more than 10 %.
    spot_diameter_um
        Spot diameter in micrometers. Defaults to that of the metadata, or to the side of the squares.

    Returns
    -------
    SpatialData as from :func:`from_anndata`, named like the sample. ``uns["hest"][id]`` of the table holds the
    metadata; shapes ``{id}_tissue`` are the outlines of the tissue, if HEST has them. Spots with their center outside
    the image are left out, with a warning.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing, `slide` is required, or scale or spot diameter are neither known nor given.

    References
    ----------
    Jaume et al., HEST-1k: a dataset for spatial transcriptomics and histology image analysis, NeurIPS 2024.
    https://huggingface.co/datasets/MahmoodLab/hest

    Examples
    --------
    >>> sdata = spahgc.io.read_hest("hest_data", "NCBI681")  # doctest: +SKIP
    """
    root = Path(path)
    names = hest_samples(root)
    name = names[0] if slide is None and len(names) == 1 else slide
    if name is None or name not in names:
        raise FileNotFoundError(
            f"slide={slide!r} is not a sample (st/{{slide}}.h5ad) in {str(root)!r}. Available: {format_names(names)}. "
            "read_hest reads the layout of HEST-1k: st/TENX143.h5ad, wsis/TENX143.tif, metadata/TENX143.json."
        )
    if not (root / "wsis" / f"{name}.tif").is_file():
        raise FileNotFoundError(
            f"No {root / 'wsis' / name}.tif. Tiles are cut from the whole-slide image, not taken from HEST's patches, "
            f"which have another size. Get it with `hf download MahmoodLab/hest wsis/{name}.tif --repo-type dataset "
            f"--local-dir {root}`."
        )
    file = root / "metadata" / f"{name}.json"
    tables = sorted(root.glob("HEST_v*.csv"))
    entries: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not file.is_file() and tables:
        rows: list[Any] = pd.read_csv(tables[-1]).query("id == @name").to_dict("records")
        entries = rows[0] if rows else {}
    # Without missing values, and under names that Zarr and HDF5 accept.
    metadata: dict[str, Any] = {
        re.sub(r"[^A-Za-z0-9_.-]", "_", key): value
        for key, value in entries.items()
        if isinstance(value, str | bool | int | float) and value == value and value != ""
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique", UserWarning)
        adata = read_h5ad(root / "st" / f"{name}.h5ad")
    adata.var_names_make_unique()
    adata.X = csr_matrix(adata.X, dtype=np.float32)
    estimated, embedded = (metadata.get(f"pixel_size_um_{kind}") for kind in ("estimated", "embedded"))
    mpp = estimated if microns_per_pixel is None else microns_per_pixel
    if mpp is None:
        raise ValueError(
            f"The micrometers per pixel of {name} are unknown: there is no metadata/{name}.json or HEST_v*.csv "
            "with pixel_size_um_estimated. Get the metadata, or pass `microns_per_pixel`."
        )
    if microns_per_pixel is None and embedded is not None and abs(embedded / mpp - 1) > DIFFERS:
        logger.warning(
            "%s: HEST measured %.4g um per pixel, but the original image says %.4g. The measured value is used.",
            name, mpp, embedded,
        )  # fmt: skip
    xy = coordinates(adata, what=f"{name}.h5ad")
    if spot_diameter_um is None:
        technology = metadata.get("st_technology")
        if technology is None:
            raise ValueError(f"The kind of spots of {name} is unknown (no st_technology). Pass `spot_diameter_um`.")
        printed = technology in _PRINTED and "spot_diameter" in metadata
        # Squares lie side by side; the metadata give the size of the bins that they were made of.
        spot_diameter_um = float(metadata["spot_diameter"]) if printed else mpp * neighbor_distance(xy)
    # Thumbnail and scale factors are made anew from the slide.
    adata.uns = {_keys.HEST: {name: metadata}}
    patient = patient_name(metadata.get("patient") if patient is None else patient)
    if patient is None:
        logger.warning(
            "HEST does not name the patient of %s. Pass patient=<name>: samples of one patient must not be split "
            "between training and test.", name,
        )  # fmt: skip
    adata.obs[_keys.PATIENT] = pd.Categorical([patient] * adata.n_obs)
    wsi = read_wsi(root / "wsis" / f"{name}.tif", slide=name, microns_per_pixel=mpp)
    height, width = wsi.images[f"{name}_image"]["scale0"]["image"].shape[1:]
    stated = (int(metadata.get("fullres_px_width", width)), int(metadata.get("fullres_px_height", height)))
    if stated != (width, height):
        logger.warning(
            "%s: the image has %d x %d pixels, its metadata say %d x %d. Is it the one that the spots were placed on?",
            name, width, height, *stated,
        )  # fmt: skip
    inside = np.asarray(((xy >= 0) & (xy < (width, height))).all(axis=1))
    if inside.any() and not inside.all():  # if all lie outside, from_anndata raises
        logger.warning("%s: %d of %d spots lie outside the image and are left out.", name, (~inside).sum(), len(inside))
        adata = adata[inside].copy()
    sdata = from_anndata(adata, wsi, slide=name, microns_per_pixel=mpp, spot_diameter_um=spot_diameter_um)
    tissue = root / "tissue_seg" / f"{name}_contours.geojson"
    if tissue.is_file():
        # GeoJSON defaults to degrees; these are full-resolution pixels.
        frame = gpd.read_file(tissue).set_crs(None, allow_override=True).explode(ignore_index=True)
        polygons = frame.loc[frame.geometry.geom_type == "Polygon", ["geometry"]].reset_index(drop=True)
        sdata.shapes[f"{name}_tissue"] = ShapesModel.parse(polygons, transformations={name: Identity()})
    return sdata


def hest_samples(root: Path) -> list[str]:
    """Samples in a folder that have a table."""
    return sorted(file.stem for file in (root / "st").glob("[!.]*.h5ad"))
