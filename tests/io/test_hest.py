"""read_hest: small samples in the layout of HEST-1k."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd

from spahgc.io import read_hest

from ..refusals import refused

MPP = 2.0
"""Of the samples that the fixture writes."""


@pytest.fixture
def write(hest_sample: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Writer of a sample into ``tmp_path / "hest"``; returns table and image."""
    return lambda name, **kwargs: hest_sample(tmp_path / "hest", name, **kwargs)


def test_visium_sample(write: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adata, pixels = write("NCBI681")
    sdata = read_hest(tmp_path / "hest")
    table = sdata["table"]
    assert caplog.records == []
    assert table.var_names.tolist() == ["ERBB2", "KRT8", "CD3E", "CD3E-1"]
    assert (table.X != adata.X).nnz == 0
    np.testing.assert_array_equal(table.obsm["spatial"], adata.obsm["spatial"])
    assert table.obs["patient"].unique().tolist() == ["Patient 1"]
    assert table.obs["region"].unique().tolist() == ["NCBI681"]
    factors = table.uns["spatial"]["NCBI681"]["scalefactors"]
    assert factors["microns_per_pixel"] == MPP
    assert factors["spot_diameter_fullres"] == 55 / MPP
    assert sdata.attrs["microns_per_pixel"] == {"NCBI681_image": MPP}
    image = sdata["NCBI681_image"]
    np.testing.assert_array_equal(np.moveaxis(image["scale0"]["image"].data.compute(), 0, -1), pixels)
    assert image["scale1"]["image"].shape == (3, 256, 264)
    metadata = table.uns["hest"]["NCBI681"]
    assert metadata["organ"] == "Pancreas"
    assert metadata["Reads_Spot"] == 7
    # what HEST does not know is not there
    assert not {"pixel_size_um_embedded", "license"} & set(metadata)
    assert sdata["NCBI681_tissue"].geometry.area.tolist() == [450 * 440]
    sdata.write(tmp_path / "out.zarr")
    back = sd.read_zarr(tmp_path / "out.zarr")
    assert back["table"].uns["hest"]["NCBI681"] == metadata


def test_xenium_sample(write: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The squares that HEST made are the spots, whatever its file says of their diameter."""
    adata, _ = write("TENX116", technology="Xenium", patient=float("nan"))
    sdata = read_hest(tmp_path / "hest", "TENX116")
    assert sdata["table"].X.format == "csr"
    assert sdata["table"].X.dtype == np.float32
    np.testing.assert_array_equal(sdata["table"].X.toarray(), adata.X)
    assert sdata["TENX116"].radius.to_numpy() * 2 * MPP == pytest.approx(100)
    assert sdata["table"].obs["patient"].isna().all()
    assert "HEST does not name the patient of TENX116. Pass patient=<name>" in caplog.text
    caplog.clear()
    given = read_hest(tmp_path / "hest", "TENX116", patient="D1", microns_per_pixel=1.9, spot_diameter_um=80)
    assert given["table"].obs["patient"].unique().tolist() == ["D1"]
    assert given["TENX116"].radius.to_numpy() * 2 * 1.9 == pytest.approx(80)
    assert caplog.records == []


def test_scales_that_differ(write: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write("A", pixel_size_um_embedded=1.9)
    read_hest(tmp_path / "hest", "A")
    assert caplog.records == []
    write("B", pixel_size_um_embedded=0.2646)
    assert read_hest(tmp_path / "hest", "B").attrs["microns_per_pixel"] == {"B_image": MPP}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "B: HEST measured 2 um per pixel, but the original image says 0.2646. The measured value is" in caplog.text


def test_spots_outside_of_the_image(
    write: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write("T", technology="Xenium", fullres_px_width=9999)
    file = tmp_path / "hest" / "st" / "T.h5ad"
    adata = ad.read_h5ad(file)
    adata.obsm["spatial"][:2] = [[-3, 50], [528, 60]]
    adata.write_h5ad(file)
    table = read_hest(tmp_path / "hest")["table"]
    np.testing.assert_array_equal(table.obsm["spatial"], adata.obsm["spatial"][2:])
    assert "T: 2 of 81 spots lie outside the image and are left out." in caplog.text
    assert "T: the image has 528 x 512 pixels, its metadata say 9999 x 512." in caplog.text
    adata.obsm["spatial"] += 10_000
    adata.write_h5ad(file)
    refused(ValueError, "81 of 81 spots lie outside the image of 528 x 512 pixels", read_hest, tmp_path / "hest")


def test_refusals(write: Callable[..., Any], tmp_path: Path) -> None:
    root = tmp_path / "hest"
    refused(FileNotFoundError, r"Available: none\. .*layout of HEST-1k: st/TENX143\.h5ad", read_hest, root)
    write("A")
    write("B", st_technology=None)
    refused(FileNotFoundError, r"slide=None is not a sample .*Available: 'A', 'B'", read_hest, root)
    refused(FileNotFoundError, r"slide='C' is not a sample .*Available: 'A', 'B'", read_hest, root, "C")
    refused(ValueError, r"The kind of spots of B is unknown \(no st_technology\)", read_hest, root, "B")
    (root / "wsis" / "A.tif").unlink()
    (root / "metadata" / "B.json").unlink()
    refused(ValueError, r"micrometers per pixel of B are unknown: there is no metadata/B\.json", read_hest, root, "B")
    with pytest.raises(
        FileNotFoundError,
        match=r"No .*A\.tif\. Tiles are cut .*not taken from HEST's patches.*hf download MahmoodLab/hest",
    ):
        read_hest(root, "A")
