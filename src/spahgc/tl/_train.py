"""Train a method on reference slides, and predict the expression of target slides."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from anndata import AnnData

from .. import _keys as keys
from .._checks import at_least, checked, format_names, rng_seed
from .._disk import Scratch, check_free, check_room, check_writable, local_path
from .._run import launched_fabric, n_processes
from .._settings import logger, settings
from .._slides import Normalize, Slide, SplitBy
from .._slides import normalize as in_unit
from .._tables import _slots as check
from .._tables._cohorts import TargetSlide, embedding_recipe, plain, reference_cohort, target_slides
from .._tables._patients import patient_names, warn_of_alike
from .._tables._predictions import (
    Prediction,
    check_prediction_key,
    check_prediction_slots,
    prediction_table,
    write_prediction,
)
from ..methods import METHODS, Run, check_needs, get_method
from ._model import Model
from ._support import LOW_MEDIAN, LOW_SUPPORT, pitches, warn_of_pitch
from ._trust import trust_for

Preset = Literal["default", "fast", "paper"]


class TrainParams(TypedDict, total=False):
    """Parameters of :func:`train` that :func:`spahgc.tl.predict` passes on."""

    panel: int | Sequence[str]
    method: str
    preset: Preset | None
    method_params: Mapping[str, Any] | None
    normalize: Normalize
    use_rep: str | None
    layer: str | None
    split_by: SplitBy
    rng: int | np.random.Generator


@checked(panel=at_least(1))
def train(
    adata_ref: AnnData,
    *,
    panel: int | Sequence[str] = 300,
    method: str = "spahgc",
    preset: Preset | None = None,
    method_params: Mapping[str, Any] | None = None,
    normalize: Normalize = "log1p",
    use_rep: str | None = None,
    library_key: str | None = None,
    patient_key: str = keys.PATIENT,
    layer: str | None = None,
    split_by: SplitBy = "patient",
    rng: int | np.random.Generator = 0,
    device: str | None = None,
    distributed: bool = False,
    progress: bool | None = None,
) -> Model:
    """Train on slides with H&E and measured expression.

    The table is not changed, and the order of its rows and slides does not matter. If these slides were
    cross-validated (:func:`cross_validate`) with the same method, parameters, unit and embedding, the model includes
    the trust per gene.

    Parameters
    ----------
    adata_ref
        Table of the reference slides: counts in ``X`` (or `layer`), embeddings in ``obsm``, positions in
        ``obsm["spatial"]``, slide and patient in ``obs``.
    panel
        Genes to predict, or their number: those with the best mean rank over the reference slides of dispersion
        (variance of the counts around the value expected from depth, divided by the mean), in more than 5 % of spots.
    method
        Name in :data:`spahgc.methods.METHODS`.
    preset
        For ``method="spahgc"``: ``"default"``; ``"fast"``, two linear fits in seconds, without torch and without the
        reference slides in a saved model (:class:`spahgc.methods.Fast`); or ``"paper"``, the method as published.
    method_params
        Further parameters of the method.
    normalize
        Unit of the expression. ``"log1p"``: log1p of counts per 10,000 over all genes. ``"log10"``: log10(counts + 1),
        which keeps sequencing depth, so that depth can pass for skill. ``"none"``: the values as given.
    use_rep
        Embedding, key of ``obsm``; `None` takes the only ``image_*``.
    library_key
        Column of ``obs`` with the slide; `None` takes the table's SpatialData region key.
    patient_key
        Column of ``obs`` with the patient.
    layer
        Layer with the counts; `None` takes ``X``.
    split_by
        Unit held out when tuning hyperparameters: ``"patient"`` to predict new patients, ``"slide"`` to predict
        further slides of known patients.
    rng
        Seed, or generator to draw it from.
    device
        Torch device; `None` takes :data:`spahgc.settings`.
    distributed
        Train jointly with the other processes that ``torchrun`` started, one GPU each. See :doc:`/several_gpus`.
    progress
        Show a progress bar; `None` takes :data:`spahgc.settings`.

    Returns
    -------
    The trained model.

    Raises
    ------
    KeyError
        If a slot, column or gene is missing.
    ValueError
        If a slot holds invalid values (no counts, infinite embeddings), the method needs more slides or spots or a slot
        that a slide lacks, or with `distributed`, if the method does not support it or processes disagree.
    RuntimeError
        If `distributed` is true and ``torchrun`` did not start this process.
    ImportError
        If `distributed` is true and Lightning is not installed.

    Examples
    --------
    >>> import spahgc
    >>> adata_ref, adata_target = spahgc.datasets.synthetic_tables()
    >>> spahgc.tl.train(adata_ref, method="ridge", panel=5)
    Model(ridge, 5 genes, image_own, reference: S1, S2, S3)
    """
    method, params = chosen_method(method, preset, method_params)
    fitted, fabric = get_method(method, **params), None
    if distributed:
        if not fitted.distributed:
            able = sorted(name for name, kind in METHODS.items() if kind.distributed)
            raise ValueError(
                f"Method {method!r} trains in one process. Methods that support distributed=True: {format_names(able)}."
            )
        fabric = launched_fabric(settings.torch_device(device))
        device = str(fabric.device)
    elif n_processes() > 1:
        logger.warning(
            "torchrun started %d processes, and each trains a model of its own. To train one model jointly: "
            "spahgc.tl.train(..., distributed=True).",
            n_processes(),
        )
    cohort, recipe = reference_cohort(
        adata_ref,
        panel=panel,
        normalize=normalize,
        use_rep=use_rep,
        library_key=library_key,
        patient_key=patient_key,
        layer=layer,
    )
    seed = rng_seed(rng)
    warn_of_alike(cohort.patients)
    logger.info(
        "Training %s on %d slides (%d spots, %d genes).", method, len(cohort), cohort.n_spots, len(recipe.genes)
    )
    for slide in cohort:
        check_needs(fitted, slide)
    run = Run(seed, device, settings.progress if progress is None else progress, split_by, fabric=fabric)
    fitted.fit(cohort.standardized(), run)
    record: dict[str, Any] = {"patient_key": patient_key, "split_by": split_by, "seed": seed, "layer": layer}
    if fabric is not None:
        record["n_processes"] = fabric.world_size
    record["pitch_um"] = pitches(adata_ref, recipe.use_rep, library_key, what="reference")
    trust = trust_for(adata_ref, fitted, [slide.name for slide in cohort], recipe)
    return Model(fitted, cohort, recipe, params=record, trust=trust)


def chosen_method(
    method: str, preset: str | None, method_params: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """Name and parameters (JSON types) of a method; the preset "fast" is a method of its own, without torch."""
    params: dict[str, Any] = plain(dict(method_params or {}))
    try:
        json.dumps(params)
    except TypeError as error:
        raise TypeError(
            f"`method_params` must hold numbers, strings, booleans, None, lists and dicts, so that the model can be "
            f"saved: {error}."
        ) from error
    if preset is not None:
        if method != "spahgc":
            raise ValueError(f"preset={preset!r} is for method='spahgc'; {method!r} has no presets.")
        if params.get("preset", preset) != preset:
            raise ValueError(f"preset={preset!r} and method_params['preset']={params['preset']!r} disagree.")
        if preset == "fast":
            return preset, params
        params["preset"] = preset
    return method, params


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
    library_key, patient_key, device, progress
        See :func:`train`; columns of both tables. The patient is optional in the target.
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
    `None`, or the copy with `copy`. Written for ``key_added="spahgc"`` (see :doc:`/data_model`):

    ``obsm["spahgc"]``, ``layers["spahgc"]``
        float32: predicted expression, as a DataFrame (n_obs, panel), and (n_obs, n_vars) with NaN for other genes.
    ``obs["spahgc_support"]``
        float32 in [0, 1]: fraction of reference spots that lie at least as far from the other reference slides, in
        embedding space, as this spot lies from the reference. Low values indicate tissue or staining that is not
        represented in the reference.
    ``uns["spahgc"]``
        ``params``, ``genes``, ``units``, ``encoder``, ``model`` (fingerprint), ``training`` (curves), ``versions``, and
        ``trust`` if the reference was cross-validated with this method (:func:`spahgc.get.trust`); its main columns
        are in ``var``.

    With `store`, ``obsm`` and ``layers`` are not written, and ``uns["spahgc"]["store"]`` is the absolute path of the
    store, an AnnData with rows in the order of the target.

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
    >>> adata_ref, adata_target = spahgc.datasets.synthetic_tables()
    >>> spahgc.tl.predict(adata_ref, adata_target, method="ridge", panel=5)
    >>> adata_target.obsm["spahgc"].shape
    (25, 5)
    """
    check_prediction_key(key_added)
    check_prediction_slots(adata_target, key_added)
    path = None if store is None else local_path(store)
    if path is not None:
        check_free(path, overwrite=overwrite)
    columns: dict[str, Any] = {"library_key": library_key, "patient_key": patient_key}
    if isinstance(reference, Model):
        if training:
            raise ValueError(
                f"{', '.join(training)} cannot be changed: the model is trained. Train another with spahgc.tl.train."
            )
        model = reference
        model.method.to(device)
    else:
        # Validate the target first so that bad input fails before training.
        recipe = embedding_recipe(reference, training.get("use_rep"))
        preset, params = training.get("preset"), training.get("method_params")
        kind = METHODS[chosen_method(training.get("method", "spahgc"), preset, params)[0]]
        for target in target_slides(adata_target, recipe, **columns):
            check_needs(kind, target.slide)
        if patient_key in reference.obs and patient_key in adata_target.obs:
            patients, known = (set(patient_names(table.obs[patient_key])) for table in (adata_target, reference))
            training.setdefault("split_by", "slide" if patients <= known - {None} else "patient")
        model = train(reference, **columns, device=device, progress=progress, **training)
    targets = target_slides(adata_target, model.recipe, **columns)
    _warn(model, adata_target, targets, library_key)
    slides, rows = [target.slide for target in targets], [target.rows for target in targets]
    adata = adata_target.copy() if copy else adata_target
    record = model.record(slides, library_key)
    shape = adata.n_obs, len(model.genes)
    if path is not None:
        check_room(path, 4 * shape[0] * shape[1])
        draft = Prediction(None, model.genes, np.zeros(adata.n_obs, np.float32), record)
        check_writable(prediction_table(adata, key_added, draft))
    # Some methods write values several times, in the order of a slide: the file keeps them until all are final.
    with nullcontext() if path is None else Scratch(path.parent, shape) as scratch:
        made = model.predict(slides, rows=rows, scratch=scratch, record=record, progress=progress)
        made.record["slides"] = slide_summaries(model, adata, targets, made)
        write_prediction(adata, key_added, made, write_layer=write_layer, store=path, overwrite=overwrite)
    return adata if copy else None


def slide_summaries(
    model: Model, adata: AnnData, targets: Sequence[TargetSlide], made: Prediction
) -> dict[str, dict[str, Any]]:
    """Summary of the prediction of each slide; a warning if the reference hardly covers it."""
    found, species = int(adata.var_names.isin(model.genes).sum()), check.species_of(model.genes)
    scale = keys.part(adata.uns, model.recipe.use_rep, keys.PARAMS, keys.MPP)
    summaries = {}
    for slide, rows in (target for target in targets if target.slide.moments is None):
        own, known = np.asarray(made.support)[rows], slide.patient in model.reference.patients
        median = float(np.median(own))
        summary = {
            "median_support": median,
            "share_unsupported": float((own < LOW_SUPPORT).mean()),
            "panel_genes_found": found,
            "species_of_panel": species,
            "patient": "not known" if slide.patient is None else "same" if known else "new",
        }
        if slide.name in scale:
            summary[keys.MPP] = float(scale[slide.name])
        summaries[slide.name] = summary
        logger.info("Slide %s: %s.", slide.name, ", ".join(f"{name} {value}" for name, value in summary.items()))
        if median < LOW_MEDIAN:
            logger.warning(
                "The reference hardly covers slide %r: its median support is %.3f (about 0.5 for a slide like those "
                "of the reference). Likely causes: another tissue or species; other colors (stain, channels in the "
                "order BGR, fluorescence); another scale (microns_per_pixel); another encoder; a patient unlike those "
                "of the reference. Look at spahgc.pl.support before you believe the prediction.",
                slide.name, median,
            )  # fmt: skip
    return summaries


def _with_expression(target: TargetSlide, adata: AnnData, model: Model) -> Slide:
    """Slide to predict with what was measured of the panel, if all of it was: only to see whether it is known."""
    columns = adata.var_names.get_indexer(list(model.genes))
    unit, layer = model.recipe.normalize, model.params.get("layer")
    if (columns < 0).any():
        return target.slide
    try:
        matrix = check.expression(adata[target.rows], layer, what="target", normalize=unit)
    except (KeyError, ValueError):
        return target.slide
    return replace(target.slide, expression=in_unit(matrix, unit, genes=columns))


def _warn(model: Model, adata: AnnData, targets: Sequence[TargetSlide], library_key: str | None) -> None:
    pitch = pitches(adata, model.recipe.use_rep, library_key, what="target")
    # The level of the caller of predict, beyond its decorator.
    warn_of_pitch(model.params.get("pitch_um", {}), pitch, stacklevel=5)
    warn_of_alike([*model.reference.patients, *(target.slide.patient for target in targets)])
    for target in targets:
        if seen := model.has_seen(_with_expression(target, adata, model)):
            warnings.warn(
                f"Slide {target.slide.name!r} is one of the reference slides ({seen!r}): the model has seen its "
                f"expression, so a score on it is meaningless.",
                UserWarning,
                stacklevel=4,
            )
    if adata.n_vars and not adata.var_names.isin(model.genes).any():
        warnings.warn(
            f"None of the {len(model.genes)} predicted genes is among the {adata.n_vars} measured genes of the target, "
            f"so no layer is written and nothing can be scored.{check.naming_hint(model.genes, adata.var_names)}",
            UserWarning,
            stacklevel=4,
        )
