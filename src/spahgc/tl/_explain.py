"""The evidence behind a prediction: which reference spots a model looked at, and whether they say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _keys as keys
from .. import metrics
from .._checks import format_names
from .._run import spot_bar
from .._settings import settings
from .._slides import Cohort, Float32, Stack, blocks, standardize
from .._tables import _slots as check
from .._tables._cohorts import TargetSlide, target_slides
from .._tables._predictions import panel, values
from ..methods import METHODS, Method
from ..methods._evidence import Evidence
from ..methods._features import GeneScale
from ._model import Model

if TYPE_CHECKING:
    from anndata import AnnData

_ROWS = 1024
"""Spots whose references' expression is read at once."""


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
    r"""Write which reference spots are behind the prediction of each spot, and whether they say the same.

    The weight of a reference spot is the share of a target spot's attention that it gets, averaged over heads, over the
    attentions of a network (one a layer, and the pooling) and over networks; ``knn`` gives each of its neighbours the
    same. It says where the model looks. It does not say that the prediction would be another one without the spot: what
    networks and ridge have learnt from all reference spots is in their coefficients.

    Whether the spots that are looked at bear a prediction out is seen from what was **measured** in them. The agreement
    of spot t is the Pearson correlation, over the genes of the panel, of its prediction with their weighted mean

    .. math:: e_t = \sum_r w_{tr} \, y_r,

    with :math:`y_r` relative to mean and spread of each gene on the slide of r, and the prediction to the averages of
    these over the reference slides. It needs no measured expression of the target. On held-out slides it told well
    predicted spots from others; not on the breast tumour of a new patient, where the prediction and its evidence were
    wrong together (``benchmarks/evidence.py``).

    Parameters
    ----------
    model
        The model that predicted, of a method that looks at reference spots: ``spahgc`` or ``knn``.
    adata_target
        Table with its prediction, by :func:`spahgc.tl.predict`.
    n_references
        Reference spots to keep for each spot, those with the largest weights. Shares and agreement are over all.
    key
        The prediction's key.
    library_key, patient_key
        As for :func:`spahgc.tl.predict`.
    device, progress
        `None` takes :data:`spahgc.settings`.
    copy
        Write to a copy of the target, and return it.

    Returns
    -------
    `None`, or with `copy` the copy. Written are, for ``key="spahgc"``:

    ``obsm["spahgc_references"]``, ``obsm["spahgc_weights"]``
        int32 and float32, (n_obs, n_references), largest weight first: which of the spots listed in
        ``uns["spahgc_evidence"]``, -1 for none, and its weight, 0 to 1. Read them with :func:`spahgc.get.evidence`.
    ``obsm["spahgc_slides"]``
        DataFrame, float32 (n_obs, reference slides): share of the weight that each reference slide has.
    ``obs["spahgc_agreement"]``
        float32, -1 to 1; NaN where the prediction or the evidence is the same for all genes.
    ``uns["spahgc_evidence"]``
        ``params``, ``model`` (fingerprint), and of each reference spot that is referred to ``slide`` (number in
        ``slides``, with ``patients`` beside it) and its position ``x`` and ``y``.

    Raises
    ------
    TypeError
        If `model` is not a trained model.
    KeyError
        If there is no such prediction.
    ValueError
        If the prediction is of another model, the model looks at no reference spot, or the table holds something else
        where this writes.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"model is a trained model, not {type(model).__name__}: model = spahgc.tl.train(adata_ref), "
            "spahgc.tl.predict(model, adata_target), spahgc.tl.explain(model, adata_target)."
        )
    if isinstance(n_references, bool) or n_references < 1:
        raise ValueError(f"n_references is a whole number of at least 1, not {n_references!r}.")
    check.check_table(adata_target, what="target")
    genes = panel(adata_target, key)
    _check_same_model(model, adata_target, key)
    _check_free(adata_target, key)
    if type(model.method).evidence is Method.evidence:
        raise ValueError(_looks_at_none(model))
    targets = target_slides(adata_target, model.recipe, library_key=library_key, patient_key=patient_key)
    model.method.to(device)
    adata = adata_target.copy() if copy else adata_target
    found: list[tuple[TargetSlide, Evidence]] = []
    with spot_bar(adata.n_obs, show=settings.progress if progress is None else progress) as bar:
        for target in targets:
            blind = target.slide if model.method.reads_rows else target.slide.read()
            evidence = model.method.evidence(standardize(blind))
            if evidence is None:
                raise ValueError(_looks_at_none(model))
            found.append((target, evidence))
            bar.over(len(target.slide))(1.0)
    agreement = np.full(adata.n_obs, np.nan, np.float32)
    for target, evidence in found:
        predicted = values(adata[target.rows], key, genes)
        agreement[target.rows] = _agreement(predicted, evidence, model.reference)
    _write(adata, key, model, found, agreement, n_references)
    return adata if copy else None


def _agreement(predicted: Float32, evidence: Evidence, reference: Cohort) -> Float32:
    """Correlation over genes of the prediction with the weighted mean of what was measured in the evidence, (n,)."""
    scale = GeneScale.fit(reference)
    level, spread = scale.mean.mean(axis=0), scale.std.mean(axis=0)
    measured = Stack(list(scale.rows(reference).values()))
    out = np.empty(len(predicted), np.float32)
    for rows in blocks(len(predicted), _ROWS):
        mean = np.einsum("nk,nkg->ng", evidence.weight[rows], measured[evidence.index[rows]])
        # A gene that is constant on the reference says nothing of a spot.
        relative = (predicted[rows] - level) / np.where(spread > 1e-9, spread, np.inf)
        out[rows] = metrics.pearson(mean.T, relative.T)
    return out


def _write(
    adata: AnnData,
    key: str,
    model: Model,
    found: list[tuple[TargetSlide, Evidence]],
    agreement: Float32,
    n_references: int,
) -> None:
    import pandas as pd

    slides = list(model.reference)
    slide_of = model.reference.slide_index()
    k = min(n_references, max(evidence.index.shape[1] for _, evidence in found))
    rows: NDArray[np.int64] = np.full((adata.n_obs, k), -1, np.int64)
    weights = np.zeros((adata.n_obs, k), np.float32)
    shares = np.zeros((adata.n_obs, len(slides)), np.float32)
    for target, evidence in found:
        kept = evidence.weight[:, :k] > 0
        rows[target.rows, : kept.shape[1]] = np.where(kept, evidence.index[:, :k], -1)
        weights[target.rows, : kept.shape[1]] = evidence.weight[:, :k]
        np.add.at(shares, (target.rows[:, None], slide_of[evidence.index]), evidence.weight)
    used, place = np.unique(rows, return_inverse=True)
    place = place.reshape(rows.shape) - int(used[0] < 0)  # -1, for none, is the first where it is there
    used = used[used >= 0]
    coordinates = np.concatenate([slide.coordinates for slide in slides])[used]
    adata.obsm[keys.references(key)] = place.astype(np.int32)
    adata.obsm[keys.weights(key)] = weights
    names = [slide.name for slide in slides]
    adata.obsm[keys.slides(key)] = pd.DataFrame(shares, index=adata.obs_names, columns=names)
    adata.obs[keys.agreement(key)] = agreement
    record: dict[str, Any] = {
        keys.PARAMS: {"method": model.method.name, "n_references": int(n_references)},
        "model": model.fingerprint,
        "slides": names,
        "patients": [str(slide.patient) for slide in slides],
        "slide": slide_of[used].astype(np.int32),
        "x": coordinates[:, 0],
        "y": coordinates[:, 1],
    }
    adata.uns[keys.evidence(key)] = record


def drop_evidence(adata: AnnData, key: str) -> None:
    """Take off what :func:`explain` wrote for a prediction that is no more."""
    if adata.uns.pop(keys.evidence(key), None) is not None:
        for _, slots, name in _places(adata, key):
            if name in slots:
                del slots[name]


def _places(adata: AnnData, key: str) -> list[tuple[str, Any, str]]:
    in_obsm = (keys.references(key), keys.weights(key), keys.slides(key))
    return [("obs", adata.obs, keys.agreement(key)), *(("obsm", adata.obsm, name) for name in in_obsm)]


def _check_free(adata: AnnData, key: str) -> None:
    taken = [f"{place}[{name!r}]" for place, slots, name in _places(adata, key) if name in slots]
    if taken and keys.evidence(key) not in adata.uns:
        raise ValueError(
            f"The target holds something else in {', '.join(taken)}, where the evidence of {key!r} is written; it is "
            "never overwritten. Rename it, or predict with another key_added."
        )


def _check_same_model(model: Model, adata: AnnData, key: str) -> None:
    made_by = adata.uns.get(key, {}).get("model")
    if made_by != model.fingerprint:
        raise ValueError(
            f"The prediction {key!r} is of another model than this one ({model!r}), so this one's evidence is not "
            f"behind it. Run spahgc.tl.predict(model, adata, key_added={key!r}) with it first."
        )


def _looks_at_none(model: Model) -> str:
    looking = [name for name, method in METHODS.items() if method.evidence is not Method.evidence]
    return (
        f"This model ({model.method.name}) looks at no reference spot when it predicts: what it knows of the reference "
        f"is in its coefficients. Methods that look at some: {format_names(sorted(looking))}"
        + (" (with two reference slides or more)." if model.method.name == "spahgc" else ".")
    )
