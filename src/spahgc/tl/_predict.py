"""Predict the expression of target slides."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import _keys as keys
from .._disk import check_free, local_path
from .._run import spot_bar
from .._settings import settings
from .._slides import Normalize, SplitBy
from .._tables import _slots as check
from .._tables._cohorts import TargetSlide, embedding_recipe, target_slides
from ..methods import METHODS, check_needs
from ._model import Model
from ._predict_out import check_key, make_record, predict_into_store, predict_into_table
from ._scale_check import pitches, warn_of_pitch
from ._train import train
from ._trust_slots import for_targets

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("spahgc")


def predict(
    reference: AnnData | Model,
    adata_target: AnnData,
    *,
    panel: int | Sequence[str] | None = None,
    method: str | None = None,
    preset: Literal["default", "paper"] | None = None,
    method_params: Mapping[str, Any] | None = None,
    normalize: Normalize | None = None,
    use_rep: str | None = None,
    library_key: str | None = None,
    patient_key: str = keys.PATIENT,
    layer: str | None = None,
    split_by: SplitBy | None = None,
    rng: int | np.random.Generator | None = None,
    device: str | None = None,
    progress: bool | None = None,
    key_added: str = keys.PREDICTION,
    store: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    copy: bool = False,
) -> AnnData | None:
    """Predict the expression of target slides from their H&E.

    With a table as the reference, a model is trained on it first (:func:`train`); to keep the model, call
    :func:`train` yourself. Expression of the target, measured or not, is never read.

    Parameters
    ----------
    reference
        Table of the reference slides, or a trained model.
    adata_target
        Table of the slides to predict: embeddings made like the reference's in ``obsm``, positions in
        ``obsm["spatial"]``.
    panel, method, preset, method_params, normalize, use_rep
        See :func:`train`; with a model they are settled and must not be given.
    library_key
        Column of ``obs`` that names the slide, in both tables; `None` takes each table's SpatialData region key.
    patient_key
        Column of ``obs`` that names the patient; the target may lack it.
    layer
        See :func:`train`; not with a model.
    split_by
        What is held out while tuning, see :func:`train`. `None`: slides, if every target slide is known to be of a
        reference patient; else patients. Not with a model.
    rng
        See :func:`train`; not with a model.
    device, progress
        `None` takes :data:`spahgc.settings`. The progress of the prediction is shown when it takes longer than two
        seconds.
    key_added
        Key of what is written.
    store
        Path of a folder to write the predicted expression to, as an AnnData zarr, block by block: for slides whose
        prediction is larger than memory. It appears when it is whole. While it is made, a temporary file beside it
        takes as much room again.
    overwrite
        Replace a prediction that is in `store`. What is not one is never replaced.
    copy
        Write to a copy of the target, and return it.

    Returns
    -------
    `None`, or with `copy` the copy. Written are, for ``key_added="spahgc"``:

    ``obsm["spahgc"]``
        DataFrame (n_obs, panel), float32: predicted expression.
    ``layers["spahgc"]``
        The same (n_obs, n_vars), where the target's ``var`` holds genes of the panel; NaN outside it.
    ``obs["spahgc_support"]``
        float32, 0 to 1: the share of reference spots that are at least as far from the reference's other slides as
        this spot is, in the embedding as the encoder gave it. Small values mean tissue or stain that the reference
        does not cover.
    ``uns["spahgc"]``
        ``params``, ``genes``, ``units``, ``encoder``, ``model`` (fingerprint), ``training`` (curves), ``versions``, and
        ``trust`` if the reference was cross-validated with this method (:func:`spahgc.get.trust`).
    ``var["spahgc_expected_pearson"]``, ``["spahgc_trust_low"]``, ``["spahgc_trust_high"]``, ``["spahgc_trust"]``
        With trust, where the target's ``var`` holds genes of the panel: what to expect of each, and the verdict.

    ``X`` and measured layers are left alone.

    With `store`, ``obsm["spahgc"]`` and ``layers["spahgc"]`` are not written, and ``uns["spahgc"]["store"]`` is the
    absolute path of the zarr. :func:`spahgc.get.predicted` reads it when it is asked for values,
    :func:`spahgc.tl.evaluate` and :func:`spahgc.pl.expression` take the genes that they need, and it is a table of its
    own for :func:`anndata.read_zarr`: what :func:`spahgc.get.predicted` returns, rows in the order of the target.

    Raises
    ------
    KeyError
        If a slot, column or gene is not there.
    ValueError
        If the embeddings of reference and target do not match, values are not what they have to be, or a slide lacks
        something that the method needs.
    FileExistsError
        If `store` is there and `overwrite` is false, or what is there is not a prediction.
    OSError
        If the disk has too little room for `store`; nothing is left there, and the table is as it was.
    """
    given: dict[str, Any] = {
        "panel": panel,
        "method": method,
        "preset": preset,
        "method_params": method_params,
        "normalize": normalize,
        "use_rep": use_rep,
        "layer": layer,
        "split_by": split_by,
        "rng": rng,
    }
    given = {name: value for name, value in given.items() if value is not None}
    check.check_table(adata_target, what="target")
    check_key(adata_target, key_added)
    path = None if store is None else local_path(store)
    if path is not None:
        check_free(path, overwrite=overwrite)
    if isinstance(reference, Model):
        if given:
            raise ValueError(
                f"{', '.join(given)} cannot be changed: the model is trained. Train another one with spahgc.tl.train."
            )
        model = reference
        model.method.to(device)
    else:
        check.check_table(reference, what="reference")
        # Looked at before the training, so that a bad target does not cost one.
        found = target_slides(
            adata_target, embedding_recipe(reference, use_rep), library_key=library_key, patient_key=patient_key
        )
        kind = METHODS.get(method or "spahgc")
        if kind is not None:  # train says so of a name that is none
            for target in found:
                check_needs(kind, target.slide)
        given.setdefault("split_by", _split_by(reference, adata_target, patient_key))
        model = train(
            reference, library_key=library_key, patient_key=patient_key, device=device, progress=progress, **given
        )
    targets = target_slides(adata_target, model.recipe, library_key=library_key, patient_key=patient_key)
    _warn(model, adata_target, targets, library_key)

    adata = adata_target.copy() if copy else adata_target
    trust = model.trust_record and for_targets(
        model.trust_record, {t.slide.name: t.slide.patient for t in targets}, model.reference.patients
    )
    record = make_record(model, _params(model, targets, library_key), trust)
    with spot_bar(adata.n_obs, show=settings.progress if progress is None else progress) as bar:
        if path is None:
            predict_into_table(adata, model, targets, key=key_added, record=record, bar=bar)
        else:
            predict_into_store(
                adata, model, targets, key=key_added, record=record, bar=bar, path=path, overwrite=overwrite
            )
    return adata if copy else None


def _params(model: Model, targets: list[TargetSlide], library_key: str | None) -> dict[str, Any]:
    return {
        "method": model.method.name,
        "method_params": model.method.params(),
        "normalize": model.recipe.normalize,
        "use_rep": model.recipe.use_rep,
        "library_key": library_key,
        **model.params,
        "reference_slides": [slide.name for slide in model.reference],
        "reference_patients": [str(slide.patient) for slide in model.reference],
        "target_slides": [target.slide.name for target in targets],
        "shared_patients": sorted(
            {str(t.slide.patient) for t in targets if t.slide.patient in model.reference.patients}
        ),
    }


def _split_by(reference: AnnData, target: AnnData, patient_key: str) -> SplitBy:
    if patient_key not in reference.obs or patient_key not in target.obs:
        return "patient"
    known = set(reference.obs[patient_key].astype(str))
    return "slide" if set(target.obs[patient_key].astype(str)) <= known else "patient"


def _warn(model: Model, adata: AnnData, targets: list[TargetSlide], library_key: str | None) -> None:
    pitch = pitches(adata, model.recipe.use_rep, library_key, what="target")
    warn_of_pitch(model.params.get("pitch_um", {}), pitch, stacklevel=4)
    for target in targets:
        if model.has_seen(target.slide):
            warnings.warn(
                f"Slide {target.slide.name!r} is one of the reference slides: the model has seen its expression, and "
                f"a score on it means nothing.",
                UserWarning,
                stacklevel=3,
            )
    if adata.n_vars and not adata.var_names.isin(model.genes).any():
        warnings.warn(
            f"None of the {len(model.genes)} predicted genes is among the target's {adata.n_vars} measured ones, so "
            f"no layer is written and "
            f"nothing can be scored.{check.naming_hint(model.genes, adata.var_names)}",
            UserWarning,
            stacklevel=3,
        )
