from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from .. import _keys as keys
from .._checks import above, between, checked, format_names
from ._style import panels
from ._tissue import draw_spots, draw_tissue, slide_of, table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_PANEL_WIDTH = 2.4


@checked(size=above(0), alpha=between(0, 1))
def support(
    adata: AnnData | SpatialData,
    *,
    what: Literal["support", "agreement"] = "support",
    slide: str | None = None,
    library_key: str | None = None,
    key: str = keys.PREDICTION,
    cmap: str = "viridis",
    size: float = 1.0,
    alpha: float = 1.0,
    img: bool = True,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw on the tissue how well the reference covers each spot, or agrees with its prediction.

    Parameters
    ----------
    adata
        Table after :func:`spahgc.tl.predict`, or a SpatialData with this ``table``.
    what
        ``"support"`` of each spot by the reference, from 0 (not covered) to 1 (:func:`spahgc.tl.predict`), or
        ``"agreement"`` of the prediction with the measured expression of the reference spots behind it, from 0 (or
        below) to 1 (:func:`spahgc.tl.explain`).
    slide, library_key, key, cmap, size, alpha, img, ax, show
        As in :func:`expression`.

    Returns
    -------
    Axes of the panel.

    Raises
    ------
    KeyError
        If there is no support or agreement, or no such slide.
    ValueError
        If there are several slides and none is named.

    Examples
    --------
    >>> spahgc.pl.support(sdata_target, what="agreement", size=1.8)  # doctest: +SKIP
    """
    table = table_of(adata)
    column = keys.support(key) if what == "support" else keys.agreement(key)
    if column not in table.obs:
        raise KeyError(
            f"adata.obs has no {column!r}. Available in obs: {format_names(table.obs.columns)}. Run "
            f"spahgc.tl.{'predict' if what == 'support' else 'explain'} first, or pass key=<its key_added>."
        )
    drawn = slide_of(table, slide, library_key, size)
    values = np.asarray(drawn.rows.obs[column], dtype=np.float64)
    label = "support by the reference" if what == "support" else "agreement with the reference"
    with panels(ax, 1, (_PANEL_WIDTH + 0.8, _PANEL_WIDTH * drawn.aspect + 0.3), show=show) as [ax]:
        draw_tissue(ax, drawn, img=img, name=drawn.name)
        draw_spots(ax, drawn, values, cmap=cmap, norm=Normalize(0.0, 1.0), alpha=alpha, label=label)
        ax.set_title(f"{what}, median {np.nanmedian(values):.2f}" if np.isfinite(values).any() else what)
    return ax
