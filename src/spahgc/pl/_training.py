from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .. import _keys as keys
from .._checks import format_names
from .._tables._slots import check_table
from ._style import GREY, finish, palette, single_axes, style

if TYPE_CHECKING:
    from anndata import AnnData

_CHOSEN = "chosen_epoch"
# Label, and place in the palette, of the curves that spahgc's own training gives.
_LOSSES = {
    "loss": ("loss", 0),
    "mse": ("squared error", 9),
    "contrast_target": ("contrast, target", 2),
    "contrast_reference": ("contrast, reference", 7),
}
_SCORES = {"pearson": ("correlation, training", 1), "validation": ("validation", 3)}
_FREE = (4, 5, 6, 8)
"""Places in the palette of curves with other names."""


def training(
    model: Any | AnnData,
    *,
    key: str = keys.PREDICTION,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw the curves of a training: losses on the left axis, scores (higher is better) on the right.

    Parameters
    ----------
    model
        A trained model (its ``history``), a table after :func:`spahgc.tl.predict` with a model that was trained there
        (``uns[key]["training"]``), or the history itself: a dict from the name of a curve to its value per epoch.
        The numbers of epochs that were kept are in ``chosen_epoch``.
    key
        Key of the prediction, where `model` is a table.
    ax
        Axes to draw into; `None` makes a figure.
    show
        Show the figure; `None` does so in an interactive session where no `ax` was given.

    Returns
    -------
    The left axes; the right ones share their epochs.

    Raises
    ------
    KeyError
        If a table holds no training curves.
    ValueError
        If there are no curves: the method is not trained over epochs.
    """
    history = _history(model, key)
    chosen = [int(epoch) for epoch in np.ravel(history.pop(_CHOSEN, []))]
    if not history:
        raise ValueError("There are no training curves: this method is not trained over epochs.")
    right = {name: values for name, values in history.items() if name in _SCORES}
    left = {name: values for name, values in history.items() if name not in _SCORES}
    with style():
        own = ax is None
        ax = single_axes(ax, (4.2, 3.0))
        lines = _curves(ax, left, _LOSSES, "-")
        ax.set(xlabel="epoch", ylabel="loss")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if right:
            twin = ax.twinx()
            twin.spines["right"].set_visible(True)
            lines += _curves(twin, right, _SCORES, (0, (3, 1)))
            twin.set_ylabel("score (dashed)")
        for epoch in chosen:
            lines.append(ax.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":", zorder=0))
        if chosen:
            # One entry for all of them, with their numbers.
            del lines[len(lines) - len(chosen) + 1 :]
            lines[-1].set_label(f"chosen epoch: {', '.join(map(str, chosen))}")
        ax.legend(
            handles=lines,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=2,
            handlelength=1.5,
            columnspacing=1.0,
            borderaxespad=0.2,
        )
        finish([ax], own=own, show=show)
    return ax


def _history(model: Any, key: str) -> dict[str, Any]:
    """A copy of the curves, by name."""
    if isinstance(model, Mapping):
        return dict(model)
    if hasattr(model, "history"):
        history = model.history() if callable(model.history) else model.history
        return dict(history)
    adata = check_table(model, what="model")
    entry = adata.uns.get(key)
    if entry is None:
        raise KeyError(
            f"uns has no prediction {key!r}. Available in uns: {format_names(adata.uns)}. "
            "Run spahgc.tl.predict first, or pass the model: spahgc.pl.training(model)."
        )
    if "training" not in entry:
        raise KeyError(
            f"uns[{key!r}] has no 'training': the prediction came from a model trained elsewhere, or from a method "
            "without epochs. Pass the model: spahgc.pl.training(model)."
        )
    return dict(entry["training"])


def _curves(
    ax: Axes,
    curves: dict[str, Any],
    labels: dict[str, tuple[str, int]],
    dashes: Any,
) -> list[Any]:
    """One line a curve, in the order of `labels`; curves with other names after them, under their names."""
    lines = []
    colours = palette(10)
    others = [name for name in curves if name not in labels]
    looks = {name: labels[name] for name in labels if name in curves}
    looks |= {name: (name.replace("_", " "), _FREE[i % len(_FREE)]) for i, name in enumerate(others)}
    for name, (label, colour) in looks.items():
        values = np.ravel(np.asarray(curves[name], dtype=np.float64))
        (line,) = ax.plot(
            np.arange(len(values)) + 1,
            values,
            color=colours[colour],
            linestyle=dashes,
            linewidth=1.6 if name in ("loss", "validation") else 1.0,
            marker="o" if len(values) == 1 else None,
            label=label,
        )
        lines.append(line)
    return lines
