"""Cutaneous squamous cell carcinoma, legacy ST arrays (Ji et al. 2020, GSE144240)."""

from __future__ import annotations

import gzip
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._checks import format_names
from .._settings import settings
from ._choice import choose, first_file, locate_all
from ._fetch import fetch

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

BASE_URL = "https://ftp.ncbi.nlm.nih.gov/geo/samples/"
BY_HAND = (
    "download GSE144240_RAW.tar from https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE144240, unpack it, and pass "
    "the folder: cscc(path=...)"
)
NEIGHBOUR_UM, SPOT_DIAMETER_UM = 150.0, 110.0
"""Distance of neighbouring spots, centre to centre, and diameter of a spot, as papers on these data state them."""
PATIENTS = ("P2", "P5", "P9", "P10")
ACCESSIONS = {
    f"{patient}_ST_rep{replicate}": f"GSM{4284316 + 3 * number + replicate - 1}"
    for number, patient in enumerate(PATIENTS)
    for replicate in (1, 2, 3)
}


class Files(NamedTuple):
    """The three files of a slide."""

    counts: Path
    spots: Path
    image: Path


def cscc(
    path: str | PathLike[str] | None = None,
    *,
    slides: Sequence[str] | None = None,
    neighbour_um: float = NEIGHBOUR_UM,
    base_url: str | None = None,
    progress: bool | None = None,
) -> SpatialData:
    """Human cutaneous squamous cell carcinoma: 12 legacy ST slides with H&E of four patients, three sections each.

    The arrays have twice as many spots as older ones: a second grid lies between the first, so that the neighbours of a
    spot are on the diagonals, 150 um apart; spots are 110 um wide. The count tables hold all 1934 spots of an
    array; those of the spot tables (under the tissue, 460 to 1180 a slide) are kept.

    Parameters
    ----------
    path
        Folder with the files of ``GSE144240_RAW.tar`` (or whose ``GSE144240_RAW`` has them), compressed or not. `None`
        takes the slides in ``settings.data_dir / "cscc"``, and downloads there what is missing.
    slides
        Names of slides, such as ``["P2_ST_rep1", "P10_ST_rep3"]``. `None` takes all that are there; if there are none,
        all twelve.
    neighbour_um
        Distance of neighbouring spots, centre to centre, in micrometres, from which the scale of the images follows.
    base_url
        Where to download from; `None` for GEO.
    progress
        Show the progress of downloads; `None` takes ``settings.progress``.

    Returns
    -------
    SpatialData as :func:`spahgc.io.read_st` gives it, all slides in one ``table``; ``obs["patient"]`` is ``P2``,
    ``P5``, ``P9`` or ``P10``. The images are held in memory.

    Raises
    ------
    FileNotFoundError
        If `path` is not such a folder, or a slide there is incomplete.
    ValueError
        If a name in `slides` is unknown, or a file differs from the one that was downloaded first.
    ConnectionError
        If a download fails; the next call goes on where it stopped.

    Notes
    -----
    GEO publishes no checksums: those of the first download are kept, and compared later. Names and layout are those
    that public code reads, distance and diameter of the spots those of papers on these data; the files were not at hand
    when this was written.

    References
    ----------
    Ji et al., Multimodal analysis of composition and spatial architecture in human squamous cell carcinoma, Cell 2020.
    https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE144240

    Examples
    --------
    >>> sdata = spahgc.datasets.cscc("GSE144240_RAW", slides=["P2_ST_rep1", "P10_ST_rep3"])
    """
    from ..io import concat

    root = settings.data_dir / "cscc" if path is None else Path(path)
    folder = next((place for place in (root, root / "GSE144240_RAW") if any(place.glob("GSM*_stdata.tsv*"))), root)
    if path is not None and not any(folder.glob("GSM*_stdata.tsv*")):
        raise FileNotFoundError(
            f"No count tables (GSM*_stdata.tsv.gz) in {str(root)!r}. cscc reads the files of GSE144240_RAW.tar: "
            "GSM4284316_P2_ST_rep1_stdata.tsv.gz, GSM4284316_spot_data-selection-P2_ST_rep1.tsv.gz, "
            f"GSM4284316_P2_ST_rep1.jpg.gz, and so on; {BY_HAND}."
        )
    started = [name for name, gsm in ACCESSIONS.items() if any(folder.glob(f"{gsm}_{name}_stdata.tsv*"))]
    local = [name for name in started if path is not None or _locate(folder, name)[0]]
    remote = list(ACCESSIONS) if path is None else []
    wanted = choose(slides, local=local, remote=remote, dataset="cscc", folder=folder, by_hand=BY_HAND)
    for name in wanted:
        if name not in local:
            for url, file in _urls(name, base_url or BASE_URL):
                fetch(url, folder, file, progress=progress, by_hand=BY_HAND)
    located = locate_all(wanted, partial(_locate, folder), dataset="cscc")
    return concat([_read(name, files, neighbour_um) for name, files in located.items()])


def _read(slide: str, files: Files, neighbour_um: float) -> SpatialData:
    from ..io import read_st
    from ..io._spots import read_spots

    spots = read_spots(files.spots)
    with _uncompressed(files.image) as image:
        return read_st(
            _under_tissue(files.counts, spots),
            spots,
            image,
            slide=slide,
            patient=slide.split("_")[0],
            pitch_um=neighbour_um / _neighbour_steps(spots),
            spot_diameter_um=SPOT_DIAMETER_UM,
        )


def _urls(slide: str, base_url: str) -> Iterator[tuple[str, str]]:
    """Addresses and names of the files of a slide."""
    gsm = ACCESSIONS[slide]
    for file in (
        f"{gsm}_{slide}_stdata.tsv.gz",
        f"{gsm}_spot_data-selection-{slide}.tsv.gz",
        f"{gsm}_{slide}.jpg.gz",
    ):
        yield f"{base_url.rstrip('/')}/{gsm[:-3]}nnn/{gsm}/suppl/{file}", file


def _locate(folder: Path, slide: str) -> tuple[Files | None, str]:
    """The files of a slide, or what is missing."""
    gsm = ACCESSIONS[slide]
    found: list[Path] = []
    stems = {
        f"{gsm}_{slide}_stdata": ".tsv",
        f"{gsm}_spot_data-selection-{slide}": ".tsv",
        f"{gsm}_{slide}": ".jpg",
    }
    for stem, ending in stems.items():
        file = first_file([folder / f"{stem}{ending}", folder / f"{stem}{ending}.gz"])
        if file is None:
            there = sorted(path.name for path in folder.glob(f"{gsm}*"))
            return (
                None,
                f"no {stem}{ending}.gz or {stem}{ending} in {str(folder)!r}, which has {format_names(there)} of it",
            )
        found.append(file)
    return Files(*found), ""


def _under_tissue(path: Path, spots: pd.DataFrame) -> pd.DataFrame:
    """Counts of the spots of the spot table; the file has those of the whole array, much of it bare."""
    import pandas as pd

    from ..io._counts import read_counts

    counts = read_counts(path)
    rows = counts.spots.isin([f"{x:g}x{y:g}" for x, y in spots[["x", "y"]].to_numpy()])
    return pd.DataFrame(counts.matrix[rows].toarray(), index=counts.spots[rows], columns=counts.genes)


def _neighbour_steps(spots: pd.DataFrame) -> float:
    """Distance of neighbouring spots in steps of the array: sqrt(2) where the sum of x and y is even everywhere."""
    parity = spots[["x", "y"]].sum(axis=1).to_numpy() % 2
    return float(np.sqrt(2.0)) if (parity == parity[0]).all() else 1.0


@contextmanager
def _uncompressed(image: Path) -> Iterator[Path]:
    """An image that may be compressed, as a file that Pillow opens."""
    if image.suffix != ".gz":
        yield image
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / image.stem
        try:
            with gzip.open(image) as source, plain.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{image} is damaged or cut off ({error}). Delete it and fetch it again.") from error
        yield plain
