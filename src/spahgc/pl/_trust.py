from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .. import _keys as keys
from .._checks import format_names
from ..get import VERDICTS
from ._data import table_of
from ._style import GREY, finish, palette, single_axes, style

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

_ROW = 0.16
"""Height of a gene's row in inches."""
_LEGEND = 50
"""Characters in a line of the legend."""


def trust(
    data: AnnData | SpatialData,
    genes: Sequence[str] | None = None,
    *,
    key: str = keys.PREDICTION,
    method: str | None = None,
    n_genes: int = 5,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw what to expect of each gene on a new slide, and whether to trust it.

    A point is the expected Pearson correlation, a bar the interval in which the next slide's will be; both come from
    cross-validation on the reference. Colours are the verdicts, with their rule in the legend. Where the slides that
    were held out were of patients that the training knew, the title says "same patient".

    Parameters
    ----------
    data
        A prediction with trust, or a reference after :func:`spahgc.tl.cross_validate`: a SpatialData, whose table
        ``table`` is taken, or the table itself.
    genes
        Genes to draw by name, a row each; `None` draws all of them, from the best to the worst.
    key
        Key of the prediction, or of the cross-validation.
    method
        Label of the cross-validated method, for a reference; see :func:`spahgc.get.trust`.
    n_genes
        How many of the best are named where all are drawn.
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
        If there is no trust, or it does not hold a gene.
    ValueError
        If an argument has a bad value, or no gene was assessed.
    """
    from ..get import trust as trust_of

    if n_genes < 0:
        raise ValueError(f"n_genes is at least 0, not {n_genes}.")
    whole = trust_of(table_of(data), key=key, method=method)
    rows = genes is not None
    frame = _selected(whole, genes)
    left_out = int(frame["expected_pearson"].isna().sum())
    shown = frame.dropna(subset="expected_pearson").sort_values("expected_pearson", ascending=False, kind="stable")
    if shown.empty:
        raise ValueError("No gene was assessed: none has a score on any held-out slide.")
    with style():
        own = ax is None
        ax = single_axes(ax, (4.6, 1.6 + _ROW * len(shown)) if rows else (4.6, 3.8))
        _points(ax, shown, rows=rows)
        if rows:
            ax.set_yticks(np.arange(len(shown)), list(shown.index), style="italic")
            ax.set_ylim(len(shown) - 0.4, -0.6)
            ax.set_xlabel(_axis_label(shown, whole.attrs))
        else:
            missing = f" ({left_out} not assessed left out)" if left_out else ""
            ax.set(xlabel=f"genes, best to worst{missing}", ylabel=_axis_label(shown, whole.attrs))
            ax.set_xlim(0, len(shown) + 1)
            _name_best(ax, shown, n_genes)
        legend = ax.legend(
            handles=_handles(whole),
            title=_title(whole),
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            handlelength=1.2,
            borderaxespad=0.2,
        )
        legend.set_alignment("left")
        finish([ax], own=own, show=show)
    return ax


def _selected(whole: pd.DataFrame, genes: Sequence[str] | None) -> pd.DataFrame:
    if genes is None:
        return whole
    wanted = [genes] if isinstance(genes, str) else list(genes)
    if not wanted:
        raise ValueError("genes is empty: name at least one, or leave it out to draw all.")
    unknown = [gene for gene in wanted if gene not in whole.index]
    if unknown:
        raise KeyError(f"Nothing is known of {format_names(unknown)}. Available: {format_names(whole.index)}.")
    return whole.loc[wanted]


def colours() -> dict[str, Any]:
    """The colour of each verdict."""
    colour = palette(10)
    return dict(zip(VERDICTS, (colour[2], colour[1], colour[7], "0.8"), strict=True))


def _points(ax: Axes, shown: pd.DataFrame, *, rows: bool) -> None:
    places = np.arange(len(shown)) + (0 if rows else 1)
    for verdict, colour in colours().items():
        own = (shown["verdict"] == verdict).to_numpy()
        if not own.any():
            continue
        part, at = shown[own], places[own]
        known = part["low"].notna().to_numpy()
        low, high = part["low"][known], part["high"][known]
        if rows:
            ax.hlines(at[known], low, high, color=colour, linewidth=1.2, alpha=0.7, zorder=2)
        else:
            # Bars that touch: lines would leave gaps.
            ax.bar(at[known], high - low, bottom=low, width=1.0, color=colour, alpha=0.35, linewidth=0, zorder=2)
        values = part["expected_pearson"]
        across, up = (values, at) if rows else (at, values)
        ax.plot(across, up, "o", color=colour, markersize=3.2 if rows else 2.0, zorder=3)
    zero, good = (ax.axvline, ax.axvline) if rows else (ax.axhline, ax.axhline)
    zero(0.0, color=GREY, linewidth=0.6, zorder=0)
    good(0.3, color=GREY, linewidth=0.6, linestyle=(0, (4, 3)), zorder=0)


def _name_best(ax: Axes, shown: pd.DataFrame, n: int) -> None:
    """Name the best genes in the upper right corner, which a falling curve leaves free."""
    best = shown.index[:n]
    if not len(best):
        return
    ax.text(0.99, 0.98, "best", color=GREY, ha="right", va="top", transform=ax.transAxes)
    for i, gene in enumerate(best, start=1):
        ax.annotate(
            str(gene),
            (0.99, 0.98),
            xytext=(0, -11 * i),
            xycoords="axes fraction",
            textcoords="offset points",
            color=colours()[shown["verdict"].iloc[i - 1]],
            style="italic",
            ha="right",
            va="top",
        )


def _axis_label(shown: pd.DataFrame, params: Mapping[Any, Any]) -> str:
    interval = f", {100 * params['level']:g} % interval" if shown["low"].notna().any() else " (no interval)"
    return f"expected Pearson correlation{interval}"


def _title(whole: pd.DataFrame) -> str:
    params = whole.attrs
    n, what = len(params["slides"]), "slide" if params["split_by"] == "slide" else "patient"
    n = int(whole["n_slides"].max()) if what == "slide" else len(params["patients"])
    held = f"{n} {what}{'s' if n != 1 else ''} held out"
    parts = [
        f"{params['label']}, {len(whole)} genes: {held}",
        "same patient" if params["same_patient"] else "new patients",
    ]
    if len(params.get("other_patient", ())):
        parts.append("not of this slide's patient")
    return ", ".join(parts)


def _handles(whole: pd.DataFrame) -> list[Line2D]:
    """A verdict each, with how many genes have it, and its rule."""
    rules = dict(part.split(": ", 1) for part in str(whole.attrs["rule"]).split("; "))
    handles = []
    for verdict, colour in colours().items():
        n = int((whole["verdict"] == verdict).sum())
        if n == 0:
            continue
        rule = rules.get(verdict, "no score").replace(">=", "\N{GREATER-THAN OR EQUAL TO}")
        label = fill(f"{verdict} ({n}): {rule}", _LEGEND)
        handles.append(Line2D([], [], color=colour, marker="o", markersize=3.5, label=label))
    return handles
