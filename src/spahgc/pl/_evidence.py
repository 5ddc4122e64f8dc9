"""A tile of the target beside the reference tiles behind its prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .. import _keys as keys
from .. import get
from .._links import pick_table
from .._slides import UNITS
from .._tables._cohorts import measured_expression
from .._tables._predictions import values
from ..pp._locate import LocatedSlide, locate
from ..pp._tiles import TileReader
from ._data import check_panel, panel_of
from ._style import GREY, finish, given_axes, style
from ._tissue import bar_length, length_label, shortened

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_PIXELS = 224
_TILE_UM = 112.0
"""Side of a tile where the embedding does not say how large its tiles were."""
_WIDTH = 1.35
"""Inches of a panel."""


def evidence(
    sdata_target: SpatialData,
    sdata_ref: SpatialData,
    spot: str,
    *,
    gene: str | None = None,
    n: int = 5,
    tile_um: float | None = None,
    layer: str | None = None,
    table_key: str | None = None,
    key: str = keys.PREDICTION,
    axes: Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
) -> list[Axes]:
    """Draw the tile of a spot beside the reference tiles that its prediction looks at most.

    Above each reference tile is its weight, below it its slide and patient; with `gene`, what was measured there,
    beside what is predicted for the spot, and whether they agree over the panel (:func:`spahgc.tl.explain`).

    Parameters
    ----------
    sdata_target
        The target slides, with their images, after :func:`spahgc.tl.predict` and :func:`spahgc.tl.explain`.
    sdata_ref
        The reference slides, with their images.
    spot
        Name of the spot, in ``obs_names`` of the target's table.
    gene
        A gene of the panel.
    n
        Reference tiles to draw.
    tile_um
        Side of the tiles in micrometres; `None` takes that of the embedding.
    layer
        Layer of the reference with the counts; `None` is ``X``.
    table_key
        Name of the table in both; `None` takes the only one, or ``table``.
    key
        The prediction's key.
    axes
        ``n + 1`` axes to draw into; `None` makes a figure.
    show
        Show the figure; `None` does so in an interactive session where no `axes` were given.

    Returns
    -------
    The axes: the target's, then one for each reference tile.

    Raises
    ------
    TypeError
        If a table is given instead of a SpatialData.
    KeyError
        If there is no evidence, no such spot, or no such gene.
    ValueError
        If a reference spot is not in `sdata_ref`, `n` is below 1, or `axes` are not as many as tiles.
    """
    if n < 1:
        raise ValueError(f"n is the number of reference tiles, at least 1, not {n!r}.")
    for name, sdata in (("sdata_target", sdata_target), ("sdata_ref", sdata_ref)):
        if not hasattr(sdata, "tables"):
            raise TypeError(f"{name} is a SpatialData, which holds the images, not {type(sdata).__name__}.")
    target, reference = (sdata.tables[pick_table(sdata, table_key)] for sdata in (sdata_target, sdata_ref))
    if gene is not None:
        check_panel([gene], panel_of(target, key), target.var_names)
    params: Mapping[str, Any] = target.uns.get(key, {}).get(keys.PARAMS, {})
    library = params.get("library_key")  # what was a slide for the model need not be one of the images
    behind = get.evidence(
        target, spot, adata_ref=reference, library_key=library if library in reference.obs else None, key=key
    ).head(n)
    width = _tile_um(target, params) if tile_um is None else tile_um
    own = _tile(_located(sdata_target, target), target, spot, width)
    slides = _located(sdata_ref, reference)
    tiles = [_tile(slides, reference, name, width) for name in behind["reference"]]
    below, own_below = [""] * len(tiles), ""
    if gene is not None:
        rows = reference[list(behind["reference"])]
        measured, _, _ = measured_expression(rows, [gene], params["normalize"], layer=layer or params.get("layer"))
        below = [f"\nmeasured {value:.2f}" for value in measured[:, 0]]
        own_below = f"{gene} predicted {values(target[[spot]], key, [gene])[0, 0]:.2f}\n"
    with style():
        panels = _panels(axes, len(tiles) + 1)
        for ax, tile in zip(panels, [own, *tiles], strict=True):
            ax.imshow(tile, extent=(0, width, width, 0), interpolation="antialiased")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(True)
        panels[0].spines[:].set_linewidth(1.8)
        panels[0].set_title(shortened(spot))
        panels[0].set_xlabel(f"{own_below}agreement {target.obs[keys.agreement(key)][spot]:.2f}")
        if gene is not None:
            panels[0].set_ylabel(UNITS[params["normalize"]], color=GREY)
        _scale_bar(panels[0], width)
        for ax, (_, row), text in zip(panels[1:], behind.iterrows(), below, strict=True):
            ax.set_title(f"weight {100 * row['weight']:.0f} %", color=GREY)
            patient = "" if row["patient"] == row["slide"] else f" ({row['patient']})"
            ax.set_xlabel(f"{shortened(row['slide'])}{patient}{text}")
        finish(panels, own=axes is None, show=show)
    return panels


def _panels(axes: Sequence[Axes] | NDArray[Any] | None, n: int) -> list[Axes]:
    if axes is not None:
        return given_axes(axes, n, why="the spot and its reference tiles")
    figure, made = plt.subplots(1, n, figsize=(_WIDTH * n, _WIDTH + 0.75), layout="constrained", squeeze=False)
    return list(made[0])


def _scale_bar(ax: Axes, width: float) -> None:
    """A bar of a round length in the lower right corner, on white so that it is seen on any tissue."""
    length = bar_length(0.45 * width)
    left, y = 0.95 * width - length, 0.93 * width
    ax.plot([left, left + length], [y, y], color="black", linewidth=1.8, solid_capstyle="butt")
    label = ax.text(left + length / 2, y - 0.03 * width, length_label(length), ha="center", va="bottom")
    label.set_bbox({"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0})


def _tile_um(target: AnnData, params: Mapping[str, Any]) -> float:
    embedding = target.uns.get(params["use_rep"], {})
    return float(embedding.get(keys.PARAMS, {}).get("tile_um", _TILE_UM))


def _located(sdata: SpatialData, table: AnnData) -> list[LocatedSlide]:
    return locate(sdata, table, microns_per_pixel=None, image_key=None)


def _tile(slides: list[LocatedSlide], table: AnnData, spot: str, width_um: float) -> NDArray[np.uint8]:
    """Tile of a spot, uint8 (pixels, pixels, 3)."""
    row = table.obs_names.get_loc(spot)
    slide = next(slide for slide in slides if row in slide.rows)
    centre = slide.centres[slide.rows == row]
    tile, _ = TileReader(slide.levels, centre, _PIXELS, image=slide.image).read(0, width_um)
    return np.moveaxis(tile, 0, -1)
