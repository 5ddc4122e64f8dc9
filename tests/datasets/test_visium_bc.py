"""visium_bc: Space Ranger folders as 10x publishes them, and the download against a local server."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import spahgc
from spahgc.datasets import _published, visium_bc

from ..refusals import refused

if TYPE_CHECKING:
    from conftest import Server, VisiumSlide

PROBES = ("ERBB2", "KRT8", "CD3E")


@pytest.fixture
def slides(visium_slide: type[VisiumSlide], tmp_path: Path) -> dict[str, VisiumSlide]:
    """The three sections, in ``tmp_path / "10x"``; the last one renamed, without prefixes and with a header."""
    slides = {"block1": visium_slide(0), "block2": visium_slide(1), "FFPE": visium_slide(2, genes=PROBES)}
    for name, slide in slides.items():
        full = _published.TENX_SLIDES[name][0]
        folder = tmp_path / "10x" / ("FFPE" if name == "FFPE" else full)
        prefix = "" if name == "FFPE" else f"{full}_"
        slide.write_spatial(folder / "spatial", header=name == "FFPE")
        slide.write_h5(folder / f"{prefix}filtered_feature_bc_matrix.h5")
        slide.write_tif(folder / f"{prefix}image.tif")
    return slides


def test_local_folder(slides: dict[str, VisiumSlide], tmp_path: Path) -> None:
    table = (sdata := visium_bc(tmp_path / "10x"))["table"]
    patients = table.obs.groupby("region", observed=True)["patient"].first().to_dict()
    assert patients == {"FFPE": "FFPE", "block1": "block_A", "block2": "block_A"}
    # the FFPE section was not measured for MALAT1: no zeros are made up
    assert table.var_names.tolist() == list(PROBES)
    for name, slide in slides.items():
        part = table[table.obs["region"] == name]
        np.testing.assert_array_equal(part.to_df()[list(PROBES)], slide.counts[list(PROBES)])
        np.testing.assert_allclose(part.obsm["spatial"], slide.xy, atol=0.01)
        # of the pitch, and not of the resolution tag, which says 264
        assert sdata.attrs["microns_per_pixel"][f"{name}_image"] == pytest.approx(2.0, rel=1e-3)
        assert sdata[f"{name}_image"]["scale0"]["image"].shape == (3, *slide.image.shape[:2])
    assert sorted(sdata.images) == ["FFPE_image", "block1_image", "block2_image"]


def test_one_slide_keeps_all_genes(slides: dict[str, VisiumSlide], tmp_path: Path) -> None:
    table = visium_bc(tmp_path / "10x", slides=["block2"])["table"]
    np.testing.assert_array_equal(table.to_df(), slides["block2"].counts)


def test_embed_and_predict(slides: dict[str, VisiumSlide], tmp_path: Path) -> None:
    reference, target = (visium_bc(tmp_path / "10x", slides=[name]) for name in ("block1", "FFPE"))
    for sdata in (reference, target):
        spahgc.pp.image_embedding(sdata, encoder="texture")
    spahgc.tl.predict(reference["table"], target["table"], method="ridge", panel=["ERBB2", "KRT8"])
    predicted, measured = target["table"].obsm["spahgc"], np.log1p(slides["FFPE"].counts)
    for gene in ("ERBB2", "KRT8"):
        assert np.corrcoef(predicted[gene], measured[gene])[0, 1] > 0.5


def test_refusals(slides: dict[str, VisiumSlide], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"No slide 'block3' in visium_bc\. Available in .*: 'block1', 'block2', 'FFPE'"
    ):
        visium_bc(tmp_path / "10x", slides=["block3"])
    refused(FileNotFoundError, r"No slides of visium_bc in .*V1_Breast_Cancer_Block_A_Section_1", visium_bc, tmp_path)
    folder = tmp_path / "10x" / "V1_Breast_Cancer_Block_A_Section_1"
    (folder / "spatial" / "tissue_positions_list.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tissue_positions_list\.csv or tissue_positions\.csv in .*spatial"):
        visium_bc(tmp_path / "10x")
    (folder / f"{folder.name}_image.tif").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"'block1' of visium_bc is incomplete: no .*_image\.tif or image\.tif in .*which has"
    ):
        visium_bc(tmp_path / "10x", slides=["block1"])


def test_download(
    slides: dict[str, VisiumSlide],
    home: Path,
    serve: Callable[[Path], Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    section = _published.TENX_SLIDES["block1"][0]
    source, place = tmp_path / "10x" / section, tmp_path / "web" / "1.1.0" / section
    place.mkdir(parents=True)
    for file in source.glob(f"{section}_*"):
        (place / file.name).write_bytes(file.read_bytes())
    with tarfile.open(place / f"{section}_spatial.tar.gz", "w:gz") as tar:
        tar.add(source / "spatial", "spatial")
    server = serve(tmp_path / "web")
    monkeypatch.setattr(_published, "TENX_URL", server.url)
    server.cut = "_image.tif"
    with pytest.raises(ConnectionError, match=r"_image\.tif.*next call resumes.*visium_bc\(path=\.\.\.\)"):
        visium_bc(slides=["block1"])
    server.cut, before = "", len(server.asked)
    table = visium_bc(slides=["block1"])["table"]
    # counts and positions are there already; of the image the rest comes
    assert len(server.asked) == before + 1
    np.testing.assert_array_equal(table.to_df(), slides["block1"].counts)
    assert visium_bc()["table"].n_obs == 81
    recorded = (home / "visium_bc" / "checksums.txt").read_text()
    assert [line.split(" ")[0].rsplit("_", 1)[1] for line in recorded.splitlines()] == [
        "matrix.h5",
        "spatial.tar.gz",
        "image.tif",
    ]
