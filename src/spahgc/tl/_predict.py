"""Predict the expression of target slides."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np

from .. import _keys as keys
from .._checks import at_least, checked
from .._disk import Scratch, check_free, check_room, check_writable, local_path
from .._slides import SplitBy
from .._tables import _slots as check
from .._tables._cohorts import TargetSlide, embedding_recipe, target_slides
from .._tables._predictions import Prediction, prediction_table, taken_by_others, write_prediction
from ..methods import METHODS, check_needs
from ._model import Model
from ._support import pitches, warn_of_pitch
from ._train import TrainParams, train

if TYPE_CHECKING:
    from anndata import AnnData


@checked(panel=at_least(1))
def predict(
    reference: AnnData | Model,
    adata_target: AnnData,
    *,
    library_key: str | None = None,
    patient_key: str = keys.PATIENT,
    device: str | None = None,
    progress: bool | None = None,
    key_added: str = keys.PREDICTION,
    write_layer: bool = True,
    store: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    copy: bool = False,
    **training: Unpack[TrainParams],
) -> AnnData | None:
    """Predict the expression of target slides from their H&E.

    If the reference is a table, a model is trained on it first. To keep the model, call :func:`train` yourself.
    Measured expression of the target is never read.

    Parameters
    ----------
    reference
        Table of the reference slides, or a trained model.
    adata_target
        Table of the slides to predict, with embeddings made like those of the reference in ``obsm`` and positions in
        ``obsm["spatial"]``.
    library_key
        Column of ``obs`` with the slide, in both tables; `None` takes each table's SpatialData region key.
    patient_key
        Column of ``obs`` with the patient; optional in the target.
    device, progress
        `None` takes :data:`spahgc.settings`.
    key_added
        Key of the prediction.
    write_layer
        Write ``layers[key_added]``, a dense matrix over all genes of the target: 4 bytes per spot and gene.
    store
        Write the prediction to this Zarr store, block by block, instead of to memory. The store is created atomically;
        meanwhile a temporary file beside it needs the same space again.
    overwrite
        Replace an existing prediction in `store`. Anything else is never replaced.
    copy
        Return a copy of the target with the prediction, and leave the target unchanged.
    **training
        Parameters of :func:`train`: ``panel``, ``method``, ``preset``, ``method_params``, ``normalize``, ``use_rep``,
        ``layer``, ``split_by``, ``rng``. Not allowed if `reference` is a trained model. The default of ``split_by`` is
        ``"slide"`` if every target slide is of a reference patient.

    Returns
    -------
    `None`, or the copy with `copy`. Written for ``key_added="spahgc"``:

    ``obsm["spahgc"]``
        DataFrame (n_obs, panel), float32: predicted expression.
    ``layers["spahgc"]``
        The same (n_obs, n_vars), if the target's ``var`` holds genes of the panel; NaN for other genes.
    ``obs["spahgc_support"]``
        float32 in [0, 1]: fraction of reference spots that lie at least as far from the other reference slides, in
        embedding space, as this spot lies from the reference. Low values indicate tissue or staining that is not
        represented in the reference.
    ``uns["spahgc"]``
        ``params``, ``genes``, ``units``, ``encoder``, ``model`` (fingerprint), ``training`` (curves), ``versions``, and
        ``trust`` if the reference was cross-validated with this method (:func:`spahgc.get.trust`).
    ``var["spahgc_expected_pearson"]``, ``["spahgc_trust_low"]``, ``["spahgc_trust_high"]``, ``["spahgc_trust"]``
        With trust, if the target's ``var`` holds genes of the panel: expected correlation, interval and verdict.

    ``X`` and measured layers are not changed. With `store`, ``obsm["spahgc"]`` and ``layers["spahgc"]`` are not
    written, and ``uns["spahgc"]["store"]`` is the absolute path of the store, which :func:`spahgc.get.predicted`,
    :func:`spahgc.tl.evaluate` and :func:`spahgc.pl.expression` read as needed. It is an AnnData of its own for
    :func:`anndata.read_zarr`, with rows in the order of the target.

    Raises
    ------
    KeyError
        If a slot, column or gene is missing.
    ValueError
        If the embeddings of reference and target do not match, a slot holds invalid values, or a slide lacks an array
        that the method requires.
    FileExistsError
        If `store` exists and `overwrite` is false, or is not a prediction.
    OSError
        If the disk has too little space for `store`; the table is unchanged then.

    Examples
    --------
    >>> import spahgc
    >>> adata = spahgc.datasets.synthetic_cohort(n_spots=25, microns_per_pixel=4)["table"]
    >>> adata.obsm["image_own"] = adata.X[:, :8].toarray()
    >>> reference, target = (adata[adata.obs["patient"] == patient].copy() for patient in ("P1", "P2"))
    >>> spahgc.tl.predict(reference, target, method="ridge", panel=5)
    >>> target.obsm["spahgc"].shape
    (50, 5)
    """
    check.check_table(adata_target, what="target")
    check.check_key(key_added)
    check.check_unused(taken_by_others(adata_target, key_added), key_added)
    path = None if store is None else local_path(store)
    if path is not None:
        check_free(path, overwrite=overwrite)
    if isinstance(reference, Model):
        if training:
            raise ValueError(
                f"{', '.join(training)} cannot be changed: the model is trained. Train another with spahgc.tl.train."
            )
        model = reference
        model.method.to(device)
    else:
        check.check_table(reference, what="reference")
        # Validate the target first so that bad input fails before training.
        recipe = embedding_recipe(reference, training.get("use_rep"))
        kind = METHODS.get(training.get("method", "spahgc"))
        for target in target_slides(adata_target, recipe, library_key=library_key, patient_key=patient_key):
            if kind is not None:  # otherwise train raises
                check_needs(kind, target.slide)
        training.setdefault("split_by", _split_by(reference, adata_target, patient_key))
        model = train(
            reference, library_key=library_key, patient_key=patient_key, device=device, progress=progress, **training
        )
    targets = target_slides(adata_target, model.recipe, library_key=library_key, patient_key=patient_key)
    _warn(model, adata_target, targets, library_key)
    slides, rows = [target.slide for target in targets], [target.rows for target in targets]
    adata = adata_target.copy() if copy else adata_target
    record = model.record(slides, library_key)
    if path is None:
        made = model.predict(slides, rows=rows, record=record, progress=progress)
        write_prediction(adata, key_added, made, write_layer=write_layer)
        return adata if copy else None
    shape = adata.n_obs, len(model.genes)
    check_room(path, 4 * shape[0] * shape[1])
    draft = Prediction(None, model.genes, np.zeros(adata.n_obs, np.float32), record)
    check_writable(prediction_table(adata, key_added, draft))
    # Some methods write values several times, in the order of a slide: the file keeps them until all are final.
    with Scratch(path.parent, shape) as scratch:
        made = model.predict(slides, rows=rows, scratch=scratch, record=record, progress=progress)
        write_prediction(adata, key_added, made, store=path, overwrite=overwrite)
    return adata if copy else None


def _split_by(reference: AnnData, target: AnnData, patient_key: str) -> SplitBy:
    if patient_key not in reference.obs or patient_key not in target.obs:
        return "patient"
    known = set(reference.obs[patient_key].astype(str))
    return "slide" if set(target.obs[patient_key].astype(str)) <= known else "patient"


def _warn(model: Model, adata: AnnData, targets: Sequence[TargetSlide], library_key: str | None) -> None:
    level = 4  # the caller of predict, beyond its decorator
    pitch = pitches(adata, model.recipe.use_rep, library_key, what="target")
    warn_of_pitch(model.params.get("pitch_um", {}), pitch, stacklevel=level + 1)
    for target in targets:
        if model.has_seen(target.slide):
            warnings.warn(
                f"Slide {target.slide.name!r} is one of the reference slides: the model has seen its expression, so a "
                f"score on it is meaningless.",
                UserWarning,
                stacklevel=level,
            )
    if adata.n_vars and not adata.var_names.isin(model.genes).any():
        warnings.warn(
            f"None of the {len(model.genes)} predicted genes is among the {adata.n_vars} measured genes of the target, "
            f"so no layer is written and nothing can be scored.{check.naming_hint(model.genes, adata.var_names)}",
            UserWarning,
            stacklevel=level,
        )
