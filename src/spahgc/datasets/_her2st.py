"""HER2-positive breast cancer, legacy ST arrays (Andersson et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .._settings import settings
from ._choice import choose
from ._fetch import fetch

if TYPE_CHECKING:
    from spatialdata import SpatialData

BASE_URL = "https://raw.githubusercontent.com/almaan/her2st/master/"
CLONE = "git clone https://github.com/almaan/her2st and pass the folder: her2st(path=...)"
PITCH_UM, SPOT_DIAMETER_UM = 200.0, 100.0


class Files(NamedTuple):
    """The three files of a slide."""

    counts: Path
    spots: Path
    image: Path


def her2st(
    path: str | PathLike[str] | None = None,
    *,
    slides: Sequence[str] | None = None,
    base_url: str | None = None,
    progress: bool | None = None,
) -> SpatialData:
    """HER2-positive breast tumours: legacy ST slides with H&E, 200 um pitch, 100 um spots.

    Reads a folder in the layout of the authors' repository, or downloads from there. Downloaded files are checked
    against the SHA-256 checksums that come with the package. Five slides of two patients have checksums (B4, C2, C3,
    C4, C5), and only these are downloaded; all 36 slides of eight patients can be read from a clone of the repository.

    Parameters
    ----------
    path
        Folder that holds ``ST-cnts``, ``ST-spotfiles`` and ``ST-imgs``, or whose ``data`` does. `None` takes the slides
        in ``settings.data_dir / "her2st"``, and downloads there what is missing.
    slides
        Names of slides, such as ``["C2", "C4"]``. `None` takes all that are there; if there are none, all that can be
        downloaded.
    base_url
        Where to download from; `None` for the authors' repository on GitHub.
    progress
        Show the progress of downloads; `None` takes ``settings.progress``.

    Returns
    -------
    SpatialData as :func:`spahgc.io.read_st` gives it, all slides in one ``table``; ``obs["patient"]`` is the first
    letter of the slide. About 370 MB of memory a slide.

    Raises
    ------
    FileNotFoundError
        If `path` is not such a folder, or a slide there is incomplete.
    ValueError
        If a name in `slides` is unknown, or a downloaded file has not the known checksum.
    ConnectionError
        If a download fails; the next call goes on where it stopped.

    References
    ----------
    Andersson et al., Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell type
    interactions, Nature Communications 2021. https://github.com/almaan/her2st

    Examples
    --------
    >>> sdata = spahgc.datasets.her2st(slides=["C2", "C4"])
    """
    from ..io import concat, read_st

    registry: dict[str, str] = {}
    if path is None:
        root = settings.data_dir / "her2st"
        # data/ as in the repository, so that downloads and a clone look the same
        folder, registry = _data_folder(root) or root / "data", _registry()
    else:
        found = _data_folder(Path(path))
        if found is None:
            raise FileNotFoundError(
                f"No folder ST-cnts in {str(path)!r} or its data/. her2st reads the layout of the authors' repository: "
                "data/ST-cnts/C4.tsv.gz, data/ST-spotfiles/C4_selection.tsv, data/ST-imgs/C/C4/*.jpg."
            )
        folder = found
    local = [name for name in _samples(folder) if path is not None or _locate(folder, name)[0]]
    by_hand = CLONE if path is None else "All 36 are in https://github.com/almaan/her2st"
    wanted = choose(slides, local=local, remote=_registered(registry), dataset="her2st", folder=folder, by_hand=by_hand)
    read = []
    for name in wanted:
        if path is None and name not in local:
            _download(folder, name, registry, base_url=base_url or BASE_URL, progress=progress)
        located, missing = _locate(folder, name)
        if located is None:
            raise FileNotFoundError(f"Slide {name!r} of her2st is incomplete: {missing}.")
        read.append(
            read_st(*located, slide=name, patient=name[0], pitch_um=PITCH_UM, spot_diameter_um=SPOT_DIAMETER_UM)
        )
    return concat(read)


def _data_folder(root: Path) -> Path | None:
    """The folder that holds ``ST-cnts``: `root` itself or its ``data``."""
    return next((folder for folder in (root, root / "data") if (folder / "ST-cnts").is_dir()), None)


def _samples(folder: Path) -> list[str]:
    """Slides with a count table."""
    tables = (file.name for file in folder.glob("ST-cnts/*.tsv*"))
    return sorted({name.split(".tsv")[0] for name in tables if not name.startswith(".")})


def _locate(folder: Path, sample: str) -> tuple[Files | None, str]:
    """The files of a slide, or what is missing."""
    counts = next((file for file in _counts_files(folder, sample) if file.is_file()), None)
    if counts is None:
        return None, f"no {folder / 'ST-cnts' / sample}.tsv.gz or .tsv"
    spots = folder / "ST-spotfiles" / f"{sample}_selection.tsv"
    if not spots.is_file():
        return None, f"no {spots}"
    images = sorted((folder / "ST-imgs" / sample[0] / sample).glob("*.jpg"))
    if len(images) != 1:
        there = f"{len(images)} images" if images else "no image"
        return None, f"{there} (*.jpg) in {folder / 'ST-imgs' / sample[0] / sample}, expected one"
    return Files(counts, spots, images[0]), ""


def _counts_files(folder: Path, sample: str) -> Iterator[Path]:
    for suffix in (".tsv.gz", ".tsv"):
        yield folder / "ST-cnts" / f"{sample}{suffix}"


def _registry() -> dict[str, str]:
    """Checksums of the files that can be downloaded, by path in the repository."""
    lines = files(__package__).joinpath("her2st.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split() for line in lines if line and not line.startswith("#"))


def _registered(registry: dict[str, str]) -> list[str]:
    """Slides in a registry."""
    return sorted(Path(file).name.split(".tsv")[0] for file in registry if "/ST-cnts/" in file)


def _download(folder: Path, sample: str, registry: dict[str, str], *, base_url: str, progress: bool | None) -> None:
    """Fetch the files of a slide that are missing or differ."""
    of_sample = (f"data/ST-cnts/{sample}.tsv", f"data/ST-spotfiles/{sample}_", f"data/ST-imgs/{sample[0]}/{sample}/")
    for file, checksum in registry.items():
        if file.startswith(of_sample):
            url = f"{base_url.rstrip('/')}/{file}"
            name = file.removeprefix("data/")
            fetch(url, folder, name, checksum=checksum, progress=progress, by_hand=CLONE)
