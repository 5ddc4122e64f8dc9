from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.offsetbox import TextArea

import spahgc
from spahgc._tables._predictions import Trust

from .conftest import PARAMS, assert_nothing_cut_off, legend


def points(ax: Axes) -> list[tuple[float, float]]:
    found = [line.get_xydata() for line in ax.lines if line.get_marker() == "o"]
    return [tuple(map(float, point)) for part in found for point in np.asarray(part)]


def test_all_genes_from_best_to_worst(trusted: ad.AnnData) -> None:
    ax = spahgc.pl.trust(trusted, n_genes=2)
    assert points(ax) == [(1, 0.5), (2, 0.25), (3, 0.05)]
    assert ax.get_xlabel() == "genes, best to worst (1 not assessed left out)"
    assert ax.get_ylabel() == "expected Pearson correlation, 90 % interval"
    assert [area.get_text() for box in ax.artists for area in box.findobj(TextArea)] == ["best", "GRADIENT", "STRIPE"]
    bars = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in ax.patches]
    np.testing.assert_allclose(bars, [[0.3, 0.7], [0.05, 0.45], [-0.15, 0.25]])


def test_the_legend_states_the_rule(trusted: ad.AnnData) -> None:
    given = plt.subplots()[1]
    ax = spahgc.pl.trust(trusted, ax=given)
    assert ax is given
    assert [" ".join(text.split()) for text in legend(ax)] == [
        "ridge, 4 genes: 3 slides held out, same patient",
        "trusted (1): expected \u2265 0.3, 90 % interval above 0, \u2265 0.15 with depth removed",
        "weak (1): the others",
        "not predictable (1): expected < 0.15",
        "not assessed (1): no score",
    ]


def test_named_genes_have_a_row_each(trusted: ad.AnnData) -> None:
    ax = spahgc.pl.trust(trusted, ["STRIPE", "GRADIENT"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["GRADIENT", "STRIPE"]
    assert {label.get_style() for label in ax.get_yticklabels()} == {"italic"}
    assert points(ax) == [(0.5, 0), (0.25, 1)]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert ax.get_xlabel() == "expected Pearson correlation, 90 % interval"


def test_new_patients_and_another_patient(slide: ad.AnnData, trust_frame: pd.DataFrame) -> None:
    several = {**PARAMS, "split_by": "patient", "same_patient": False, "patients": ["A", "B", "C"]}
    slide.uns["spahgc"]["trust"] = Trust(trust_frame, several).to_slots()
    assert legend(spahgc.pl.trust(slide))[0] == "ridge, 4 genes: 3 patients held out, new patients"
    trust_frame[["low", "high"]] = np.nan
    slide.uns["spahgc"]["trust"] = Trust(trust_frame, {**PARAMS, "other_patient": ["S1"]}).to_slots()
    ax = spahgc.pl.trust(slide)
    assert legend(ax)[0].endswith("same patient, not of this slide's patient")
    assert ax.get_ylabel() == "expected Pearson correlation (no interval)"
    assert len(points(ax)) == 3


@pytest.mark.parametrize("genes", [None, ["GRADIENT", "STRIPE", "HLA-DRA"]])
def test_nothing_is_cut_off(trusted: ad.AnnData, genes: list[str] | None) -> None:
    assert_nothing_cut_off(spahgc.pl.trust(trusted, genes))


def test_expression_marks_what_is_not_trusted_and_draws_what_is(trusted: ad.AnnData) -> None:
    axes = spahgc.pl.expression(trusted, ["GRADIENT", "HLA-DRA"])
    assert [ax.get_ylabel().strip() for ax in axes if ax.get_ylabel()] == ["GRADIENT", "HLA-DRA"]
    notes = [[text.get_text() for text in ax.texts] for ax in axes]
    assert "not predictable" in notes[3]
    assert not {"trusted", "weak", "not predictable"} & set(notes[0])
    axes = spahgc.pl.expression(trusted, what="predicted")
    assert [ax.get_ylabel().strip() for ax in axes] == ["GRADIENT", "STRIPE", "HLA-DRA"]
    del trusted.uns["spahgc"]["trust"]
    with pytest.raises(ValueError, match=r"Name at least one gene.*this prediction has no trust per gene"):
        spahgc.pl.expression(trusted)


def test_errors(slide: ad.AnnData, trust_frame: pd.DataFrame) -> None:
    with pytest.raises(KeyError, match=r"no trust per gene for 'spahgc'.*spahgc.tl.cross_validate"):
        spahgc.pl.trust(slide)
    slide.uns["spahgc"]["trust"] = Trust(trust_frame, PARAMS).to_slots()
    with pytest.raises(KeyError, match=r"No trust for 'ERBB2'. Available: 'GRADIENT'"):
        spahgc.pl.trust(slide, ["ERBB2"])
    with pytest.raises(ValueError, match="No gene to draw"):
        spahgc.pl.trust(slide, [])
    with pytest.raises(ValueError, match="`n_genes` must be an integer of at least 0"):
        spahgc.pl.trust(slide, n_genes=-1)
    slide.uns["spahgc"]["trust"] = Trust(trust_frame.assign(expected_pearson=np.nan), PARAMS).to_slots()
    with pytest.raises(ValueError, match="No gene to draw"):
        spahgc.pl.trust(slide)
