from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .. import _keys as keys
from .. import get
from .._checks import at_least, checked, format_names
from .._tables._predictions import VERDICTS
from ..metrics import GOOD
from ._style import GRAY, count, legend_above, palette, panels
from ._tissue import table_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

_ROW = 0.16  # height of a gene's row in inches
_LEGEND = 50  # characters in a line of the legend


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
    interval = f", {100 * whole.attrs['level']:g} % interval" if shown["low"].notna().any() else " (no interval)"
    label = f"expected Pearson correlation{interval}"
    rows = genes is not None
    with panels(ax, 1, (4.6, 1.6 + _ROW * len(shown)) if rows else (4.6, 3.8), show=show) as [ax]:
        _draw_points(ax, shown, rows=rows)
        if rows:
            ax.set_yticks(np.arange(len(shown)), list(shown.index), style="italic")
            ax.set(xlabel=label, ylim=(len(shown) - 0.4, -0.6))
        else:
            left_out = len(frame) - len(shown)
            note = f" ({left_out} not assessed left out)" if left_out else ""
            ax.set(xlabel=f"genes, best to worst{note}", ylabel=label, xlim=(0, len(shown) + 1))
            _label_best(ax, shown["verdict"].head(n_genes))
        legend_above(ax, handles=_handles(whole), title=_title(whole), handlelength=1.2)
    return ax


def _colors() -> dict[str, Any]:
    """Color of each verdict."""
    color = palette(10)
    return dict(zip(VERDICTS, (color[2], color[1], color[7], "0.8"), strict=True))


def _draw_points(ax: Axes, shown: pd.DataFrame, *, rows: bool) -> None:
    shown = shown.assign(place=np.arange(len(shown)) + (0 if rows else 1))
    for verdict, color in _colors().items():
        part = shown[shown["verdict"] == verdict]
        known = part[part["low"].notna()]
        if rows:
            ax.hlines(known["place"], known["low"], known["high"], color=color, linewidth=1.2, alpha=0.7, zorder=2)
            ax.plot(part["expected_pearson"], part["place"], "o", color=color, markersize=3.2, zorder=3)
        else:
            # Bars that touch; lines would leave gaps.
            look: dict[str, Any] = {"width": 1.0, "color": color, "alpha": 0.35, "linewidth": 0, "zorder": 2}
            ax.bar(known["place"], known["high"] - known["low"], bottom=known["low"], **look)
            ax.plot(part["place"], part["expected_pearson"], "o", color=color, markersize=2.0, zorder=3)
    line = ax.axvline if rows else ax.axhline
    line(0.0, color=GRAY, linewidth=0.6, zorder=0)
    line(GOOD, color=GRAY, linewidth=0.6, linestyle=(0, (4, 3)), zorder=0)


def _label_best(ax: Axes, verdicts: pd.Series) -> None:
    """List the best genes in the upper right corner, which a falling curve leaves free."""
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "right", "va": "top"}
    if len(verdicts):
        ax.annotate("best", (0.99, 0.98), xytext=(0, 0), color=GRAY, **place)
    for i, (gene, verdict) in enumerate(verdicts.items(), start=1):
        ax.annotate(str(gene), (0.99, 0.98), xytext=(0, -11 * i), color=_colors()[verdict], style="italic", **place)


def _title(whole: pd.DataFrame) -> str:
    params = whole.attrs
    by_slide = params["split_by"] == "slide"
    n = int(whole["n_slides"].max()) if by_slide else len(params["patients"])
    patients = "same patient" if params["same_patient"] else "new patients"
    other = ", not of this slide's patient" if len(params.get("other_patient", ())) else ""
    held_out = count(n, "slide" if by_slide else "patient")
    return f"{params['label']}, {len(whole)} genes: {held_out} held out, {patients}{other}"


def _handles(whole: pd.DataFrame) -> list[Line2D]:
    """One entry per verdict, with its number of genes and its rule."""
    rules = dict(part.split(": ", 1) for part in str(whole.attrs["rule"]).split("; "))
    numbers = whole["verdict"].value_counts()
    handles = []
    for verdict, color in _colors().items():
        if verdict in numbers:
            rule = rules.get(verdict, "no score").replace(">=", "\N{GREATER-THAN OR EQUAL TO}")
            label = fill(f"{verdict} ({numbers[verdict]}): {rule}", _LEGEND)
            handles.append(Line2D([], [], color=color, marker="o", markersize=3.5, label=label))
    return handles
