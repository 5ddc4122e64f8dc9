"""Score a prediction against measured expression."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _keys as keys
from .. import metrics
from .._checks import checked
from .._tables import _slots as check
from .._tables._cohorts import measured_expression, patient_of, slide_rows
from .._tables._predictions import read_prediction, write_scores

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("spahgc")


@checked()
def evaluate(
    adata: AnnData,
    *,
    key: str = keys.PREDICTION,
    library_key: str | None = None,
    patient_key: str = keys.PATIENT,
    layer: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Score a prediction against measured expression, by gene and slide.

    Measured counts are transformed to the unit of the prediction. Metrics: ``pearson``, ``spearman``, ``rmse``,
    ``mae``, ``pearson_depth_removed`` (after log depth is regressed out of both), ``depth_only``, the Pearson of an
    oracle that knows only the total count of each spot (a score no higher than this shows no knowledge of the gene),
    and ``structure``, the agreement of a gene's correlations with other genes. A gene that is constant on a slide has
    no correlation (NaN). See :mod:`spahgc.metrics`.

    Parameters
    ----------
    adata
        Table with a prediction and measured counts in ``X`` (or `layer`).
    key
        Key of the prediction.
    library_key
        Column of ``obs`` with the slide; `None` takes the table's SpatialData region key.
    patient_key
        Column of ``obs`` with the patient; optional.
    layer
        Layer with the counts; `None` takes ``X``.
    copy
        Return a copy of the table with the scores, and leave the table unchanged.

    Returns
    -------
    `None`, or the copy with `copy`. Written are ``uns["{key}_scores"]``, a long table that :func:`spahgc.get.scores`
    reads, and ``var["{key}_{metric}"]``, the mean over slides. Slides without measured expression are left out.

    Raises
    ------
    KeyError
        If there is no such prediction.
    ValueError
        If there is no measured expression, no predicted gene was measured, or a slide has a single spot.

    Examples
    --------
    >>> import spahgc
    >>> adata = spahgc.datasets.synthetic_cohort(n_spots=25, microns_per_pixel=4)["table"]
    >>> adata.obsm["image_own"] = adata.X[:, :8].toarray()
    >>> reference, adata = (adata[adata.obs["patient"] == patient].copy() for patient in ("P1", "P2"))
    >>> spahgc.tl.predict(reference, adata, method="knn", panel=5)
    >>> spahgc.tl.evaluate(adata)
    >>> "spahgc_pearson" in adata.var
    True
    """
    import pandas as pd

    check.check_table(adata, what="target")
    prediction = read_prediction(adata, key)
    params: dict[str, Any] = prediction.record.get(keys.PARAMS, {})
    if not params:
        raise KeyError(
            f"uns has no {key!r} with the parameters of the prediction (unit and slides); anndata.concat drops it "
            f"unless uns_merge is given. Run spahgc.tl.predict again, or copy uns[{key!r}] over."
        )
    library_key = check.library_column(adata, library_key or params.get("library_key"), what="target")
    genes = [gene for gene in prediction.genes if gene in adata.var_names]
    if not genes and adata.n_vars:
        raise ValueError(
            f"None of the {len(prediction.genes)} predicted genes is among the {adata.n_vars} measured genes of the "
            f"target.{check.naming_hint(prediction.genes, adata.var_names)}"
        )
    measured, depth, has_expression = measured_expression(adata, genes, params["normalize"], layer=layer)
    predicted = prediction.expression(genes)
    parts = []
    for slide, rows in slide_rows(adata, library_key).items():
        if not has_expression[rows].any():
            logger.warning("Slide %r has no measured expression, so it is not scored.", slide)
            continue
        if len(rows) < 2:
            raise ValueError(f"Slide {slide!r} has {len(rows)} spot, but a score over spots needs at least two.")
        scores = score_slide(measured[rows], predicted[rows], depth[rows])
        part = pd.DataFrame(scores, index=pd.Index(genes, name="gene", dtype=object)).melt(
            var_name="metric", ignore_index=False
        )
        patient = patient_of(adata, rows, patient_key) or "unknown"
        parts.append(part.reset_index().assign(slide=slide, patient=patient, method=str(params["method"])))
    if not parts:
        raise ValueError("No slide of the target has measured expression, so there is nothing to score against.")
    target = adata.copy() if copy else adata
    columns = ["slide", "patient", "method", "gene", "metric", "value"]
    write_scores(target, key, pd.concat(parts)[columns].astype(dict.fromkeys(columns[:-1], object)))
    if params["normalize"] != "log1p":
        logger.warning(
            "normalize=%r may keep sequencing depth: depth alone scores a mean Pearson of %.3f here%s.",
            params["normalize"],
            target.var[keys.gene(key, "depth_only")].mean(),
            "" if np.isfinite(depth).all() else " (the values are no counts, so the depth is unknown)",
        )
    return target if copy else None


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
