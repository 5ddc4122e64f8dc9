from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata as sd
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from spatialdata.models import ShapesModel, TableModel

import spahgc
from spahgc import _disk
from spahgc._slides import normalize

from .conftest import DIAMETER, GENES, MPP, assert_nothing_cut_off


def spots(ax: Axes) -> EllipseCollection:
    (found,) = (artist for artist in ax.collections if isinstance(artist, EllipseCollection))
    return found


def values(ax: Axes) -> np.ndarray:
    return np.ma.asarray(spots(ax).get_array()).filled(np.nan)


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def bars(ax: Axes) -> list[Axes]:
    return list(ax.child_axes)


def test_panels_hold_measured_predicted_and_difference(slide: ad.AnnData) -> None:
    axes = spahgc.pl.expression(slide, "STRIPE")
    assert [ax.get_title().split(",")[0] for ax in axes] == ["measured", "predicted", "predicted \u2212 measured"]
    column = slide.var_names.get_loc("STRIPE")
    measured = normalize(slide.X, "log1p")[:, column]
    predicted = slide.obsm["spahgc"]["STRIPE"].to_numpy()
    np.testing.assert_allclose(values(axes[0]), measured, atol=1e-6)
    np.testing.assert_allclose(values(axes[1]), predicted, atol=1e-6)
    np.testing.assert_allclose(values(axes[2]), predicted - measured, atol=1e-6)
    r = np.corrcoef(measured, predicted)[0, 1]
    assert r > 0.8
    assert axes[1].get_title() == f"predicted, r = {r:.2f}"
    assert axes[0].get_ylabel() == "STRIPE"
    assert axes[0].yaxis.label.get_style() == "italic"


def test_measured_values_come_from_the_layer(slide: ad.AnnData) -> None:
    slide.layers["raw"] = slide.X.copy()
    slide.X = slide.X * 0.5
    with pytest.raises(ValueError, match=r"not whole numbers.*'raw'"):
        spahgc.pl.expression(slide, "STRIPE")
    axes = spahgc.pl.expression(slide, "STRIPE", layer="raw")
    np.testing.assert_allclose(values(axes[0]), normalize(slide.layers["raw"], "log1p")[:, 1], atol=1e-6)
    with pytest.raises(KeyError, match=r"no 'counts' \(layer\).*'raw'"):
        spahgc.pl.expression(slide, "STRIPE", layer="counts")


def test_the_ledger_gives_the_unit(slide: ad.AnnData) -> None:
    slide.uns["spahgc"] |= {"params": {"normalize": "log10"}, "units": "log10(counts + 1)"}
    axes = spahgc.pl.expression(slide, "STRIPE")
    np.testing.assert_allclose(values(axes[0]), np.log10(slide.X.toarray()[:, 1] + 1), atol=1e-6)
    assert [bar.get_ylabel() for ax in axes for bar in bars(ax)] == ["log10(counts + 1)"] * 2


def test_one_color_scale_for_measured_and_predicted(slide: ad.AnnData) -> None:
    measured, predicted, difference = spahgc.pl.expression(slide, "GRADIENT")
    assert spots(measured).get_clim() == spots(predicted).get_clim()
    pooled = np.concatenate([values(measured), values(predicted)])
    np.testing.assert_allclose(spots(measured).get_clim(), np.quantile(pooled, (0.01, 0.99)))
    low, high = spots(difference).get_clim()
    assert low == -high < 0
    assert [len(bars(ax)) for ax in (measured, predicted, difference)] == [0, 1, 1]


def test_bar_shows_that_values_go_beyond_the_scale(slide: ad.AnnData) -> None:
    extensions = []
    for gene in ("GRADIENT", "FLAT"):  # beyond the quantiles of a constant gene there is nothing
        (bar,) = bars(spahgc.pl.expression(slide, gene, what="predicted")[0])
        extensions.append(sum(isinstance(patch, mpl.patches.PathPatch) for patch in bar.get_children()))
    assert extensions == [2, 0]


def test_spots_have_their_true_size_and_place(slide: ad.AnnData) -> None:
    ax = spahgc.pl.expression(slide, "STRIPE", what="predicted", size=2.0)[0]
    collection = spots(ax)
    np.testing.assert_allclose(collection.get_widths(), 2 * DIAMETER)
    np.testing.assert_allclose(collection.get_heights(), 2 * DIAMETER)
    np.testing.assert_array_equal(collection.get_offsets(), slide.obsm["spatial"])
    assert ax.get_aspect() == 1.0
    ax.figure.draw_without_rendering()
    # In data units a width is the same length in pixels wherever the axes are: circles, not markers.
    pixels = ax.transData.transform([[0, 0], [DIAMETER, 0]])
    drawn = ax.transData.transform(collection.get_offsets()[:2])
    assert pixels[1, 0] - pixels[0, 0] == pytest.approx((drawn[1, 0] - drawn[0, 0]) * DIAMETER / 100)


def test_spots_of_the_difference_have_a_rim_where_there_is_room(slide: ad.AnnData) -> None:
    measured, _, difference = spahgc.pl.expression(slide, "STRIPE")
    assert spots(measured).get_linewidths()[0] == 0
    assert spots(difference).get_linewidths()[0] > 0
    slide.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"] = 5.0
    assert spots(spahgc.pl.expression(slide, "STRIPE")[2]).get_linewidths()[0] == 0


def test_y_points_down_and_the_picture_is_cropped_to_the_spots(slide: ad.AnnData) -> None:
    ax = spahgc.pl.expression(slide, "STRIPE", what="predicted")[0]
    bottom, top = ax.get_ylim()
    left, right = ax.get_xlim()
    x, y = slide.obsm["spatial"].T
    radius = DIAMETER / 2
    assert left < x.min() - radius < x.max() + radius < right
    assert top < y.min() - radius < y.max() + radius < bottom
    (image,) = ax.images
    x0, x1, y1, y0 = image.get_extent()
    # Whole pixels of the thumbnail, so up to one of them more than the box on each side.
    assert left - 10 <= x0 <= left
    assert right <= x1 <= right + 10
    assert top - 10 <= y0 <= top
    assert y.max() + radius < y1 < bottom


def test_thumbnail_pixels_lie_where_they_belong(slide: ad.AnnData) -> None:
    picture = np.full((90, 120, 3), 255, dtype=np.uint8)
    x, y = (slide.obsm["spatial"][10] * 0.1).astype(int)
    picture[y, x] = 0
    slide.uns["spatial"]["S1"]["images"]["hires"] = picture
    (image,) = spahgc.pl.expression(slide, "STRIPE", what="predicted")[0].images
    array = np.asarray(image.get_array())
    row, column = np.argwhere(array[..., 0] < 0.9)[0]
    x0, _, _, y0 = image.get_extent()
    assert (x0 + (column + 0.5) * 10, y0 + (row + 0.5) * 10) == pytest.approx((x * 10 + 5, y * 10 + 5))


def test_scale_bar_is_as_long_as_it_says(slide: ad.AnnData) -> None:
    ax = spahgc.pl.expression(slide, "STRIPE", what="predicted")[0]
    name, label = texts(ax)
    assert name == "S1"
    assert label == "200 \u00b5m"
    (bar,) = ax.lines
    assert np.ptp(bar.get_xdata()) * MPP == pytest.approx(200)


def test_no_scale_bar_without_micrometers_and_no_tissue_without_image(slide: ad.AnnData, caplog: Any) -> None:
    del slide.uns["spatial"]["S1"]["images"]["hires"], slide.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"]
    ax = spahgc.pl.expression(slide, "STRIPE", what="predicted")[0]
    assert not ax.images
    assert not ax.lines
    assert not spahgc.pl.expression(slide, "STRIPE", what="predicted", img=False)[0].images
    del slide.uns["spatial"]
    with caplog.at_level(logging.INFO, logger="spahgc"):
        half_pitch = spots(spahgc.pl.expression(slide, "STRIPE", what="predicted")[0])
    assert "drawn at half their pitch" in caplog.text
    np.testing.assert_allclose(half_pitch.get_widths(), 50.0)
    del slide.obsm["spatial"]
    with pytest.raises(KeyError, match="no 'spatial'"):
        spahgc.pl.expression(slide, "STRIPE")


def test_several_genes_one_row_each(slide: ad.AnnData, snapshot: Any) -> None:
    before = snapshot(slide)
    axes = spahgc.pl.expression(slide, ["STRIPE", "HLA-DRA"])
    assert snapshot(slide) == before
    assert [axes[i].get_ylabel() for i in (0, 3)] == ["STRIPE", "HLA-DRA"]
    assert axes[0].get_subplotspec().rowspan.start != axes[3].get_subplotspec().rowspan.start


def test_one_kind_of_panel_fills_rows(slide: ad.AnnData) -> None:
    axes = spahgc.pl.expression(slide, GENES, what="predicted")
    assert axes[3].get_subplotspec().rowspan.start == 1
    assert [bars(ax)[0].get_ylabel() != "" for ax in axes] == [False, False, True, True]


def test_target_without_expression_is_predicted_only(target: ad.AnnData, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="spahgc"):
        axes = spahgc.pl.expression(target, "STRIPE")
    assert [ax.get_title() for ax in axes] == ["predicted (not measured)"]
    assert "only the prediction is drawn" in caplog.text
    with pytest.raises(ValueError, match="no measured expression of STRIPE"):
        spahgc.pl.expression(target, "STRIPE", what="measured")


def test_slide_of_zeros_in_a_common_table_is_not_measured(two_slides: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"There are 2 slides. Pass slide=<one of them>; available: 'S1', 'S2'"):
        spahgc.pl.expression(two_slides, "STRIPE")
    assert len(spahgc.pl.expression(two_slides, "STRIPE", slide="S1")) == 3
    axes = spahgc.pl.expression(two_slides, "STRIPE", slide="S2")
    assert [ax.get_title() for ax in axes] == ["predicted (not measured)"]
    assert texts(axes[0])[0] == "S2"
    np.testing.assert_allclose(values(axes[0]), two_slides.obsm["spahgc"]["STRIPE"].to_numpy()[48:], atol=1e-6)


def test_gene_that_is_predicted_but_not_measured(slide: ad.AnnData) -> None:
    slide = slide[:, ["GRADIENT", "ONLY_MEASURED"]].copy()
    axes = spahgc.pl.expression(slide, ["GRADIENT", "STRIPE"])
    assert len(axes) == 6
    assert [("not measured" in texts(ax)) for ax in axes] == [False, False, False, True, False, True]
    assert axes[4].get_title() == "predicted (not measured)"


def test_constant_gene_has_no_correlation(slide: ad.AnnData) -> None:
    axes = spahgc.pl.expression(slide, "FLAT")
    assert axes[1].get_title() == "predicted (r not defined)"
    low, high = spots(axes[0]).get_clim()
    assert low < high


def test_missing_values_are_gray(slide: ad.AnnData) -> None:
    frame = slide.obsm["spahgc"].copy()
    frame.iloc[:5, 1] = np.nan
    frame["HLA-DRA"] = np.nan
    slide.obsm["spahgc"] = frame
    _, predicted, difference = spahgc.pl.expression(slide, "STRIPE")
    for ax in (predicted, difference):
        assert np.isnan(values(ax)).sum() == 5
        assert np.isfinite(spots(ax).get_clim()).all()
        ax.figure.draw_without_rendering()
        np.testing.assert_allclose(spots(ax).get_facecolors()[:5, :3], 0.8)
    all_missing = spahgc.pl.expression(slide, "HLA-DRA", what=("predicted", "difference"))
    assert all_missing[0].get_title() == "predicted (r not defined)"
    all_missing[0].figure.draw_without_rendering()


def test_draws_into_given_axes_and_leaves_settings_alone(slide: ad.AnnData) -> None:
    before = dict(mpl.rcParams)
    figure, grid = plt.subplots(1, 3)
    axes = spahgc.pl.expression(slide, "STRIPE", ax=grid)
    assert axes == list(grid)
    assert axes[0].figure is figure
    assert dict(mpl.rcParams) == before
    with pytest.raises(ValueError, match="`ax` must hold 3 Axes, one per panel, got 2"):
        spahgc.pl.expression(slide, "STRIPE", ax=grid[:2])
    with pytest.raises(ValueError, match=r"`ax` must hold 3 Axes, one per panel, got 1 \(str\)"):
        spahgc.pl.expression(slide, "STRIPE", ax="here")


def test_show(slide: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: shown.append(True))
    spahgc.pl.expression(slide, "STRIPE")
    assert shown == []
    spahgc.pl.expression(slide, "STRIPE", show=True)
    assert shown == [True]
    with plt.ion():
        spahgc.pl.expression(slide, "STRIPE")
        spahgc.pl.expression(slide, "STRIPE", show=False)
        spahgc.pl.expression(slide, "STRIPE", ax=plt.subplots(1, 3)[1])
    assert shown == [True, True]


def test_nothing_is_cut_off(slide: ad.AnnData) -> None:
    slide.obs["region"] = slide.obs["region"].cat.rename_categories(
        {"S1": "a_slide_whose_name_is_far_too_long_to_show"}
    )
    slide.uns["spatial"] = {"a_slide_whose_name_is_far_too_long_to_show": slide.uns["spatial"]["S1"]}
    for axes in (
        spahgc.pl.expression(slide, ["STRIPE", "HLA-DRA"]),
        spahgc.pl.expression(slide, GENES, what="predicted"),
    ):
        assert_nothing_cut_off(axes[0])
        name, label = axes[0].texts
        assert name.get_text() == "a_slide_\u2026to_show"
        assert not name.get_window_extent().overlaps(label.get_window_extent())


def test_takes_a_spatialdata(slide: ad.AnnData) -> None:
    shapes = ShapesModel.parse(
        slide.obsm["spatial"], geometry=0, radius=DIAMETER / 2, index=slide.obs["spot_id"].to_numpy()
    )
    expected = values(spahgc.pl.expression(slide, "STRIPE")[0])
    del slide.uns["spatialdata_attrs"]
    table = TableModel.parse(slide, region=["S1"], region_key="region", instance_key="spot_id")
    sdata = sd.SpatialData(shapes={"S1": shapes}, tables={"table": table})
    np.testing.assert_array_equal(values(spahgc.pl.expression(sdata, "STRIPE")[0]), expected)
    with pytest.raises(KeyError, match="sdata has no table"):
        spahgc.pl.expression(sd.SpatialData(shapes={"S1": shapes}), "STRIPE")


def test_table_without_region_key_is_one_slide(slide: ad.AnnData) -> None:
    del slide.uns["spatialdata_attrs"]
    assert texts(spahgc.pl.expression(slide, "STRIPE")[0])[0] == "S1"
    with pytest.raises(KeyError, match=r"No slide 'S2'.*library_key=<column of obs>.*'region'"):
        spahgc.pl.expression(slide, "STRIPE", slide="S2")
    assert texts(spahgc.pl.expression(slide, "STRIPE", slide="S1", library_key="region")[0])[0] == "S1"


@pytest.mark.parametrize(
    ("genes", "options", "error", "message"),
    [
        ("STRIPES", {}, KeyError, r"'STRIPES' is not in the panel of 4 predicted genes. Closest: 'STRIPE'"),
        ("stripe", {}, KeyError, r"Closest: 'STRIPE'"),
        ("ONLY_MEASURED", {}, KeyError, r"It was measured, not predicted: pass panel=\[...\] to spahgc.tl.predict"),
        ("STRIPE", {"key": "other"}, KeyError, r"no prediction 'other'.*tl.predict.*first.*'spahgc'"),
        ("STRIPE", {"key": "spatial"}, KeyError, "no prediction 'spatial'"),
        ("STRIPE", {"slide": "S9"}, KeyError, r"No slide 'S9'. Available: 'S1'"),
        ("STRIPE", {"library_key": "sample"}, KeyError, r"no column 'sample' \(library_key\). Available: 'region'"),
        ("STRIPE", {"what": "residual"}, ValueError, "`what` must be one of 'measured', 'predicted', 'difference' or"),
        ("STRIPE", {"what": ()}, ValueError, "at least one gene of the panel and one kind of panel"),
        ("STRIPE", {"size": 0}, ValueError, "`size` must be a finite number greater than 0"),
        ([], {}, ValueError, "at least one gene of the panel"),
    ],
)
def test_bad_input(
    slide: ad.AnnData, snapshot: Any, genes: Any, options: Any, error: type[Exception], message: str
) -> None:
    before = snapshot(slide)
    with pytest.raises(error, match=message):
        spahgc.pl.expression(slide, genes, **options)
    assert snapshot(slide) == before
    assert not plt.get_fignums()


def test_one_artist_for_many_spots() -> None:
    n = 6000
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sp.csr_matrix((n, 1), dtype=np.float32), var=pd.DataFrame(index=["A"]))
    adata.obsm["spatial"] = rng.uniform(0, 1e4, (n, 2))
    adata.obsm["spahgc"] = pd.DataFrame({"A": rng.normal(size=n)}, index=adata.obs_names)
    (ax,) = spahgc.pl.expression(adata, "A")
    assert len(ax.collections) == 1
    assert spots(ax).get_rasterized()


def test_a_prediction_in_a_store(slide: ad.AnnData, tmp_path: Path) -> None:
    """Drawn as the one in the table is."""
    expected = [values(ax) for ax in spahgc.pl.expression(slide, ["STRIPE", "GRADIENT"])]
    frame = slide.obsm.pop("spahgc")
    slide.uns["spahgc"] |= {"model": "m", "store": str(tmp_path / "pred.zarr")}
    table = ad.AnnData(obs=slide.obs[[]], var=frame.columns.to_frame()[[]])
    _disk.write_store(
        tmp_path / "pred.zarr", table, lambda rows: frame[rows].to_numpy(), key="spahgc", model="m", overwrite=False
    )
    found = [values(ax) for ax in spahgc.pl.expression(slide, ["STRIPE", "GRADIENT"])]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(KeyError, match="Gene 'STRIP' is not in the panel of 4 predicted genes. Closest: 'STRIPE'"):
        spahgc.pl.expression(slide, "STRIP")


@pytest.mark.parametrize(
    ("what", "shape"),
    [(["measured", "predicted"], (4, 2)), ("predicted", (2, 3)), (["predicted", "difference"], (4, 2))],
)
def test_a_row_of_panels_for_each_gene_or_three_genes_in_a_row(what: Any, shape: Any, slide: ad.AnnData) -> None:
    axes = spahgc.pl.expression(slide, GENES, what=what)
    place = axes[-1].get_subplotspec()
    assert place is not None
    assert place.get_gridspec().get_geometry() == shape
