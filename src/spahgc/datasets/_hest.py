"""Samples of HEST-1k, from a folder or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from .. import _keys
from .._checks import format_names
from .._settings import settings
from ._choice import check_names
from ._visium import join

if TYPE_CHECKING:
    from spatialdata import SpatialData

REPOSITORY = "MahmoodLab/hest"
PAGE = f"https://huggingface.co/datasets/{REPOSITORY}"
SETS = {
    "lymph_node": ("NCBI681", "NCBI682", "NCBI683", "NCBI684"),
    "pancreas_visium": ("NCBI569", "NCBI570", "NCBI571", "NCBI572"),
    "pancreas_xenium": ("TENX116", "TENX126", "TENX140"),
}
"""Lymph node metastases of breast cancer (Visium) and pancreatic adenocarcinomas, of one study each (Visium) or of 10x
(Xenium): LYMPH_IDC and PAAD of HEST-Benchmark, and the pancreas study of HEST's metadata."""


def hest(
    path: str | PathLike[str] | None = None,
    *,
    ids: str | Sequence[str] | None = None,
    patients: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> SpatialData:
    """Samples of HEST-1k: spatial transcriptomics of many organs with whole-slide images.

    The data set is gated: accept its terms on https://huggingface.co/datasets/MahmoodLab/hest and run ``hf auth login``
    once. Images have 0.1 to 5 GB a sample.

    Parameters
    ----------
    path
        Folder with ``st``, ``wsis`` and ``metadata`` (:func:`spahgc.io.read_hest`). `None` takes
        ``settings.data_dir / "hest"``, and downloads there what is missing.
    ids
        Names of samples, such as ``["NCBI681", "NCBI682"]``, or of a set: ``"lymph_node"`` (four, Visium),
        ``"pancreas_visium"`` (four) and ``"pancreas_xenium"`` (three). `None` takes all that are there.
    patients
        Patients by sample, for those of which HEST does not say it, or says it otherwise than you know it.
    progress
        Show the progress of downloads; `None` takes ``settings.progress``.

    Returns
    -------
    SpatialData as :func:`spahgc.io.read_hest` gives it, all samples in one ``table`` with their common genes.
    HEST numbers patients within a study: where there are several, ``obs["patient"]`` has the study's title in front.
    ``uns["hest"]`` has the metadata by sample.

    Raises
    ------
    FileNotFoundError
        If `path` is not such a folder, or a sample there is incomplete.
    ImportError
        If huggingface_hub is not installed (the extra ``models``) and something has to be downloaded.
    PermissionError
        If the hub refuses the download, because the terms were not accepted or nobody is logged in.
    ConnectionError
        If a download fails; the next call goes on where it stopped.
    ValueError
        If `ids` is no set, or there are no samples.

    References
    ----------
    Jaume et al., HEST-1k: a dataset for spatial transcriptomics and histology image analysis, NeurIPS 2024. The studies
    that the samples are from: ``uns["hest"]``.

    Examples
    --------
    >>> sdata = spahgc.datasets.hest(ids="lymph_node")
    >>> sdata = spahgc.datasets.hest("hest_data", ids=["NCBI569", "NCBI570"], patients={"NCBI569": "A", "NCBI570": "B"})
    """
    from ..io import read_hest

    root = settings.data_dir / "hest" if path is None else Path(path)
    wanted = _ids(root, ids)
    if path is None:
        _download([name for name in wanted if not _complete(root, name)], root, progress)
    slides: list[SpatialData] = []
    metadata: dict[str, Any] = {}
    for name in wanted:
        slides.append(read_hest(root, name, patient=(patients or {}).get(name)))
        metadata |= slides[-1].tables[_keys.TABLE].uns[_keys.HEST]
    studies = {name: str(metadata[name].get("dataset_title", name)) for name in wanted}
    if len(set(studies.values())) > 1:
        for name, sdata in zip(wanted, slides, strict=True):
            obs = sdata.tables[_keys.TABLE].obs
            if _keys.PATIENT in obs and name not in (patients or {}):
                whole = f"{studies[name]}: {obs[_keys.PATIENT].iloc[0]}"
                obs[_keys.PATIENT] = pd.Categorical([whole] * len(obs))
    joined = join(slides)
    joined.tables[_keys.TABLE].uns[_keys.HEST] = metadata
    return joined


def _ids(root: Path, ids: str | Sequence[str] | None) -> list[str]:
    if isinstance(ids, str):
        if ids not in SETS:
            raise ValueError(
                f"ids={ids!r} is no set of samples: {format_names(SETS)}. Samples are a list: ids=[{ids!r}]."
            )
        return list(SETS[ids])
    check_names(ids, "ids")
    if ids is not None:
        return list(dict.fromkeys(ids))
    there = sorted(file.stem for file in (root / "st").glob("[!.]*.h5ad"))
    if not there:
        raise ValueError(
            f"No samples (st/*.h5ad) in {str(root)!r}. Pass ids: a list of samples, or one of {format_names(SETS)}. They are "
            f"described in HEST_v*.csv on {PAGE}."
        )
    return there


def _paths(sample: str) -> list[str]:
    return [f"metadata/{sample}.json", f"st/{sample}.h5ad", f"wsis/{sample}.tif"]


def _complete(root: Path, sample: str) -> bool:
    return all((root / file).is_file() for file in _paths(sample))


def _download(wanted: Sequence[str], root: Path, progress: bool | None) -> None:
    """Fetch what is missing of samples; the hub's library resumes and checks.

    Of what that raises nothing goes on from here (`from None`): a request knows the token that it was made with.
    """
    if not wanted:
        return
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    except ImportError as error:
        raise ImportError(
            "HEST-1k comes by huggingface_hub, which is missing: pip install 'spahgc[models]'."
        ) from error
    by_hand = (
        f"On a machine with access run `hf download {REPOSITORY} --repo-type dataset --local-dir hest --include "
        f"{' '.join(repr(f'*/{name}[_.]*') for name in wanted)}`, and pass the folder: hest(path=...)."
    )
    shown = not are_progress_bars_disabled()
    show = settings.progress if progress is None else progress
    (enable_progress_bars if show else disable_progress_bars)()
    # not every sample has outlines of its tissue
    files = [(file, True) for name in wanted for file in _paths(name)]
    files += [(f"tissue_seg/{name}_contours.geojson", False) for name in wanted]
    file = ""
    try:
        for file, needed in files:
            if (root / file).is_file():
                continue
            try:
                hf_hub_download(REPOSITORY, file, repo_type="dataset", local_dir=root)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                if needed:
                    raise ValueError(
                        f"{PAGE} has no {file}. Its samples are format_names in HEST_v*.csv there."
                    ) from None
    except LocalEntryNotFoundError:
        raise ConnectionError(
            f"The Hugging Face hub cannot be reached, or is switched off (HF_HUB_OFFLINE). {by_hand}"
        ) from None
    except ValueError:
        raise
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        # the hub does not tell the hidden from the missing, or refuses a bad token
        if isinstance(error, GatedRepoError) or status in {401, 403, 404}:
            raise _no_access(by_hand) from None
        raise ConnectionError(f"The hub answered {status} when asked for {file}. Try again later. {by_hand}") from None
    except Exception as error:  # noqa: BLE001 (what it raises depends on the HTTP client of its version)
        raise ConnectionError(
            f"The download of {file} from {PAGE} broke off ({type(error).__name__}). The next call goes on. {by_hand}"
        ) from None
    finally:
        (enable_progress_bars if shown else disable_progress_bars)()


def _no_access(by_hand: str) -> PermissionError:
    commands = {entry.name for entry in distribution("huggingface_hub").entry_points}
    login = "hf auth login" if "hf" in commands else "huggingface-cli login"
    return PermissionError(
        "The hub does not give HEST-1k to this machine: it is gated, and nobody is logged in here who accepted its "
        f"terms. Accept them on {PAGE}, then run `{login}` here with a token of the same account. {by_hand}"
    )
