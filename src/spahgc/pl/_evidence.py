from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import NDArray
from spatialdata import SpatialData

from .. import _keys as keys
from .. import get
from .._checks import above, at_least, checked
from .._links import pick_table
from .._slides import UNITS
from .._tables._cohorts import measured_expression
from .._tables._predictions import read_prediction
from ..pp._images import locate
from ..pp._tiles import TileReader
from ._drawing import GRAY, draw_scale_bar, panels, shorten
from ._expression import check_panel

_PIXELS = 224
_TILE_UM = 112.0  # if the embedding does not record it
_WIDTH = 1.35  # inches of a panel


@checked(n_tiles=at_least(1), tile_um=above(0))
def evidence(
    sdata_ref: SpatialData,
    sdata_target: SpatialData,
    spot: str,
    *,
    gene: str | None = None,
    n_tiles: int = 5,
    tile_um: float | None = None,
    layer: str | None = None,
    table_key: str | None = None,
    key: str = keys.PREDICTION,
    ax: Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
) -> list[Axes]:
    """Draw the tile of a spot beside the reference tiles with the largest weights in its prediction.

    Reference tiles show their weight, slide and patient. With `gene`, they also show its measured expression, beside
    the predicted expression of the spot and the agreement of both over the panel (:func:`spahgc.tl.explain`).

    Parameters
    ----------
    sdata_ref
        Reference slides with their images.
    sdata_target
        Target slides with their images, after :func:`spahgc.tl.predict` and :func:`spahgc.tl.explain`.
    spot
        Name of the spot in ``obs_names`` of the target's table.
    gene
        Gene of the panel.
    n_tiles
        Number of reference tiles.
    tile_um
        Side of the tiles in micrometers; `None` takes that of the embedding.
    layer
        Layer of the reference with the raw counts; `None` takes ``X``.
    table_key
        Name of the table in both; `None` takes the only one, or ``table``.
    key
        Key of the prediction.
    ax, show
        As in :func:`expression`.

    Returns
    -------
    Axes of the target tile, then of the reference tiles.

    Raises
    ------
    KeyError
        If there is no evidence, no such spot, or no such gene.
    ValueError
        If a reference spot is not in `sdata_ref`.

    Examples
    --------
    >>> spahgc.pl.evidence(sdata_ref, sdata_target, "C4_10x13", gene="ERBB2")  # doctest: +SKIP
    """
    reference, target = (sdata.tables[pick_table(sdata, table_key)] for sdata in (sdata_ref, sdata_target))
    if gene is not None:
        check_panel([gene], read_prediction(target, key).genes, target.var_names)
    params: Mapping[str, Any] = keys.part(target.uns, key, keys.PARAMS)
    # Slides of the model need not be slides of the images.
    library = params["library_key"] if params.get("library_key") in reference.obs else None
    found = get.evidence(target, spot, adata_ref=reference, library_key=library, key=key).head(n_tiles)
    if tile_um is None:
        tile_um = float(keys.part(target.uns, params["use_rep"], keys.PARAMS).get("tile_um", _TILE_UM))
    tiles = [*_tiles(sdata_target, target, [spot], tile_um), *_tiles(sdata_ref, reference, found["reference"], tile_um)]
    titles, labels = [shorten(spot)], [f"agreement {target.obs[keys.slot(key, 'agreement')][spot]:.2f}"]
    for _, row in found.iterrows():
        patient = "" if row["patient"] == row["slide"] else f" ({row['patient']})"
        titles.append(f"weight {100 * row['weight']:.0f} %")
        labels.append(f"{shorten(row['slide'])}{patient}")
    if gene is not None:
        rows = reference[list(found["reference"])]
        measured, _, _ = measured_expression(rows, [gene], params["normalize"], layer=layer or params.get("layer"))
        labels[0] = f"{gene} predicted {read_prediction(target[[spot]], key).expression([gene])[0, 0]:.2f}\n{labels[0]}"
        labels[1:] = [f"{label}\nmeasured {value:.2f}" for label, value in zip(labels[1:], measured[:, 0], strict=True)]
    with panels(ax, len(tiles), (_WIDTH * len(tiles), _WIDTH + 0.75), show=show) as axes:
        for one, tile, title, label in zip(axes, tiles, titles, labels, strict=True):
            one.imshow(tile, extent=(0, tile_um, tile_um, 0), interpolation="antialiased")
            one.set(xticks=[], yticks=[], xlabel=label)
            one.set_title(title, color="black" if one is axes[0] else GRAY)
            one.spines[:].set_visible(True)
        axes[0].spines[:].set_linewidth(1.8)
        if gene is not None:
            axes[0].set_ylabel(UNITS[params["normalize"]], color=GRAY)
        # A label on white is legible on any tissue.
        bbox = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0}
        end = (0.95 * tile_um, 0.93 * tile_um)
        draw_scale_bar(axes[0], end, 0.9 * tile_um, 0.45 * tile_um, 1.0, va="bottom", bbox=bbox)
    return axes


def _tiles(sdata: SpatialData, table: AnnData, spots: Any, tile_um: float) -> list[NDArray[np.uint8]]:
    """Tiles of spots, uint8 (pixels, pixels, 3)."""
    slides, tiles = locate(sdata, table), []
    for row in table.obs_names.get_indexer(list(spots)):
        slide = next(slide for slide in slides if row in slide.rows)
        reader = TileReader(slide.levels, slide.centers[slide.rows == row], _PIXELS, image=slide.image)
        tiles.append(np.moveaxis(reader.read(0, tile_um)[0], 0, -1))
    return tiles
