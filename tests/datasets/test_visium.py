"""alex and visium_bc: folders in their published layouts, and the downloads against a local server."""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spahgc.datasets import _published, alex, visium_bc

from ..refusals import refused
from .conftest import Server, VisiumSlide

NAMES = {"CID4290": "ER", "1142243F": "TNBC"}
PROBES = ("ERBB2", "KRT8", "CD3E")


@pytest.fixture
def slides() -> dict[str, VisiumSlide]:
    return {name: VisiumSlide(seed) for seed, name in enumerate(NAMES)}


@pytest.fixture
def zenodo(slides: dict[str, VisiumSlide], tmp_path: Path) -> Path:
    """Unpacked archives of record 4739739. Some of its files are said to be plain text, for all their names."""
    root = tmp_path / "zenodo"
    (root / "metadata").mkdir(parents=True)
    for name, slide in slides.items():
        slide.write_mtx(root / "filtered_count_matrices" / f"{name}_filtered_count_matrix", compress=name == "CID4290")
        slide.write_spatial(root / "spatial" / f"{name}_spatial")
        labels = pd.DataFrame({"nCount_RNA": 1, "nFeature_RNA": 1, "patientid": name}, index=slide.barcodes[1:])
        labels["subtype"], labels["Classification"] = NAMES[name], "Invasive cancer"
        labels.to_csv(root / "metadata" / f"{name}_metadata.csv")
    return root


def test_alex_full_resolution(zenodo: Path, slides: dict[str, VisiumSlide], tmp_path: Path) -> None:
    images = {name: tmp_path / "images" / f"{name}.tif" for name in NAMES}
    for name, slide in slides.items():
        slide.write_tif(images[name])
    table = (sdata := alex(zenodo, images=images))["table"]
    assert table.obs["region"].cat.categories.tolist() == ["1142243F", "CID4290"]
    assert (table.obs["patient"] == table.obs["region"].astype(str)).all()
    assert sdata.attrs["microns_per_pixel"] == pytest.approx({f"{name}_image": 2.0 for name in NAMES}, rel=1e-3)
    for name, slide in slides.items():
        part = table[table.obs["region"] == name]
        np.testing.assert_array_equal(part.to_df()[slide.counts.columns], slide.counts)
        np.testing.assert_allclose(part.obsm["spatial"], slide.xy, atol=0.01)
        assert part.obs["subtype"].dropna().unique().tolist() == [NAMES[name]]
        # a spot without a label has none
        assert part.obs["Classification"].isna().tolist() == [True] + [False] * (len(part) - 1)
        assert sdata[name].radius.to_numpy() == pytest.approx(55 / 2 / 2.0, rel=1e-3)
        assert sdata[f"{name}_image"]["scale0"]["image"].shape == (3, *slide.image.shape[:2])


def test_alex_small_image(zenodo: Path, slides: dict[str, VisiumSlide], caplog: pytest.LogCaptureFixture) -> None:
    sdata = alex(zenodo, slides=["CID4290"])
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], slides["CID4290"].xy / 4, atol=0.01)
    assert sdata.attrs["microns_per_pixel"]["CID4290_image"] == pytest.approx(8.0, rel=1e-3)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "CID4290 has no full-resolution image: the small one is used, with 8 um per pixel" in caplog.text


def test_alex_folder_a_slide(slides: dict[str, VisiumSlide], tmp_path: Path) -> None:
    slide = slides["CID4290"]
    slide.write_mtx(tmp_path / "CID4290" / "filtered_count_matrix", columns=3)
    slide.write_spatial(tmp_path / "CID4290" / "spatial")
    slide.write_tif(tmp_path / "CID4290" / "image.tif")
    table = (sdata := alex(str(tmp_path)))["table"]
    np.testing.assert_array_equal(table.to_df(), slide.counts)
    assert sdata.attrs["microns_per_pixel"]["CID4290_image"] == pytest.approx(2.0, rel=1e-3)
    assert "subtype" not in table.obs


def test_alex_genes_that_a_slide_lacks_are_left_out(zenodo: Path) -> None:
    other = VisiumSlide(1, genes=("ERBB2", "KRT8", "OTHER"))
    other.write_mtx(zenodo / "filtered_count_matrices" / "1142243F_filtered_count_matrix")
    assert alex(zenodo)["table"].var_names.tolist() == ["ERBB2", "KRT8"]
    VisiumSlide(1, genes=("A", "B")).write_mtx(zenodo / "filtered_count_matrices" / "1142243F_filtered_count_matrix")
    refused(ValueError, "no gene in common; the first one has 'A', 'B'", alex, zenodo)


def test_alex_refusals(zenodo: Path, slides: dict[str, VisiumSlide], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No slide 'CID1' in alex\. Available in .*: '1142243F', 'CID4290'"):
        alex(zenodo, slides=["CID1"])
    refused(ValueError, r"`images` has unknown slides 'CID1'", alex, zenodo, images={"CID1": "x.tif"})
    refused(FileNotFoundError, r"No slides of alex in .*alex\(path=\.\.\.\)", alex, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'CID4290' of alex is incomplete: no missing\.tif"):
        alex(zenodo, slides=["CID4290"], images={"CID4290": "missing.tif"})
    features = zenodo / "filtered_count_matrices" / "1142243F_filtered_count_matrix" / "features.tsv.gz"
    features.write_text("ERBB2\n")
    refused(ValueError, r"`var` must have .*\(4\), but has 1 rows", alex, zenodo, slides=["1142243F"])
    slides["CID4290"].write_spatial(zenodo / "spatial" / "1142243F_spatial")
    slides["1142243F"].write_mtx(zenodo / "filtered_count_matrices" / "1142243F_filtered_count_matrix")
    refused(ValueError, "81 of 81 barcodes of the counts have no position in", alex, zenodo, slides=["1142243F"])
    (zenodo / "spatial" / "CID4290_spatial" / "scalefactors_json.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"'CID4290' of alex is incomplete: no scalefactors_json\.json in .*which has 'tissue_h"
    ):
        alex(zenodo)


def test_alex_download(
    zenodo: Path, home: Path, serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web").mkdir()
    sums = {}
    for archive in _published.ALEX_ARCHIVES:
        path = tmp_path / "web" / archive
        with tarfile.open(path, "w:gz") as tar:
            tar.add(zenodo / archive.removesuffix(".tar.gz"), archive.removesuffix(".tar.gz"))
        sums[archive] = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
    server = serve(tmp_path / "web", "ALEX_URL")
    with pytest.raises(
        ValueError, match=r"filtered_count_matrices.*is not the file that spahgc knows \(expected md5:ea12"
    ):
        alex(slides=["CID4290"])
    monkeypatch.setattr(_published, "ALEX_ARCHIVES", sums)
    assert alex(slides=["CID4290"])["table"].n_obs == 81
    assert len(server.asked) == 4
    assert not list((home / "alex").glob("*.tar.gz"))
    assert alex()["table"].n_obs == 162
    assert len(server.asked) == 4


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, VisiumSlide]:
    """The three sections, in ``tmp_path / "10x"``; the last one renamed, without prefixes and with a header."""
    sections = {"block1": VisiumSlide(0), "block2": VisiumSlide(1), "FFPE": VisiumSlide(2, genes=PROBES)}
    for name, slide in sections.items():
        full = _published.TENX_SLIDES[name][0]
        folder = tmp_path / "10x" / ("FFPE" if name == "FFPE" else full)
        prefix = "" if name == "FFPE" else f"{full}_"
        slide.write_spatial(folder / "spatial", header=name == "FFPE")
        slide.write_h5(folder / f"{prefix}filtered_feature_bc_matrix.h5")
        slide.write_tif(folder / f"{prefix}image.tif")
    return sections


def test_visium_bc_local_folder(sections: dict[str, VisiumSlide], tmp_path: Path) -> None:
    table = (sdata := visium_bc(tmp_path / "10x"))["table"]
    patients = table.obs.groupby("region", observed=True)["patient"].first().to_dict()
    assert patients == {"FFPE": "FFPE", "block1": "block_A", "block2": "block_A"}
    # the FFPE section was not measured for MALAT1: no zeros are made up
    assert table.var_names.tolist() == list(PROBES)
    for name, slide in sections.items():
        part = table[table.obs["region"] == name]
        np.testing.assert_array_equal(part.to_df()[list(PROBES)], slide.counts[list(PROBES)])
        np.testing.assert_allclose(part.obsm["spatial"], slide.xy, atol=0.01)
        # of the pitch, and not of the resolution tag, which says 264
        assert sdata.attrs["microns_per_pixel"][f"{name}_image"] == pytest.approx(2.0, rel=1e-3)
        assert sdata[f"{name}_image"]["scale0"]["image"].shape == (3, *slide.image.shape[:2])
    assert sorted(sdata.images) == ["FFPE_image", "block1_image", "block2_image"]


def test_visium_bc_refusals(sections: dict[str, VisiumSlide], tmp_path: Path) -> None:
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


def test_visium_bc_download(
    sections: dict[str, VisiumSlide], home: Path, serve: Callable[..., Server], tmp_path: Path
) -> None:
    section = _published.TENX_SLIDES["block1"][0]
    source, place = tmp_path / "10x" / section, tmp_path / "web" / "1.1.0" / section
    place.mkdir(parents=True)
    for file in source.glob(f"{section}_*"):
        (place / file.name).write_bytes(file.read_bytes())
    with tarfile.open(place / f"{section}_spatial.tar.gz", "w:gz") as tar:
        tar.add(source / "spatial", "spatial")
    server = serve(tmp_path / "web", "TENX_URL")
    server.cut = "_image.tif"
    refused(ConnectionError, r"_image\.tif.*visium_bc\(path=\.\.\.\)", visium_bc, slides=["block1"])
    server.cut, before = "", len(server.asked)
    table = visium_bc(slides=["block1"])["table"]
    # counts and positions are there already
    assert len(server.asked) == before + 1
    np.testing.assert_array_equal(table.to_df(), sections["block1"].counts)
    assert visium_bc()["table"].n_obs == 81
