"""Score a prediction against measured expression."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _keys as keys
from .. import metrics
from .._tables import _predictions
from .._tables import _slots as check
from .._tables._cohorts import measured_expression, slide_rows
from ..get import mean_scores

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("spahgc")


def evaluate(
    adata: AnnData,
    *,
    key: str = keys.PREDICTION,
    library_key: str | None = None,
    patient_key: str = keys.PATIENT,
    layer: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Score a prediction, gene by gene within each slide.

    Measured counts are brought into the unit of the prediction. Metrics: ``pearson``, ``spearman``, ``rmse``,
    ``mae``, ``pearson_depth_removed`` (after log depth is regressed out of both), ``depth_only``, the Pearson of an
    oracle that knows only each spot's total count (a score that is not above it shows no knowledge of the gene), and
    ``structure``, whether a gene's correlations with the other genes are those measured. A gene that is constant on a
    slide has no correlation (NaN). See :mod:`spahgc.metrics`.

    Parameters
    ----------
    adata
        Table with a prediction and measured counts in ``X`` (or `layer`).
    key
        The prediction's key.
    library_key
        Column of ``obs`` that names the slide; `None` takes the table's SpatialData region key.
    patient_key
        Column of ``obs`` that names the patient; may be missing.
    layer
        Layer with the counts; `None` is ``X``.
    copy
        Write to a copy, and return it.

    Returns
    -------
    `None`, or with `copy` the copy. Written are ``uns["{key}_scores"]``, a long table as a dict of columns (see
    :func:`spahgc.get.scores`), and ``var["{key}_{metric}"]``, the mean over slides.

    Raises
    ------
    KeyError
        If there is no such prediction.
    ValueError
        If there is no measured expression, none of the predicted genes was measured, or a slide has a single spot.
        Slides without any measured expression are left out.
    """
    check.check_table(adata, what="target")
    panel = _predictions.panel(adata, key)
    params = _params(adata, key)
    library_key = check.library_column(adata, library_key or params.get("library_key"), what="target")
    genes = [gene for gene in panel if gene in adata.var_names]
    if not genes and adata.n_vars:
        raise ValueError(
            f"None of the {len(panel)} predicted genes is among the target's {adata.n_vars} measured ones."
            f"{check.naming_hint(panel, adata.var_names)}"
        )
    measured, depth, has_expression = measured_expression(adata, genes, params["normalize"], layer=layer)
    predicted = _predictions.values(adata, key, genes)
    columns: dict[str, list[Any]] = {name: [] for name in ("slide", "patient", "method", "gene", "metric", "value")}
    for slide, rows in slide_rows(adata, library_key).items():
        if not has_expression[rows].any():
            logger.warning("Slide %r has no measured expression, and no scores.", slide)
            continue
        if len(rows) < 2:
            raise ValueError(f"Slide {slide!r} has {len(rows)} spot: a score over spots needs at least two.")
        patients = adata.obs[patient_key].iloc[rows].dropna().astype(str).unique() if patient_key in adata.obs else []
        patient = patients[0] if len(patients) == 1 else "unknown"
        for metric, values in score_slide(measured[rows], predicted[rows], depth[rows]).items():
            n = len(genes)
            for name, column in {
                "slide": [slide] * n,
                "patient": [patient] * n,
                "method": [str(params["method"])] * n,
                "gene": genes,
                "metric": [metric] * n,
                "value": values.tolist(),
            }.items():
                columns[name].extend(column)
    if not columns["value"]:
        raise ValueError("No slide of the target has measured expression: there is nothing to score against.")
    target = adata.copy() if copy else adata
    target.uns[keys.scores(key)] = {
        name: np.array(column, dtype=np.float64 if name == "value" else object) for name, column in columns.items()
    }
    for metric, means in mean_scores(target, key).items():
        target.var[keys.gene(key, metric)] = means.reindex(target.var_names).to_numpy()
    if params["normalize"] != "log1p":
        logger.warning(
            "normalize=%r may keep sequencing depth in: knowing only each spot's depth scores a mean Pearson of %.3f "
            "here%s.",
            params["normalize"],
            target.var[keys.gene(key, "depth_only")].mean(),
            "" if np.isfinite(depth).all() else " (the values are no counts, so the depth is not known)",
        )
    return target if copy else None


def _params(adata: AnnData, key: str) -> Mapping[str, Any]:
    entry = adata.uns.get(key)
    if not isinstance(entry, Mapping) or keys.PARAMS not in entry:
        raise KeyError(
            f"uns has no {key!r} with the parameters of the prediction, which say its unit and slides; anndata.concat "
            f"drops it unless uns_merge is given. Run spahgc.tl.predict again, or copy uns[{key!r}] over."
        )
    return dict(entry[keys.PARAMS])


def score_slide(measured: np.ndarray, predicted: np.ndarray, depth: np.ndarray) -> dict[str, np.ndarray]:
    """All per-gene scores of one slide, by metric (:data:`spahgc._keys.METRICS`)."""
    return {
        "pearson": metrics.pearson(measured, predicted),
        "spearman": metrics.spearman(measured, predicted),
        "rmse": metrics.rmse(measured, predicted),
        "mae": metrics.mae(measured, predicted),
        "pearson_depth_removed": metrics.pearson_depth_removed(measured, predicted, depth),
        "depth_only": metrics.depth_only(measured, depth),
        "structure": metrics.structure(measured, predicted),
    }
