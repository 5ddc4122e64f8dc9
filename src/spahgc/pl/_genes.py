from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnchoredOffsetbox, TextArea, VPacker
from spatialdata import SpatialData

from .. import _keys as keys
from .. import get
from .._checks import at_least, checked, format_names
from .._tables._predictions import VERDICTS
from ..metrics import GOOD
from ._drawing import GRAY, MINUS, count, legend_above, palette, panels, pick_slide, table_of

LABELS = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "pearson_depth_removed": "Pearson correlation, depth removed",
    "rmse": "RMSE",
    "mae": "mean absolute error",
}
_CORRELATIONS = ("pearson", "spearman", "pearson_depth_removed")
_ROW = 0.16  # height of a gene's row in inches
_LEGEND = 50  # characters in a line of the legend


@checked(n_genes=at_least(0))
def gene_scores(
    adata: AnnData | SpatialData,
    *,
    metric: str = "pearson",
    slide: str | None = None,
    n_genes: int = 5,
    key: str = keys.PREDICTION,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw the scores of the genes against measured expression, from best to worst.

    The score of a gene is its mean over slides. The mean over genes is given, and for correlations the fraction of
    genes above 0.3. Genes without a score (constant on every slide) are left out and counted. "same patient" in the
    title means that the reference contains slides of a scored patient.

    Parameters
    ----------
    adata
        Table after :func:`spahgc.tl.evaluate`, or a SpatialData with this ``table``.
    metric
        Score to draw.
    slide
        Draw the scores of one slide; `None` takes the mean over slides.
    n_genes
        Number of the best and of the worst genes to label, of the method `key` if the scores are of several methods.
    key
        Key of the prediction.
    ax, show
        As in :func:`expression`.

    Returns
    -------
    Axes of the plot.

    Raises
    ------
    KeyError
        If there are no scores, or none of this metric or slide.
    ValueError
        If no gene has a score.

    Examples
    --------
    >>> spahgc.pl.gene_scores(sdata_target)  # doctest: +SKIP
    """
    table = table_of(adata)
    scores = get.scores(table, key=key)
    if metric not in set(scores["metric"]):
        raise KeyError(f"The scores have no metric {metric!r}. Available: {format_names(scores['metric'].unique())}.")
    scores = scores[scores["metric"] == metric]
    if slide is not None:
        scores = scores[scores["slide"] == pick_slide(scores["slide"].unique(), slide)]
    falling = metric in _CORRELATIONS
    means = scores.groupby(["method", "gene"], sort=False, observed=True)["value"].mean().unstack("method")
    methods = means.dropna(axis="columns", how="all")
    if methods.empty:
        raise ValueError(f"No gene has a {metric}: every gene is constant on every slide.")
    # The prediction itself first, then the others from best to worst.
    order = sorted(methods, key=lambda name: (name != key, (-1 if falling else 1) * methods[name].mean()))
    missing = int(methods.isna().sum().min())
    n_slides, several = scores["slide"].nunique(), len(order) > 1
    title = f"mean of {n_slides} slides" if n_slides > 1 else str(scores["slide"].iloc[0])
    shared = keys.part(table.uns, key, keys.PARAMS).get("shared_patients", ())
    same = scores.groupby("slide")["patient"].first().astype(str).isin(list(map(str, shared)))
    if same.any():
        title += " (same patient)" if same.all() else f" ({same.sum()} same patient)"
    with panels(ax, 1, (4.0, 3.4 if several else 2.7), show=show) as [ax]:
        for name, color in zip(order, palette(len(order)), strict=True):
            values = methods[name].dropna().sort_values(ascending=not falling, kind="stable")
            label = f"{name}: {_summary(values, falling)}" if several else None
            ax.plot(np.arange(1, len(values) + 1), values, color=color, label=label)
        if falling:
            _draw_limits(ax.axhline)
        if several and falling and n_genes:
            # The curve of a weak method runs where the worst genes of the first are labeled.
            low, high = ax.get_ylim()
            ax.set_ylim(low - 0.3 * (high - low), high)
        first, blue = methods[order[0]].dropna().sort_values(ascending=not falling, kind="stable"), palette(1)[0]
        n = min(n_genes, len(first) // 2)
        # The two corners that the curve leaves free.
        corners = ("upper right", "lower left") if falling else ("lower right", "upper left")
        for word, start, corner in zip(("best", "worst"), (0, len(first) - n), corners, strict=True):
            part = first.iloc[start : start + n]
            ax.plot(start + 1 + np.arange(n), part, "o", color=blue, markersize=2.5)
            _list_genes(ax, word, dict.fromkeys(part.index, blue), corner)
        left_out = f" ({missing} without a score left out)" if missing else ""
        ax.set(xlabel=f"genes, best to worst{left_out}", ylabel=LABELS.get(metric, metric.replace("_", " ")))
        if several:
            legend_above(ax, title=title, handlelength=1.2)
        else:
            ax.set_title(f"{title}: {_summary(first, falling, f' of {len(first)} genes')}", loc="left")
    return ax


def _summary(values: pd.Series, falling: bool, genes: str = "") -> str:
    share = f", {100 * (values > GOOD).mean():.0f} %{genes} above {GOOD}" if falling else ""
    return f"mean {values.mean():.2f}".replace("-", MINUS) + share


@checked(n_genes=at_least(0))
def trust(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    method: str | None = None,
    n_genes: int = 5,
    key: str = keys.PREDICTION,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw the correlation to expect of each gene on a further slide, and the verdict on it.

    Points are expected Pearson correlations and bars the intervals that contain the correlation on the next slide, both
    from cross-validation on the reference. Colors are the verdicts, with their rules in the legend. "same patient" in
    the title means that the training contained slides of the held-out patients.

    Parameters
    ----------
    adata
        Prediction with trust or reference after :func:`spahgc.tl.cross_validate`: a table, or a SpatialData with this
        ``table``.
    genes
        Genes to draw, one row each; `None` draws all, from best to worst.
    method
        Label of the cross-validated method, for a reference; see :func:`spahgc.get.trust`.
    n_genes
        Number of the best genes to label if all are drawn.
    key
        Key of the prediction, or of the cross-validation.
    ax, show
        As in :func:`expression`.

    Returns
    -------
    Axes of the plot.

    Raises
    ------
    KeyError
        If there is no trust, or none for a gene.
    ValueError
        If no gene was assessed.

    Examples
    --------
    >>> spahgc.pl.trust(sdata_ref, ["ERBB2", "CD74"])  # doctest: +SKIP
    """
    whole = get.trust(table_of(adata), key=key, method=method)
    wanted = list(whole.index) if genes is None else [genes] if isinstance(genes, str) else list(genes)
    unknown = [gene for gene in wanted if gene not in whole.index]
    if unknown:
        raise KeyError(f"No trust for {format_names(unknown)}. Available: {format_names(whole.index)}.")
    frame = whole.loc[wanted]
    shown = frame.dropna(subset="expected_pearson").sort_values("expected_pearson", ascending=False, kind="stable")
    if shown.empty:
        raise ValueError("No gene to draw: none of those named has a score on any held-out slide.")
    label = "expected Pearson correlation"
    label += f", {100 * whole.attrs['level']:g} % interval" if shown["low"].notna().any() else " (no interval)"
    rows = genes is not None
    color = palette(10)
    colors = dict(zip(VERDICTS, (color[2], color[1], color[7], "0.8"), strict=True))
    with panels(ax, 1, (4.6, 1.6 + _ROW * len(shown)) if rows else (4.6, 3.8), show=show) as [ax]:
        shown = shown.assign(place=np.arange(len(shown)) + (0 if rows else 1))
        for verdict, color in colors.items():
            part = shown[shown["verdict"] == verdict]
            known = part[part["low"].notna()]
            at, low, high = known["place"], known["low"], known["high"]
            if rows:
                ax.hlines(at, low, high, color=color, linewidth=1.2, alpha=0.7, zorder=2)
                ax.plot(part["expected_pearson"], part["place"], "o", color=color, markersize=3.2, zorder=3)
            else:
                # Bars that touch; lines would leave gaps.
                ax.bar(at, high - low, bottom=low, width=1.0, color=color, alpha=0.35, linewidth=0, zorder=2)
                ax.plot(part["place"], part["expected_pearson"], "o", color=color, markersize=2.0, zorder=3)
        _draw_limits(ax.axvline if rows else ax.axhline)
        if rows:
            ax.set_yticks(np.arange(len(shown)), list(shown.index), style="italic")
            ax.set(xlabel=label, ylim=(len(shown) - 0.4, -0.6))
        else:
            left_out = len(frame) - len(shown)
            note = f" ({left_out} not assessed left out)" if left_out else ""
            ax.set(xlabel=f"genes, best to worst{note}", ylabel=label, xlim=(0, len(shown) + 1))
            # The corner that a falling curve leaves free.
            _list_genes(ax, "best", shown["verdict"].head(n_genes).map(colors).to_dict(), "upper right")
        _legend(ax, whole, colors)
    return ax


def _draw_limits(line: Callable[..., Any]) -> None:
    """Draw a line at no correlation, and a dashed one at the limit for a good gene."""
    line(0.0, color=GRAY, linewidth=0.6, zorder=0)
    line(GOOD, color=GRAY, linewidth=0.6, linestyle=(0, (4, 3)), zorder=0)


def _list_genes(ax: Axes, word: str, genes: Mapping[Any, Any], corner: str) -> None:
    """List genes in their colors in a corner of the axes, below a word."""
    if not genes:
        return
    lines: list[Artist] = [TextArea(word, textprops={"color": GRAY})]
    lines += [TextArea(str(gene), textprops={"style": "italic", "color": color}) for gene, color in genes.items()]
    packed = VPacker(children=lines, align="right" if "right" in corner else "left", pad=0, sep=1.5)
    # Above the reference lines and below the curves.
    box = AnchoredOffsetbox(loc=corner, child=packed, pad=0.1, borderpad=0.4, zorder=1)
    box.patch.set(facecolor="white", edgecolor="none")
    ax.add_artist(box)


def _legend(ax: Axes, whole: pd.DataFrame, colors: Mapping[str, Any]) -> None:
    """Say what was held out, and give each verdict with its number of genes and its rule."""
    params = whole.attrs
    by_slide = params["split_by"] == "slide"
    n = int(whole["n_slides"].max()) if by_slide else len(params["patients"])
    held_out = count(n, "slide" if by_slide else "patient")
    patients = "same patient" if params["same_patient"] else "new patients"
    other = ", not of this slide's patient" if len(params.get("other_patient", ())) else ""
    rules = dict(part.split(": ", 1) for part in str(params["rule"]).split("; "))
    numbers = whole["verdict"].value_counts()
    handles = []
    for verdict in [verdict for verdict in colors if verdict in numbers]:
        rule = rules.get(verdict, "no score").replace(">=", "\N{GREATER-THAN OR EQUAL TO}")
        label = fill(f"{verdict} ({numbers[verdict]}): {rule}", _LEGEND)
        handles.append(Line2D([], [], color=colors[verdict], marker="o", markersize=3.5, label=label))
    title = f"{params['label']}, {len(whole)} genes: {held_out} held out, {patients}{other}"
    legend_above(ax, handles=handles, title=title, handlelength=1.2)
