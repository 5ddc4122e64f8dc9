"""Look of the figures, and what every plotting function does at its start and end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FONT_SIZE = 8.5
GREY = "0.35"
MINUS = "\N{MINUS SIGN}"
MISSING = "0.8"
"""Colour of spots without a value."""

_RC: dict[Any, Any] = {
    "axes.labelpad": 3,
    "axes.labelsize": FONT_SIZE,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlepad": 4,
    "axes.titlesize": FONT_SIZE,
    "figure.dpi": 150,
    "font.size": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "xtick.labelsize": 8,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 8,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
}


def style() -> Any:
    """Context in which the figures are drawn; the user's own settings come back after it."""
    return mpl.rc_context(_RC)


def palette(n: int) -> list[Any]:
    """`n` colours that colour-blind readers can tell apart (up to ten)."""
    import seaborn as sns

    return list(sns.color_palette("colorblind", n))


def single_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure of `size` inches."""
    if ax is None:
        return plt.subplots(figsize=size, layout="constrained")[1]
    if not isinstance(ax, Axes):
        raise TypeError(f"ax is one matplotlib Axes, not {type(ax).__name__}.")
    return ax


def given_axes(axes: Any, n: int, *, why: str) -> list[Axes]:
    """`n` axes that the user passed: one Axes, or a sequence or array of them."""
    import numpy as np

    flat = [axes] if isinstance(axes, Axes) else list(np.asarray(axes, dtype=object).ravel())
    wrong = [type(entry).__name__ for entry in flat if not isinstance(entry, Axes)]
    if wrong:
        raise TypeError(f"axes holds matplotlib Axes, not {wrong[0]}.")
    if len(flat) != n:
        raise ValueError(f"axes holds {len(flat)} Axes, but {n} are drawn ({why}).")
    return flat


def finish(axes: Sequence[Axes], *, own: bool, show: bool | None) -> None:
    """Show the figure: if asked to, or if the figure is our own and the session is interactive."""
    figures: list[Any] = [ax.figure for ax in axes if isinstance(ax.figure, Figure)]
    if figures and (show or (show is None and own and mpl.is_interactive())):
        plt.show()
