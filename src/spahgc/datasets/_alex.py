"""Breast cancer of six patients, Visium (Wu et al. 2021, from Alexander Swarbrick's laboratory)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .._checks import checked, format_names
from .._settings import settings
from ._fetch import Address, Candidates, find_slides
from ._visium import read_section

if TYPE_CHECKING:
    from spatialdata import SpatialData

BASE_URL = "https://zenodo.org/records/4739739/files/"
BY_HAND = (
    "download filtered_count_matrices.tar.gz, spatial.tar.gz and metadata.tar.gz from "
    "https://zenodo.org/records/4739739, unpack them into one folder, and pass it: alex(path=...)"
)
# Checksums as two public repositories quote them from the record; not compared with the files.
ARCHIVES = {
    "filtered_count_matrices.tar.gz": "md5:ea1220f0606c4d4e9307468fb2d5427a",
    "metadata.tar.gz": "md5:1d0b34ead70635c094ac74ac58a88d68",
    "spatial.tar.gz": "md5:29b02ae433d459d19dc52b75a529e8e9",
}
SLIDES = ("1142243F", "1160920F", "CID4290", "CID4465", "CID44971", "CID4535")


@checked()
def alex(
    path: str | PathLike[str] | None = None,
    *,
    slides: Sequence[str] | None = None,
    base_url: str | None = None,
    progress: bool | None = None,
    images: Mapping[str, str | PathLike[str]] | None = None,
) -> SpatialData:
    """Human breast cancer: six Visium sections with H&E of six patients, of three clinical subtypes.

    Zenodo has the images at 2000 pixels only, on which a spot is about 10 pixels wide. For tiles that show cells, get
    the full-resolution images from https://doi.org/10.48610/4fb74a9 and pass them.

    Parameters
    ----------
    path, slides, base_url, progress
        As in :func:`her2st`, for Zenodo's unpacked ``filtered_count_matrices``, ``spatial`` and ``metadata`` (or one
        folder per slide, ``CID4290``, with ``filtered_count_matrix`` and ``spatial``), slides such as ``"CID4290"`` and
        ``"1142243F"``, ``settings.data_dir / "alex"``, and Zenodo.
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
    from ..io import concat

    root = settings.data_dir / "alex" if path is None else Path(path)
    given = {slide: Path(image) for slide, image in (images or {}).items()}
    if unknown := sorted(set(given) - set(SLIDES)):
        raise ValueError(f"`images` has unknown slides {format_names(unknown)}. Available: {format_names(SLIDES)}.")
    if absent := [str(image) for image in given.values() if not image.is_file()]:
        raise FileNotFoundError(f"`images` names files that do not exist: {format_names(absent)}.")

    def candidates(slide: str) -> Candidates:
        # Zenodo's layout, or a folder per slide.
        counts = (
            root / "filtered_count_matrices" / f"{slide}_filtered_count_matrix",
            root / slide / "filtered_count_matrix",
        )
        spatial = (root / "spatial" / f"{slide}_spatial", root / slide / "spatial")
        labels = root / "metadata" / f"{slide}_metadata.csv"
        return {
            "counts": [folder / "matrix.mtx.gz" for folder in counts],
            "features": [folder / "features.tsv.gz" for folder in counts],
            "barcodes": [folder / "barcodes.tsv.gz" for folder in counts],
            "positions": [folder / "tissue_positions_list.csv" for folder in spatial],
            "scale": [folder / "scalefactors_json.json" for folder in spatial],
            "image": [given.get(slide, root / slide / "image.tif")]
            + [folder / "tissue_hires_image.png" for folder in spatial],
            **({"labels": [labels]} if labels.is_file() else {}),
        }

    def addresses(_: str) -> list[Address]:
        base = (base_url or BASE_URL).rstrip("/")
        return [(f"{base}/{archive}?download=1", archive, checksum) for archive, checksum in ARCHIVES.items()]

    found = find_slides(
        "alex",
        root,
        slides,
        names=SLIDES,
        candidates=candidates,
        layout="filtered_count_matrices/CID4290_filtered_count_matrix/matrix.mtx.gz, ..., spatial/CID4290_spatial/*, "
        "metadata/CID4290_metadata.csv",
        by_hand=BY_HAND,
        addresses=addresses if path is None else None,
        remote=SLIDES if path is None else (),
        progress=progress,
    )
    return concat([read_section(slide, paths, patient=slide) for slide, paths in found.items()], join="inner")
