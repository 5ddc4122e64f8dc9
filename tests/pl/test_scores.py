from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnchoredOffsetbox, TextArea

import spahgc

from .conftest import assert_nothing_cut_off


@pytest.fixture
def scored(slide: ad.AnnData, scores: pd.DataFrame) -> ad.AnnData:
    slide.uns["spahgc_scores"] = scores.to_dict("list")
    return slide


def named(ax: Axes) -> list[list[str]]:
    return [
        [text.get_text() for text in box.findobj(TextArea)]
        for box in ax.get_children()
        if isinstance(box, AnchoredOffsetbox)
    ]


def curves(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata()) for line in ax.lines if len(line.get_xdata()) > 2]


def test_ranked_curve_is_the_mean_over_slides(scored: ad.AnnData) -> None:
    ax = spahgc.pl.gene_scores(scored, n_genes=2)
    np.testing.assert_allclose(curves(ax)[0], [*(0.85 - 0.1 * np.arange(8)), -0.35])
    # (0.85 + 0.75 + ... + 0.15 - 0.35) / 9; six of them are above 0.3.
    assert ax.get_title(loc="left") == "mean of 2 slides: mean 0.41, 67 % of 9 genes above 0.3"
    assert ax.get_xlabel() == "genes, best to worst (1 without a score left out)"
    assert ax.get_ylabel() == "Pearson correlation"


@pytest.mark.parametrize(("shared", "said"), [(["A"], " (1 same patient)"), (["A", "B"], " (same patient)"), ([], "")])
def test_says_where_the_reference_has_the_same_patient(scored: ad.AnnData, shared: list[str], said: str) -> None:
    scored.uns["spahgc"]["params"]["shared_patients"] = shared
    title = spahgc.pl.gene_scores(scored).get_title(loc="left")
    assert title.startswith(f"mean of 2 slides{said}: mean")


def test_best_and_worst_genes_are_named_in_italics(scored: ad.AnnData) -> None:
    ax = spahgc.pl.gene_scores(scored, n_genes=2)
    assert named(ax) == [["best", "G0", "G1"], ["worst", "G7", "G8"]]
    styles = [area._text.get_style() for area in ax.findobj(TextArea)]
    assert styles == ["normal", "italic", "italic"] * 2
    assert named(spahgc.pl.gene_scores(scored, n_genes=0)) == []
    # No gene is among the best and the worst at once.
    assert [len(part) for part in named(spahgc.pl.gene_scores(scored, n_genes=50))] == [5, 5]


def test_one_slide(scored: ad.AnnData) -> None:
    given = plt.subplots()[1]
    ax = spahgc.pl.gene_scores(scored, slide="S1", ax=given)
    assert ax is given
    np.testing.assert_allclose(curves(ax)[0], [*(0.8 - 0.1 * np.arange(8)), -0.4])
    assert ax.get_title(loc="left").startswith("S1: mean 0.36")


def test_an_error_measure_is_better_when_small(scored: ad.AnnData) -> None:
    ax = spahgc.pl.gene_scores(scored, metric="rmse", n_genes=1)
    np.testing.assert_allclose(curves(ax)[0], 0.3 + 0.1 * np.arange(10))
    assert named(ax) == [["best", "G0"], ["worst", "G9"]]
    assert ax.get_title(loc="left") == "mean of 2 slides: mean 0.75"
    assert ax.get_ylabel() == "RMSE"


def test_methods_are_overlaid_the_prediction_first(slide: ad.AnnData, scores: pd.DataFrame) -> None:
    less = {"gene mean": 0.6, "ridge": -0.1, "spahgc": 0.0}
    parts = [scores.assign(method=name, value=scores["value"] - less[name]) for name in less]
    slide.uns["spahgc_scores"] = pd.concat(parts).to_dict("list")
    ax = spahgc.pl.gene_scores(slide, n_genes=1)
    assert_nothing_cut_off(ax)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [
        "spahgc: mean 0.41, 67 % above 0.3",
        "ridge: mean 0.51, 78 % above 0.3",
        "gene mean: mean \u22120.19, 0 % above 0.3",
    ]
    assert ax.get_legend().get_title().get_text() == "mean of 2 slides"
    assert [curve[0] for curve in curves(ax)] == pytest.approx([0.85, 0.95, 0.25])


def test_errors(slide: ad.AnnData, scores: pd.DataFrame) -> None:
    with pytest.raises(KeyError, match=r"spahgc.tl.evaluate"):
        spahgc.pl.gene_scores(slide)
    slide.uns["spahgc_scores"] = scores.to_dict("list")
    with pytest.raises(KeyError, match=r"no metric 'r2'. Available: 'pearson', 'rmse'"):
        spahgc.pl.gene_scores(slide, metric="r2")
    with pytest.raises(KeyError, match=r"No slide 'S3'. Available: 'S1', 'S2'"):
        spahgc.pl.gene_scores(slide, slide="S3")
    with pytest.raises(ValueError, match="`n_genes` must be an integer of at least 0"):
        spahgc.pl.gene_scores(slide, n_genes=-1)
    slide.uns["spahgc_scores"] = scores.assign(value=np.nan).to_dict("list")
    with pytest.raises(ValueError, match="No gene has a pearson"):
        spahgc.pl.gene_scores(slide)
