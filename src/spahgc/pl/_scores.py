from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnchoredOffsetbox, TextArea, VPacker

from .. import _keys as keys
from .. import get
from .._checks import at_least, checked, format_names
from ..metrics import GOOD
from ._style import GRAY, MINUS, legend_above, palette, panels
from ._tissue import pick_slide, table_of

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
    title += _same_patient(scores, table.uns.get(key, {}).get(keys.PARAMS, {}))
    with panels(ax, 1, (4.0, 3.4 if several else 2.7), show=show) as [ax]:
        for name, color in zip(order, palette(len(order)), strict=True):
            label = f"{name}: {_summary(methods[name], falling)}" if several else None
            values = methods[name].dropna().sort_values(ascending=not falling)
            ax.plot(np.arange(1, len(values) + 1), values, color=color, label=label)
        if falling:
            ax.axhline(0.0, color=GRAY, linewidth=0.6, zorder=0)
            ax.axhline(GOOD, color=GRAY, linewidth=0.6, linestyle=(0, (4, 3)), zorder=0)
        if several and falling and n_genes:
            # The curve of a weak method runs where the worst genes of the first are labeled.
            low, high = ax.get_ylim()
            ax.set_ylim(low - 0.3 * (high - low), high)
        first = methods[order[0]].dropna()
        _label_genes(ax, first, n_genes, falling=falling, color=palette(1)[0])
        left_out = f" ({missing} without a score left out)" if missing else ""
        ax.set(xlabel=f"genes, best to worst{left_out}", ylabel=LABELS.get(metric, metric.replace("_", " ")))
        if several:
            legend_above(ax, title=title, handlelength=1.2)
        else:
            ax.set_title(f"{title}: {_summary(first, falling, f' of {len(first)} genes')}", loc="left")
    return ax


def _same_patient(scores: pd.DataFrame, params: Mapping[str, Any]) -> str:
    """Note on slides whose patient has slides in the reference as well."""
    shared = set(map(str, params.get("shared_patients", ())))
    same = scores.groupby("slide")["patient"].first().astype(str).isin(shared)
    return " (same patient)" if same.all() else f" ({same.sum()} same patient)" if same.any() else ""


def _summary(values: pd.Series, falling: bool, genes: str = "") -> str:
    values = values.dropna()
    share = f", {100 * (values > GOOD).mean():.0f} %{genes} above {GOOD}" if falling else ""
    return f"mean {values.mean():.2f}".replace("-", MINUS) + share


def _label_genes(ax: Axes, values: pd.Series, n: int, *, falling: bool, color: Any) -> None:
    """Mark the best and the worst genes, and list them in the two corners that the curve leaves free."""
    ordered = values.sort_values(ascending=not falling, kind="stable")
    n = min(n, len(ordered) // 2)
    ranks = np.arange(1, len(ordered) + 1)
    corners = ("upper right", "lower left") if falling else ("lower right", "upper left")
    parts = (("best", slice(None, n)), ("worst", slice(len(ordered) - n, None))) if n else ()
    for (word, part), corner in zip(parts, corners, strict=False):
        ax.plot(ranks[part], ordered.iloc[part], "o", color=color, markersize=2.5)
        lines: list[Artist] = [TextArea(word, textprops={"color": GRAY})]
        lines += [TextArea(str(gene), textprops={"style": "italic", "color": color}) for gene in ordered.index[part]]
        packed = VPacker(children=lines, align="right" if "right" in corner else "left", pad=0, sep=1.5)
        # Above the reference lines and below the curves.
        box = AnchoredOffsetbox(loc=corner, child=packed, pad=0.1, borderpad=0.4, zorder=1)
        box.patch.set(facecolor="white", edgecolor="none")
        ax.add_artist(box)
