from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

import spahgc

from .conftest import assert_nothing_cut_off


def labels(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def twin(ax: Axes) -> Axes:
    (other,) = (axes for axes in ax.figure.axes if axes is not ax)
    return other


def test_losses_left_scores_right_chosen_epoch_marked(slide: ad.AnnData, tmp_path: Path) -> None:
    slide.write_h5ad(tmp_path / "a.h5ad")
    ax = spahgc.pl.training(ad.read_h5ad(tmp_path / "a.h5ad"))
    assert_nothing_cut_off(ax)
    right = twin(ax)
    assert labels(ax) == ["loss", "squared error", "correlation, training", "validation", "chosen epoch: 3"]
    loss, _, mark = ax.lines
    np.testing.assert_array_equal(loss.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(loss.get_ydata(), [3.0, 2.0, 1.5, 1.2])
    assert list(mark.get_xdata()) == [3, 3]
    validation = right.lines[1]
    np.testing.assert_array_equal(validation.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(validation.get_ydata(), [0.1, 0.2, 0.25, 0.22])
    spahgc.pl.training(slide)
    assert "chosen_epoch" in slide.uns["spahgc"]["training"]


def test_takes_a_model_or_the_history_itself() -> None:
    history = {"loss": [2.0, 1.0], "my_curve": [0.1, 0.2]}
    models = [SimpleNamespace(history=kept) for kept in (history, lambda: history)]
    for source in (*models, history):
        ax = spahgc.pl.training(source)
        assert labels(ax) == ["loss", "my curve"]
        assert len(ax.figure.axes) == 1
    assert history == {"loss": [2.0, 1.0], "my_curve": [0.1, 0.2]}


def test_several_chosen_epochs_share_one_entry() -> None:
    ax = spahgc.pl.training({"loss": [3.0, 2.0, 1.0], "chosen_epoch": [2, 3]}, ax=plt.subplots()[1])
    assert labels(ax) == ["loss", "chosen epoch: 2, 3"]
    assert len(ax.lines) == 3


def test_errors(slide: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"uns\['other'\] has no 'training'.*Available in uns: .*'spahgc'"):
        spahgc.pl.training(slide, key="other")
    del slide.uns["spahgc"]["training"]
    with pytest.raises(KeyError, match="has no 'training'"):
        spahgc.pl.training(slide)
    with pytest.raises(ValueError, match="not trained over epochs"):
        spahgc.pl.training({})
    with pytest.raises(TypeError, match="must be an AnnData table, got int"):
        spahgc.pl.training(3)
