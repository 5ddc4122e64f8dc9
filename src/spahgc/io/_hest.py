"""Samples of HEST-1k."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from .. import _keys
from .._checks import format_names
from .._geometry import DIFFERS
from .._tables._slots import coordinates
from ._from_anndata import from_anndata
from ._wsi import read_wsi

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")

PRINTED = {"Visium", "Spatial Transcriptomics"}
"""Technologies with spots on the slide, whose diameter the metadata tell; of the others HEST made square bins."""


def read_hest(
    path: str | PathLike[str],
    sample_id: str | None = None,
    *,
    patient: str | None = None,
    microns_per_pixel: float | None = None,
    spot_diameter_um: float | None = None,
    backend: Literal["openslide", "tiffslide", "tifffile"] | None = None,
) -> SpatialData:
    """Read a sample of HEST-1k, or of a folder in its layout.

    Visium and legacy ST samples have their spots; of Xenium and Visium HD samples HEST sums transcripts or bins over
    squares (100 and 128 um), and these are the spots. Nothing of the whole-slide image is read now.

    Parameters
    ----------
    path
        Folder that holds ``st/{id}.h5ad``, ``wsis/{id}.tif`` and ``metadata/{id}.json``, and possibly
        ``tissue_seg/{id}_contours.geojson``. Instead of ``metadata``, a table ``HEST_v*.csv`` will do.
    sample_id
        Name of the sample, such as ``"TENX143"``; `None` if there is only one.
    patient
        Patient (donor) of the sample; `None` takes the one of the metadata. HEST numbers patients within a study:
        ``"Patient 1"`` of two studies are two people. Where HEST has none there is no column ``patient``, and a
        warning.
    microns_per_pixel
        Micrometres per pixel; `None` takes ``pixel_size_um_estimated`` of the metadata, which HEST measured. A warning
        tells where that of the original image (``pixel_size_um_embedded``) differs by more than 10 %.
    spot_diameter_um
        Diameter of a spot in micrometres; `None` takes that of the metadata, or the side of the squares.
    backend
        Library to read the image with, as for :func:`read_wsi`.

    Returns
    -------
    SpatialData as :func:`from_anndata` gives it, with the slide's name that of the sample. ``uns["hest"][id]`` of the
    table has the metadata; shapes ``{id}_tissue`` are the outlines of the tissue, where HEST has them. Spots whose
    centre is outside of the image are left out, with a warning.

    Raises
    ------
    FileNotFoundError
        If a file is missing; the message says which, and what is there.
    ValueError
        If there are several samples and `sample_id` is not given, or scale or spot diameter are neither known nor
        given.

    See Also
    --------
    spahgc.datasets.hest : reads and downloads several samples.

    References
    ----------
    Jaume et al., HEST-1k: a dataset for spatial transcriptomics and histology image analysis, NeurIPS 2024.
    https://huggingface.co/datasets/MahmoodLab/hest

    Examples
    --------
    >>> sdata = spahgc.io.read_hest("hest_data", "NCBI681")
    """
    from anndata import read_h5ad
    from scipy.sparse import csr_matrix

    root = Path(path)
    sample = _sample(root, sample_id)
    files = {name: root / folder / f"{sample}.{ending}" for name, folder, ending in _FILES}
    _check_files(root, sample, files)
    metadata = _metadata(root, sample)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique", UserWarning)
        adata = read_h5ad(files["st"])
    adata.var_names_make_unique()
    adata.X = csr_matrix(adata.X, dtype=np.float32)
    mpp = _scale(sample, metadata, microns_per_pixel)
    if spot_diameter_um is None:
        spot_diameter_um = _spot_diameter(sample, adata, metadata, mpp)
    # its small image and scale factors are made anew, from the slide
    adata.uns = {_keys.HEST: {sample: metadata}}
    patient = patient or metadata.get("patient")
    if patient is None:
        logger.warning(
            "HEST does not say who the patient of %s is. Pass patient=<name>: samples of one patient must not be "
            "parted between training and test.", sample,
        )  # fmt: skip
    else:
        adata.obs[_keys.PATIENT] = pd.Categorical([str(patient)] * adata.n_obs)
    wsi = read_wsi(files["wsi"], slide=sample, microns_per_pixel=mpp, backend=backend)
    height, width = next(iter(wsi.images.values()))["scale0"]["image"].shape[1:]
    _check_size(sample, (width, height), metadata)
    adata = _inside(sample, adata, (width, height))
    sdata = from_anndata(adata, wsi, slide=sample, microns_per_pixel=mpp, spot_diameter_um=spot_diameter_um)
    tissue = root / "tissue_seg" / f"{sample}_contours.geojson"
    if tissue.is_file():
        sdata.shapes[f"{sample}_tissue"] = _outlines(tissue, sample)
    return sdata


_FILES = (("st", "st", "h5ad"), ("wsi", "wsis", "tif"))


def samples(root: Path) -> list[str]:
    """Samples with a table in a folder."""
    return sorted(file.stem for file in (root / "st").glob("[!.]*.h5ad"))


def _sample(root: Path, sample_id: str | None) -> str:
    there = samples(root)
    if not there:
        raise FileNotFoundError(
            f"No samples (st/*.h5ad) in {str(root)!r}. read_hest reads the layout of HEST-1k: st/TENX143.h5ad, "
            "wsis/TENX143.tif, metadata/TENX143.json."
        )
    if sample_id is None:
        if len(there) > 1:
            raise ValueError(f"{str(root)!r} has {len(there)} samples: {format_names(there)}. Pass sample_id.")
        return there[0]
    if sample_id not in there:
        raise FileNotFoundError(f"No {root / 'st' / sample_id}.h5ad. Samples there: {format_names(there)}.")
    return sample_id


def _check_files(root: Path, sample: str, files: dict[str, Path]) -> None:
    if files["wsi"].is_file():
        return
    patches = root / "patches" / f"{sample}.h5"
    raise FileNotFoundError(
        f"No {files['wsi']}. Tiles are cut from the whole-slide image"
        + (f", not taken from {patches.name}, whose patches have another size" if patches.is_file() else "")
        + f": get it with `hf download MahmoodLab/hest wsis/{sample}.tif --repo-type dataset --local-dir {root}`."
    )


def _metadata(root: Path, sample: str) -> dict[str, Any]:
    """Metadata of a sample, without what is missing (HEST writes NaN); empty if there are none."""
    file = root / "metadata" / f"{sample}.json"
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
    else:
        found = {}
        for table in sorted(root.glob("HEST_v*.csv"), reverse=True):
            rows = pd.read_csv(table)
            rows = rows[rows["id"] == sample]
            if len(rows):
                found = rows.iloc[0].to_dict()
                break
    plain = {str(key): value.item() if isinstance(value, np.generic) else value for key, value in found.items()}
    return {
        # names that zarr and HDF5 take
        re.sub(r"[^A-Za-z0-9_.-]", "_", str(key)): value
        for key, value in plain.items()
        if isinstance(value, str | bool | int | float) and value == value and value != ""
    }


def _scale(sample: str, metadata: dict[str, Any], given: float | None) -> float:
    estimated, embedded = (metadata.get(f"pixel_size_um_{kind}") for kind in ("estimated", "embedded"))
    mpp = given if given is not None else estimated
    if mpp is None:
        raise ValueError(
            f"The micrometres per pixel of {sample} are not known: there is no metadata/{sample}.json with "
            "pixel_size_um_estimated, nor a HEST_v*.csv. Get the metadata, or pass microns_per_pixel."
        )
    if given is None and embedded is not None and abs(embedded / mpp - 1) > DIFFERS:
        logger.warning(
            "%s: HEST measured %.4g um per pixel; its original image says %.4g. The measured one is taken.",
            sample, mpp, embedded,
        )  # fmt: skip
    return float(mpp)


def _spot_diameter(sample: str, adata: AnnData, metadata: dict[str, Any], mpp: float) -> float:
    """Diameter of printed spots, or the side of the squares that HEST summed over, in micrometres."""
    technology = metadata.get("st_technology")
    if technology in PRINTED and "spot_diameter" in metadata:
        return float(metadata["spot_diameter"])
    if technology is None:
        raise ValueError(f"What the spots of {sample} are is not known (no st_technology). Pass spot_diameter_um.")
    # The squares lie side by side. The metadata have the size of the bins they were made of.
    from scipy.spatial import cKDTree

    xy = coordinates(adata, what=f"{sample}.h5ad")
    return mpp * float(np.median(np.asarray(cKDTree(xy).query(xy, k=[2])[0])))


def _check_size(sample: str, size: tuple[int, int], metadata: dict[str, Any]) -> None:
    told = tuple(metadata.get(f"fullres_px_{side}") for side in ("width", "height"))
    if None not in told and tuple(map(int, told)) != size:  # type: ignore[arg-type]
        logger.warning(
            "%s: the image has %d x %d pixels, its metadata say %d x %d. Is it the one that the spots were placed on?",
            sample, *size, *told,
        )  # fmt: skip


def _inside(sample: str, adata: AnnData, size: Sequence[int]) -> AnnData:
    """The spots whose centre is in the image: HEST's squares may reach beyond it."""
    xy = coordinates(adata, what=f"{sample}.h5ad")
    inside = np.asarray(((xy >= 0) & (xy < size)).all(axis=1))
    # all outside: another image, which from_anndata says
    if inside.all() or not inside.any():
        return adata
    logger.warning(
        "%s: %d of %d spots lie outside of the image and are left out.", sample, (~inside).sum(), len(inside)
    )
    return adata[inside].copy()


def _outlines(path: Path, slide: str) -> Any:
    """Outlines of the tissue in full-resolution pixels."""
    import geopandas as gpd
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    # GeoJSON says degrees where nothing is said; these are pixels
    frame = gpd.read_file(path).set_crs(None, allow_override=True).explode(index_parts=False).reset_index(drop=True)
    frame = frame[frame.geometry.geom_type == "Polygon"]
    return ShapesModel.parse(frame[["geometry"]].reset_index(drop=True), transformations={slide: Identity()})
