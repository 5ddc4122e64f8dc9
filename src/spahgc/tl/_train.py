"""Train a method on reference slides."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._checks import format_names, rng_seed
from .._run import launched_fabric, n_processes
from .._settings import settings
from .._slides import Normalize, SplitBy
from .._tables._cohorts import plain, reference_cohort
from ..methods import METHODS, Run, check_needs, get_method
from ._model import Model
from ._scale_check import pitches
from ._trust_slots import trust_for

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("spahgc")


def train(
    adata_ref: AnnData,
    *,
    panel: int | Sequence[str] = 300,
    method: str = "spahgc",
    preset: Literal["default", "paper"] | None = None,
    method_params: Mapping[str, Any] | None = None,
    normalize: Normalize = "log1p",
    use_rep: str | None = None,
    library_key: str | None = None,
    patient_key: str = "patient",
    layer: str | None = None,
    split_by: SplitBy = "patient",
    rng: int | np.random.Generator = 0,
    device: str | None = None,
    distributed: bool = False,
    progress: bool | None = None,
) -> Model:
    """Train on slides with H&E and measured expression.

    The table is not changed. The order of its rows and slides does not matter. If these slides were cross-validated
    with this method, its parameters, unit and embedding (:func:`cross_validate`), the trust per gene goes with the
    model.

    Parameters
    ----------
    adata_ref
        Table of the reference slides: counts in ``X`` (or `layer`), embeddings in ``obsm``, positions in
        ``obsm["spatial"]``, slide and patient in ``obs``.
    panel
        Genes to predict: their names, or how many to take. A number takes the genes with the best mean dispersion
        rank over the reference slides (variance of the counts around what depth leads to expect, over their mean),
        found in more than 5 % of the spots.
    method
        Name in :data:`spahgc.methods.METHODS`.
    preset
        For ``method="spahgc"``: ``"default"``, or ``"paper"`` for the published method to the letter.
    method_params
        Further parameters of the method.
    normalize
        Unit of the expression. ``"log1p"``: counts per 10,000 over all genes, log1p. ``"log10"``: log10(counts + 1),
        in which sequencing depth passes for skill. ``"none"``: the values as they are.
    use_rep
        Embedding, key of ``obsm``; `None` takes the only ``image_*`` there.
    library_key
        Column of ``obs`` that names the slide; `None` takes the table's SpatialData region key.
    patient_key
        Column of ``obs`` that names the patient.
    layer
        Layer with the counts; `None` is ``X``.
    split_by
        What is held out while tuning: ``"patient"`` prepares for slides of new patients, ``"slide"`` for other slides
        of the reference's own patients.
    rng
        Seed, or generator to draw it from.
    device
        Torch device; `None` takes :data:`spahgc.settings`.
    distributed
        Train together with the other processes that ``torchrun`` started, each on a GPU of its own; all of them make
        this call, with the same table and arguments, and get the same model. See :doc:`/several_gpus`.
    progress
        Show a progress bar; `None` takes :data:`spahgc.settings`.

    Returns
    -------
    The trained model.

    Raises
    ------
    KeyError
        If a slot, column or gene is not there.
    ValueError
        If values are not what they have to be (counts, finite embeddings), there are too few slides or spots for the
        method, or a slide lacks something that the method needs; with `distributed`, if the method cannot, or the
        processes were given different things.
    RuntimeError
        If ``torchrun`` did not start this process, and `distributed` is true.
    ImportError
        If `distributed` is true and Lightning is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"No method {method!r}. Available: {format_names(sorted(METHODS), most=len(METHODS))}.")
    params = checked_params(method, preset, method_params)
    if split_by not in ("patient", "slide"):
        raise ValueError(f"split_by is 'patient' or 'slide', not {split_by!r}.")
    fabric = None
    if distributed:
        if not METHODS[method].distributed:
            able = sorted(name for name, kind in METHODS.items() if kind.distributed)
            raise ValueError(f"Method {method!r} trains in one process. distributed=True: {format_names(able)}.")
        fabric = launched_fabric(settings.torch_device(device))
        device = str(fabric.device)
    elif n_processes() > 1:
        logger.warning(
            "torchrun started %d processes, and each trains a model of its own. To train one together: "
            "spahgc.tl.train(..., distributed=True).",
            n_processes(),
        )
    cohort, recipe = reference_cohort(
        adata_ref,
        panel=panel,
        normalize_as=normalize,
        use_rep=use_rep,
        library_key=library_key,
        patient_key=patient_key,
        layer=layer,
    )
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
    return Model(fitted, cohort, recipe, params=record, trust=trust_for(adata_ref, fitted, cohort, recipe))


def checked_params(method: str, preset: str | None, method_params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Parameters of a method, JSON types, with its preset among them."""
    params = {name: plain(value) for name, value in (method_params or {}).items()}
    try:
        json.dumps(params)
    except TypeError as error:
        raise TypeError(
            f"method_params takes numbers, strings, booleans, None, lists and dicts, so that the model can be saved: "
            f"{error}."
        ) from error
    if preset is not None:
        if method != "spahgc":
            raise ValueError(f"preset={preset!r} belongs to method='spahgc'; {method!r} has none.")
        if params.get("preset", preset) != preset:
            raise ValueError(f"preset={preset!r} and method_params['preset']={params['preset']!r} disagree.")
        params["preset"] = preset
    return params
