"""Breast cancer, Visium (10x Genomics)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .._checks import checked
from .._settings import settings
from ._fetch import Address, Candidates, find_slides
from ._visium import read_section

if TYPE_CHECKING:
    from spatialdata import SpatialData

BASE_URL = "https://cf.10xgenomics.com/samples/spatial-exp/"
BY_HAND = (
    "download filtered_feature_bc_matrix.h5, spatial.tar.gz (to be unpacked) and image.tif of each section from "
    "https://www.10xgenomics.com/datasets into a folder of its name, and pass the folder above: visium_bc(path=...)"
)
COUNTS = "filtered_feature_bc_matrix.h5"
SLIDES = {
    "block1": ("V1_Breast_Cancer_Block_A_Section_1", "1.1.0", "block_A"),
    "block2": ("V1_Breast_Cancer_Block_A_Section_2", "1.1.0", "block_A"),
    "FFPE": ("Visium_FFPE_Human_Breast_Cancer", "1.3.0", "FFPE"),
}
"""Name of the section at 10x, version of Space Ranger in its address, and tissue block."""


@checked()
def visium_bc(
    path: str | PathLike[str] | None = None,
    *,
    slides: Sequence[str] | None = None,
    base_url: str | None = None,
    progress: bool | None = None,
) -> SpatialData:
    """Human breast cancer of 10x Genomics: two adjacent Visium sections of a frozen block and one of an FFPE block.

    Parameters
    ----------
    path, slides, base_url, progress
        As in :func:`her2st`, for one Space Ranger folder per slide, ``V1_Breast_Cancer_Block_A_Section_1`` (or
        ``block1``) with ``V1_Breast_Cancer_Block_A_Section_1_filtered_feature_bc_matrix.h5``, ``..._image.tif`` and
        ``spatial`` (files may lack the prefix), slides of ``["block1", "block2", "FFPE"]``, ``settings.data_dir /
        "visium_bc"``, and 10x Genomics.

    Returns
    -------
    SpatialData as from :func:`spahgc.io.from_anndata`, with lazy images and all slides in one ``table`` with their
    common genes (about half as many were measured on the FFPE section). ``obs["patient"]`` is the tissue block,
    ``block_A`` or ``FFPE``: 10x does not name the donors, so each block is taken for one.

    Notes
    -----
    Never run on the real files: addresses and file names are those of public code. 10x publishes checksums only after
    log-in: those of the first download are kept and compared later.

    References
    ----------
    10x Genomics, Human Breast Cancer (Block A Section 1, Block A Section 2), Space Ranger 1.1.0, and Human Breast
    Cancer: Ductal Carcinoma In Situ, Invasive Carcinoma (FFPE), Space Ranger 1.3.0. https://www.10xgenomics.com/datasets

    Examples
    --------
    >>> sdata = spahgc.datasets.visium_bc(slides=["block1", "block2"])  # doctest: +SKIP
    """
    from ..io import concat

    root = settings.data_dir / "visium_bc" if path is None else Path(path)

    def folder_of(slide: str) -> Path:
        return root / slide if (root / slide).is_dir() else root / SLIDES[slide][0]

    def candidates(slide: str) -> Candidates:
        folder, name = folder_of(slide), SLIDES[slide][0]
        tables = ("tissue_positions_list.csv", "tissue_positions.csv")
        return {
            "counts": [folder / f"{name}_{COUNTS}", folder / COUNTS],
            "image": [folder / f"{name}_image.tif", folder / "image.tif"],
            "positions": [folder / "spatial" / table for table in tables],
        }

    def addresses(slide: str) -> list[Address]:
        (name, version, _), folder = SLIDES[slide], folder_of(slide)
        base = f"{(base_url or BASE_URL).rstrip('/')}/{version}/{name}"
        endings = [COUNTS, *([] if (folder / "spatial").is_dir() else ["spatial.tar.gz"]), "image.tif"]
        return [(f"{base}/{name}_{ending}", f"{folder.name}/{name}_{ending}", None) for ending in endings]

    found = find_slides(
        "visium_bc",
        root,
        slides,
        names=list(SLIDES),
        candidates=candidates,
        layout=f"V1_Breast_Cancer_Block_A_Section_1/V1_Breast_Cancer_Block_A_Section_1_{COUNTS}, ...",
        by_hand=BY_HAND,
        addresses=addresses if path is None else None,
        remote=list(SLIDES) if path is None else (),
        progress=progress,
    )
    parts = [read_section(slide, paths, patient=SLIDES[slide][2]) for slide, paths in found.items()]
    return concat(parts, join="inner")
