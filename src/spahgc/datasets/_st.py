"""Published slides of legacy Spatial Transcriptomics arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path

import numpy as np
from spatialdata import SpatialData

from .._checks import checked
from .._settings import settings
from ..io import concat, read_st
from ..io._st import read_counts, read_spots, spot_names
from ._fetch import Address, Candidates, find_slides

HER2ST_URL = "https://raw.githubusercontent.com/almaan/her2st/master/"
CSCC_URL = "https://ftp.ncbi.nlm.nih.gov/geo/samples/"
CSCC_PITCH_UM = 150.0
CSCC_ACCESSIONS = {
    f"{patient}_ST_rep{replicate}": f"GSM{4284316 + 3 * number + replicate - 1}"
    for number, patient in enumerate(("P2", "P5", "P9", "P10"))
    for replicate in (1, 2, 3)
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
    FileNotFoundError, ValueError
        If `path` is not such a folder, a slide is incomplete or unknown, or a download has the wrong checksum.
    ConnectionError
        If a download fails; the next call resumes it.

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
    parts = []
    for slide, paths in found.items():
        parts.append(read_st(paths["counts"], paths["spots"], paths["image"], slide=slide, patient=slide[0]))
    return concat(parts)


def her2st_registry() -> dict[str, str]:
    """Checksums of the files that can be downloaded, by path in the repository."""
    lines = files(__package__).joinpath("her2st.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split() for line in lines if line and not line.startswith("#"))


@checked()
def cscc(path: str | PathLike[str] | None = None, *, slides: Sequence[str] | None = None) -> SpatialData:
    """Human cutaneous squamous cell carcinoma: 12 legacy ST slides with H&E, three sections of each of four patients.

    On these arrays a second grid of spots lies between the first, so neighbors are on the diagonals, 150 um apart;
    spots are 110 um wide. Only the spots of the spot tables are kept (under tissue, 460 to 1180 of 1934 per slide).

    Parameters
    ----------
    path, slides
        As in :func:`her2st`, for the files of ``GSE144240_RAW.tar`` (compressed or not) in
        ``settings.data_dir / "cscc"`` or from GEO, and slides such as ``"P2_ST_rep1"`` and ``"P10_ST_rep3"``.

    Returns
    -------
    SpatialData as from :func:`spahgc.io.read_st`, all slides in one ``table``. ``obs["patient"]`` is ``P2``, ``P5``,
    ``P9`` or ``P10``. Images are held in memory.

    Notes
    -----
    Never run on the real files: file names, layout, pitch and spot diameter are those of public code and papers. GEO
    publishes no checksums: those of the first download are kept and compared later.

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
            pitch_um=CSCC_PITCH_UM / np.sqrt(2) if diagonal else CSCC_PITCH_UM,
            spot_diameter_um=110,
        )
        parts.append(part)
    return concat(parts)
