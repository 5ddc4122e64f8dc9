from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .. import _keys as keys
from .._checks import checked, format_names
from .._tables._slots import check_table
from ._style import GRAY, legend_above, palette, panels

if TYPE_CHECKING:
    from anndata import AnnData

_CHOSEN = "chosen_epoch"
# Label, and index in the palette, of spahgc's own curves.
_LOSSES = {
    "loss": ("loss", 0),
    "mse": ("squared error", 9),
    "contrast_target": ("contrast, target", 2),
    "contrast_reference": ("contrast, reference", 7),
}
_SCORES = {"pearson": ("correlation, training", 1), "validation": ("validation", 3)}
_FREE = (4, 5, 6, 8)  # indices in the palette for other curves


@checked()
def training(
    model: Any | AnnData, *, key: str = keys.PREDICTION, ax: Axes | None = None, show: bool | None = None
) -> Axes:
    """Draw the curves of a training: losses on the left axis, scores (higher is better) on the right.

    Parameters
    ----------
    model
        A trained model, a table after :func:`spahgc.tl.predict` with a model that was trained in that call, or the
        history itself: a dict from the name of a curve to its value per epoch. ``chosen_epoch`` holds the epochs
        whose weights were kept.
    key
        Key of the prediction, if `model` is a table.
    ax, show
        As in :func:`expression`.

    Returns
    -------
    The left axes.

    Raises
    ------
    KeyError
        If a table holds no training curves.
    ValueError
        If there are no curves, because the method is not trained over epochs.

    Examples
    --------
    >>> import spahgc
    >>> ax = spahgc.pl.training({"loss": [2.0, 1.2, 1.0], "pearson": [0.1, 0.3, 0.35]}, show=False)
    >>> ax.get_xlabel()
    'epoch'
    """
    history = _history(model, key)
    chosen = [int(epoch) for epoch in np.ravel(history.pop(_CHOSEN, []))]
    if not history:
        raise ValueError("There are no training curves: this method is not trained over epochs.")
    scores = {name: history.pop(name) for name in _SCORES if name in history}
    with panels(ax, 1, (4.2, 3.0), show=show) as [ax]:
        lines = _curves(ax, history, _LOSSES, "-")
        ax.set(xlabel="epoch", ylabel="loss")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if scores:
            twin = ax.twinx()
            twin.spines["right"].set_visible(True)
            twin.set_ylabel("score (dashed)")
            lines += _curves(twin, scores, _SCORES, (0, (3, 1)))
        marks = [ax.axvline(epoch, color=GRAY, linewidth=0.8, linestyle=":", zorder=0) for epoch in chosen]
        for mark in marks[:1]:
            mark.set_label(f"chosen epoch: {', '.join(map(str, chosen))}")
        legend_above(ax, handles=[*lines, *marks[:1]], ncols=2, handlelength=1.5, columnspacing=1.0)
    return ax


def _history(model: Any, key: str) -> dict[str, Any]:
    """Copy of the curves by name."""
    if isinstance(model, Mapping):
        return dict(model)
    if hasattr(model, "history"):
        return dict(model.history() if callable(model.history) else model.history)
    adata = check_table(model, what="model")
    if "training" not in adata.uns.get(key, {}):
        raise KeyError(
            f"uns[{key!r}] has no 'training': there is no such prediction, it came from a model trained elsewhere, or "
            f"from a method without epochs. Available in uns: {format_names(adata.uns)}. Pass the model: "
            "spahgc.pl.training(model)."
        )
    return dict(adata.uns[key]["training"])


def _curves(ax: Axes, curves: Mapping[str, Any], known: Mapping[str, tuple[str, int]], dashes: Any) -> list[Any]:
    """Draw one line per curve: the known ones in their order, then the others under their names."""
    colors, lines = palette(10), []
    others = [name for name in curves if name not in known]
    for name in [*(name for name in known if name in curves), *others]:
        values = np.ravel(np.asarray(curves[name], dtype=np.float64))
        label, color = (
            known[name] if name in known else (name.replace("_", " "), _FREE[others.index(name) % len(_FREE)])
        )
        look: dict[str, Any] = {
            "label": label,
            "color": colors[color],
            "linestyle": dashes,
            "linewidth": 1.6 if name in ("loss", "validation") else 1.0,
            "marker": "o" if len(values) == 1 else None,
        }
        lines += ax.plot(np.arange(len(values)) + 1, values, **look)
    return lines
