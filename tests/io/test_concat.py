"""Joining slides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd

import spahgc
from spahgc.io import concat, read_st

from ..refusals import refused


def test_union_of_genes(slide: dict[str, Any], tmp_path: Path) -> None:
    one = read_st(**slide, patient="P")
    other_counts = slide["counts"].rename(columns={"G5": "B9"})[["G2", "B9", "G0"]]
    two = read_st(other_counts, slide["spots"], slide["image"], slide="A2", patient="Q")
    joined = concat([one, two])
    table = joined["table"]
    assert list(table.var_names) == ["B9", "G0", "G1", "G2", "G3", "G4", "G5"]
    assert table.obs_names.is_unique
    assert table.obs.groupby("region", observed=True)["patient"].first().to_dict() == {"A1": "P", "A2": "Q"}
    frame = table.to_df()
    first, second = frame[table.obs["region"] == "A1"], frame[table.obs["region"] == "A2"]
    np.testing.assert_array_equal(first[slide["counts"].columns], slide["counts"])
    np.testing.assert_array_equal(second[["G2", "B9", "G0"]], other_counts)
    assert (first["B9"] == 0).all()
    assert (second[["G1", "G3", "G4", "G5"]] == 0).all().all()
    assert set(joined.images) == {"A1_image", "A2_image"}
    assert set(joined.coordinate_systems) == {"A1", "A2"}
    assert set(table.uns["spatial"]) == {"A1", "A2"}
    assert table.uns["spatialdata_attrs"]["region"] == ["A1", "A2"]
    # one slide comes out again, image, circles and rows
    part = joined.filter_by_coordinate_system("A2")
    assert set(part.images) == {"A2_image"}
    assert part["table"].n_obs == 20
    joined.write(tmp_path / "joined.zarr")
    assert (sd.read_zarr(tmp_path / "joined.zarr")["table"].X != table.X).nnz == 0


def test_same_genes_keep_their_order(slide: dict[str, Any]) -> None:
    slide["counts"] = slide["counts"][["G3", "G0", "G5", "G1", "G2", "G4"]]
    other = slide["counts"][["G0", "G1", "G2", "G3", "G4", "G5"]]
    joined = concat([read_st(**slide), read_st(**{**slide, "slide": "A2", "counts": other})])["table"]
    assert list(joined.var_names) == ["G3", "G0", "G5", "G1", "G2", "G4"]
    assert joined["A1_2x2", "G5"].X.sum() == joined["A2_2x2", "G5"].X.sum() == slide["counts"].loc["2x2", "G5"]


def test_refusals(slide: dict[str, Any]) -> None:
    one = read_st(**slide)
    refused(ValueError, "`slides` is empty", concat, [])
    refused(ValueError, r"Slides have the same name: 'A1'\. Read them with different names", concat, [one, one])
    refused(KeyError, r"slides\[1\] cannot be joined: sdata has no table", concat, [one, sd.SpatialData()])
    other = sd.SpatialData(tables={"table": ad.AnnData(np.ones((2, 1), np.float32))})
    refused(
        KeyError,
        r"slides\[1\] cannot be joined: .*not linked to shapes.*spahgc\.io\.from_anndata",
        concat,
        [one, other],
    )
    assert one["table"].obs["region"].cat.categories.tolist() == ["A1"]


def test_embeddings_of_different_width_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    cohort = spahgc.datasets.synthetic_cohort(n_slides=2, n_spots=9, n_genes=16)
    slides = [cohort.filter_by_coordinate_system(name) for name in ("S1", "S2")]
    for width, sdata in zip((3, 5), slides, strict=True):
        sdata["table"].obsm["image_own"] = np.ones((9, width), np.float32)
    slides[0]["table"].obsm["image_other"] = np.ones((9, 2), np.float32)
    joined = spahgc.io.concat(slides)["table"]
    assert list(joined.obsm) == ["spatial"]
    assert caplog.text.count("is left out, because its width differs between slides") == 2
