"""HER2-positive breast cancer, legacy ST arrays (Andersson et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from .._checks import checked
from .._settings import settings
from ._fetch import Address, Candidates, find_slides

if TYPE_CHECKING:
    from spatialdata import SpatialData

BASE_URL = "https://raw.githubusercontent.com/almaan/her2st/master/"
BY_HAND = "run `git clone https://github.com/almaan/her2st` (36 slides) and pass the folder: her2st(path=...)"
LAYOUT = "data/ST-cnts/C4.tsv.gz, data/ST-spotfiles/C4_selection.tsv, data/ST-imgs/C/C4/*.jpg (one image)"


@checked()
def her2st(
    path: str | PathLike[str] | None = None,
    *,
    slides: Sequence[str] | None = None,
    base_url: str | None = None,
    progress: bool | None = None,
) -> SpatialData:
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
    base_url
        Address to download from. Defaults to the authors' repository on GitHub.
    progress
        Show the progress of downloads. Defaults to ``settings.progress``.

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
    from ..io import concat, read_st

    root = settings.data_dir / "her2st" if path is None else Path(path)
    # Downloads go to data/ as in a clone of the repository.
    folder = next((place for place in (root, root / "data") if (place / "ST-cnts").is_dir()), root / "data")
    registry = _registry() if path is None else {}

    def candidates(slide: str) -> Candidates:
        place = folder / "ST-imgs" / slide[0] / slide
        images = sorted(place.glob("*.jpg"))
        return {
            "counts": [folder / "ST-cnts" / f"{slide}{suffix}" for suffix in (".tsv.gz", ".tsv")],
            "spots": [folder / "ST-spotfiles" / f"{slide}_selection.tsv"],
            "image": images if len(images) == 1 else [place / "*.jpg (exactly one)"],
        }

    def addresses(slide: str) -> list[Address]:
        parts = (f"/{slide}.tsv", f"/{slide}_selection", f"/{slide}/")
        files = [file for file in registry if any(part in file for part in parts)]
        base = (base_url or BASE_URL).rstrip("/")
        return [(f"{base}/{file}", file.removeprefix("data/"), registry[file]) for file in files]

    found = find_slides(
        "her2st",
        folder,
        slides,
        names=sorted({file.name.split(".tsv")[0] for file in folder.glob("ST-cnts/[!.]*.tsv*")}),
        candidates=candidates,
        layout=LAYOUT,
        by_hand=BY_HAND,
        addresses=addresses if path is None else None,
        remote=sorted(Path(file).name.split(".tsv")[0] for file in registry if "/ST-cnts/" in file),
        progress=progress,
    )
    read = []
    for slide, paths in found.items():
        read.append(read_st(paths["counts"], paths["spots"], paths["image"], slide=slide, patient=slide[0]))
    return concat(read)


def _registry() -> dict[str, str]:
    """Checksums of the files that can be downloaded, by path in the repository."""
    lines = files(__package__).joinpath("her2st.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split() for line in lines if line and not line.startswith("#"))
