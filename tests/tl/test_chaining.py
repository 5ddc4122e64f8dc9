"""From drawn slides to a prediction, and on into squidpy, scanpy and spatialdata-plot as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import spatialdata as sd
import squidpy as sq
from sklearn.cluster import KMeans
from spatialdata import SpatialData

import spahgc


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def drawn() -> SpatialData:
    """Four embedded slides of two patients; S4 is the target."""
    sdata = spahgc.datasets.synthetic_cohort(n_slides=4, n_patients=2, n_spots=60, n_genes=48, microns_per_pixel=2.0)
    spahgc.pp.image_embedding(sdata, tile_px=56, progress=False)
    return sdata


def of_slides(sdata: SpatialData, *names: str) -> SpatialData:
    return sdata.filter_by_coordinate_system(list(names))


@pytest.fixture(scope="module")
def target(drawn: SpatialData) -> SpatialData:
    """S4 with a prediction of all genes by SpaHGC, default preset but fewer epochs."""
    target = of_slides(drawn, "S4")
    spahgc.tl.predict(
        of_slides(drawn, "S1", "S2", "S3")["table"],
        target["table"],
        panel=list(drawn["table"].var_names),
        method_params={"network": {"epochs": 10}, "n_seeds": 1},
        device="cpu",
        progress=False,
    )
    spahgc.tl.evaluate(target["table"])
    return target


@pytest.fixture
def prediction(target: SpatialData) -> ad.AnnData:
    return spahgc.get.predicted(target["table"])


# The main job, end to end.


def test_planted_genes_are_predicted_and_others_are_not(target: SpatialData, drawn: SpatialData) -> None:
    scores, planted = target["table"].var["spahgc_pearson"], drawn["table"].var["planted"]
    assert scores[planted].mean() > 0.45
    assert abs(scores[~planted].mean()) < 0.15
    # Each driver of the images is found, not the easiest alone.
    by_driver = scores.groupby(drawn["table"].var["driver"], observed=True).mean()
    assert (by_driver.drop("none") > 0.2).all()
    # It is not depth that is known.
    assert target["table"].var.loc[planted, "spahgc_pearson_depth_removed"].mean() > 0.4


def test_better_than_the_mean_of_each_gene(target: SpatialData, drawn: SpatialData) -> None:
    table, planted = target["table"].copy(), drawn["table"].var["planted"]
    reference = of_slides(drawn, "S1", "S2", "S3")["table"]
    spahgc.tl.predict(reference, table, panel=list(table.var_names), method="gene_mean", key_added="mean")
    spahgc.tl.evaluate(table, key="mean")
    assert table.var["mean_pearson"].isna().all()
    for metric in ("rmse", "mae"):
        ours, mean = (table.var.loc[planted, f"{key}_{metric}"].mean() for key in ("spahgc", "mean"))
        assert ours < 0.95 * mean


# squidpy.


def test_spatial_statistics(prediction: ad.AnnData) -> None:
    sq.gr.spatial_neighbors(prediction)
    assert prediction.obsp["spatial_connectivities"].shape == (60, 60)
    sq.gr.spatial_autocorr(prediction, mode="moran", n_perms=None)
    moran = prediction.uns["moranI"]["I"]
    assert len(moran) == 48
    assert np.isfinite(moran).all()
    assert moran.max() > 0.2
    # Plots with their defaults.
    sq.pl.spatial_scatter(prediction, color="density-00")
    axes = plt.gcf().axes[0]
    assert axes.get_title() == "density-00"
    shown = next(collection for collection in axes.collections if collection.get_array() is not None)
    np.testing.assert_allclose(np.sort(shown.get_array()), np.sort(prediction[:, "density-00"].X.ravel()), rtol=1e-6)
    assert len(axes.images) == 1  # the tissue
    sq.pl.spatial_scatter(prediction, color="spahgc_support")


# scanpy.


def test_clustering_and_markers(prediction: ad.AnnData) -> None:
    sc.pp.pca(prediction, n_comps=10)
    sc.pp.neighbors(prediction, n_neighbors=10, method="gauss")  # umap's graph takes half a minute to compile
    assert prediction.obsp["connectivities"].shape == (60, 60)
    # Leiden needs igraph, which spahgc does not bring: two clusters of the same components.
    labels = KMeans(2, random_state=0, n_init=3).fit_predict(prediction.obsm["X_pca"])
    prediction.obs["cluster"] = pd.Categorical(labels.astype(str))
    sc.tl.rank_genes_groups(prediction, "cluster", method="wilcoxon")
    markers = sc.get.rank_genes_groups_df(prediction, "0").set_index("names")
    assert len(markers) == 48
    assert (markers["pvals_adj"] < 0.01).sum() > 5
    planted = markers.index.str.split("-").str[0].isin(["density", "color", "size", "context"])
    assert markers["scores"].abs()[planted].mean() > markers["scores"].abs()[~planted].mean()


# SpatialData and spatialdata-plot.


def test_as_a_table_of_the_spatialdata_and_spatialdata_plot(
    target: SpatialData, prediction: ad.AnnData, tmp_path: Any
) -> None:
    import spatialdata_plot  # noqa: F401

    tables = {"table": target["table"].copy(), "predicted": prediction}
    sdata = sd.SpatialData(images=dict(target.images), shapes=dict(target.shapes), tables=tables)
    elements, table = sd.join_spatialelement_table(sdata=sdata, spatial_element_names="S4", table_name="predicted")
    assert len(elements["S4"]) == table.n_obs == 60
    values = sd.get_values("density-00", element_name="S4", sdata=sdata, table_name="predicted")
    np.testing.assert_array_equal(
        values.loc[prediction.obs["spot_id"], "density-00"], prediction[:, "density-00"].X.ravel()
    )
    sdata.write(tmp_path / "slides.zarr")
    read = sd.read_zarr(tmp_path / "slides.zarr")
    np.testing.assert_array_equal(read["predicted"].X, prediction.X)
    spahgc.tl.evaluate(read["table"])
    np.testing.assert_allclose(read["table"].var["spahgc_pearson"], target["table"].var["spahgc_pearson"], rtol=1e-12)
    figure, axes = plt.subplots()
    sdata.pl.render_images("S4_image").pl.render_shapes("S4", color="density-00", table_name="predicted").pl.show(
        coordinate_systems="S4", ax=axes
    )
    figure.canvas.draw()
    assert len(axes.images) == 1
    spots = [collection for collection in axes.collections if len(collection.get_paths()) == 60]
    assert spots
    assert len(np.unique(spots[0].get_facecolor(), axis=0)) > 20
