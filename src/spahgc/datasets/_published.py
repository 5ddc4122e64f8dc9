"""Published slides: legacy Spatial Transcriptomics arrays, and Visium sections in files of Space Ranger."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.io import mmread
from scipy.sparse import csr_matrix
from spatialdata import SpatialData

from .. import _keys
from .._checks import above, checked, format_names
from .._geometry import VISIUM_PITCH_UM, visium_pitch
from .._settings import logger, settings
from ..io import concat, from_anndata, read_st
from ..io._st import read_counts, read_spots, spot_names
from ._fetch import Address, Candidates, find_slides

HER2ST_URL = "https://raw.githubusercontent.com/almaan/her2st/master/"
CSCC_URL = "https://ftp.ncbi.nlm.nih.gov/geo/samples/"
CSCC_ACCESSIONS = {
    f"{patient}_ST_rep{replicate}": f"GSM{4284316 + 3 * number + replicate - 1}"
    for number, patient in enumerate(("P2", "P5", "P9", "P10"))
    for replicate in (1, 2, 3)
}
# Columns of a position table after the barcode; before Space Ranger 2 it has no header.
VISIUM_COLUMNS = [_keys.IN_TISSUE, "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
ALEX_URL = "https://zenodo.org/records/4739739/files/"
ALEX_SLIDES = ("1142243F", "1160920F", "CID4290", "CID4465", "CID44971", "CID4535")
# Checksums as two public repositories quote them from the record; not compared with the files.
ALEX_ARCHIVES = {
    "filtered_count_matrices.tar.gz": "md5:ea1220f0606c4d4e9307468fb2d5427a",
    "metadata.tar.gz": "md5:1d0b34ead70635c094ac74ac58a88d68",
    "spatial.tar.gz": "md5:29b02ae433d459d19dc52b75a529e8e9",
}
TENX_URL = "https://cf.10xgenomics.com/samples/spatial-exp/"
TENX_COUNTS = "filtered_feature_bc_matrix.h5"
# Name of the section at 10x, version of Space Ranger in its address, and tissue block.
TENX_SLIDES = {
    "block1": ("V1_Breast_Cancer_Block_A_Section_1", "1.1.0", "block_A"),
    "block2": ("V1_Breast_Cancer_Block_A_Section_2", "1.1.0", "block_A"),
    "FFPE": ("Visium_FFPE_Human_Breast_Cancer", "1.3.0", "FFPE"),
}


@checked()
def her2st(path: str | PathLike[str] | None = None, *, slides: Sequence[str] | None = None) -> SpatialData:
    """HER2-positive breast tumors: 36 legacy ST slides with H&E of eight patients, 200 um pitch, 100 um spots.

    Reads a clone of the authors' repository, or downloads from there. Only the five slides of two patients whose
    SHA-256 checksums come with the package (B4, C2, C3, C4, C5) are downloaded.

    Parameters
    ----------
    path
        Folder with ``ST-cnts``, ``ST-spotfiles`` and ``ST-imgs``, or whose ``data`` has them. Defaults to
        ``settings.data_dir / "her2st"``, where missing files are downloaded to.
    slides
        Names of slides, such as ``["C2", "C4"]``. Defaults to all in the folder, or all that can be downloaded.

    Returns
    -------
    SpatialData as from :func:`spahgc.io.read_st`, all slides in one ``table``. ``obs["patient"]`` is the first letter
    of the slide. A slide takes about 370 MB of memory.

    Raises
    ------
    FileNotFoundError, ValueError, ConnectionError
        If a slide is incomplete or unknown, or a download fails or has a wrong checksum.

    References
    ----------
    Andersson et al., Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell type
    interactions, Nature Communications 2021. https://github.com/almaan/her2st

    Examples
    --------
    >>> sdata = spahgc.datasets.her2st(slides=["C2", "C4"])  # doctest: +SKIP
    """
    root = settings.data_dir / "her2st" if path is None else Path(path)
    # Downloads go to data/ as in a clone of the repository.
    folder = root if (root / "ST-cnts").is_dir() else root / "data"
    registry = her2st_registry()

    def candidates(slide: str) -> Candidates:
        place = folder / "ST-imgs" / slide[0] / slide
        images = sorted(place.glob("*.jpg"))
        return {
            "counts": [folder / "ST-cnts" / f"{slide}{suffix}" for suffix in (".tsv.gz", ".tsv")],
            "spots": [folder / "ST-spotfiles" / f"{slide}_selection.tsv"],
            "image": images if len(images) == 1 else [place / "*.jpg (exactly one)"],
        }

    def addresses(slide: str) -> list[Address]:
        paths = [file for file in registry if re.search(rf"/{slide}[._/]", file)]
        return [(f"{HER2ST_URL}{file}", file.removeprefix("data/"), registry[file]) for file in paths]

    found = find_slides(
        "her2st",
        folder,
        slides,
        download=path is None,
        published=sorted(Path(file).name.split(".")[0] for file in registry if "/ST-cnts/" in file),
        names=sorted({file.name.split(".tsv")[0] for file in folder.glob("ST-cnts/[!.]*.tsv*")}),
        candidates=candidates,
        addresses=addresses,
        by_hand="run `git clone https://github.com/almaan/her2st` (36 slides) and pass the folder: her2st(path=...)",
    )
    return concat(
        [
            read_st(paths["counts"], paths["spots"], paths["image"], slide=slide, patient=slide[0])
            for slide, paths in found.items()
        ]
    )


def her2st_registry() -> dict[str, str]:
    """Checksums of the files that can be downloaded, by path in the repository."""
    lines = files(__package__).joinpath("her2st.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split() for line in lines if line and not line.startswith("#"))


@checked(pitch_um=above(0))
def cscc(
    path: str | PathLike[str] | None = None, *, slides: Sequence[str] | None = None, pitch_um: float = 150.0
) -> SpatialData:
    """Human cutaneous squamous cell carcinoma: 12 legacy ST slides with H&E, three sections of each of four patients.

    On these arrays a second grid of spots lies between the first, so neighbors are on the diagonals; spots are 110 um
    wide. Only the spots of the spot tables are kept (under tissue, 460 to 1180 of 1934 per slide).

    Parameters
    ----------
    path, slides
        As in :func:`her2st`, for the files of ``GSE144240_RAW.tar`` (compressed or not) in
        ``settings.data_dir / "cscc"`` or from GEO, and slides such as ``"P2_ST_rep1"`` and ``"P10_ST_rep3"``.
    pitch_um
        Center-to-center distance of neighboring spots in micrometers, which sets the scale of the images.

    Returns
    -------
    SpatialData as from :func:`spahgc.io.read_st`, all slides in one ``table``. ``obs["patient"]`` is ``P2``, ``P5``,
    ``P9`` or ``P10``. Images are held in memory.

    Notes
    -----
    Never run on the real files: file names, layout, pitch and spot diameter are those of public code and papers.

    References
    ----------
    Ji et al., Multimodal analysis of composition and spatial architecture in human squamous cell carcinoma, Cell 2020.

    Examples
    --------
    >>> sdata = spahgc.datasets.cscc("GSE144240_RAW", slides=["P2_ST_rep1"])  # doctest: +SKIP
    """
    root = settings.data_dir / "cscc" if path is None else Path(path)
    folder = next((place for place in (root, root / "GSE144240_RAW") if any(place.glob("GSM*_stdata.tsv*"))), root)

    def candidates(slide: str) -> Candidates:
        gsm = CSCC_ACCESSIONS[slide]
        names = {
            "counts": f"{gsm}_{slide}_stdata.tsv",
            "spots": f"{gsm}_spot_data-selection-{slide}.tsv",
            "image": f"{gsm}_{slide}.jpg",
        }
        return {key: [folder / name, folder / f"{name}.gz"] for key, name in names.items()}

    def addresses(slide: str) -> list[Address]:
        gsm = CSCC_ACCESSIONS[slide]
        base = f"{CSCC_URL}{gsm[:-3]}nnn/{gsm}/suppl"
        return [(f"{base}/{packed.name}", packed.name, None) for _, packed in candidates(slide).values()]

    found = find_slides(
        "cscc",
        folder,
        slides,
        download=path is None,
        published=list(CSCC_ACCESSIONS),
        candidates=candidates,
        addresses=addresses,
        by_hand="download GSE144240_RAW.tar from https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE144240, unpack "
        "it, and pass the folder: cscc(path=...)",
    )
    parts = []
    for slide, paths in found.items():
        spots, counts = read_spots(paths["spots"]), read_counts(paths["counts"])
        array = spots[["x", "y"]].to_numpy()
        # Neighbors are sqrt(2) steps of the array apart if only every other position has a spot.
        diagonal = len(np.unique(array.sum(axis=1) % 2)) == 1
        part = read_st(
            counts[counts.index.isin(spot_names(array))],
            spots,
            paths["image"],
            slide=slide,
            patient=slide.split("_")[0],
            pitch_um=pitch_um / np.sqrt(2) if diagonal else pitch_um,
            spot_diameter_um=110,
        )
        parts.append(part)
    return concat(parts)


@checked()
def alex(
    path: str | PathLike[str] | None = None,
    *,
    slides: Sequence[str] | None = None,
    images: Mapping[str, str | PathLike[str]] | None = None,
) -> SpatialData:
    """Human breast cancer: six Visium sections with H&E of six patients, of three clinical subtypes.

    Zenodo has the images at 2000 pixels only, on which a spot is about 10 pixels wide. For tiles that show cells, get
    the full-resolution images from https://doi.org/10.48610/4fb74a9 and pass them.

    Parameters
    ----------
    path, slides
        As in :func:`her2st`, for Zenodo's unpacked ``filtered_count_matrices``, ``spatial`` and ``metadata`` (or one
        folder per slide, ``CID4290``, with ``filtered_count_matrix`` and ``spatial``) in ``settings.data_dir / "alex"``
        or from Zenodo, and slides such as ``"CID4290"`` and ``"1142243F"``.
    images
        Full-resolution images by slide. Defaults to ``{slide}/image.tif`` in the folder.

    Returns
    -------
    SpatialData as from :func:`spahgc.io.from_anndata`, all slides in one ``table`` with their common genes.
    ``obs["patient"]`` is the slide's name, ``obs["subtype"]`` the clinical subtype and ``obs["Classification"]`` the
    pathologist's label of the spot.

    Notes
    -----
    Never run on the real files: file names and layout are those of public code.

    References
    ----------
    Wu et al., A single-cell and spatially resolved atlas of human breast cancers, Nature Genetics 2021.

    Examples
    --------
    >>> sdata = spahgc.datasets.alex(slides=["CID4290"], images={"CID4290": "CID4290.tif"})  # doctest: +SKIP
    """
    root = settings.data_dir / "alex" if path is None else Path(path)
    given = {slide: [Path(image)] for slide, image in (images or {}).items()}
    if unknown := sorted(given.keys() - set(ALEX_SLIDES)):
        raise ValueError(
            f"`images` has unknown slides {format_names(unknown)}. Available: {format_names(ALEX_SLIDES)}."
        )

    def candidates(slide: str) -> Candidates:
        # Zenodo's layout, or a folder per slide.
        counts = [
            root / "filtered_count_matrices" / f"{slide}_filtered_count_matrix",
            root / slide / "filtered_count_matrix",
        ]
        spatial = [root / "spatial" / f"{slide}_spatial", root / slide / "spatial"]
        small = [folder / "tissue_hires_image.png" for folder in spatial]
        labels = root / "metadata" / f"{slide}_metadata.csv"
        return {
            "counts": [folder / "matrix.mtx.gz" for folder in counts],
            "features": [folder / "features.tsv.gz" for folder in counts],
            "barcodes": [folder / "barcodes.tsv.gz" for folder in counts],
            "positions": [folder / "tissue_positions_list.csv" for folder in spatial],
            "scale": [folder / "scalefactors_json.json" for folder in spatial],
            "image": given.get(slide, [root / slide / "image.tif", *small]),
            **({"labels": [labels]} if labels.is_file() else {}),
        }

    def addresses(_: str) -> list[Address]:
        return [(f"{ALEX_URL}{name}?download=1", name, checksum) for name, checksum in ALEX_ARCHIVES.items()]

    found = find_slides(
        "alex",
        root,
        slides,
        download=path is None,
        published=ALEX_SLIDES,
        candidates=candidates,
        addresses=addresses,
        by_hand=f"download {', '.join(ALEX_ARCHIVES)} from https://zenodo.org/records/4739739, unpack them into one "
        "folder, and pass it: alex(path=...)",
    )
    return concat([_read_section(slide, paths, patient=slide) for slide, paths in found.items()], join="inner")


@checked()
def visium_bc(path: str | PathLike[str] | None = None, *, slides: Sequence[str] | None = None) -> SpatialData:
    """Human breast cancer of 10x Genomics: two adjacent Visium sections of a frozen block and one of an FFPE block.

    Parameters
    ----------
    path, slides
        As in :func:`her2st`, for one Space Ranger folder per slide, ``V1_Breast_Cancer_Block_A_Section_1`` (or
        ``block1``) with ``V1_Breast_Cancer_Block_A_Section_1_filtered_feature_bc_matrix.h5``, ``..._image.tif`` and
        ``spatial`` (files may lack the prefix), in ``settings.data_dir / "visium_bc"`` or from 10x Genomics, and slides
        of ``["block1", "block2", "FFPE"]``.

    Returns
    -------
    SpatialData as from :func:`spahgc.io.from_anndata`, with lazy images and all slides in one ``table`` with their
    common genes (about half as many were measured on the FFPE section). ``obs["patient"]`` is the tissue block,
    ``block_A`` or ``FFPE``: 10x does not name the donors, so each block is taken for one.

    Notes
    -----
    Never run on the real files: addresses and file names are those of public code.

    References
    ----------
    10x Genomics, https://www.10xgenomics.com/datasets; full names in the documentation of the data sets.

    Examples
    --------
    >>> sdata = spahgc.datasets.visium_bc(slides=["block1", "block2"])  # doctest: +SKIP
    """
    root = settings.data_dir / "visium_bc" if path is None else Path(path)

    def folder_of(slide: str) -> Path:
        return root / slide if (root / slide).is_dir() else root / TENX_SLIDES[slide][0]

    def candidates(slide: str) -> Candidates:
        folder, name = folder_of(slide), TENX_SLIDES[slide][0]
        tables = ("tissue_positions_list.csv", "tissue_positions.csv")
        return {
            "counts": [folder / f"{name}_{TENX_COUNTS}", folder / TENX_COUNTS],
            "image": [folder / f"{name}_image.tif", folder / "image.tif"],
            "positions": [folder / "spatial" / table for table in tables],
        }

    def addresses(slide: str) -> list[Address]:
        (name, version, _), folder = TENX_SLIDES[slide], folder_of(slide)
        endings = [TENX_COUNTS, *([] if (folder / "spatial").is_dir() else ["spatial.tar.gz"]), "image.tif"]
        names = [f"{name}_{ending}" for ending in endings]
        return [(f"{TENX_URL}{version}/{name}/{file}", f"{folder.name}/{file}", None) for file in names]

    found = find_slides(
        "visium_bc",
        root,
        slides,
        download=path is None,
        published=list(TENX_SLIDES),
        candidates=candidates,
        addresses=addresses,
        by_hand="download filtered_feature_bc_matrix.h5, spatial.tar.gz (to be unpacked) and image.tif of each section "
        "from https://www.10xgenomics.com/datasets into a folder of its name, and pass the folder above: "
        "visium_bc(path=...)",
    )
    parts = [_read_section(slide, paths, patient=TENX_SLIDES[slide][2]) for slide, paths in found.items()]
    return concat(parts, join="inner")


def _read_section(slide: str, paths: Mapping[str, Path], *, patient: str) -> SpatialData:
    """Read counts (HDF5 or Matrix Market), positions, image and labels of a section."""
    import scanpy as sc  # slow to import

    counts, positions, image = paths["counts"], paths["positions"], paths["image"]
    adata = sc.read_10x_h5(counts) if counts.suffix == ".h5" else _read_mtx(counts.parent)
    adata.var_names_make_unique()
    table = pd.read_csv(positions, header=None, index_col=0, dtype=str)
    if _keys.IN_TISSUE in table.iloc[0].tolist():
        table = table.iloc[1:]
    table.columns = VISIUM_COLUMNS
    lost = adata.obs_names.difference(table.index)
    if len(lost):
        raise ValueError(
            f"Slide {slide!r}: {len(lost)} of {adata.n_obs} barcodes of the counts have no position in {positions}, "
            f"for instance {format_names(lost, most=3)}. Do they belong to the same slide?"
        )
    table = table.loc[adata.obs_names].astype(np.float64)
    adata.obs = adata.obs.join(table[VISIUM_COLUMNS[:3]].astype(np.int64))
    adata.obsm[_keys.SPATIAL] = table[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    adata.obs[_keys.PATIENT] = patient
    if "labels" in paths:
        labels = pd.read_csv(paths["labels"], index_col=0)
        adata.obs = adata.obs.join(labels.filter(["subtype", "Classification"]).astype("category"))
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
    return from_anndata(adata, image, slide=slide, microns_per_pixel=mpp, spot_diameter_um=55)


def _read_mtx(folder: Path) -> AnnData:
    """Counts in Matrix Market format; features have one column (symbol) or three (id, symbol, type)."""
    matrix = csr_matrix(mmread(_open(folder / "matrix.mtx.gz")).T, dtype=np.float32)
    features, barcodes = (
        pd.read_csv(_open(folder / f"{name}.tsv.gz"), sep="\t", header=None, dtype=str, keep_default_na=False)
        for name in ("features", "barcodes")
    )
    symbols = features[1 if features.shape[1] > 1 else 0].to_numpy()
    return AnnData(matrix, obs=pd.DataFrame(index=barcodes[0].to_numpy()), var=pd.DataFrame(index=symbols))


def _open(path: Path) -> BytesIO:
    """Open a file that may be plain text in spite of its name."""
    content = path.read_bytes()
    return BytesIO(gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content)
