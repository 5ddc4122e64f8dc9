from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize, TwoSlopeNorm
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from spatialdata import SpatialData

from .. import _keys as keys
from .._checks import above, checked, format_names
from .._slides import Float64
from .._slides import Normalize as Unit
from .._tables._cohorts import measured_expression
from .._tables._patients import patient_names
from .._tables._predictions import VERDICTS, read_prediction
from .._tables._slots import expression as any_expression
from ..metrics import pearson
from ._drawing import GRAY, MINUS, draw_spots, draw_tissue, log, palette, panels, shorten, slide_of, table_of

Panel = Literal["measured", "predicted", "difference"]

_PANEL_WIDTH = 1.9
_BAR_WIDTH = 0.55
_MOST_COLUMNS = 3
_QUANTILES = (0.01, 0.99)  # of the values, at the ends of a color scale
_DEFAULT = 3  # genes that are drawn if none is named


@checked(size=above(0))
def expression(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | None = None,
    *,
    what: Panel | Sequence[Panel] = ("measured", "predicted", "difference"),
    slide: str | None = None,
    library_key: str | None = None,
    layer: str | None = None,
    key: str = keys.PREDICTION,
    cmap: str = "viridis",
    size: float = 1.0,
    img: bool = True,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
) -> list[Axes]:
    """Draw measured and predicted expression of genes on the tissue, and their difference.

    Spots are circles of their true size on the H&E thumbnail. Measured expression is converted to the unit of the
    prediction. A prediction varies less than a measurement, because it contains no sampling noise, so it looks flatter
    on the shared scale. For a slide with H&E only, the predicted panel is drawn alone. "same patient" below a panel
    means that the reference contains slides of this patient, "patient unknown" that it may. A gene that is not
    trusted has its verdict beside its name.

    Parameters
    ----------
    adata
        Table after :func:`spahgc.tl.predict`, or a SpatialData with this ``table``.
    genes
        Genes of the panel, one row each. `None` draws the three most trusted genes (:func:`spahgc.get.trust`).
    what
        Panels to draw, in this order. The difference is predicted minus measured.
    slide
        Name of the slide; `None` if there is only one.
    library_key
        Column of ``obs`` with the slide of each spot; `None` takes the table's region key.
    layer
        Layer with the measured raw counts; `None` takes ``X``.
    key
        Key of the prediction.
    cmap
        Color map of measured and predicted expression, which share one scale from the 1 % to the 99 % quantile of both.
        The scale of the difference is symmetric.
    size
        Spot diameter as a multiple of the true one; about 1.8 closes the gaps of a Visium array.
    img
        Draw the H&E thumbnail ``uns["spatial"][slide]["images"]["hires"]``.
    ax
        Axes to draw into, one per panel; `None` makes a figure. Color bars are drawn beside the panels, so use a
        figure with ``layout="constrained"``.
    show
        Show the figure. `None` shows a new figure in an interactive session.

    Returns
    -------
    Axes of the panels, gene by gene.

    Raises
    ------
    KeyError
        If there is no prediction, no such slide, or a gene is not in the panel.
    ValueError
        If the slide is ambiguous, the measured values are not the raw counts that the unit starts from, or only
        measured values are wanted and there are none.

    Examples
    --------
    >>> spahgc.pl.expression(sdata_target, ["ERBB2", "CD74"], size=1.5)  # doctest: +SKIP
    """
    wanted: list[str] = [what] if isinstance(what, str) else list(dict.fromkeys(what))
    table = table_of(adata, drawn=True)
    prediction = read_prediction(table, key)
    record, trust = prediction.record, prediction.trust
    verdicts = {} if trust is None else trust.frame["verdict"].to_dict()
    genes = list(map(str, verdicts))[:_DEFAULT] if genes is None else genes
    chosen = [genes] if isinstance(genes, str) else list(genes)
    if not chosen or not wanted:
        raise ValueError(
            "Name at least one gene of the panel and one kind of panel. Without `genes`, the most trusted genes are "
            "drawn, but this prediction has no trust per gene: run spahgc.tl.cross_validate on the reference before "
            "spahgc.tl.predict."
        )
    check_panel(chosen, prediction.genes, table.var_names)
    drawn = slide_of(table, slide, library_key, size)
    params = keys.part(record, keys.PARAMS)
    predicted = read_prediction(drawn.rows, key).expression(chosen).astype(np.float64)
    measured = _measured(drawn.rows, chosen, layer, params.get("normalize", "none"))
    if not measured:
        none = f"Slide {drawn.name!r} has no measured expression of {', '.join(chosen)}"
        if "predicted" not in wanted:
            raise ValueError(f"{none}, so only what='predicted' can be drawn.")
        log.info("%s: only the prediction is drawn.", none)
        wanted = ["predicted"]
    shared_patients = set(map(str, params.get("shared_patients", ())))
    patients = drawn.rows.obs.get(params.get("patient_key"))
    same = patients is not None and set(patient_names(patients)) <= shared_patients
    unknown = drawn.name in list(params.get("patient_not_known", ()))
    patient = "patient unknown" if unknown else "same patient" if same else ""
    shared = {"measured", "predicted"} <= set(wanted)
    # The latter of the two panels with one scale has the color bar.
    bars = [kind for kind in wanted if not shared or kind != min("measured", "predicted", key=wanted.index)]
    plan = [(row, gene, panel) for row, gene in enumerate(chosen) for panel in wanted]
    n_columns = len(wanted) if len(wanted) > 1 else min(len(chosen), _MOST_COLUMNS)
    n_bars = len(bars) if len(wanted) > 1 else n_columns
    width = n_columns * (_PANEL_WIDTH + 0.1) + n_bars * _BAR_WIDTH + 0.2
    height = -(-len(plan) // n_columns) * (_PANEL_WIDTH * drawn.aspect + 0.25)
    layout = ConstrainedLayoutEngine(compress=True, w_pad=0.06)
    with panels(ax, len(plan), (width, height), show=show, n_columns=n_columns, layout=layout) as axes:
        for i, (one, (row, gene, kind)) in enumerate(zip(axes, plan, strict=True)):
            first = i % n_columns == 0
            notes = [shorten(drawn.name)] if first else []
            notes += [patient] if kind == "predicted" and gene in measured else []
            draw_tissue(one, drawn, img=img, name=", ".join(filter(None, notes)), scale_bar=first)
            verdict = verdicts.get(gene, VERDICTS[0])
            if kind == wanted[0]:
                one.set_ylabel(gene if verdict == VERDICTS[0] else f"{gene}\n", style="italic", fontsize=10)
            if kind == wanted[0] and verdict != VERDICTS[0]:
                place: dict[str, Any] = {"xycoords": one.yaxis.label, "ha": "right", "va": "center"}
                one.annotate(str(verdict), (1, 0.5), rotation=90, color=GRAY, annotation_clip=False, **place)
            values = {"predicted": predicted[:, row]}
            if gene in measured:
                values |= {"measured": measured[gene], "difference": predicted[:, row] - measured[gene]}
            one.set_title(_title(kind, values))
            if kind not in values:
                one.text(0.5, 0.5, "not measured", transform=one.transAxes, ha="center", va="center")
                continue
            both = shared and kind != "difference" and "measured" in values
            pool = np.concatenate([values["measured"], values["predicted"]]) if both else values[kind]
            # If one kind of panel fills the rows, the unit appears once per row.
            labeled = len(wanted) > 1 or (i + 1) % n_columns == 0 or i == len(plan) - 1 or ax is not None
            draw_spots(
                one,
                drawn,
                values[kind],
                cmap="RdBu_r" if kind == "difference" else cmap,
                norm=_norm(pool, diverging=kind == "difference"),
                outline=kind == "difference",
                label=(str(record.get("units", "expression")) if labeled else "") if kind in bars else None,
            )
    return axes


@checked(size=above(0))
def support(
    adata: AnnData | SpatialData,
    *,
    what: Literal["support", "agreement"] = "support",
    slide: str | None = None,
    library_key: str | None = None,
    key: str = keys.PREDICTION,
    cmap: str = "viridis",
    size: float = 1.0,
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
    slide, library_key, key, cmap, size, img, ax, show
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
    table = table_of(adata, drawn=True)
    column = keys.slot(key, "support") if what == "support" else keys.slot(key, "agreement")
    if column not in table.obs:
        raise KeyError(
            f"adata.obs has no {column!r}. Available in obs: {format_names(table.obs.columns)}. Run "
            f"spahgc.tl.{'predict' if what == 'support' else 'explain'} first, or pass key=<its key_added>."
        )
    drawn = slide_of(table, slide, library_key, size)
    values = np.asarray(drawn.rows.obs[column], dtype=np.float64)
    label = "support by the reference" if what == "support" else "agreement with the reference"
    with panels(ax, 1, (2.4 + 0.8, 2.4 * drawn.aspect + 0.3), show=show) as [ax]:
        draw_tissue(ax, drawn, img=img, name=shorten(drawn.name))
        draw_spots(ax, drawn, values, cmap=cmap, norm=Normalize(0.0, 1.0), label=label)
        ax.set_title(f"{what}, median {np.nanmedian(values):.2f}" if np.isfinite(values).any() else what)
    return ax


@checked(size=above(0))
def tile_quality(
    adata: AnnData | SpatialData,
    *,
    slide: str | None = None,
    library_key: str | None = None,
    size: float = 1.0,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes:
    """Draw the verdicts of :func:`spahgc.pp.tile_quality` on the tissue.

    Parameters
    ----------
    adata
        Table after :func:`spahgc.pp.tile_quality`, or a SpatialData with this ``table``.
    slide, library_key, size, ax, show
        As in :func:`expression`.

    Returns
    -------
    Axes of the panel. The legend counts the spots of each verdict.

    Raises
    ------
    KeyError
        If there are no verdicts, or no such slide.
    ValueError
        If there are several slides and none is named.

    Examples
    --------
    >>> spahgc.pl.tile_quality(sdata, slide="C4")  # doctest: +SKIP
    """
    table = table_of(adata, drawn=True)
    if keys.TILE_QUALITY not in table.uns:
        raise KeyError(f"adata has no {keys.TILE_QUALITY!r}. Run spahgc.pp.tile_quality(sdata) first.")
    drawn = slide_of(table, slide, library_key, size)
    verdicts = drawn.rows.obs[keys.TILE_QUALITY].cat
    names, codes = verdicts.categories, verdicts.codes.to_numpy(dtype=np.float64)
    colors = palette(len(names))
    with panels(ax, 1, (2.4 + 1.2, 2.4 * drawn.aspect + 0.3), show=show) as [ax]:
        draw_tissue(ax, drawn, img=True, name=shorten(drawn.name))
        draw_spots(ax, drawn, codes, cmap=ListedColormap(colors), norm=Normalize(0, len(names) - 1))
        for code, name in enumerate(names):
            if n := int((codes == code).sum()):
                ax.plot([], [], "o", color=colors[code], label=f"{name} ({n})")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        ax.set_title("tile quality")
    return ax


def check_panel(genes: Sequence[str], panel: Sequence[str], measured: Any) -> None:
    """Raise if a gene is not in the panel."""
    for gene in [gene for gene in genes if gene not in panel]:
        close = difflib.get_close_matches(gene, panel, n=3) or difflib.get_close_matches(gene.upper(), panel, n=3)
        closest = f" Closest: {format_names(close)}." if close else ""
        here = " It was measured, not predicted: pass panel=[...] to spahgc.tl.predict." if gene in measured else ""
        raise KeyError(f"Gene {gene!r} is not in the panel of {len(panel)} predicted genes.{closest}{here}")


def _measured(rows: AnnData, genes: Sequence[str], layer: str | None, unit: Unit) -> dict[str, Float64]:
    """Measured expression of the genes that were measured, in the unit of the prediction."""
    here = [gene for gene in genes if gene in rows.var_names]
    if not here or (layer is None and rows.X is None):
        return {}
    # In a table of several slides, a slide with H&E only has rows of zeros.
    if not abs(any_expression(rows, layer, what="adata")).sum() > 0:
        return {}
    values, _, _ = measured_expression(rows, here, unit, layer=layer)
    return dict(zip(here, values.T.astype(np.float64), strict=True))


def _title(kind: str, values: Mapping[str, Float64]) -> str:
    if kind != "predicted":
        return kind if kind == "measured" else f"predicted {MINUS} measured"
    if "measured" not in values:
        return "predicted (not measured)"
    if len(values["predicted"]) < 2:
        return "predicted"
    r = float(pearson(values["measured"][:, None], values["predicted"][:, None])[0])
    return "predicted (r not defined)" if np.isnan(r) else f"predicted, r = {r:.2f}".replace("-", MINUS)


def _norm(values: Float64, *, diverging: bool) -> Normalize:
    """Color scale between two quantiles of the finite values, or symmetric around zero."""
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, _QUANTILES) if finite.size else (0.0, 1.0)
    if low == high and finite.size:
        # Of a gene found in very few spots the quantiles coincide, but perhaps not the extremes.
        low, high = finite.min(), finite.max()
    low, high = float(low), float(high if high > low else low + 1.0)
    if diverging:
        return TwoSlopeNorm(0.0, -max(abs(low), abs(high)), max(abs(low), abs(high)))
    return Normalize(low, high)
