from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .. import _keys as keys
from .._slides import Float64
from .._tables._predictions import values as predicted_values
from .._tables._slots import counts
from .._tables._slots import expression as any_expression
from ..get import VERDICTS
from ._data import check_panel, log, panel_of, slide_of, table_of, verdicts_of
from ._style import GREY, finish, given_axes, style
from ._tissue import Tissue, colour_bar, draw_scale_bar, draw_spots, draw_tissue

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Panel = Literal["measured", "predicted", "difference"]

_PANEL_WIDTH = 1.9
_BAR_WIDTH = 0.55
_MOST_COLUMNS = 3
_DEFAULT = 3
"""Genes that are drawn where none is named."""
_DIVERGING = "RdBu_r"


def expression(
    data: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    slide: str | None = None,
    library_key: str | None = None,
    key: str = keys.PREDICTION,
    layer: str | None = None,
    what: Panel | Sequence[Panel] = ("measured", "predicted", "difference"),
    scale: Literal["shared", "own"] = "shared",
    quantiles: tuple[float, float] = (0.01, 0.99),
    cmap: str = "viridis",
    size: float = 1.0,
    alpha: float = 1.0,
    img: bool = True,
    axes: Any = None,
    show: bool | None = None,
) -> list[Axes]:
    """Draw measured and predicted expression of genes side by side on the tissue, and their difference.

    Spots are circles of their true size on the H&E thumbnail, y pointing down as in the image. Measured expression is
    put into the unit of the prediction (``uns[key]["params"]["normalize"]``). A prediction varies less than a
    measurement, because it holds no sampling noise: on the shared scale it looks flatter, and that is how it is. Where
    a slide has H&E only, the predicted panel alone is drawn, and its title says so. Where the slide's patient is one of
    the reference's, it says "same patient" below the correlation. Where the prediction has trust per gene, a gene that
    is not trusted has its verdict beside its name.

    Parameters
    ----------
    data
        A SpatialData, whose table ``table`` is taken, or the table itself, after :func:`spahgc.tl.predict`.
    genes
        One gene or several, from the panel; one row of panels a gene. `None` takes the three that are trusted most
        (:func:`spahgc.get.trust`).
    slide
        Name of the slide; `None` where the table holds one slide.
    library_key
        Column of ``obs`` with the slide of each spot; `None` takes the table's region key.
    key
        ``obsm`` entry of the prediction.
    layer
        Layer with the measured raw counts; `None` takes ``X``.
    what
        Panels to draw, in this order. The difference is predicted minus measured.
    scale
        ``"shared"``: one colour scale for measured and predicted, where both are drawn. ``"own"``: one for each.
    quantiles
        Quantiles of the values at which a colour scale starts and ends; the difference is scaled symmetrically around
        zero, to the larger distance that the two quantiles have from it.
    cmap
        Colour map of measured and predicted expression.
    size
        Spot diameter as a multiple of the true one; about 1.8 fills the gaps of a Visium array.
    alpha
        Opacity of the spots.
    img
        Draw the H&E thumbnail ``uns["spatial"][slide]["images"]["hires"]``.
    axes
        Axes to draw into, as many as there are panels; `None` makes a figure. Colour bars are drawn beside the panels:
        make your figure with ``layout="constrained"``, which leaves room for them.
    show
        Show the figure; `None` does so in an interactive session where no `axes` were given.

    Returns
    -------
    The axes of the panels, gene by gene, always as a list.

    Raises
    ------
    KeyError
        If there is no prediction, no such slide, or a gene is not in the panel.
    ValueError
        If an argument has a bad value, several slides are there and none was named, measured values are not the raw
        counts that the unit starts from, or only measured values were asked for and the slide has none.
    """
    wanted = _check_panels(what)
    adata = table_of(data)
    predicted = panel_of(adata, key)
    verdicts = verdicts_of(adata, key)
    genes = _default_genes(verdicts) if genes is None else [genes] if isinstance(genes, str) else list(genes)
    _check_options(genes, scale, quantiles, size)
    check_panel(genes, predicted, adata.var_names)
    rows, tissue = slide_of(adata, slide, library_key)
    ledger = adata.uns.get(key, {})
    values = predicted_values(rows, key, genes).astype(np.float64)
    measured = _measured(rows, genes, layer=layer, normalize=ledger.get(keys.PARAMS, {}).get("normalize", "none"))
    if not measured:
        none = f"Slide {tissue.name!r} has no measured expression of {', '.join(genes)}"
        if "predicted" not in wanted:
            raise ValueError(f"{none}: only what='predicted' can be drawn.")
        log.info("%s: only the prediction is drawn.", none)
        wanted = ("predicted",)

    plan = [(row, gene, panel) for row, gene in enumerate(genes) for panel in wanted]
    n_cols = len(wanted) if len(wanted) > 1 else min(len(genes), _MOST_COLUMNS)
    units = str(ledger.get("units", "expression"))
    same_patient = _same_patient(rows, ledger.get(keys.PARAMS, {}))
    with style():
        own = axes is None
        why = f"{len(genes)} genes x {', '.join(wanted)}"
        flat = _grid(tissue, len(plan), n_cols, wanted, scale, size) if own else given_axes(axes, len(plan), why=why)
        for i, (ax, (row, gene, panel)) in enumerate(zip(flat, plan, strict=True)):
            draw_tissue(ax, tissue, img=img, size=size)
            note = "same patient" if same_patient and panel == "predicted" and gene in measured else ""
            if i % n_cols == 0:
                name = ", ".join(part for part in (tissue.name, note) if part)
                draw_scale_bar(ax, replace(tissue, name=name), size=size)
            elif note:
                draw_scale_bar(ax, replace(tissue, name=note, microns_per_pixel=None), size=size)
            if panel == wanted[0]:
                _name_gene(ax, gene, verdicts.get(gene))
            ax.set_title(_title(panel, measured.get(gene), values[:, row]))
            shown = _values(panel, measured.get(gene), values[:, row])
            if shown is None:
                ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center")
                continue
            shared = scale == "shared" and {"measured", "predicted"} <= set(wanted)
            norm = _norm(panel, measured.get(gene), values[:, row], quantiles, shared=shared)
            diverging = panel == "difference"
            colours = plt.get_cmap(_DIVERGING if diverging else cmap)
            spots = draw_spots(ax, tissue, shown, cmap=colours, norm=norm, size=size, alpha=alpha, outline=diverging)
            if _has_bar(panel, wanted, scale):
                # Where one kind of panel fills the rows, the unit stands once a row.
                last = (i + 1) % n_cols == 0 or i == len(plan) - 1
                colour_bar(ax, spots, units if last or len(wanted) > 1 or not own else "")
        finish(flat, own=own, show=show)
    return flat


def _default_genes(verdicts: Mapping[str, str]) -> list[str]:
    """The most trusted genes, best first."""
    if not verdicts:
        raise ValueError(
            "genes was not given, and the prediction has no trust per gene to choose by. Name genes of the panel, or "
            "run spahgc.tl.cross_validate on the reference before spahgc.tl.predict."
        )
    return list(verdicts)[:_DEFAULT]


def _name_gene(ax: Axes, gene: str, verdict: str | None) -> None:
    """The gene at the left of its row, with its verdict unless it is trusted."""
    ax.set_ylabel(gene, style="italic", fontsize=10)
    if verdict is not None and verdict != VERDICTS[0]:
        ax.set_ylabel(f"{gene}\n", style="italic", fontsize=10)
        label = ax.yaxis.label
        ax.annotate(
            verdict, (1, 0.5), xycoords=label, rotation=90, ha="right", va="center", color=GREY, annotation_clip=False
        )


def _check_panels(what: str | Sequence[str]) -> tuple[str, ...]:
    panels = (what,) if isinstance(what, str) else tuple(what)
    unknown = [panel for panel in panels if panel not in get_args(Panel)]
    if unknown or not panels or len(set(panels)) != len(panels):
        known = ", ".join(map(repr, get_args(Panel)))
        raise ValueError(f"what is one or several of {known}, each at most once, not {what!r}.")
    return panels


def _check_options(genes: Sequence[str], scale: str, quantiles: tuple[float, float], size: float) -> None:
    if not genes:
        raise ValueError("genes is empty: name at least one gene of the panel.")
    if scale not in ("shared", "own"):
        raise ValueError(f"scale is 'shared' or 'own', not {scale!r}.")
    if not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise ValueError(f"quantiles are two rising numbers between 0 and 1, not {quantiles!r}.")
    if not size > 0:
        raise ValueError(f"size is a multiple above 0 of the true spot diameter, not {size!r}.")


def _measured(rows: AnnData, genes: Sequence[str], *, layer: str | None, normalize: str) -> dict[str, Float64]:
    """Measured expression of the genes that were measured, in the unit of the prediction."""
    from .._slides import normalize as normalized

    here = [gene for gene in genes if gene in rows.var_names]
    if not here or (layer is None and rows.X is None):
        return {}
    matrix = any_expression(rows, layer, what="data")
    # In a table of several slides, a slide with H&E only has rows of zeros.
    if not abs(matrix).sum() > 0:
        return {}
    if normalize != "none":
        matrix = counts(rows, layer, what="data", normalize=normalize)
    columns = rows.var_names.get_indexer(here)
    values = normalized(matrix, normalize, genes=columns).astype(np.float64)  # type: ignore[arg-type]
    return {gene: values[:, i] for i, gene in enumerate(here)}


def _values(panel: str, measured: Float64 | None, predicted: Float64) -> Float64 | None:
    if panel == "predicted":
        return predicted
    if measured is None:
        return None
    return measured if panel == "measured" else predicted - measured


def _same_patient(rows: AnnData, params: Mapping[str, Any]) -> bool:
    """Whether the slide is of a patient that the prediction was trained on."""
    shared = set(map(str, params.get("shared_patients", ())))
    patient_key = params.get("patient_key")
    return bool(shared) and patient_key in rows.obs and set(rows.obs[patient_key].astype(str)) <= shared


def _title(panel: str, measured: Float64 | None, predicted: Float64) -> str:
    from ..metrics import pearson

    if panel == "difference":
        return "predicted \N{MINUS SIGN} measured"
    if panel == "measured":
        return "measured"
    if measured is None:
        return "predicted (not measured)"
    if len(predicted) < 2:
        return "predicted"
    r = float(pearson(measured[:, None], predicted[:, None])[0])
    return "predicted (r not defined)" if np.isnan(r) else f"predicted, r = {r:.2f}".replace("-", "\N{MINUS SIGN}")


def _norm(
    panel: str, measured: Float64 | None, predicted: Float64, quantiles: tuple[float, float], *, shared: bool
) -> Normalize:
    if panel == "difference":
        difference = np.abs(_limits(predicted - measured if measured is not None else predicted, quantiles))
        return TwoSlopeNorm(0.0, -float(difference.max()), float(difference.max()))
    own = predicted if panel == "predicted" else measured
    pool = [predicted, measured] if shared else [own]
    low, high = _limits(np.concatenate([part for part in pool if part is not None]), quantiles)
    return Normalize(float(low), float(high))


def _limits(values: Float64, quantiles: tuple[float, float]) -> Float64:
    """The two quantiles of the values that are there, never equal."""
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, quantiles) if finite.size else (0.0, 1.0)
    if low == high and finite.size:
        # A gene found in very few spots: its quantiles coincide, its extremes may not.
        low, high = finite.min(), finite.max()
    return np.array([low, high if high > low else low + 1.0])


def _has_bar(panel: str, wanted: Sequence[str], scale: str) -> bool:
    """With one scale for both, the latter of measured and predicted carries the colour bar."""
    if panel == "difference" or scale == "own":
        return True
    return panel == [name for name in wanted if name != "difference"][-1]


def _grid(tissue: Tissue, n_panels: int, n_cols: int, wanted: Sequence[str], scale: str, size: float) -> list[Axes]:
    n_rows = -(-n_panels // n_cols)
    bars = sum(_has_bar(panel, wanted, scale) for panel in wanted) if len(wanted) > 1 else n_cols
    width = n_cols * (_PANEL_WIDTH + 0.1) + bars * _BAR_WIDTH + 0.2
    height = n_rows * (_PANEL_WIDTH * tissue.aspect(size) + 0.25)
    layout = ConstrainedLayoutEngine(compress=True, w_pad=0.06)
    _, grid = plt.subplots(n_rows, n_cols, figsize=(width, height), layout=layout, squeeze=False)
    flat = list(grid.ravel())
    for ax in flat[n_panels:]:
        ax.remove()
    return flat[:n_panels]
