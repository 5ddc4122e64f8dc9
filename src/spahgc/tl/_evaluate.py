"""What a prediction is worth: its scores against measured expression, and the reference spots behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from .. import _keys as keys
from .. import metrics
from .._checks import at_least, checked, format_names
from .._run import spot_bar
from .._settings import logger, settings
from .._slides import Float32, Stack, blocks, standardize
from .._tables import _slots as check
from .._tables._cohorts import measured_expression, patient_of, target_slides, tissue_rows
from .._tables._predictions import SCORE_COLUMNS, check_unused, evidence_slots, read_prediction, write_scores
from ..methods import METHODS, Method
from ..methods._features import GeneScale
from ..methods.base import Evidence
from ._model import Model

_ROWS = 1024  # spots whose references' expression is read at once


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
    library_key, patient_key, layer
        See :func:`train`; the patient is optional.
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
    >>> adata_ref, adata_target = spahgc.datasets.synthetic_tables()
    >>> spahgc.tl.predict(adata_ref, adata_target, method="knn", panel=5)
    >>> spahgc.tl.evaluate(adata_target)
    >>> "spahgc_pearson" in adata_target.var
    True
    """
    check.check_table(adata, what="target")
    prediction = read_prediction(adata, key)
    params = keys.part(prediction.record, keys.PARAMS)
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
    if not np.isfinite(predicted).all():
        raise ValueError(f"The prediction in obsm[{key!r}] has NaN or infinite values. Predict again.")
    scores, patients = {}, {}
    for slide, rows in tissue_rows(adata, library_key, what="target").items():
        if not has_expression[rows].any():
            logger.warning("Slide %r has no measured expression, so it is not scored.", slide)
            continue
        if len(rows) < 2:
            raise ValueError(f"Slide {slide!r} has {len(rows)} spot, but a score over spots needs at least two.")
        scores[slide] = score_slide(measured[rows], predicted[rows], depth[rows])
        patients[slide] = patient_of(adata, rows, patient_key) or "unknown"
    if not scores:
        raise ValueError("No slide of the target has measured expression, so there is nothing to score against.")
    target = adata.copy() if copy else adata
    table = long_table(scores, genes).assign(method=str(params["method"]))
    table["patient"] = table["slide"].map(patients)
    write_scores(target, key, table[list(SCORE_COLUMNS)].astype(dict.fromkeys(SCORE_COLUMNS[:-1], object)))
    if params["normalize"] != "log1p":
        logger.warning(
            "normalize=%r may keep sequencing depth: depth alone scores a mean Pearson of %.3f here%s.",
            params["normalize"],
            target.var[keys.slot(key, "depth_only")].mean(),
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


def long_table(scores: Mapping[str, Mapping[str, np.ndarray]], genes: Sequence[str]) -> pd.DataFrame:
    """Scores of genes by slide and metric as a table with the columns slide, metric, gene and value."""
    tables = {slide: pd.DataFrame(of_slide, index=list(genes)).T for slide, of_slide in scores.items()}
    wide = pd.concat(tables, names=["slide", "metric"]).rename_axis(columns="gene")
    return cast("pd.Series", wide.stack(future_stack=True)).rename("value").reset_index()


@checked(n_references=at_least(1))
def explain(
    model: Model,
    adata_target: AnnData,
    *,
    n_references: int = 15,
    key: str = keys.PREDICTION,
    library_key: str | None = None,
    patient_key: str = keys.PATIENT,
    device: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Write the reference spots behind the prediction of each spot, and whether they agree with it.

    The weight of a reference spot is its share of a target spot's attention, averaged over heads, over the attentions
    of a network (one per layer, and the pooling) and over networks; ``knn`` gives each of its neighbors the same
    weight. It shows where the model looks, not that the prediction would differ without the spot: what networks and
    ridge have learned from all reference spots is in their coefficients.

    The agreement of a spot is the Pearson correlation, over the genes of the panel, of its prediction with the weighted
    mean of the expression **measured** in these reference spots, relative to the mean and standard deviation of each
    gene on their slide; the prediction is relative to the averages of these over the reference slides. On held-out
    slides it separated well predicted spots from others, but not on the breast tumor of a new patient, where prediction
    and evidence were wrong together (``benchmarks/evidence.py``).

    Parameters
    ----------
    model
        The model that predicted, of a method that looks at reference spots: ``spahgc`` or ``knn``.
    adata_target
        Table with its prediction, from :func:`predict`.
    n_references
        Reference spots to keep for each spot, those with the largest weights. Shares and agreement use all.
    key
        Key of the prediction.
    library_key, patient_key, device, progress
        See :func:`train`.
    copy
        Return a copy of the target with the evidence, and leave the target unchanged.

    Returns
    -------
    `None`, or the copy with `copy`. Written for ``key="spahgc"``:

    ``obsm["spahgc_references"]``, ``obsm["spahgc_weights"]``
        int32 and float32, (n_obs, n_references), largest weight first: number of the reference spot in
        ``uns["spahgc_evidence"]``, -1 for none, and its weight in [0, 1]. :func:`spahgc.get.evidence` reads them.
    ``obsm["spahgc_slides"]``
        DataFrame, float32 (n_obs, reference slides): share of each reference slide in the weight.
    ``obs["spahgc_agreement"]``
        float32 in [-1, 1]; NaN if the prediction or the evidence is the same for all genes.
    ``uns["spahgc_evidence"]``
        ``params``, ``model`` (fingerprint), and the slides, patients and positions of the reference spots.

    Raises
    ------
    KeyError
        If there is no such prediction.
    ValueError
        If the prediction is of another model, the model looks at no reference spots, or the table holds something else
        in these slots.

    Examples
    --------
    >>> import spahgc
    >>> adata_ref, adata_target = spahgc.datasets.synthetic_tables()
    >>> model = spahgc.tl.train(adata_ref, method="knn", panel=5)
    >>> spahgc.tl.predict(model, adata_target)
    >>> spahgc.tl.explain(model, adata_target, n_references=3)
    >>> adata_target.obsm["spahgc_weights"].shape
    (25, 3)
    """
    prediction = read_prediction(adata_target, key)
    if prediction.record.get("model") != model.fingerprint:
        raise ValueError(
            f"Prediction {key!r} is of another model than {model!r}, so the evidence of this model is not behind it. "
            f"Run spahgc.tl.predict(model, adata_target, key_added={key!r}) with it first."
        )
    if keys.slot(key, "evidence") not in adata_target.uns:
        check_unused(adata_target, key, evidence_slots(key))
    targets = target_slides(adata_target, model.recipe, library_key=library_key, patient_key=patient_key)
    model.method.to(device)
    adata = adata_target.copy() if copy else adata_target
    evidence = []
    with spot_bar(adata.n_obs, show=settings.progress if progress is None else progress) as bar:
        for slide, _ in targets:
            found = model.method.evidence(standardize(slide if model.method.reads_rows else slide.read()))
            if found is None:
                able = sorted(name for name, method in METHODS.items() if method.evidence is not Method.evidence)
                more = " (with at least two reference slides)" if model.method.name == "spahgc" else ""
                raise ValueError(
                    f"This model ({model.method.name}) looks at no reference spots when it predicts: what it knows of "
                    f"the reference is in its coefficients. Methods with evidence: {format_names(able)}{more}."
                )
            evidence.append(found)
            bar.over(len(slide))(1.0)
    rows = np.argsort(np.concatenate([target.rows for target in targets]))
    width = max(found.index.shape[1] for found in evidence)
    padded = [np.pad(found.index, ((0, 0), (0, width - found.index.shape[1]))) for found in evidence]
    weights = [np.pad(found.weight, ((0, 0), (0, width - found.weight.shape[1]))) for found in evidence]
    merged = Evidence(np.concatenate(padded)[rows], np.concatenate(weights)[rows])
    agreement = _agreement(prediction.expression(prediction.genes), merged, model)
    _write_evidence(adata, key, model, merged, agreement, n_references)
    return adata if copy else None


def _agreement(predicted: Float32, evidence: Evidence, model: Model) -> Float32:
    """Correlation over genes of the prediction with the weighted mean of the expression of the evidence, (n_obs,)."""
    scale = GeneScale.fit(model.reference)
    level, spread = scale.mean.mean(axis=0), scale.std.mean(axis=0)
    measured = Stack(list(scale.rows(model.reference).values()))
    out = np.empty(len(predicted), np.float32)
    for rows in blocks(len(predicted), _ROWS):
        mean = np.einsum("nk,nkg->ng", evidence.weight[rows], measured[evidence.index[rows]])
        # A gene that is constant on the reference carries no information.
        relative = (predicted[rows] - level) / np.where(spread > 1e-9, spread, np.inf)
        out[rows] = metrics.pearson(mean.T, relative.T)
    return out


def _write_evidence(
    adata: AnnData, key: str, model: Model, evidence: Evidence, agreement: Float32, n_references: int
) -> None:
    slides, slide_of = list(model.reference), model.reference.slide_index()
    names = [slide.name for slide in slides]
    shares = np.zeros((adata.n_obs, len(slides)), np.float32)
    np.add.at(shares, (np.arange(adata.n_obs)[:, None], slide_of[evidence.index]), evidence.weight)
    weights = evidence.weight[:, :n_references]
    kept: NDArray[np.int64] = np.where(weights > 0, evidence.index[:, :n_references], -1)
    used = np.unique(kept[kept >= 0])
    references = np.where(kept >= 0, np.searchsorted(used, kept), -1).astype(np.int32)
    coordinates = np.concatenate([slide.coordinates for slide in slides])[used]
    record = {
        keys.PARAMS: {"method": model.method.name, "n_references": int(n_references)},
        "model": model.fingerprint,
        "slides": names,
        "patients": [str(slide.patient) for slide in slides],
        "slide": slide_of[used].astype(np.int32),
        "x": coordinates[:, 0],
        "y": coordinates[:, 1],
    }
    table = pd.DataFrame(shares, index=adata.obs_names, columns=names)
    for (place, name), content in zip(evidence_slots(key), (agreement, references, weights, table), strict=True):
        getattr(adata, place)[name] = content
    adata.uns[keys.slot(key, "evidence")] = record
