from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection

import spahgc


def test_support_is_drawn_from_0_to_1(slide: ad.AnnData) -> None:
    ax = spahgc.pl.support(slide)
    (spots,) = ax.collections
    assert isinstance(spots, EllipseCollection)
    assert spots.get_clim() == (0.0, 1.0)
    np.testing.assert_allclose(spots.get_array(), slide.obs["spahgc_support"])
    assert ax.get_title() == "support, median 0.55"
    assert [text.get_text() for text in ax.texts][0] == "S1"
    assert ax.child_axes[0].get_ylabel() == "support by the reference"


def test_support_of_one_of_two_slides(two_slides: ad.AnnData) -> None:
    ax = plt.subplots()[1]
    assert spahgc.pl.support(two_slides, slide="S2", ax=ax) is ax
    assert len(ax.collections[0].get_offsets()) == 48


def test_errors(slide: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"no 'other_support'.*'spahgc_support'.*tl.predict first"):
        spahgc.pl.support(slide, key="other")
    with pytest.raises(TypeError, match="`ax` must be an Axes or None"):
        spahgc.pl.support(slide, ax=[plt.subplots()[1]])
    with pytest.raises(ValueError, match="`size` must be a finite number greater than 0"):
        spahgc.pl.support(slide, size=-1)


def test_tile_quality_counts_the_spots_of_each_verdict(slide: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"no 'tile_quality'.*pp.tile_quality"):
        spahgc.pl.tile_quality(slide)
    verdicts = np.where(np.arange(slide.n_obs) < 5, "ink", "ok")
    slide.obs["tile_quality"] = pd.Categorical(verdicts, categories=["ok", "ink", "fold"])
    slide.uns["tile_quality"] = {}
    ax = spahgc.pl.tile_quality(slide)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"ok ({slide.n_obs - 5})", "ink (5)"]
    (spots,) = ax.collections
    drawn = spots.cmap(spots.norm(spots.get_array()))
    colors = [line.get_color() for line in ax.get_lines() if "(" in str(line.get_label())]
    np.testing.assert_allclose(drawn[:, :3], np.array(colors)[[1] * 5 + [0] * (slide.n_obs - 5)])
