from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

import spahgc
from spahgc._tables._predictions import write_cross_validation

from .conftest import assert_nothing_cut_off, legend

MINUS = "\N{MINUS SIGN}"


def scores(n_patients: int = 3) -> pd.DataFrame:
    """Three methods on two slides of each patient, two genes, two seeds; the gene mean has no score."""
    rows = []
    for method, shift in (("spahgc", 0.05), ("ridge", 0.0), ("gene_mean", np.nan)):
        for i in range(2 * n_patients):
            for gene, level in (("G0", 0.4), ("G1", 0.2)):
                for seed, noise in ((0, 0.01), (1, -0.01)):
                    of = (method, f"S{i}", f"P{i // 2}", gene)
                    rows.append((*of, "pearson", level + shift + 0.02 * i + noise, seed))
                    rows.append((*of, "depth_only", 0.1, seed))
                    rows.append((*of, "rmse", 0.5 - shift, seed))
    table = pd.DataFrame(rows, columns=["method", "slide", "patient", "gene", "metric", "value", "seed"])
    ceiling = table[(table["method"] == "ridge") & (table["metric"] == "pearson")]
    table = pd.concat([table, ceiling.assign(method="measured", metric="ceiling", value=0.9)], ignore_index=True)
    table.attrs["label"] = "new patients"
    return table


def marked(ax: Axes, marker: str) -> np.ndarray:
    return np.concatenate([np.asarray(line.get_xydata()) for line in ax.lines if line.get_marker() == marker])


def test_a_row_a_method_the_best_first_with_its_difference() -> None:
    ax = spahgc.pl.benchmark(scores())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["spahgc", "ridge", "gene mean"]
    np.testing.assert_allclose(marked(ax, "D"), [[0.40, 0], [0.35, 1]])
    np.testing.assert_allclose(marked(ax, "o")[:6, 0], 0.35 + 0.02 * np.arange(6))
    assert ax.get_xlabel() == "mean over genes of Pearson correlation"
    assert "no score: constant on every slide" in [text.get_text() for text in ax.texts]
    assert len(ax.collections) == 2
    # The difference stands beside it.
    right = ax.figure.axes[1]
    assert [label.get_text() for label in right.get_yticklabels()] == ["+0.050 (+0.050 to +0.050)", "", ""]
    assert "difference to ridge" in [text.get_text() for text in ax.texts]
    right = spahgc.pl.benchmark(scores(), baseline="spahgc").figure.axes[1]
    assert right.get_yticklabels()[1].get_text() == f"{MINUS}0.050 ({MINUS}0.050 to {MINUS}0.050)"


def test_few_patients_are_said_to_be_few() -> None:
    ax = spahgc.pl.benchmark(scores())
    assert legend(ax) == [
        "6 slides of 3 patients, new patients\n95 % interval over patients, not meaningful: 3 patients",
        "mean",
        "a slide",
        "ridge",
        "depth alone",
    ]
    dashed = ax.collections[0].get_linestyle()[0][1]
    assert dashed is not None
    ax = spahgc.pl.benchmark(scores(5), level=0.9)
    assert legend(ax)[0] == "10 slides of 5 patients, new patients\n90 % interval over patients"
    assert ax.collections[0].get_linestyle()[0][1] is None


def test_the_lines() -> None:
    ax = spahgc.pl.benchmark(scores())
    upright = {
        line.get_label(): line.get_xdata()[0] for line in ax.lines if line.get_label() in ("ridge", "depth alone")
    }
    assert upright == {"ridge": pytest.approx(0.35), "depth alone": pytest.approx(0.1)}
    ax = spahgc.pl.benchmark(scores(), metric="rmse")
    assert "depth alone" not in legend(ax)
    assert [label.get_text() for label in ax.get_yticklabels()][0] == "spahgc"
    assert ax.get_xlabel() == "mean over genes of RMSE"


def test_one_slide() -> None:
    table = scores()
    assert_nothing_cut_off(spahgc.pl.benchmark(table))
    ax = spahgc.pl.benchmark(table[table["slide"] == "S0"])
    assert legend(ax)[0].startswith("1 slide of 1 patient")
    assert len(marked(ax, "D")) == 2


def test_takes_a_table_or_its_cross_validation_and_given_axes(slide: ad.AnnData) -> None:
    table, ax = scores().assign(fold="F", shared_patient=False), plt.subplots()[1]
    write_cross_validation(slide, "spahgc", table, {"protocol": "honest", "label": "new patients"}, {}, "")
    assert spahgc.pl.benchmark(table, ax=ax) is ax
    from_table = spahgc.pl.benchmark(slide)
    assert legend(from_table) == legend(ax)
    np.testing.assert_allclose(marked(from_table, "D"), marked(ax, "D"))
    with pytest.raises(KeyError, match="other_cv"):
        spahgc.pl.benchmark(slide, key="other")


def test_errors() -> None:
    with pytest.raises(KeyError, match="r2"):
        spahgc.pl.benchmark(scores(), metric="r2")
    with pytest.raises(KeyError, match="knn"):
        spahgc.pl.benchmark(scores(), baseline="knn")
