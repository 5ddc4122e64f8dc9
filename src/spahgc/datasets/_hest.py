"""Samples of HEST-1k, from a folder or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import pandas as pd
from spatialdata import SpatialData

from .. import _keys
from .._checks import checked, format_names
from .._settings import settings
from ..io import concat, read_hest
from ..io._hest import hest_samples

REPOSITORY = "MahmoodLab/hest"
PAGE = f"https://huggingface.co/datasets/{REPOSITORY}"
# Lymph node metastases of breast cancer (Visium) and pancreatic adenocarcinomas, of one study each (Visium) or of 10x
# (Xenium): LYMPH_IDC and PAAD of HEST-Benchmark, and the pancreas study of HEST's metadata.
SETS = {
    "lymph_node": ("NCBI681", "NCBI682", "NCBI683", "NCBI684"),
    "pancreas_visium": ("NCBI569", "NCBI570", "NCBI571", "NCBI572"),
    "pancreas_xenium": ("TENX116", "TENX126", "TENX140"),
}


@checked()
def hest(
    path: str | PathLike[str] | None = None,
    *,
    slides: str | Sequence[str] | None = None,
    patients: Mapping[str, str] | None = None,
) -> SpatialData:
    """Samples of HEST-1k: spatial transcriptomics of many organs with whole-slide images.

    The data set is gated: accept its terms on https://huggingface.co/datasets/MahmoodLab/hest and run ``hf auth login``
    once. Images take 0.1 to 5 GB per sample.

    Parameters
    ----------
    path
        Folder with ``st``, ``wsis`` and ``metadata`` (:func:`spahgc.io.read_hest`). Defaults to ``settings.data_dir /
        "hest"``, where missing files are downloaded to.
    slides
        Names of samples, such as ``["NCBI681", "NCBI682"]``, or of a set: ``"lymph_node"`` (four, Visium),
        ``"pancreas_visium"`` (four) or ``"pancreas_xenium"`` (three). Defaults to all in the folder.
    patients
        Patients by sample, where HEST names none, or another one than you know.

    Returns
    -------
    SpatialData as from :func:`spahgc.io.read_hest`, all samples in one ``table`` with their common genes. HEST numbers
    patients within a study: with several studies, the title of the study precedes ``obs["patient"]``. ``uns["hest"]``
    holds the metadata by sample.

    Raises
    ------
    FileNotFoundError, ValueError, ImportError
        If a sample is incomplete, `slides` is not a known set, or the extra ``models`` is not installed.
    PermissionError, ConnectionError
        If the hub refuses the download (log in and accept the terms), or it fails; the next call resumes it.

    References
    ----------
    Jaume et al., HEST-1k: a dataset for spatial transcriptomics and histology image analysis, NeurIPS 2024.

    Examples
    --------
    >>> sdata = spahgc.datasets.hest(slides="lymph_node")  # doctest: +SKIP
    >>> sdata = spahgc.datasets.hest("hest_data", slides=["NCBI569"], patients={"NCBI569": "A"})  # doctest: +SKIP
    """
    root = settings.data_dir / "hest" if path is None else Path(path)
    if isinstance(slides, str):
        if slides not in SETS:
            raise ValueError(
                f"`slides` must be one of the sets {format_names(SETS)} or a list of samples, got {slides!r}."
            )
        slides = SETS[slides]
    wanted = hest_samples(root) if slides is None else list(dict.fromkeys(slides))
    if not wanted:
        raise ValueError(
            f"No samples (st/*.h5ad) in {str(root)!r}, or `slides` is empty. Pass a list of samples, or one of "
            f"{format_names(SETS)}. Samples are described in HEST_v*.csv on {PAGE}."
        )
    if path is None:
        _download(wanted, root)
    given = patients or {}
    parts = [read_hest(root, name, patient=given.get(name)) for name in wanted]
    metadata = {name: part.tables[_keys.TABLE].uns[_keys.HEST][name] for name, part in zip(wanted, parts, strict=True)}
    studies = {name: str(metadata[name].get("dataset_title", name)) for name in wanted}
    for name, part in zip(wanted, parts, strict=True):
        obs = part.tables[_keys.TABLE].obs
        if len(set(studies.values())) > 1 and obs[_keys.PATIENT].notna().all() and name not in given:
            obs[_keys.PATIENT] = pd.Categorical([f"{studies[name]}: {obs[_keys.PATIENT].iloc[0]}"] * len(obs))
    joined = concat(parts, join="inner")
    joined.tables[_keys.TABLE].uns[_keys.HEST] = metadata
    return joined


def _download(names: Sequence[str], root: Path) -> None:
    """Fetch missing files. Errors are never chained (`from None`): their requests hold the user's token."""
    patterns = ("metadata/{}.json", "st/{}.h5ad", "wsis/{}.tif")
    required = [pattern.format(name) for name in names for pattern in patterns]
    if all((root / file).is_file() for file in required):
        return
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(
            "Downloading HEST-1k requires huggingface_hub. Install it with: pip install 'spahgc[models]'."
        ) from error
    by_hand = (
        f"On a machine with access run `hf download {REPOSITORY} --repo-type dataset --local-dir hest --include "
        f"{' '.join(repr(f'*/{name}[_.]*') for name in names)}`, and pass the folder: hest(path=...)."
    )
    for file in [*required, *(f"tissue_seg/{name}_contours.geojson" for name in names)]:
        if (root / file).is_file():
            continue
        try:
            hf_hub_download(REPOSITORY, file, repo_type="dataset", local_dir=root)
        except Exception as error:  # noqa: BLE001 (depends on the HTTP client of huggingface_hub)
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                if file in required:  # not every sample has outlines of its tissue
                    raise ValueError(f"{PAGE} has no {file}. Its samples are listed in HEST_v*.csv there.") from None
                continue
            from ..encoders._base import hub_error

            again = f"The next call resumes. {by_hand}"
            raise hub_error(error, f"{file} of HEST-1k", PAGE, files=by_hand, again=again) from None
