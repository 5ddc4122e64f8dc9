"""Train a method on reference slides."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from .. import _keys as keys
from .._checks import at_least, checked, format_names, rng_seed
from .._run import launched_fabric, n_processes
from .._settings import settings
from .._slides import Normalize, SplitBy
from .._tables._cohorts import plain, reference_cohort
from ..methods import METHODS, Run, check_needs, get_method
from ._model import Model
from ._support import pitches
from ._trust import trust_for

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("spahgc")

Preset = Literal["default", "paper"]


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
        Genes to predict, or their number. A number selects the genes with the best mean dispersion rank over the
        reference slides (variance of the counts around the value expected from depth, divided by the mean), among
        genes detected in more than 5 % of the spots.
    method
        Name in :data:`spahgc.methods.METHODS`.
    preset
        For ``method="spahgc"``: ``"default"``, or ``"paper"`` for the method as published.
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
        Train jointly with the other processes that ``torchrun`` started, one GPU each. All processes make this call
        with the same table and arguments, and get the same model. See :doc:`/several_gpus`.
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
    >>> adata = spahgc.datasets.synthetic_cohort(n_spots=25, microns_per_pixel=4)["table"]
    >>> adata.obsm["image_own"] = adata.X[:, :8].toarray()
    >>> spahgc.tl.train(adata, method="ridge", panel=5)
    Model(ridge, 5 genes, image_own, reference: S1, S2, S3, S4)
    """
    params = checked_params(method, preset, method_params)
    fabric = None
    if distributed:
        if not METHODS[method].distributed:
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
    columns = {"use_rep": use_rep, "library_key": library_key, "patient_key": patient_key, "layer": layer}
    cohort, recipe = reference_cohort(adata_ref, panel=panel, normalize=normalize, **columns)
    seed = rng_seed(rng)
    fitted = get_method(method, **params)
    logger.info(
        "Training %s on %d slides (%d spots, %d genes).", method, len(cohort), cohort.n_spots, len(recipe.genes)
    )
    for slide in cohort:
        check_needs(fitted, slide)
    run = Run(seed, device, settings.progress if progress is None else progress, split_by, fabric=fabric)
    fitted.fit(cohort.standardized(), run)
    record: dict[str, Any] = {"patient_key": patient_key, "split_by": split_by, "seed": seed, "layer": layer}
    if searches := fitted.searches():
        record["searches"] = searches
    if fabric is not None:
        record["n_processes"] = fabric.world_size
    record["pitch_um"] = pitches(adata_ref, recipe.use_rep, library_key, what="reference")
    trust = trust_for(adata_ref, fitted, [slide.name for slide in cohort], recipe)
    return Model(fitted, cohort, recipe, params=record, trust=trust)


def checked_params(method: str, preset: str | None, method_params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters of a method as JSON types, including its preset."""
    if method not in METHODS:
        raise ValueError(f"No method {method!r}. Available: {format_names(sorted(METHODS), most=len(METHODS))}.")
    params = {name: plain(value) for name, value in (method_params or {}).items()}
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
        params["preset"] = preset
    return params
