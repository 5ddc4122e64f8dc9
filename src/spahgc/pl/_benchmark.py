from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ._scores import LABELS
from ._style import GREY, finish, palette, single_axes, style

if TYPE_CHECKING:
    import pandas as pd

_DEPTH, _CEILING = "depth_only", "measured"
_BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
_MINUS = "\N{MINUS SIGN}"


def benchmark(
    table: pd.DataFrame,
    *,
    metric: str = "pearson",
    baseline: str = "ridge",
    level: float = 0.95,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw methods beside each other, each slide a point, with the difference to a baseline.

    A slide's score is its mean over genes. The mark of a method is the mean over slides, then patients, and its bar
    the bootstrap interval over patients (of one patient, over slides). At the right stands the paired difference to the
    baseline, with its interval.
    Below five patients intervals are not meaningful: they say how these slides vary, and little about others; bars are
    then dashed, and the title says so. For Pearson correlations, a dotted line is the score of an oracle that knows
    each spot's depth and nothing else.

    Parameters
    ----------
    table
        Scores as :func:`spahgc.tl.cross_validate` returns them.
    metric
        The score to draw.
    baseline
        The method that others are compared with; a dashed line is its mean.
    level
        Share of the resampled means that an interval holds.
    ax
        Axes to draw into; `None` makes a figure.
    show
        Show the figure; `None` does so in an interactive session where no `ax` was given.

    Returns
    -------
    The axes.

    Raises
    ------
    KeyError
        If a column, the metric or the baseline is not in the table.
    """
    from ..metrics import summarize

    whole, table = table, table[table["method"] != _CEILING] if "method" in table else table
    summary = summarize(table, baseline, metric=metric, level=level)
    slides = _slide_means(table, metric)
    meaningful = bool(summary.loc[summary["mean"].notna(), "meaningful"].all())
    colour, ours = palette(1)[0], "0.55"
    with style():
        own = ax is None
        ax = single_axes(ax, (5.6, 1.25 + 0.27 * len(summary)))
        for row, (method, values) in enumerate(summary.iterrows()):
            of = slides[method].dropna()
            if of.empty:
                note = "no score: constant on every slide"
                ax.text(0.02, row, note, color=GREY, va="center", transform=ax.get_yaxis_transform(), bbox=_BLANK)
                continue
            # Slides on top of each other are drawn apart, in the order of their names.
            apart = np.linspace(-0.16, 0.16, len(of)) if len(of) > 1 else np.zeros(len(of))
            ax.plot(of, row + apart, "o", color=ours, markersize=2.2, alpha=0.7, zorder=2)
            line = "-" if meaningful else (0, (2, 1.5))
            ax.hlines(row, values["low"], values["high"], color=colour, linewidth=1.4, linestyle=line, zorder=3)
            ax.plot(values["mean"], row, "D", color=colour, markersize=4.0, zorder=4)
        handles = [
            Line2D([], [], color=colour, marker="D", markersize=4, linestyle="none", label="mean"),
            Line2D([], [], color=ours, marker="o", markersize=2.5, linestyle="none", label="a slide"),
            ax.axvline(
                float(summary["mean"][baseline]),
                color=GREY,
                linewidth=0.8,
                linestyle=(0, (4, 3)),
                label=_shown(baseline),
                zorder=1,
            ),
        ]
        depth = table.loc[table["metric"] == _DEPTH, "value"].mean()
        if metric == "pearson" and np.isfinite(depth):
            label = "depth alone"
            mean = _over_patients(table, _slide_means(table, _DEPTH).mean(axis=1))
            handles.append(ax.axvline(mean, color=GREY, linewidth=0.9, linestyle=":", label=label, zorder=1))
        ax.set_yticks(np.arange(len(summary)), [_shown(method) for method in summary.index])
        ax.set_ylim(len(summary) - 0.5, -0.5)
        ax.set_xlabel(f"mean over genes of {LABELS.get(metric, metric.replace('_', ' '))}")
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        _differences(ax, summary, baseline)
        legend = ax.legend(
            handles=handles,
            title=_title(whole, summary, level, meaningful=meaningful),
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=len(handles),
            handlelength=1.5,
            columnspacing=1.2,
            borderaxespad=0.2,
        )
        legend.set_alignment("left")
        finish([ax], own=own, show=show)
    return ax


def _slide_means(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean over seeds, then genes, of each slide: slides by methods."""
    rows = table[table["metric"] == metric]
    genes = rows.groupby(["method", "slide", "gene"], observed=True)["value"].mean()
    return genes.groupby(["method", "slide"]).mean().unstack("method")


def _over_patients(table: pd.DataFrame, values: pd.Series) -> float:
    from ..metrics import bootstrap

    patients = table.assign(slide=table["slide"].astype(str)).groupby("slide")["patient"].first()
    return bootstrap(values, list(patients.reindex(values.index.astype(str))), n_resamples=1).mean


def _differences(ax: Axes, summary: pd.DataFrame, baseline: str) -> None:
    """Differences to the baseline as text at the right of each row."""
    right = ax.twinx()
    right.set_ylim(ax.get_ylim())
    texts = [
        ""
        if method == baseline or np.isnan(row["difference"])
        else f"{row['difference']:+.3f} ({row['difference_low']:+.3f} to {row['difference_high']:+.3f})"
        for method, row in summary.iterrows()
    ]
    right.set_yticks(np.arange(len(summary)), [text.replace("-", _MINUS) for text in texts])
    right.tick_params(axis="y", length=0)
    right.spines["right"].set_visible(False)
    ax.annotate(
        f"difference to {_shown(baseline)}",
        (1.0, 0.0),
        xytext=(5, -16),
        xycoords="axes fraction",
        textcoords="offset points",
        va="top",
        color=GREY,
    )


def _shown(method: object) -> str:
    return str(method).replace("_", " ")


def _title(table: pd.DataFrame, summary: pd.DataFrame, level: float, *, meaningful: bool) -> str:
    n_slides, n_patients = int(summary["n_slides"].max()), int(summary["n_patients"].max())
    parts = [
        f"{n_slides} slide{'s' if n_slides != 1 else ''} of {n_patients} patient{'s' if n_patients != 1 else ''}",
    ]
    if label := table.attrs.get("label"):
        parts.append(str(label))
    interval = f"{100 * level:g} % interval over {'slides' if n_patients == 1 else 'patients'}"
    if not meaningful:
        interval += f", not meaningful: {n_patients} patient{'s' if n_patients != 1 else ''}"
    return f"{', '.join(parts)}\n{interval}"
