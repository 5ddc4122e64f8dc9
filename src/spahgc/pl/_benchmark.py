from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from spatialdata import SpatialData

from .. import _keys as keys
from .. import get
from .._checks import between, checked
from ..metrics import summarize
from ._drawing import GRAY, MINUS, count, legend_above, palette, panels, table_of
from ._genes import LABELS


@checked(level=between(0, 1))
def benchmark(
    adata: AnnData | SpatialData | pd.DataFrame,
    *,
    metric: str = "pearson",
    baseline: str = "ridge",
    level: float = 0.95,
    key: str = keys.PREDICTION,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw the scores of cross-validated methods and their differences to a baseline.

    A point is the score of a slide, its mean over genes. A diamond is the mean of a method over slides, then patients,
    and its bar the bootstrap interval over patients (over slides, if there is one patient). The paired difference to
    the baseline and its interval are at the right. With fewer than five patients, intervals describe the variation of
    these slides and do not generalize; bars are then dashed, and the title says so. For Pearson correlations, a dotted
    line is the score of an oracle that knows only the depth of each spot.

    Parameters
    ----------
    adata
        Reference table after :func:`spahgc.tl.cross_validate`, a SpatialData with this ``table``, or the scores from
        :func:`spahgc.get.cross_validation`.
    metric
        Score to draw.
    baseline
        Method that the others are compared with; a dashed line is its mean.
    level
        Coverage of the intervals.
    key
        Key of the cross-validation.
    ax, show
        As in :func:`expression`.

    Returns
    -------
    Axes of the plot.

    Raises
    ------
    KeyError
        If there is no cross-validation, or it lacks a column, the metric or the baseline.

    Examples
    --------
    >>> spahgc.pl.benchmark(sdata_ref)  # doctest: +SKIP
    """
    scores: Any = adata if isinstance(adata, pd.DataFrame) else get.cross_validation(table_of(adata), key=key)
    label = scores.attrs.get("label")
    if "method" in scores:
        scores = scores[scores["method"] != keys.MEASURED]
    summary = summarize(scores, baseline, metric=metric, level=level)
    # Means over seeds, then over genes.
    genes = scores[scores["metric"] == metric].groupby(["method", "slide", "gene"], observed=True)["value"].mean()
    slides = genes.groupby(["method", "slide"]).mean().unstack("method")
    meaningful = bool(summary.loc[summary["mean"].notna(), "meaningful"].all())
    blue, gray = palette(1)[0], "0.55"
    with panels(ax, 1, (5.6, 1.25 + 0.27 * len(summary)), show=show) as [ax]:
        for row, (method, values) in enumerate(summary.iterrows()):
            points = slides[method].dropna()
            if points.empty:
                ax.text(
                    *(0.02, row, "no score: constant on every slide"),
                    color=GRAY,
                    va="center",
                    transform=ax.get_yaxis_transform(),
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
                )
                continue
            # Slides are spread vertically in the order of their names, so that equal scores do not overlap.
            spread = np.linspace(-0.16, 0.16, len(points)) if len(points) > 1 else np.zeros(1)
            ax.plot(points, row + spread, "o", color=gray, markersize=2.2, alpha=0.7, zorder=2)
            dashes = "-" if meaningful else (0, (2, 1.5))
            ax.hlines(row, values["low"], values["high"], color=blue, linewidth=1.4, linestyle=dashes, zorder=3)
            ax.plot(values["mean"], row, "D", color=blue, markersize=4.0, zorder=4)
        line: dict[str, Any] = {"color": GRAY, "zorder": 1}
        handles = [
            Line2D([], [], color=blue, marker="D", markersize=4, linestyle="none", label="mean"),
            Line2D([], [], color=gray, marker="o", markersize=2.5, linestyle="none", label="a slide"),
            ax.axvline(summary["mean"][baseline], label=_shown(baseline), linestyle=(0, (4, 3)), linewidth=0.8, **line),
        ]
        if metric == "pearson" and scores.loc[scores["metric"] == "depth_only", "value"].notna().any():
            depth = summarize(scores, None, metric="depth_only", n_resamples=1)["mean"].mean()
            handles.append(ax.axvline(depth, label="depth alone", linestyle=":", linewidth=0.9, **line))
        ax.set_yticks(np.arange(len(summary)), [_shown(method) for method in summary.index])
        ax.set(ylim=(len(summary) - 0.5, -0.5), xlabel=f"mean over genes of {LABELS.get(metric, _shown(metric))}")
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        _write_differences(ax, summary, baseline)
        n_slides, n_patients = int(summary["n_slides"].max()), int(summary["n_patients"].max())
        patients = count(n_patients, "patient")
        title = f"{count(n_slides, 'slide')} of {patients}{f', {label}' if label else ''}\n{100 * level:g} % interval "
        title += "over slides" if n_patients == 1 else "over patients"
        title += "" if meaningful else f", not meaningful: {patients}"
        legend_above(ax, handles=handles, title=title, ncols=len(handles), handlelength=1.5, columnspacing=1.2)
    return ax


def _write_differences(ax: Axes, summary: pd.DataFrame, baseline: str) -> None:
    """Write the difference to the baseline at the right of each row."""
    texts = [
        ""
        if method == baseline or np.isnan(row["difference"])
        else f"{row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f})"
        for method, row in summary.iterrows()
    ]
    right = ax.twinx()
    right.set_ylim(ax.get_ylim())
    right.set_yticks(np.arange(len(summary)), [text.replace("-", MINUS) for text in texts])
    right.tick_params(axis="y", length=0)
    right.spines["right"].set_visible(False)
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
    ax.annotate(f"difference to {_shown(baseline)}", (1.0, 0.0), xytext=(5, -16), color=GRAY, **place)


def _shown(name: object) -> str:
    return str(name).replace("_", " ")
