"""Breast cancer, Visium (10x Genomics)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import _keys
from .._checks import format_names
from .._settings import settings
from ._choice import choose, first_file, locate_all
from ._fetch import fetch, unpack
from ._visium import SPOT_DIAMETER_UM, join, visium_mpp

if TYPE_CHECKING:
    from spatialdata import SpatialData

BASE_URL = "https://cf.10xgenomics.com/samples/spatial-exp/"
BY_HAND = (
    "download filtered_feature_bc_matrix.h5, spatial.tar.gz (to be unpacked) and image.tif of each section from "
    "https://www.10xgenomics.com/datasets into a folder of its name, and pass the folder above: visium_bc(path=...)"
)
COUNTS = "filtered_feature_bc_matrix.h5"


class Section(NamedTuple):
    """A dataset of 10x: its name, version of Space Ranger in its address, and tissue block."""

    name: str
    version: str
    block: str


SLIDES = {
    "block1": Section("V1_Breast_Cancer_Block_A_Section_1", "1.1.0", "block_A"),
    "block2": Section("V1_Breast_Cancer_Block_A_Section_2", "1.1.0", "block_A"),
    "FFPE": Section("Visium_FFPE_Human_Breast_Cancer", "1.3.0", "FFPE"),
}


class Files(NamedTuple):
    """Files of a slide."""

    folder: Path
    counts: Path
    image: Path


def visium_bc(
    path: str | PathLike[str] | None = None,
    *,
    slides: Sequence[str] | None = None,
    base_url: str | None = None,
    progress: bool | None = None,
) -> SpatialData:
    """Human breast cancer of 10x Genomics: two neighbouring Visium sections of a frozen block, one of an FFPE block.

    Parameters
    ----------
    path
        Folder with a Space Ranger folder a slide: ``V1_Breast_Cancer_Block_A_Section_1`` (or ``block1``) with
        ``V1_Breast_Cancer_Block_A_Section_1_filtered_feature_bc_matrix.h5``, ``..._image.tif`` and ``spatial``; the
        prefix of the files may be missing. `None` takes the slides in ``settings.data_dir / "visium_bc"``, and
        downloads there what is missing.
    slides
        Of ``["block1", "block2", "FFPE"]``. `None` takes all that are there; if there are none, all three.
    base_url
        Where to download from; `None` for 10x Genomics.
    progress
        Show the progress of downloads; `None` takes ``settings.progress``.

    Returns
    -------
    SpatialData as :func:`spahgc.io.from_anndata` gives it, images lazy, all slides in one ``table`` with their common
    genes (the FFPE section was measured with probes, for about half as many). ``obs["patient"]`` is the tissue block:
    ``block_A`` for both sections of block A, and ``FFPE``. 10x does not say who the donors are: two blocks are taken
    for two donors.

    Raises
    ------
    FileNotFoundError
        If `path` is not such a folder, or a slide there is incomplete.
    ImportError
        If spatialdata-io is not installed (the extra ``io``).
    ValueError
        If a name in `slides` is unknown, or a file differs from the one that was downloaded first.
    ConnectionError
        If a download fails; the next call goes on where it stopped.

    Notes
    -----
    10x publishes checksums on pages that take a log-in: those of the first download are kept instead, and compared
    later. The addresses are those that public code downloads; nothing was fetched when this was written.

    References
    ----------
    10x Genomics, Human Breast Cancer (Block A Section 1, Block A Section 2), Space Ranger 1.1.0, and Human Breast
    Cancer: Ductal Carcinoma In Situ, Invasive Carcinoma (FFPE), Space Ranger 1.3.0. https://www.10xgenomics.com/datasets

    Examples
    --------
    >>> sdata = spahgc.datasets.visium_bc(slides=["block1", "block2"])
    """
    root = settings.data_dir / "visium_bc" if path is None else Path(path)
    started = [name for name in SLIDES if _folder(root, name).is_dir()]
    if path is not None and not started:
        raise FileNotFoundError(
            f"No slide of visium_bc in {str(root)!r}. It reads a folder a slide, named as 10x names it: "
            f"{format_names(section.name for section in SLIDES.values())}; {BY_HAND}."
        )
    local = [name for name in started if path is not None or _locate(root, name)[0]]
    remote = list(SLIDES) if path is None else []
    wanted = choose(slides, local=local, remote=remote, dataset="visium_bc", folder=root, by_hand=BY_HAND)
    for name in wanted:
        if name not in local:
            _download(root, name, base_url or BASE_URL, progress)
    located = locate_all(wanted, partial(_locate, root), dataset="visium_bc")
    return join([_read(name, files) for name, files in located.items()])


def _folder(root: Path, slide: str) -> Path:
    short = root / slide
    return short if short.is_dir() else root / SLIDES[slide].name


def _locate(root: Path, slide: str) -> tuple[Files | None, str]:
    """The files of a slide, or what is missing."""
    folder, name = _folder(root, slide), SLIDES[slide].name
    there = format_names(sorted(path.name for path in folder.glob("*")))
    found: list[Path] = []
    for ending in (COUNTS, "image.tif"):
        file = first_file([folder / f"{name}_{ending}", folder / ending])
        if file is None:
            return None, f"no {name}_{ending} or {ending} in {str(folder)!r}, which has {there}"
        found.append(file)
    spatial = folder / "spatial"
    for names in (("scalefactors_json.json",), ("tissue_positions_list.csv", "tissue_positions.csv")):
        if first_file([spatial / file for file in names]) is None:
            return None, f"no {' or '.join(names)} in {str(spatial)!r}"
    return Files(folder, *found), ""


def _read(slide: str, files: Files) -> SpatialData:
    from ..io import from_anndata

    try:
        import spatialdata_io
    except ImportError as error:
        raise ImportError("visium_bc reads with spatialdata-io, which is missing: pip install 'spahgc[io]'.") from error

    # The name comes in front of that of the counts in the files of 10x, and is found there.
    named = files.counts.name != COUNTS
    sdata = spatialdata_io.visium(files.folder, dataset_id=None if named else slide, counts_file=COUNTS)
    adata = sdata.tables[_keys.TABLE]
    adata.obs[_keys.PATIENT] = SLIDES[slide].block
    return from_anndata(
        adata, files.image, slide=slide, microns_per_pixel=visium_mpp(adata, slide), spot_diameter_um=SPOT_DIAMETER_UM
    )


def _download(root: Path, slide: str, base_url: str, progress: bool | None) -> None:
    section = SLIDES[slide]
    folder = _folder(root, slide)
    for ending in (COUNTS, "spatial.tar.gz", "image.tif"):
        if ending == "spatial.tar.gz" and (folder / "spatial").is_dir():
            continue
        file = f"{section.name}_{ending}"
        url = f"{base_url.rstrip('/')}/{section.version}/{section.name}/{file}"
        path = fetch(url, root, f"{folder.name}/{file}", progress=progress, by_hand=BY_HAND)
        if ending == "spatial.tar.gz":
            unpack(path, folder)
