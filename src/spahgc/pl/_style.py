"""Look of the figures, and the axes that every plotting function draws into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

FONT_SIZE = 8.5
GRAY = "0.35"
MINUS = "\N{MINUS SIGN}"

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


@contextmanager
def panels(
    ax: Any, n: int, size: tuple[float, float], *, show: bool | None, n_columns: int = 0, layout: Any = "constrained"
) -> Iterator[list[Axes]]:
    """Yield the user's `n` axes, or those of a new figure of `size` inches, and show the figure at the end."""
    with mpl.rc_context(_RC):
        if ax is None:
            n_columns = n_columns or n
            grid = plt.subplots(-(-n // n_columns), n_columns, figsize=size, layout=layout, squeeze=False)[1]
            axes = list(grid.ravel())
            for spare in axes[n:]:
                spare.remove()
            del axes[n:]
        else:
            axes = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, dtype=object)))
            wrong = [type(item).__name__ for item in axes if not isinstance(item, Axes)]
            if wrong:
                raise TypeError(f"`ax` must hold matplotlib Axes, got {wrong[0]}.")
            if len(axes) != n:
                raise ValueError(f"`ax` must hold {n} Axes, one per panel, got {len(axes)}.")
        yield axes
        if show or (show is None and ax is None and mpl.is_interactive()):
            plt.show()


def palette(n: int) -> list[Any]:
    """`n` colors (up to ten) that color-blind readers can tell apart."""
    import seaborn as sns

    return list(sns.color_palette("colorblind", n))


def legend_above(ax: Axes, **options: Any) -> None:
    """Add a legend above the axes, where it covers nothing."""
    place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
    ax.legend(**{**place, **options}).set_alignment("left")


def count(n: int, noun: str) -> str:
    """Number and noun, in the plural unless `n` is 1."""
    return f"{n} {noun}{'' if n == 1 else 's'}"
