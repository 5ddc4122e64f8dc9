from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .. import _keys as keys
from .._checks import checked, format_names
from .._tables._slots import check_table
from ._drawing import GRAY, legend_above, palette, panels

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
def training(model: Any, *, key: str = keys.PREDICTION, ax: Axes | None = None, show: bool | None = None) -> Axes:
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
    chosen = [int(epoch) for epoch in np.ravel(history.pop("chosen_epoch", []))]
    if not history:
        raise ValueError("There are no training curves: this method is not trained over epochs.")
    others = [name for name in history if name not in {*_LOSSES, *_SCORES}]
    free = {name: (name.replace("_", " "), _FREE[i % len(_FREE)]) for i, name in enumerate(others)}
    scores, colors, lines = [name for name in _SCORES if name in history], palette(10), []
    with panels(ax, 1, (4.2, 3.0), show=show) as [ax]:
        ax.set(xlabel="epoch", ylabel="loss")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        right = ax
        if scores:
            right = ax.twinx()
            right.spines["right"].set_visible(True)
            right.set_ylabel("score (dashed)")
        for name, (label, color) in (_LOSSES | free | _SCORES).items():
            if name in history:
                values = np.ravel(np.asarray(history[name], dtype=np.float64))
                lines += (right if name in scores else ax).plot(
                    np.arange(len(values)) + 1,
                    values,
                    label=label,
                    color=colors[color],
                    linestyle=(0, (3, 1)) if name in scores else "-",
                    linewidth=1.6 if name in ("loss", "validation") else 1.0,
                    marker="o" if len(values) == 1 else None,
                )
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
