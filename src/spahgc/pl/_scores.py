from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnchoredOffsetbox, TextArea, VPacker

from .. import _keys as keys
from .._checks import format_names
from ._data import table_of
from ._style import GREY, finish, palette, single_axes, style

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

LABELS = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "pearson_depth_removed": "Pearson correlation, depth removed",
    "rmse": "RMSE",
    "mae": "mean absolute error",
}
_CORRELATIONS = ("pearson", "spearman", "pearson_depth_removed")
_GOOD = 0.3
"""Correlation above which a gene counts as predictable."""


def gene_scores(
    data: AnnData | SpatialData,
    *,
    key: str = keys.PREDICTION,
    metric: str = "pearson",
    slide: str | None = None,
    n_genes: int = 5,
    kind: Literal["rank", "hist"] = "rank",
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw how the genes of the panel score against measured expression.

    A gene's score is its mean over slides. The mean over genes is stated, and for correlations also the share of genes
    above 0.3; a gene without a score (constant on every slide) is left out and counted. Where the reference had slides
    of a scored patient, the title says so.

    Parameters
    ----------
    data
        A SpatialData, whose table ``table`` is taken, or the table itself, after :func:`spahgc.tl.evaluate`.
    key
        Key of the prediction; its scores are ``uns[f"{key}_scores"]``.
    metric
        The score to draw.
    slide
        Draw the scores of this slide; `None` takes the mean over slides.
    n_genes
        How many of the best and of the worst genes of `key` (or, where the scores have no such method, of the best
        method) are named; for ``kind="rank"`` only.
    kind
        ``"rank"``: genes from best to worst. ``"hist"``: histogram.
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
        If there are no scores, or none of this metric or slide.
    ValueError
        If an argument has a bad value, or no gene has a score.
    """
    from ..get import scores

    if kind not in ("rank", "hist"):
        raise ValueError(f"kind is 'rank' or 'hist', not {kind!r}.")
    if n_genes < 0:
        raise ValueError(f"n_genes is at least 0, not {n_genes}.")
    adata = table_of(data)
    table = _selected(scores(adata, key=key), metric=metric, slide=slide)
    n_slides = table["slide"].nunique()
    falling = metric in _CORRELATIONS
    methods = _by_method(table, key)
    if not any(values.notna().any() for values in methods.values()):
        raise ValueError(f"No gene has a {metric}: every gene is constant on every slide.")
    methods = _ordered({name: v for name, v in methods.items() if v.notna().any()}, key, falling)
    colours = palette(len(methods))
    title = f"mean of {n_slides} slides" if n_slides > 1 else str(table["slide"].iloc[0])
    title += _same_patient(table, adata.uns.get(key, {}).get(keys.PARAMS, {}))
    several = len(methods) > 1
    with style():
        own = ax is None
        ax = single_axes(ax, (4.0, 3.4 if several else 2.7))
        for (name, values), colour in zip(methods.items(), colours, strict=True):
            label = f"{name}: {_summary(values, falling, short=True)}" if several else ""
            _curve(ax, values.dropna(), kind=kind, falling=falling, label=label, colour=colour)
        _reference_lines(ax, kind=kind, falling=falling)
        first = next(iter(methods.values()))
        if kind == "rank" and n_genes:
            if several and falling:
                # The curve of a weak method runs where the worst genes of the first are named.
                low, high = ax.get_ylim()
                ax.set_ylim(low - 0.3 * (high - low), high)
            _name_genes(ax, first.dropna(), n_genes, falling=falling, colour=colours[0])
        missing = min(int(values.isna().sum()) for values in methods.values())
        left_out = f" ({missing} genes without a score left out)" if missing else ""
        axis_label = LABELS.get(metric, metric.replace("_", " "))
        if kind == "rank":
            ax.set(xlabel=f"genes, best to worst{left_out.replace(' genes', '')}", ylabel=axis_label)
        else:
            ax.set(xlabel=f"{axis_label}{left_out}", ylabel="number of genes")
        if several:
            # Above the axes, where neither a curve nor a label can be.
            ax.legend(
                title=title, loc="lower left", bbox_to_anchor=(0.0, 1.0), handlelength=1.2, borderaxespad=0.2
            ).set_alignment("left")
        else:
            ax.set_title(f"{title}: {_summary(first, falling, short=False)}", loc="left")
        finish([ax], own=own, show=show)
    return ax


def _selected(table: pd.DataFrame, *, metric: str, slide: str | None) -> pd.DataFrame:
    for column, value in (("metric", metric), ("slide", slide)):
        if value is None:
            continue
        available = table[column].astype(str).unique()
        if value not in available:
            raise KeyError(f"The scores have no {column} {value!r}. Available: {format_names(available)}.")
        table = table[table[column].astype(str) == value]
    return table


def _same_patient(table: pd.DataFrame, params: Mapping[str, Any]) -> str:
    """What the title says of slides whose patient has slides in the reference as well."""
    shared = set(map(str, params.get("shared_patients", ())))
    if not shared or "patient" not in table:
        return ""
    same = table.groupby("slide")["patient"].first().astype(str).isin(shared)
    return " (same patient)" if same.all() else f" ({same.sum()} same patient)" if same.any() else ""


def _by_method(table: pd.DataFrame, key: str) -> dict[str, Any]:
    """Mean over slides of each gene's score, a Series by gene, for each method."""
    if "method" not in table:
        return {key: table.groupby("gene", sort=False)["value"].mean()}
    return {str(name): part.groupby("gene", sort=False)["value"].mean() for name, part in table.groupby("method")}


def _ordered(methods: dict[str, Any], key: str, falling: bool) -> dict[str, Any]:
    """The prediction itself first, then the rest from best to worst."""
    sign = -1 if falling else 1
    return dict(sorted(methods.items(), key=lambda item: (item[0] != key, sign * item[1].mean())))


def _summary(values: Any, falling: bool, *, short: bool) -> str:
    values = values.dropna()
    text = f"mean {values.mean():.2f}".replace("-", "\N{MINUS SIGN}")
    genes = "" if short else f" of {len(values)} genes"
    return f"{text}, {100 * (values > _GOOD).mean():.0f} %{genes} above {_GOOD}" if falling else text


def _curve(ax: Axes, values: Any, *, kind: str, falling: bool, label: str, colour: Any) -> None:
    import seaborn as sns

    if kind == "rank":
        ordered = np.sort(values.to_numpy())
        ordered = ordered[::-1] if falling else ordered
        sns.lineplot(
            x=np.arange(1, len(ordered) + 1), y=ordered, ax=ax, color=colour, label=label or None, legend=False
        )
        return
    # Bins of a correlation are the same for every method, and 0 and 0.3 are edges of bins.
    bins = np.arange(np.floor(20 * values.min()), np.ceil(20 * values.max()) + 1.5) / 20 if falling else "auto"
    look = {"fill": False} if label else {"alpha": 0.35}
    sns.histplot(x=values.to_numpy(), bins=bins, element="step", ax=ax, color=colour, label=label or None, **look)


def _reference_lines(ax: Axes, *, kind: str, falling: bool) -> None:
    if not falling:
        return
    line = ax.axhline if kind == "rank" else ax.axvline
    line(0.0, color=GREY, linewidth=0.6, zorder=0)
    line(_GOOD, color=GREY, linewidth=0.6, linestyle=(0, (4, 3)), zorder=0)


def _name_genes(ax: Axes, values: Any, n: int, *, falling: bool, colour: Any) -> None:
    """Mark the best and the worst genes, and name them in the two corners that the curve does not reach."""
    ordered = values.sort_values(ascending=not falling, kind="stable")
    n = min(n, len(ordered) // 2)
    ranks = np.arange(1, len(ordered) + 1)
    # A falling curve leaves the upper right and the lower left free, a rising one the lower right and the upper left.
    corners = ("upper right", "lower left") if falling else ("lower right", "upper left")
    named = (("best", slice(None, n)), ("worst", slice(len(ordered) - n, None))) if n else ()
    for (word, part), corner in zip(named, corners, strict=False):
        ax.plot(ranks[part], ordered.iloc[part], "o", color=colour, markersize=2.5)
        lines: list[Artist] = [TextArea(word, textprops={"color": GREY})]
        lines += [TextArea(str(gene), textprops={"style": "italic", "color": colour}) for gene in ordered.index[part]]
        packed = VPacker(children=lines, align="right" if "right" in corner else "left", pad=0, sep=1.5)
        box = AnchoredOffsetbox(loc=corner, child=packed, pad=0.1, borderpad=0.4)
        # Over the reference lines and under the curves.
        box.set_zorder(1)
        box.patch.set(facecolor="white", edgecolor="none")
        ax.add_artist(box)
