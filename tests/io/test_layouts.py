"""Slides as other readers lay them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata as sd
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import get_transformation

import spahgc
from spahgc._tables._slots import check_on_panels
from spahgc.io import concat, from_anndata

from ..refusals import refused

PICTURE = np.random.default_rng(0).integers(60, 240, (300, 300, 3), dtype=np.uint8)


def reader(
    region: str,
    *,
    key: str = "region",
    instance: str = "cell_id",
    table: str = "table",
    shapes: str = "",
    genes: str = "abcde",
) -> sd.SpatialData:
    """50 cells as a reader of spatialdata_io gives them; with `shapes`, the table annotates labels beside them."""
    rng, n = np.random.default_rng(sum(map(ord, region))), 50
    ids, xy = [f"c{i}" for i in range(n)], rng.uniform(20, 280, (n, 2))
    obs = pd.DataFrame({"cell_id": ids, "region": "vizgen"}, index=ids)
    obs[instance], obs[key] = (np.arange(1, n + 1) if shapes else ids), pd.Categorical([region] * n)
    counts = sp.csr_matrix(rng.poisson(2, (n, len(genes))).astype(np.float32))
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(genes)), obsm={"spatial": xy})
    parts: dict[str, Any] = {
        "images": {f"{region}_he": Image2DModel.parse(np.moveaxis(PICTURE, -1, 0), dims=("c", "y", "x"))},
        "shapes": {shapes or region: ShapesModel.parse(xy, geometry=0, radius=5.0, index=pd.Index(ids))},
        "tables": {table: TableModel.parse(adata, region=region, region_key=key, instance_key=instance)},
    }
    if shapes:
        parts["labels"] = {region: Labels2DModel.parse(np.zeros((300, 300), np.int32), dims=("y", "x"))}
    return sd.SpatialData(**parts)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"instance": "EntityID", "key": "cells_region"},  # MERSCOPE, whose obs["region"] is another one
        {"instance": "location_id", "table": "square_008um"},  # Visium HD
        {"instance": "cell_labels", "shapes": "cell_circles"},  # Xenium, labels beside circles
    ],
)
def test_join_of_other_readers(layout: dict[str, str]) -> None:
    slides = [reader("A", **layout), reader("B", **layout)]
    before = [slide["A_he" if i == 0 else "B_he"].attrs["transform"].copy() for i, slide in enumerate(slides)]
    joined = concat(slides)
    table = joined["table"]
    assert table.shape == (100, 5)
    assert table.obs["region"].value_counts().to_dict() == {"A": 50, "B": 50}
    assert ("region_of_reader" in table.obs) == ("key" in layout)
    for i, name in enumerate("AB"):
        rows = table[table.obs["region"] == name]
        np.testing.assert_array_equal(joined[name].loc[rows.obs["spot_id"]].get_coordinates(), rows.obsm["spatial"])
        # shared "global": each slide has a system of its own, and the input is as it was
        assert list(get_transformation(joined[f"{name}_he"], get_all=True)) == [f"{name}_global"]
        assert slides[i][f"{name}_he"].attrs["transform"] == before[i]
    spahgc.pp.image_embedding(joined, tile_um=40, microns_per_pixel=1.0)
    assert "image_texture" in table.obsm


def test_same_names_and_what_lacks() -> None:
    one = reader("cells")
    refused(ValueError, "Slides have the same name: 'cells'.*spatialdata.concatenate", concat, [one, one])
    joined = concat([sd.concatenate({name: one}) for name in ("X1", "X2")])
    assert set(joined["table"].obs["region"]) == {"cells-X1", "cells-X2"}
    del one.shapes["cells"]
    refused(KeyError, r"slides\[0\] cannot be joined: The table annotates 'cells'", concat, [one])
    del one.tables["table"]
    refused(KeyError, r"slides\[0\] cannot be joined: sdata has no table", concat, [one])
    two = reader("B")
    two.images["A_he"] = two.images.pop("B_he")
    refused(ValueError, "Images have the same name: 'A_he'", concat, [reader("A"), two])


def test_genes_that_a_panel_lacks() -> None:
    joined = concat([reader("A"), reader("B", genes="abcd"), reader("C")])
    table = joined["table"]
    assert table.varm["measured_on"].loc["e"].to_dict() == {"A": True, "B": False, "C": True}
    again = concat([joined, reader("D")])["table"]
    assert again.varm["measured_on"].loc["e"].to_dict() == {"A": True, "B": False, "C": True, "D": True}
    assert "measured_on" not in concat([reader("A"), reader("B")])["table"].varm
    table.obsm["image_toy"] = np.random.default_rng(0).normal(size=(table.n_obs, 4)).astype(np.float32)
    table.obs["patient"] = table.obs["region"]
    lacks = "Gene 'e' of the panel was not measured on 'B'.*join='inner'"
    refused(ValueError, lacks, spahgc.tl.train, table, panel=["a", "e"], method="ridge")
    assert spahgc.tl.train(table, panel=["a", "b"], method="ridge").genes == ("a", "b")
    # A gene that legacy arrays leave out because it has no counts there is rare on the others, too.
    table.X = sp.csr_matrix(
        table.X.toarray() * ~((table.var_names == "e") & (np.arange(table.n_obs) % 30 > 0)[:, None])
    )
    assert "e" in spahgc.tl.train(table, panel=["a", "e"], method="ridge").genes


def test_legacy_arrays_leave_out_genes_without_counts(data_dir: Path) -> None:
    """Named genes of her2st that one slide's table lacks are right: their zeros were measured."""
    table = spahgc.datasets.her2st(data_dir / "her2st" / "data")["table"]
    known = table.varm["measured_on"]
    matrices = {name: table.X[(table.obs["region"] == name).to_numpy()] for name in known}
    check_on_panels(table, list(known.index[~known.all(axis=1)]), matrices)


HEST = {"ST": {"images": {"downscaled_fullres": PICTURE}, "scalefactors": {"tissue_downscaled_fullres_scalef": 0.2}}}
FACTORS = {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 5.0}


@pytest.mark.parametrize(
    ("entries", "scale"),
    [
        ({"is_single": True, "A": {"images": {"hires": PICTURE}, "scalefactors": FACTORS}}, 0.1),  # CELLxGENE
        ({"A": {"images": {"hires": PICTURE}, "scalefactors": FACTORS, "use_quality": "hires"}}, 0.1),  # stlearn
        (HEST, 0.2),
        ({"A": {"images": {"lowres": PICTURE}, "scalefactors": {"lowres": 0.03, "spot": 5.0}}}, 0.03),  # Seurat
        ({"A": {"images": None, "scalefactors": None}}, None),
        (np.zeros((50, 2)), None),
        ({"A": PICTURE}, None),
    ],
)  # fmt: skip
def test_pictures_of_other_tools(entries: Any, scale: float | None) -> None:
    table = reader("A")["table"]
    table.uns["spatial"] = entries
    from spahgc.pl._drawing import slide_of

    slide = slide_of(table, None, None, 1.0)
    assert (slide.image is None) == (scale is None)
    assert slide.image_scale == (scale or 1.0)
    del table.uns["spatialdata_attrs"]
    table.obs = table.obs.drop(columns="region")
    made = from_anndata(table, PICTURE, slide="A", microns_per_pixel=1.0, spot_diameter_um=5)
    assert made["table"].uns["spatial"]["A"]["scalefactors"]["microns_per_pixel"] == 1.0


def test_positions_and_picture_of_different_resolution() -> None:
    table = ad.AnnData(
        np.ones((4, 2), np.float32), obsm={"spatial": np.array([[100.0, 100], [2900, 2800], [5, 9], [80, 7]])}
    )
    given: dict[str, Any] = {"slide": "A", "microns_per_pixel": 1.0, "spot_diameter_um": 5}
    refused(ValueError, "or x and y swapped", from_anndata, table, PICTURE, **given)
    table.uns["spatial"] = {"A": {"scalefactors": FACTORS}}
    refused(
        ValueError,
        "times tissue_hires_scalef=0.1 lie inside: this is the reduced",
        from_anndata,
        table,
        PICTURE,
        **given,
    )
    # circles that a crop rounds to just outside
    table.obsm["spatial"] = np.array([[-0.6, 4.0], [300, 300], [5, 9], [80, 7]])
    assert from_anndata(table, PICTURE, **given)["table"].n_obs == 4
