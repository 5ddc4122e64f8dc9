"""hest: a folder in the layout of HEST-1k, and the hub, played by a function that copies."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

import spahgc
from spahgc import settings
from spahgc.datasets import hest

from ..refusals import refused


@pytest.fixture
def hub(hest_sample: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub with two samples, of which one has no outlines; the list of what was downloaded."""
    store, asked = tmp_path / "hub", []
    monkeypatch.setattr(settings, "data_dir", tmp_path / "home")
    for name, patient in (("NCBI681", "Patient 8"), ("NCBI682", "Patient 7")):
        hest_sample(store, name, patient=patient)
    (store / "tissue_seg" / "NCBI682_contours.geojson").unlink()

    def download(repository: str, file: str, *, repo_type: str, local_dir: Path) -> str:
        if (repository, repo_type) != ("MahmoodLab/hest", "dataset"):
            raise ValueError(repository)
        if not (store / file).is_file():
            raise RemoteEntryNotFoundError("404", response=answer(404))
        asked.append(file)
        (local_dir / file).parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(store / file, local_dir / file))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def answer(status: int) -> Any:
    """An answer of the hub, which knows the token of the request."""
    request = SimpleNamespace(headers={"authorization": "Bearer hf_secret"}, url="https://huggingface.co")
    return SimpleNamespace(status_code=status, headers={}, request=request, url=request.url)


def test_local_folder_of_one_study(hest_sample: Callable[..., Any], tmp_path: Path) -> None:
    hest_sample(tmp_path, "NCBI681", patient="Patient 8")
    hest_sample(tmp_path, "NCBI682", patient="Patient 7")
    table = (sdata := hest(tmp_path))["table"]
    patients = table.obs.groupby("region", observed=True)["patient"].first().to_dict()
    assert patients == {"NCBI681": "Patient 8", "NCBI682": "Patient 7"}
    assert table.obs_names.is_unique
    assert sdata.attrs["microns_per_pixel"] == {"NCBI681_image": 2.0, "NCBI682_image": 2.0}
    assert {"NCBI681_tissue", "NCBI682_tissue"} <= set(sdata.shapes)
    one = hest(tmp_path, slides=["NCBI682"], patients={"NCBI682": "D2"})
    assert one["table"].obs["patient"].unique().tolist() == ["D2"]


def test_patients_of_several_studies_and_panels(hest_sample: Callable[..., Any], tmp_path: Path) -> None:
    """Patient 1 of two studies are two people; a gene that a panel lacks is not a count of zero."""
    hest_sample(tmp_path, "TENX116", technology="Xenium", genes=("ERBB2", "KRT8", "MUC1"), dataset_title="One")
    hest_sample(tmp_path, "TENX126", technology="Xenium", genes=("ERBB2", "KRT8", "TFF1"), dataset_title="Two")
    hest_sample(tmp_path, "TENX140", technology="Xenium", genes=("KRT8", "ERBB2"), dataset_title="Two")
    table = hest(tmp_path, slides="pancreas_xenium", patients={"TENX140": "me"})["table"]
    assert table.obs.groupby("region", observed=True)["patient"].first().to_dict() == {
        "TENX116": "One: Patient 1",
        "TENX126": "Two: Patient 1",
        "TENX140": "me",
    }
    assert table.var_names.tolist() == ["ERBB2", "KRT8"]
    assert table.uns["hest"]["TENX126"]["dataset_title"] == "Two"


def test_embed_and_predict(hest_sample: Callable[..., Any], tmp_path: Path) -> None:
    hest_sample(tmp_path, "A")
    adata, _ = hest_sample(tmp_path, "B", technology="Xenium", patient="Patient 2")
    reference, target = (hest(tmp_path, slides=[name]) for name in "AB")
    for sdata in (reference, target):
        spahgc.pp.image_embedding(sdata, encoder="texture")
    spahgc.tl.predict(reference["table"], target["table"], method="ridge", panel=["ERBB2", "KRT8"])
    measured = np.log1p(adata.X)
    for column, gene in enumerate(("ERBB2", "KRT8")):
        assert np.corrcoef(target["table"].obsm["spahgc"][gene], measured[:, column])[0, 1] > 0.5


def test_download(hub: list[str], tmp_path: Path) -> None:
    sdata = hest(slides=["NCBI681", "NCBI682"])
    assert sdata["table"].n_obs == 162
    files = [f"{name}.{end}" for end in ("json", "h5ad", "tif") for name in ("NCBI681", "NCBI682")]
    assert sorted(file.split("/")[1] for file in hub) == sorted([*files, "NCBI681_contours.geojson"])
    hest()
    assert len(hub) == 7
    (tmp_path / "home" / "hest" / "wsis" / "NCBI682.tif").unlink()
    assert hest(slides=["NCBI682"])["table"].n_obs == 81
    assert hub[7:] == ["wsis/NCBI682.tif"]
    refused(ValueError, r"datasets/MahmoodLab/hest has no metadata/NCBI1\.json", hest, slides=["NCBI1"])


NO_HUB = (
    r"Could not download .*cannot be reached.*hf download MahmoodLab/hest.*'\*/NCBI681\[_\.\]\*'.*hest\(path=\.\.\.\)"
)
GATED = r"gated.*Accept them on https://huggingface\.co/datasets/MahmoodLab/hest, then run `hf auth login`"


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (GatedRepoError("no", response=answer(403)), PermissionError, GATED),
        (HfHubHTTPError("no", response=answer(401)), PermissionError, GATED),
        (HfHubHTTPError("no", response=answer(500)), ConnectionError, r"metadata/NCBI681.*answered 500"),
        (LocalEntryNotFoundError("no"), ConnectionError, NO_HUB),
        (OSError("reset"), ConnectionError, r"metadata/NCBI681\.json.*\(OSError\)"),
    ],
    ids=["gated", "not logged in", "server", "no network", "broke off"],
)
def test_hub_that_refuses(
    hub: list[str], monkeypatch: pytest.MonkeyPatch, raised: Exception, kind: type[Exception], said: str
) -> None:
    def download(*args: Any, **kwargs: Any) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(kind, match=said) as caught:
        hest(slides=["NCBI681"])
    # the request of the error knows the token
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert "hf_secret" not in str(caught.value)


def test_refusals(hest_sample: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "data_dir", tmp_path / "home")
    refused(ValueError, r"`slides` must be one of the sets 'lymph_node', .*got 'liver'", hest, slides="liver")
    refused(ValueError, r"No samples \(st/\*\.h5ad\) in .*Pass a list", hest)
    refused(ValueError, "`slides` is empty", hest, slides=[])
    refused(FileNotFoundError, r"slide='NCBI681' is not a sample", hest, tmp_path, slides=["NCBI681"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(ImportError, r"pip install 'spahgc\[models\]'", hest, slides="lymph_node")
