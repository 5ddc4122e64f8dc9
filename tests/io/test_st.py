"""Reading a legacy ST slide: the layout, the ways spots are matched, and the scale."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from PIL import Image
from spatialdata.transformations import get_transformation

from spahgc.io import concat, read_st

from ..refusals import refused
from .conftest import PITCH


def same_table(left: ad.AnnData, right: ad.AnnData) -> None:
    """All that a table of the reader holds, compared value by value."""
    assert (left.X != right.X).nnz == 0
    pd.testing.assert_frame_equal(left.obs, right.obs, check_names=False, check_index_type=False)
    pd.testing.assert_frame_equal(left.var, right.var, check_names=False, check_index_type=False)
    np.testing.assert_array_equal(left.obsm["spatial"], right.obsm["spatial"])
    assert set(left.uns["spatial"]) == set(right.uns["spatial"])
    for name, entry in left.uns["spatial"].items():
        np.testing.assert_array_equal(entry["images"]["hires"], right.uns["spatial"][name]["images"]["hires"])
        assert entry["scalefactors"] == right.uns["spatial"][name]["scalefactors"]


def test_layout(slide: dict[str, Any]) -> None:
    sdata = read_st(**slide, patient="A")
    table = sdata["table"]
    counts, spots = slide["counts"], slide["spots"]
    np.testing.assert_array_equal(table.X.toarray(), counts.to_numpy())
    assert table.X.dtype == np.float32
    assert list(table.obs_names) == [f"A1_{name}" for name in counts.index]
    assert list(table.obs["spot_id"]) == list(table.obs_names) == list(sdata["A1"].index)
    assert list(table.var_names) == list(counts.columns)
    assert table.obs["region"].unique().tolist() == ["A1"]
    assert table.obs["patient"].unique().tolist() == ["A"]
    np.testing.assert_array_equal(table.obs["array_col"], spots["x"])
    np.testing.assert_array_equal(table.obs["array_row"], spots["y"])
    np.testing.assert_array_equal(table.obsm["spatial"], spots[["pixel_x", "pixel_y"]])
    assert table.obsm["spatial"].dtype == np.float64
    factors = table.uns["spatial"]["A1"]["scalefactors"]
    assert factors == {
        "tissue_hires_scalef": 1.0,
        "spot_diameter_fullres": pytest.approx(PITCH / 2),
        "microns_per_pixel": pytest.approx(200 / PITCH),
    }
    np.testing.assert_array_equal(table.uns["spatial"]["A1"]["images"]["hires"], slide["image"])
    assert sdata["A1"].radius.to_numpy() == pytest.approx(PITCH / 4)
    np.testing.assert_array_equal(sdata["A1"].get_coordinates(), table.obsm["spatial"])
    for element in ("A1", "A1_image"):
        assert list(get_transformation(sdata[element], get_all=True)) == ["A1"]


def test_image_element(slide: dict[str, Any]) -> None:
    slide["image"] = np.random.default_rng(1).integers(0, 256, (1300, 2101, 3), dtype=np.uint8)
    sdata = read_st(**slide)
    tree = sdata["A1_image"]
    shapes = [tree[level]["image"].shape for level in tree]
    assert shapes == [(3, 1300, 2101), (3, 650, 1051), (3, 325, 526)]
    full = tree["scale0"]["image"]
    assert full.dtype == np.uint8
    assert list(full.coords["c"].values) == ["r", "g", "b"]
    assert max(max(chunks) for chunks in full.chunks) == 512
    np.testing.assert_array_equal(full.values, np.moveaxis(slide["image"], -1, 0))
    # a box mean, in the pixels of full resolution
    block = slide["image"][:2, :2].astype(float).mean(axis=(0, 1))
    np.testing.assert_allclose(tree["scale1"]["image"].values[:, 0, 0], block, atol=0.51)
    np.testing.assert_allclose(tree["scale1"]["image"].coords["y"].values[:2], [1, 3])
    entry = sdata["table"].uns["spatial"]["A1"]
    assert entry["images"]["hires"].shape == (619, 1000, 3)
    assert entry["scalefactors"]["tissue_hires_scalef"] == pytest.approx(1000 / 2101)


def test_round_trip(slide: dict[str, Any], tmp_path: Path) -> None:
    sdata = read_st(**slide, patient="A")
    sdata.write(tmp_path / "slide.zarr")
    back = sd.read_zarr(tmp_path / "slide.zarr")
    same_table(sdata["table"], back["table"])
    for element in (back, sdata):
        np.testing.assert_array_equal(element["A1_image"]["scale0"]["image"], np.moveaxis(slide["image"], -1, 0))
    assert back["A1"].geometry.equals(sdata["A1"].geometry)
    assert list(get_transformation(back["A1_image"], get_all=True)) == ["A1"]
    sdata["table"].write_h5ad(tmp_path / "table.h5ad")
    same_table(sdata["table"], ad.read_h5ad(tmp_path / "table.h5ad"))


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz", ".csv", ".csv.gz"])
def test_files(slide: dict[str, Any], tmp_path: Path, suffix: str) -> None:
    sep = "," if "csv" in suffix else "\t"
    # R's write.table leaves out the name of the column of spots.
    slide["counts"].to_csv(tmp_path / f"counts{suffix}", sep=sep, index_label=False if suffix == ".tsv" else None)
    slide["spots"].to_csv(tmp_path / f"spots{suffix}", sep=sep, index=False)
    image = tmp_path / ("he.tif" if "csv" in suffix else "he.png")
    Image.fromarray(slide["image"]).save(image)
    read = read_st(tmp_path / f"counts{suffix}", str(tmp_path / f"spots{suffix}"), image, slide="A1")
    same_table(read["table"], read_st(**slide)["table"])


def test_matching_by_adjusted_and_by_rounded_positions(slide: dict[str, Any]) -> None:
    spots = slide["spots"]
    expected = read_st(**slide)["table"]
    slide["counts"].index = [f"{x}x{y}" for x, y in zip(spots["new_x"], spots["new_y"], strict=True)]
    same_table(read_st(**slide)["table"], expected)
    slide["spots"] = spots.drop(columns=["new_x", "new_y"])
    same_table(read_st(**slide)["table"], expected)
    # Positions that are adjusted by more than half a spot do not round to the array.
    slide["spots"] = spots.assign(new_x=spots["new_x"] + 0.6)
    slide["counts"].index = [f"{x + 0.6:.3f}x{y}" for x, y in zip(spots["new_x"], spots["new_y"], strict=True)]
    same_table(read_st(**slide)["table"], expected)


def test_spots_of_one_table_only_are_left_out(slide: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    slide["spots"] = slide["spots"].iloc[::-1].iloc[:-1].assign(selected=[0] + [1] * 18)
    slide["counts"] = slide["counts"].drop(index=["3x3"])
    with caplog.at_level(logging.INFO, logger="spahgc"):
        table = read_st(**slide)["table"]
    assert list(table.obs["spot_id"]) == [f"A1_{name}" for name in slide["counts"].index if name not in {"1x1", "5x4"}]
    np.testing.assert_array_equal(table.X.toarray(), slide["counts"].drop(index=["1x1", "5x4"]))
    assert "17 of 19 spots matched to 18 spots of the spot table by x, y" in caplog.text
    assert all(record.levelno == logging.INFO for record in caplog.records)
    caplog.clear()
    slide["spots"] = slide["spots"].iloc[:7]
    read_st(**slide)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "6 of 19 spots matched" in caplog.text


def test_scale_ignores_tilt_and_scatter(slide: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    x, y = (part.ravel() for part in np.meshgrid(np.arange(1, 16), np.arange(1, 13)))
    angle = np.deg2rad(7)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    pixel = np.column_stack([x, y]) @ turn.T * 290 + 800 + rng.normal(0, 20, (len(x), 2))
    slide["spots"] = pd.DataFrame({"x": x, "y": y, "pixel_x": pixel[:, 0], "pixel_y": pixel[:, 1]})
    slide["image"] = np.zeros((6000, 6000, 3), dtype=np.uint8)
    factors = read_st(**slide)["table"].uns["spatial"]["A1"]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(200 / 290, rel=0.02)


def test_scale_given(slide: dict[str, Any]) -> None:
    sdata = read_st(**slide, microns_per_pixel=0.5, spot_diameter_um=55)
    assert sdata["table"].uns["spatial"]["A1"]["scalefactors"]["microns_per_pixel"] == 0.5
    assert sdata["A1"].radius.to_numpy() == pytest.approx(55.0)
    sdata = read_st(**slide, pitch_um=100)
    assert sdata["table"].uns["spatial"]["A1"]["scalefactors"]["microns_per_pixel"] == pytest.approx(100 / PITCH)


def test_without_counts(slide: dict[str, Any], tmp_path: Path) -> None:
    """A slide with H&E only: spots, no genes; it is written and read like any other."""
    slide["counts"] = None
    sdata = read_st(**slide)
    assert sdata["table"].shape == (20, 0)
    assert "patient" not in sdata["table"].obs
    sdata.write(tmp_path / "slide.zarr")
    assert sd.read_zarr(tmp_path / "slide.zarr")["table"].shape == (20, 0)
    sdata["table"].write_h5ad(tmp_path / "table.h5ad")
    assert ad.read_h5ad(tmp_path / "table.h5ad").shape == (20, 0)
    slide["counts"] = pd.DataFrame({"G0": 1}, index=["1x1", "2x1", "1x2"])
    measured = read_st(**{**slide, "slide": "A2"})
    refused(ValueError, r"Slides without expression \('A1'\) cannot join a table with genes", concat, [sdata, measured])


@pytest.mark.parametrize(("name", "n_spots", "n_genes"), [("01", 267, 16573), ("02", 280, 15981), ("11", 262, 16218)])
def test_mouse_bulb(data_dir: Path, name: str, n_spots: int, n_genes: int) -> None:
    """Counts named by adjusted positions, an image at 2.7 um per pixel."""
    folder = data_dir / "mob_st" / name
    sdata = read_st(folder / "counts.tsv.gz", folder / "spots.tsv", folder / "he.jpg", slide=f"mob_{name}")
    table = sdata["table"]
    assert table.shape == (n_spots, n_genes)
    factors = table.uns["spatial"][f"mob_{name}"]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(2.76, rel=0.01)
    if name == "02":
        # by plain pandas
        raw = pd.read_csv(folder / "counts.tsv.gz", sep="\t", index_col=0)
        np.testing.assert_array_equal(table.X.toarray(), raw)
        spots = pd.read_csv(folder / "spots.tsv", sep="\t")
        where = {f"{x}x{y}": (px, py) for x, y, px, py in spots[["new_x", "new_y", "pixel_x", "pixel_y"]].to_numpy()}
        np.testing.assert_array_equal(table.obsm["spatial"], [where[spot] for spot in raw.index])
