"""`io.bin_to_spots`: counts are summed where they lie, none is lost or counted twice, and the result is a slide."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from spahgc.io import bin_to_spots
from spahgc.io._bins import assign_spots

from ..refusals import refused

LATTICES: list[tuple[Any, int, int]] = [("grid", 50, 50), ("grid", 30, 47), ("hex", 55, 100), ("hex", 60, 60)]


@pytest.fixture
def make_bins() -> Callable[..., Any]:
    """Function that builds slides of square bins of 8 um, 4 pixels a side, as a Visium HD reader does."""

    def make(slides: tuple[str, ...] = ("A_square_008um",), *, n: int = 30, squares: bool = True) -> Any:
        from geopandas import GeoDataFrame
        from shapely import box
        from spatialdata import SpatialData
        from spatialdata.models import Image2DModel, ShapesModel, TableModel
        from spatialdata.transformations import Identity, Scale

        shapes, tables = {}, []
        for k, name in enumerate(slides):
            row, column = (part.ravel() for part in np.meshgrid(np.arange(n), np.arange(n + 5), indexing="ij"))
            xy = np.column_stack([column, row]) * 4.0 + [12 + 100 * k, 22]
            to = {name[:1]: Identity(), f"{name[:1]}_half": Scale([0.5, 0.5], axes=("x", "y"))}
            index = pd.Index(np.arange(len(xy)))
            if squares:
                boxes = GeoDataFrame({"geometry": box(*(xy - 2).T, *(xy + 2).T)}, index=index)
                shapes[name] = ShapesModel.parse(boxes, transformations=to)
            else:
                shapes[name] = ShapesModel.parse(xy, geometry=0, radius=2.0, index=index, transformations=to)
            obs = pd.DataFrame({"region": name, "location_id": np.arange(len(xy)), "array_row": row})
            obs["array_col"], obs["patient"], obs["barcode"] = column, f"P{k}", [f"b{i}" for i in range(len(xy))]
            obs.index = [f"{name}_{i}" for i in range(len(xy))]
            counts = sp.csr_matrix(np.random.default_rng(k).poisson(0.4, (len(xy), 5)).astype(np.float32))
            tables.append(ad.AnnData(counts, obs=obs, var=pd.DataFrame({"kind": list("vwxyz")}, index=list("VWXYZ"))))
            tables[-1].obsm["spatial"] = xy
        table = ad.concat(tables, merge="same")
        table.obs["region"] = table.obs["region"].astype("category")
        table = table[np.random.default_rng(9).permutation(table.n_obs)].copy()
        table = TableModel.parse(table, region=list(slides), region_key="region", instance_key="location_id")
        image = Image2DModel.parse(
            np.full((200, 300, 3), 200, np.uint8), dims=("y", "x", "c"), transformations={"A": Identity()}
        )
        return SpatialData(images={"A_full_image": image}, shapes=shapes, tables={"square_008um": table})

    return make


@pytest.mark.parametrize("squares", [True, False])
def test_a_grid_loses_no_count(make_bins: Callable[..., Any], squares: bool) -> None:
    """35 x 30 bins of 8 um in squares of 56 um: 7 x 7 bins each, 5 x 5 spots, the last row 2 bins high."""
    sdata = make_bins(squares=squares)
    spots = bin_to_spots(sdata, 56)
    table, bins = spots["table"], sdata["square_008um"]
    assert table.n_obs == 25
    assert sorted(set(table.obs["n_bins"])) == [14, 49]
    assert table.obs["n_bins"].sum() == bins.n_obs
    np.testing.assert_array_equal(table.X.sum(axis=0), bins.X.sum(axis=0))
    assert table.X.dtype == np.float32
    assert isinstance(table.X, sp.csr_matrix)
    for i in (0, 7, 24):  # by looking at each bin
        away = bins.obsm["spatial"] - table.obsm["spatial"][i]
        inside = ((away >= -14) & (away < 14)).all(axis=1)
        np.testing.assert_array_equal(table.X[i].toarray(), bins.X[inside].sum(axis=0))


def test_the_result_is_a_slide(make_bins: Callable[..., Any]) -> None:
    from spatialdata.transformations import get_transformation

    sdata = make_bins()
    spots = bin_to_spots(sdata, 56)
    table = spots["table"]
    assert list(spots.shapes) == ["A"]
    assert set(table.obs["region"]) == {"A"}
    assert table.uns["spatialdata_attrs"] == {"region": ["A"], "region_key": "region", "instance_key": "spot_id"}
    assert list(table.obs["spot_id"]) == list(spots["A"].index) == list(table.obs_names)
    np.testing.assert_allclose(np.sqrt(spots["A"].area), 28)  # 56 um
    centroid = spots["A"].centroid
    np.testing.assert_allclose(np.column_stack([centroid.x, centroid.y]), table.obsm["spatial"])
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 28.0, "microns_per_pixel": 2.0}
    assert table.uns["spatial"]["A"]["scalefactors"] == factors
    assert set(get_transformation(spots["A"], get_all=True)) == {"A", "A_half"}
    assert get_transformation(spots["A"], "A_half").to_affine_matrix(("x",), ("x",))[0, 0] == 0.5
    assert spots.images["A_full_image"] is sdata.images["A_full_image"]
    assert list(table.var["kind"]) == list("vwxyz")
    assert set(table.obs["patient"]) == {"P0"}
    assert "barcode" not in table.obs
    assert "square_008um" in sdata.tables
    assert sdata["square_008um"].n_obs == 30 * 35


def test_hexagons_take_each_bin_once(make_bins: Callable[..., Any]) -> None:
    sdata = make_bins(n=60)
    spots = bin_to_spots(sdata, 55, pitch_um=100, layout="hex")
    table = spots["table"]
    at = table.obsm["spatial"] * 2.0  # um
    bins = sdata["square_008um"].obsm["spatial"] * 2.0
    near = np.linalg.norm(bins[:, None] - at[None], axis=2) <= 27.5
    assert near.sum(axis=1).max() == 1
    np.testing.assert_array_equal(table.obs["n_bins"], near.sum(axis=0))
    counts = sdata["square_008um"].X.toarray()
    np.testing.assert_array_equal(table.X.toarray(), near.T.astype(float) @ counts)
    # Each spot away from the border has six neighbours at 100 um, and none closer.
    apart = np.linalg.norm(at[:, None] - at[None], axis=2) + 1e9 * np.eye(len(at))
    assert apart.min() == pytest.approx(100)
    assert ((apart < 101).sum(axis=1) == 6).any()
    np.testing.assert_allclose(spots["A"]["radius"], 13.75)


def test_a_lattice_against_looking_at_all_spots() -> None:
    """Any point, any lattice: the spot is the one a search over all of them finds."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 500, (4000, 2))
    for layout, spot, pitch in LATTICES:
        found, centers, places = assign_spots(points, spot, pitch, layout)
        inside = found >= 0
        away = points[inside] - centers[found[inside]]
        size = np.abs(away).max(axis=1) if layout == "grid" else np.linalg.norm(away, axis=1)
        assert size.max() <= spot / 2
        away = points[~inside, None] - centers[None]
        size = np.abs(away).max(axis=2) if layout == "grid" else np.linalg.norm(away, axis=2)
        assert size.size == 0 or size.min() > spot / 2
        assert len({*map(tuple, places)}) == len(centers)
    assert (assign_spots(points, 50, 50, "grid")[0] >= 0).all()


def test_several_slides(make_bins: Callable[..., Any]) -> None:
    names = ("A_square_008um", "B_square_008um")
    sdata = make_bins(names)
    spots = bin_to_spots(sdata, 56)
    table = spots["table"]
    assert list(spots.shapes) == ["A", "B"]
    assert table.uns["spatialdata_attrs"]["region"] == ["A", "B"]
    for k, name in enumerate(names):
        mine = table[table.obs["region"] == name[:1]]
        assert set(mine.obs["patient"]) == {f"P{k}"}
        whole = sdata["square_008um"][sdata["square_008um"].obs["region"] == name]
        np.testing.assert_array_equal(mine.X.sum(axis=0), whole.X.sum(axis=0))
        alone = bin_to_spots(make_bins(names), 56, slide={name: "mine"})
        assert "mine" in alone.shapes
    refused(ValueError, "Slides have the same name: 'S'", bin_to_spots, sdata, 56, slide="S")


def test_few_bins_are_left_out(make_bins: Callable[..., Any]) -> None:
    spots = bin_to_spots(make_bins(), 56, min_bins=40)
    assert spots["table"].n_obs == 20
    assert (spots["table"].obs["n_bins"] == 49).all()
    refused(ValueError, "No spot of slide 'A' has 50 bins or cells", bin_to_spots, make_bins(), 56, min_bins=50)


def test_survives_on_disk(make_bins: Callable[..., Any], tmp_path: Any) -> None:
    import spatialdata

    for layout in ("grid", "hex"):
        spots = bin_to_spots(make_bins(), 56, layout=layout)
        spots.write(tmp_path / f"{layout}.zarr")
        again = spatialdata.read_zarr(tmp_path / f"{layout}.zarr")["table"]
        pd.testing.assert_frame_equal(again.obs, spots["table"].obs, check_dtype=False)
        np.testing.assert_array_equal(again.X.toarray(), spots["table"].X.toarray())
        assert again.uns["spatial"]["A"]["scalefactors"]["microns_per_pixel"] == 2.0


def test_memory_follows_the_counts(make_bins: Callable[..., Any]) -> None:
    """20,000 genes: a dense matrix of the bins would take 170 MB, of the spots 4 MB."""
    sdata = make_bins(n=44)
    old = sdata["square_008um"]
    wide = sp.random(old.n_obs, 20000, density=1e-3, format="csr", dtype=np.float32, rng=0)
    wide.data[:] = 1
    table = ad.AnnData(wide, obs=old.obs.copy(), obsm={"spatial": old.obsm["spatial"]})
    table.uns["spatialdata_attrs"] = dict(old.uns["spatialdata_attrs"])
    sdata.tables["square_008um"] = table
    bin_to_spots(sdata, 56)
    tracemalloc.start()
    spots = bin_to_spots(sdata, 56)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert spots["table"].X.sum() == wide.nnz
    assert peak < 20e6


# What cannot be used


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spot_diameter_um": 0}, "`spot_diameter_um` must be a finite number greater than 0, got 0"),
        ({"spot_diameter_um": np.nan}, "`spot_diameter_um` must be a finite number greater than 0, got nan"),
        ({"spot_diameter_um": 55, "pitch_um": 50}, "`pitch_um` must be at least spot_diameter_um=55, got 50"),
        ({"spot_diameter_um": 55, "layout": "square"}, "`layout` must be one of 'grid', 'hex', got 'square'"),
        ({"spot_diameter_um": 55, "min_bins": 0}, "`min_bins` must be an integer of at least 1, got 0"),
        ({"spot_diameter_um": 55, "microns_per_pixel": 500}, "between 0.05 and 20"),
        ({"spot_diameter_um": 55, "slide": "a/b"}, "not a valid name"),
    ],
)
def test_bad_arguments(make_bins: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
    refused(ValueError, message, bin_to_spots, make_bins(), **arguments)


def test_bad_input(make_bins: Callable[..., Any]) -> None:
    refused(TypeError, "`sdata` must be a SpatialData, got", bin_to_spots, make_bins()["square_008um"], 55)
    sdata = make_bins()
    refused(KeyError, "no table 'square_002um'.*'square_008um'", bin_to_spots, sdata, 55, table_key="square_002um")
    refused(KeyError, r"layers has no 'counts' \(layer\). Available: none", bin_to_spots, sdata, 55, layer="counts")
    sdata["square_008um"].X = sdata["square_008um"].X * 0.5
    refused(ValueError, "does not hold raw counts.*Pass layer=<raw counts>", bin_to_spots, sdata, 55)
    sdata = make_bins()
    sdata["square_008um"].X = None
    refused(ValueError, "has no expression .X is None", bin_to_spots, sdata, 55)
    sdata = make_bins()
    del sdata["square_008um"].uns["spatialdata_attrs"]
    refused(KeyError, "not linked to shapes", bin_to_spots, sdata, 55)
    sdata = make_bins(("cells",))
    refused(ValueError, "full-resolution pixel of slide 'cells' are not known", bin_to_spots, sdata, 55)
    assert list(bin_to_spots(sdata, 55, microns_per_pixel=2.0).shapes) == ["cells_spots"]
