from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from .. import _keys as keys
from .._checks import format_names
from ._data import slide_of, table_of
from ._style import finish, single_axes, style
from ._tissue import colour_bar, draw_scale_bar, draw_spots, draw_tissue

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_PANEL_WIDTH = 2.4
_WRITERS = {"support": "spahgc.tl.predict", "agreement": "spahgc.tl.explain"}


def support(
    data: AnnData | SpatialData,
    *,
    slide: str | None = None,
    what: Literal["support", "agreement"] = "support",
    library_key: str | None = None,
    key: str = keys.PREDICTION,
    cmap: str = "viridis",
    size: float = 1.0,
    alpha: float = 1.0,
    img: bool = True,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw on the tissue how well the reference covers each spot, or whether it bears the spot's prediction out.

    Parameters
    ----------
    data
        A SpatialData, whose table ``table`` is taken, or the table itself, after :func:`spahgc.tl.predict`.
    slide
        Name of the slide; `None` where the table holds one slide.
    what
        ``"support"``, from 0 (not covered at all) to 1, which :func:`spahgc.tl.predict` writes; or ``"agreement"``, of
        the prediction with what was measured in the reference spots behind it, from 0 (or below) to 1, which
        :func:`spahgc.tl.explain` writes.
    library_key
        Column of ``obs`` with the slide of each spot; `None` takes the table's region key.
    key
        Key of the prediction; what is drawn is ``obs[f"{key}_support"]`` or ``obs[f"{key}_agreement"]``.
    cmap
        Colour map.
    size
        Spot diameter as a multiple of the true one.
    alpha
        Opacity of the spots.
    img
        Draw the H&E thumbnail ``uns["spatial"][slide]["images"]["hires"]``.
    ax
        Axes to draw into; `None` makes a figure. The colour bar is drawn beside the panel: make your figure with
        ``layout="constrained"``, which leaves room for it.
    show
        Show the figure; `None` does so in an interactive session where no `ax` was given.

    Returns
    -------
    The axes of the panel.

    Raises
    ------
    KeyError
        If there is no support or agreement, or no such slide.
    ValueError
        If several slides are there and none was named.
    """
    adata = table_of(data)
    if what not in _WRITERS:
        raise ValueError(f"what is {format_names(_WRITERS)}, not {what!r}.")
    column = keys.support(key) if what == "support" else keys.agreement(key)
    if column not in adata.obs:
        raise KeyError(
            f"data.obs has no {column!r}. Available in obs: {format_names(adata.obs.columns)}. Run {_WRITERS[what]} first, "
            "or pass key=<its key_added>."
        )
    if not size > 0:
        raise ValueError(f"size is a multiple above 0 of the true spot diameter, not {size!r}.")
    rows, tissue = slide_of(adata, slide, library_key)
    values = np.asarray(rows.obs[column], dtype=np.float64)
    with style():
        own = ax is None
        ax = single_axes(ax, (_PANEL_WIDTH + 0.8, _PANEL_WIDTH * tissue.aspect(size) + 0.3))
        draw_tissue(ax, tissue, img=img, size=size)
        draw_scale_bar(ax, tissue, size=size)
        norm = Normalize(0.0, 1.0)
        spots = draw_spots(ax, tissue, values, cmap=plt.get_cmap(cmap), norm=norm, size=size, alpha=alpha)
        colour_bar(ax, spots, "support by the reference" if what == "support" else "agreement with the reference")
        ax.set_title(f"{what}, median {np.nanmedian(values):.2f}" if np.isfinite(values).any() else what)
        finish([ax], own=own, show=show)
    return ax
