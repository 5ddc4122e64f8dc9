"""Breast cancer of six patients, Visium (Wu et al. 2021, from Alexander Swarbrick's laboratory)."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, cast

import numpy as np
import pandas as pd

from .. import _keys
from .._checks import format_names
from .._settings import settings
from ._choice import choose, first_file, locate_all
from ._fetch import fetch, unpack
from ._visium import SPOT_DIAMETER_UM, join, place, visium_mpp

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")

BASE_URL = "https://zenodo.org/records/4739739/files/"
BY_HAND = (
    "download filtered_count_matrices.tar.gz, spatial.tar.gz and metadata.tar.gz from "
    "https://zenodo.org/records/4739739, unpack them into one folder, and pass it: alex(path=...)"
)
ARCHIVES = {
    "filtered_count_matrices.tar.gz": "md5:ea1220f0606c4d4e9307468fb2d5427a",
    "metadata.tar.gz": "md5:1d0b34ead70635c094ac74ac58a88d68",
    "spatial.tar.gz": "md5:29b02ae433d459d19dc52b75a529e8e9",
}
"""As two public repositories quote them from the record; not checked against the files."""
SLIDES = ("1142243F", "1160920F", "CID4290", "CID4465", "CID44971", "CID4535")
FULL = "https://doi.org/10.48610/4fb74a9"


class Files(NamedTuple):
    """Files of a slide; `image` is the one at full resolution, if there is one."""

    counts: Path
    spatial: Path
    metadata: Path | None
    image: Path | None


def alex(
    path: str | PathLike[str] | None = None,
    *,
    slides: Sequence[str] | None = None,
    images: Mapping[str, str | PathLike[str]] | None = None,
    base_url: str | None = None,
    progress: bool | None = None,
) -> SpatialData:
    """Human breast cancer: six Visium sections with H&E of six patients, of three clinical subtypes.

    Zenodo has the images at 2000 pixels only, on which a spot is about 10 pixels wide. For tiles that show cells, get
    the full-resolution images (https://doi.org/10.48610/4fb74a9), and put them into the folder or pass them.

    Parameters
    ----------
    path
        Folder in one of two layouts: Zenodo's, with the unpacked ``filtered_count_matrices``, ``spatial`` and
        ``metadata``; or a folder a slide, such as ``CID4290``, with ``filtered_count_matrix``, ``spatial`` and
        ``image.tif``. `None` takes the slides in ``settings.data_dir / "alex"``, and downloads there from Zenodo.
    slides
        Names of slides, such as ``["CID4290", "1142243F"]``. `None` takes all that are there; if there are none, all
        six.
    images
        Images at full resolution by slide. They count before ``image.tif``.
    base_url
        Where to download from; `None` for Zenodo.
    progress
        Show the progress of downloads; `None` takes ``settings.progress``.

    Returns
    -------
    SpatialData as :func:`spahgc.io.from_anndata` gives it, all slides in one ``table`` with their common genes.
    ``obs["patient"]`` is the slide's name, ``obs["subtype"]`` the clinical subtype and ``obs["Classification"]`` the
    pathologist's label of the spot, where there is metadata.

    Raises
    ------
    FileNotFoundError
        If `path` is not such a folder, or a slide there is incomplete.
    ValueError
        If a name in `slides` or `images` is unknown, a downloaded file has not the published checksum, or counts,
        positions and image of a slide do not fit together.
    ConnectionError
        If a download fails; the next call goes on where it stopped.

    Notes
    -----
    Names and layout are those that public code reads; the files were not at hand when this was written.

    References
    ----------
    Wu et al., A single-cell and spatially resolved atlas of human breast cancers, Nature Genetics 2021.
    https://zenodo.org/records/4739739

    Examples
    --------
    >>> sdata = spahgc.datasets.alex(slides=["CID4290"], images={"CID4290": "CID4290.tif"})
    """
    root = settings.data_dir / "alex" if path is None else Path(path)
    if unknown := sorted(set(images or {}) - set(SLIDES)):
        raise ValueError(
            f"images has slides that alex does not know: {format_names(unknown)}. It has {format_names(SLIDES)}."
        )
    started = [name for name in SLIDES if _counts_folder(root, name)]
    if path is not None and not started:
        raise FileNotFoundError(
            f"No counts of alex in {str(root)!r}. It reads filtered_count_matrices/CID4290_filtered_count_matrix, "
            "spatial/CID4290_spatial and metadata/CID4290_metadata.csv (Zenodo), or CID4290/filtered_count_matrix, "
            f"CID4290/spatial and CID4290/image.tif; {BY_HAND}."
        )
    local = [name for name in started if path is not None or _locate(root, name)[0]]
    remote = list(SLIDES) if path is None else []
    wanted = choose(slides, local=local, remote=remote, dataset="alex", folder=root, by_hand=BY_HAND)
    if set(wanted) - set(local):
        for archive, checksum in ARCHIVES.items():
            url = f"{(base_url or BASE_URL).rstrip('/')}/{archive}?download=1"
            unpack(fetch(url, root, archive, checksum=checksum, progress=progress, by_hand=BY_HAND), root)
    located = locate_all(wanted, partial(_locate, root), dataset="alex")
    given = {name: Path(image) for name, image in (images or {}).items()}
    return join([_read(name, files, given.get(name, files.image)) for name, files in located.items()])


def _counts_folder(root: Path, slide: str) -> Path | None:
    zenodo = root / "filtered_count_matrices" / f"{slide}_filtered_count_matrix"
    folders = (zenodo, root / slide / "filtered_count_matrix")
    return next((folder for folder in folders if folder.is_dir()), None)


def _locate(root: Path, slide: str) -> tuple[Files | None, str]:
    """The files of a slide, or what is missing."""
    counts = _counts_folder(root, slide)
    if counts is None:
        names = f"filtered_count_matrices/{slide}_filtered_count_matrix or {slide}/filtered_count_matrix"
        return None, f"no {names} in {str(root)!r}"
    own = counts.parent == root / slide
    spatial = root / slide / "spatial" if own else root / "spatial" / f"{slide}_spatial"
    needed = [counts / f"{name}.gz" for name in ("matrix.mtx", "features.tsv", "barcodes.tsv")]
    needed += [spatial / "tissue_positions_list.csv", spatial / "scalefactors_json.json"]
    image = first_file([root / slide / "image.tif"])
    if image is None:
        needed.append(spatial / "tissue_hires_image.png")
    for file in needed:
        if not file.is_file():
            there = sorted(path.name for path in file.parent.glob("*"))
            return None, f"no {file}; that folder has {format_names(there)}"
    metadata = first_file([folder / f"{slide}_metadata.csv" for folder in (root / "metadata", root / slide)])
    return Files(counts, spatial, metadata, image), ""


def _read(slide: str, files: Files, image: Path | None) -> SpatialData:
    from ..io import from_anndata

    adata = _read_mtx(files.counts)
    place(adata, files.spatial / "tissue_positions_list.csv", slide)
    adata.obs[_keys.PATIENT] = slide
    if files.metadata is not None:
        labels = pd.read_csv(files.metadata, index_col=0)
        columns = [name for name in ("subtype", "Classification") if name in labels]
        adata.obs = adata.obs.join(labels[columns].astype("category"))
    mpp = visium_mpp(adata, slide)
    if image is None:
        image = files.spatial / "tissue_hires_image.png"
        shrink = float(json.loads((files.spatial / "scalefactors_json.json").read_text())["tissue_hires_scalef"])
        adata.obsm[_keys.SPATIAL] = adata.obsm[_keys.SPATIAL] * shrink
        mpp /= shrink
        logger.warning(
            "%s has no image at full resolution: the small one is taken, %.2g um per pixel, on which cells cannot be "
            "seen. Get the large one from %s, and pass images={%r: <file>}.",
            slide, mpp, FULL, slide,
        )  # fmt: skip
    return from_anndata(adata, image, slide=slide, microns_per_pixel=mpp, spot_diameter_um=SPOT_DIAMETER_UM)


def _read_mtx(folder: Path) -> AnnData:
    """Counts in Matrix Market format; features of one column (symbols) or three (id, symbol, type)."""
    from anndata import AnnData
    from scipy.io import mmread
    from scipy.sparse import csr_matrix

    with _opened(folder / "matrix.mtx.gz") as handle:
        matrix = csr_matrix(mmread(handle).T, dtype=np.float32)
    tables = {}
    for what in ("features", "barcodes"):
        with _opened(folder / f"{what}.tsv.gz") as handle:
            tables[what] = pd.read_csv(handle, sep="\t", header=None, dtype=str, keep_default_na=False)
    features, barcodes = tables["features"], tables["barcodes"]
    if matrix.shape != (len(barcodes), len(features)):
        raise ValueError(
            f"{folder}: the matrix has {matrix.shape[1]} genes x {matrix.shape[0]} spots, but there are "
            f"{len(features)} features and {len(barcodes)} barcodes. Are the three files of one slide?"
        )
    symbols = features[1 if features.shape[1] > 1 else 0].to_numpy()
    adata = AnnData(matrix, obs=pd.DataFrame(index=barcodes[0].to_numpy()), var=pd.DataFrame(index=symbols))
    adata.var_names_make_unique()
    return adata


def _opened(path: Path) -> IO[bytes]:
    """A file that may be compressed, whatever its name says."""
    with path.open("rb") as handle:
        compressed = handle.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(path)) if compressed else path.open("rb")
