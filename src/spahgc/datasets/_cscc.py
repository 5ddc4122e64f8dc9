"""Cutaneous squamous cell carcinoma, legacy ST arrays (Ji et al. 2020, GSE144240)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._checks import above, checked
from .._settings import settings
from ..io._counts import read_counts
from ..io._spots import read_spots, spot_names
from ._fetch import Address, Candidates, SlideFiles, find_slides

if TYPE_CHECKING:
    from spatialdata import SpatialData

BASE_URL = "https://ftp.ncbi.nlm.nih.gov/geo/samples/"
BY_HAND = (
    "download GSE144240_RAW.tar from https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE144240, unpack it, and pass "
    "the folder: cscc(path=...)"
)
SPOT_DIAMETER_UM = 110.0
ACCESSIONS = {
    f"{patient}_ST_rep{replicate}": f"GSM{4284316 + 3 * number + replicate - 1}"
    for number, patient in enumerate(("P2", "P5", "P9", "P10"))
    for replicate in (1, 2, 3)
}


@checked(pitch_um=above(0))
def cscc(
    path: str | PathLike[str] | None = None,
    *,
    slides: Sequence[str] | None = None,
    base_url: str | None = None,
    progress: bool | None = None,
    pitch_um: float = 150.0,
) -> SpatialData:
    """Human cutaneous squamous cell carcinoma: 12 legacy ST slides with H&E, three sections of each of four patients.

    On these arrays a second grid of spots lies between the first, so neighbors are on the diagonals; spots are 110 um
    wide. Only the spots of the spot tables are kept (under tissue, 460 to 1180 of 1934 per slide).

    Parameters
    ----------
    path, slides, base_url, progress
        As in :func:`her2st`, for the files of ``GSE144240_RAW.tar`` (compressed or not), slides such as
        ``"P2_ST_rep1"`` and ``"P10_ST_rep3"``, ``settings.data_dir / "cscc"``, and GEO.
    pitch_um
        Center-to-center distance of neighboring spots in micrometers, which sets the scale of the images.

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
    from ..io import concat

    root = settings.data_dir / "cscc" if path is None else Path(path)
    folder = next((place for place in (root, root / "GSE144240_RAW") if any(place.glob("GSM*_stdata.tsv*"))), root)

    def names_of(slide: str) -> dict[str, str]:
        stem = f"{ACCESSIONS[slide]}_{slide}"
        selection = f"{ACCESSIONS[slide]}_spot_data-selection-{slide}.tsv"
        return {"counts": f"{stem}_stdata.tsv", "spots": selection, "image": f"{stem}.jpg"}

    def candidates(slide: str) -> Candidates:
        return {key: [folder / name, folder / f"{name}.gz"] for key, name in names_of(slide).items()}

    def addresses(slide: str) -> list[Address]:
        gsm = ACCESSIONS[slide]
        base = f"{(base_url or BASE_URL).rstrip('/')}/{gsm[:-3]}nnn/{gsm}/suppl"
        return [(f"{base}/{name}.gz", f"{name}.gz", None) for name in names_of(slide).values()]

    found = find_slides(
        "cscc",
        folder,
        slides,
        names=list(ACCESSIONS),
        candidates=candidates,
        layout=", ".join(f"{name}.gz" for name in names_of("P2_ST_rep1").values()),
        by_hand=BY_HAND,
        addresses=addresses if path is None else None,
        remote=list(ACCESSIONS) if path is None else [],
        progress=progress,
    )
    return concat([_read(slide, paths, pitch_um) for slide, paths in found.items()])


def _read(slide: str, paths: SlideFiles, pitch_um: float) -> SpatialData:
    from ..io import read_st

    spots = read_spots(paths["spots"])
    array = spots[["x", "y"]].to_numpy()
    counts = read_counts(paths["counts"])
    # Neighbors are sqrt(2) steps of the array apart if only every other position has a spot.
    diagonal = len(np.unique(array.sum(axis=1) % 2)) == 1
    return read_st(
        counts[counts.index.isin(spot_names(array))],
        spots,
        paths["image"],
        slide=slide,
        patient=slide.split("_")[0],
        pitch_um=pitch_um / np.sqrt(2) if diagonal else pitch_um,
        spot_diameter_um=SPOT_DIAMETER_UM,
    )
