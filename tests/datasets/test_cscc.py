"""cscc: a folder in the layout of GSE144240_RAW.tar, and the download against a server on this machine."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial import cKDTree

import spahgc
from spahgc.datasets import _published, cscc

from ..refusals import refused

if TYPE_CHECKING:
    from conftest import Server

STEP_PX, SIDE = 40, 14
MPP = 150 / np.sqrt(2) / STEP_PX


def write_slide(folder: Path, gsm: str, slide: str, *, plain: bool = False) -> pd.DataFrame:
    """Files of one slide as GEO has them: counts of the whole array, and the spots under the tissue."""
    rng = np.random.default_rng(int(gsm[3:]))
    x, y = (part.ravel() for part in np.meshgrid(np.arange(1, SIDE + 1), np.arange(1, SIDE + 1)))
    keep = (x + y) % 2 == 0
    x, y = x[keep], y[keep]
    darkness = rng.integers(0, 150, len(x))
    means = np.column_stack([1 + darkness / 10, np.full(len(x), 5), 16 - darkness / 10, np.full(len(x), 8)])
    counts = pd.DataFrame(
        rng.poisson(means),
        index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)],
        columns=["KRT5", "CD74", "MMP1", slide],
    )
    pixel = np.column_stack([x, y]) * STEP_PX
    spots = pd.DataFrame({"x": x, "y": y, "new_x": x + 0.02, "new_y": y - 0.02})
    spots["pixel_x"], spots["pixel_y"] = pixel.T
    spots = spots[(x > 2) & (y < SIDE - 1)]
    image = rng.integers(230, 250, ((SIDE + 2) * STEP_PX, (SIDE + 1) * STEP_PX, 3), dtype=np.uint8)
    for (left, top), dark in zip(pixel - STEP_PX // 2, darkness, strict=True):
        image[top : top + STEP_PX, left : left + STEP_PX, 1] -= dark.astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=95)
    texts = {
        f"{gsm}_{slide}_stdata.tsv": counts.to_csv(sep="\t").encode(),
        f"{gsm}_spot_data-selection-{slide}.tsv": spots.to_csv(sep="\t", index=False).encode(),
        f"{gsm}_{slide}.jpg": buffer.getvalue(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name if plain else folder / f"{name}.gz").write_bytes(text if plain else gzip.compress(text, 1))
    return counts.loc[[f"{a}x{b}" for a, b in zip(spots["x"], spots["y"], strict=True)]]


@pytest.fixture
def geo(tmp_path: Path) -> dict[str, pd.DataFrame]:
    """Three slides of two patients, as unpacked from the archive; the last one uncompressed."""
    folder = tmp_path / "geo" / "GSE144240_RAW"
    return {
        "P2_ST_rep1": write_slide(folder, "GSM4284316", "P2_ST_rep1"),
        "P2_ST_rep2": write_slide(folder, "GSM4284317", "P2_ST_rep2"),
        "P10_ST_rep3": write_slide(folder, "GSM4284327", "P10_ST_rep3", plain=True),
    }


def test_accessions() -> None:
    assert len(_published.CSCC_ACCESSIONS) == 12
    assert _published.CSCC_ACCESSIONS["P2_ST_rep1"] == "GSM4284316"
    assert _published.CSCC_ACCESSIONS["P9_ST_rep2"] == "GSM4284323"
    assert _published.CSCC_ACCESSIONS["P10_ST_rep3"] == "GSM4284327"


def test_local_folder(geo: dict[str, pd.DataFrame], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sdata = cscc(tmp_path / "geo")
    table = sdata["table"]
    assert table.obs.groupby("region", observed=True)["patient"].first().to_dict() == {
        "P10_ST_rep3": "P10",
        "P2_ST_rep1": "P2",
        "P2_ST_rep2": "P2",
    }
    for slide, counts in geo.items():
        part = table[table.obs["region"] == slide]
        assert part.obs_names.tolist() == [f"{slide}_{name}" for name in counts.index]
        np.testing.assert_array_equal(part.to_df()[counts.columns], counts)
        factors = table.uns["spatial"][slide]["scalefactors"]
        assert factors["microns_per_pixel"] == pytest.approx(MPP, rel=1e-6)
        assert factors["spot_diameter_fullres"] * MPP == pytest.approx(110)
        # on this array the neighbours are on the diagonals, 150 um away
        near = cKDTree(part.obsm["spatial"]).query(part.obsm["spatial"], k=2)[0][:, 1]
        assert near * MPP == pytest.approx(150)
        assert sdata[f"{slide}_image"]["scale0"]["image"].shape == (3, (SIDE + 2) * STEP_PX, (SIDE + 1) * STEP_PX)
    # that the counts hold the whole array is no reason to warn
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_one_slide_and_the_inner_folder(geo: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    sdata = cscc(str(tmp_path / "geo" / "GSE144240_RAW"), slides=["P10_ST_rep3"])
    assert sdata["table"].obs["region"].cat.categories.tolist() == ["P10_ST_rep3"]


def test_embed_and_predict(geo: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    reference = cscc(tmp_path / "geo", slides=["P2_ST_rep1", "P2_ST_rep2"])
    target = cscc(tmp_path / "geo", slides=["P10_ST_rep3"])
    for sdata in (reference, target):
        spahgc.pp.image_embedding(sdata, encoder="texture")
    spahgc.tl.predict(reference["table"], target["table"], method="ridge", panel=["KRT5", "MMP1"])
    predicted = target["table"].obsm["spahgc"]
    measured = np.log1p(target["table"].to_df())
    for gene in ("KRT5", "MMP1"):
        assert np.corrcoef(predicted[gene], measured[gene])[0, 1] > 0.5


def test_refusals(geo: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    folder = tmp_path / "geo"
    with pytest.raises(
        ValueError, match=r"No slide 'P2_ST_rep9' in cscc\. Available in .*: 'P2_ST_rep1', 'P2_ST_rep2'"
    ):
        cscc(folder, slides=["P2_ST_rep9"])
    with pytest.raises(
        FileNotFoundError,
        match=r"No slides of cscc in .*ST_rep1_stdata.*acc=GSE144240.*cscc\(path=\.\.\.\)",
    ):
        cscc(tmp_path)
    (folder / "GSE144240_RAW" / "GSM4284317_P2_ST_rep2.jpg.gz").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"'P2_ST_rep2' of cscc is incomplete: no GSM4284317_P2_ST_rep2\.jpg or .*which has .*'GSM4284317_P2",
    ):
        cscc(folder)
    image = folder / "GSE144240_RAW" / "GSM4284316_P2_ST_rep1.jpg.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    refused(OSError, r"rep1\.jpg\.gz\) is damaged or truncated", cscc, folder, slides=["P2_ST_rep1"])


def test_download(
    geo: dict[str, pd.DataFrame],
    home: Path,
    serve: Callable[[Path], Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for file in (tmp_path / "geo").rglob("GSM4284316*"):
        place = tmp_path / "web" / "GSM4284nnn" / "GSM4284316" / "suppl" / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    server = serve(tmp_path / "web")
    monkeypatch.setattr(_published, "CSCC_URL", server.url)
    sdata = cscc(slides=["P2_ST_rep1"])
    np.testing.assert_array_equal(sdata["table"].to_df(), geo["P2_ST_rep1"])
    assert len(server.asked) == 3
    assert len((home / "cscc" / "checksums.txt").read_text().splitlines()) == 3
    cscc()
    assert len(server.asked) == 3
    with pytest.raises(ConnectionError, match=r"GSM4284319_P5_ST_rep1_stdata\.tsv\.gz.*download GSE144240_RAW\.tar"):
        cscc(slides=["P5_ST_rep1"])
