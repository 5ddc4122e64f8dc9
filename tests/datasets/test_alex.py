"""alex: folders in Zenodo's layout and in the one of a folder a slide, and the download against a local server."""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from spahgc.datasets import _published, alex

from ..refusals import refused

if TYPE_CHECKING:
    from conftest import Server, VisiumSlide

NAMES = {"CID4290": "ER", "1142243F": "TNBC"}


@pytest.fixture
def slides(visium_slide: type[VisiumSlide]) -> dict[str, VisiumSlide]:
    return {name: visium_slide(seed) for seed, name in enumerate(NAMES)}


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


def test_full_resolution(zenodo: Path, slides: dict[str, VisiumSlide], tmp_path: Path) -> None:
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


def test_small_image_of_zenodo(zenodo: Path, slides: dict[str, VisiumSlide], caplog: pytest.LogCaptureFixture) -> None:
    sdata = alex(zenodo, slides=["CID4290"])
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], slides["CID4290"].xy / 4, atol=0.01)
    assert sdata.attrs["microns_per_pixel"]["CID4290_image"] == pytest.approx(8.0, rel=1e-3)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "CID4290 has no full-resolution image: the small one is used, with 8 um per pixel" in caplog.text


def test_folder_a_slide(slides: dict[str, VisiumSlide], tmp_path: Path) -> None:
    slide = slides["CID4290"]
    slide.write_mtx(tmp_path / "CID4290" / "filtered_count_matrix", columns=3)
    slide.write_spatial(tmp_path / "CID4290" / "spatial")
    slide.write_tif(tmp_path / "CID4290" / "image.tif")
    table = (sdata := alex(str(tmp_path)))["table"]
    np.testing.assert_array_equal(table.to_df(), slide.counts)
    assert sdata.attrs["microns_per_pixel"]["CID4290_image"] == pytest.approx(2.0, rel=1e-3)
    assert "subtype" not in table.obs


def test_genes_that_a_slide_lacks_are_left_out(visium_slide: type[VisiumSlide], zenodo: Path) -> None:
    other = visium_slide(1, genes=("ERBB2", "KRT8", "OTHER"))
    other.write_mtx(zenodo / "filtered_count_matrices" / "1142243F_filtered_count_matrix")
    assert alex(zenodo)["table"].var_names.tolist() == ["ERBB2", "KRT8"]
    visium_slide(1, genes=("A", "B")).write_mtx(zenodo / "filtered_count_matrices" / "1142243F_filtered_count_matrix")
    refused(ValueError, "no gene in common; the first one has 'A', 'B'", alex, zenodo)


def test_refusals(zenodo: Path, slides: dict[str, VisiumSlide], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No slide 'CID1' in alex\. Available in .*: '1142243F', 'CID4290'"):
        alex(zenodo, slides=["CID1"])
    refused(ValueError, r"`images` has unknown slides 'CID1'", alex, zenodo, images={"CID1": "x.tif"})
    refused(FileNotFoundError, r"No slides of alex in .*alex\(path=\.\.\.\)", alex, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'CID4290' of alex is incomplete: no missing\.tif"):
        alex(zenodo, slides=["CID4290"], images={"CID4290": "missing.tif"})
    features = zenodo / "filtered_count_matrices" / "1142243F_filtered_count_matrix" / "features.tsv.gz"
    features.write_text("ERBB2\n")
    with pytest.raises(ValueError, match=r"`var` must have .*\(4\), but has 1 rows"):
        alex(zenodo, slides=["1142243F"])
    slides["CID4290"].write_spatial(zenodo / "spatial" / "1142243F_spatial")
    slides["1142243F"].write_mtx(zenodo / "filtered_count_matrices" / "1142243F_filtered_count_matrix")
    refused(ValueError, "81 of 81 barcodes of the counts have no position in", alex, zenodo, slides=["1142243F"])
    (zenodo / "spatial" / "CID4290_spatial" / "scalefactors_json.json").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"'CID4290' of alex is incomplete: no scalefactors_json\.json in .*which has 'tissue_h",
    ):
        alex(zenodo)


def test_download(
    zenodo: Path,
    home: Path,
    serve: Callable[[Path], Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "web").mkdir()
    sums = {}
    for archive in _published.ALEX_ARCHIVES:
        path = tmp_path / "web" / archive
        with tarfile.open(path, "w:gz") as tar:
            tar.add(zenodo / archive.removesuffix(".tar.gz"), archive.removesuffix(".tar.gz"))
        sums[archive] = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
    server = serve(tmp_path / "web")
    monkeypatch.setattr(_published, "ALEX_URL", server.url)
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
