"""Cross-validate methods on the reference slides."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .. import _keys as keys
from .._checks import at_least, checked, format_names, rng_seed
from .._disk import digest, local_path, replacing, shared_folder
from .._run import run_all
from .._settings import logger, settings
from .._slides import Normalize, SplitBy, canonical_order
from .._tables import _slots as check
from .._tables._cohorts import ReferenceSlots, reference_slots
from .._tables._patients import warn_of_alike
from .._tables._predictions import CV_COLUMNS, Trust, check_prediction_key, check_unused, write_cross_validation
from ..methods import get_method
from ._protocols import PROTOCOLS, Fold, Protocol, make_folds, method_params, panel_of_all
from ._train import chosen_method
from ._trust import CEILING_METHOD, cross_validated_trust
from ._units import Unit, fold_data, run_ceiling, run_unit

DEFAULT_METHODS = ("ridge", "low_rank_ridge", "context_ridge", "spahgc")


@checked(panel=at_least(1), n_seeds=at_least(1))
def cross_validate(
    adata_ref: AnnData,
    *,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] = DEFAULT_METHODS,
    panel: int | Sequence[str] | None = None,
    normalize: Normalize | None = None,
    use_rep: str | None = None,
    library_key: str | None = None,
    patient_key: str = keys.PATIENT,
    layer: str | None = None,
    split_by: SplitBy = "patient",
    allow_shared_patients: bool = False,
    protocol: Literal["honest", "paper", "hest"] | Protocol = "honest",
    n_seeds: int = 3,
    rng: int | np.random.Generator = 0,
    resume: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
    key_added: str = keys.PREDICTION,
    copy: bool = False,
) -> AnnData | None:
    """Hold out each patient's slides in turn, train on the others, predict from the H&E alone, score.

    Everything that is fitted (panel, scalers, components, hyperparameters, epochs) is fitted on the training slides of
    the fold; the expression of held-out slides enters only the scores. The order of rows and slides does not matter.

    Parameters
    ----------
    adata_ref, normalize, use_rep, library_key, patient_key, layer, device, progress
        See :func:`train`. `None` for `normalize`: the unit of the protocol, ``"log1p"`` if it is the honest one.
    methods
        Names in :data:`spahgc.methods.METHODS`; or a mapping of labels to ``{"method": name, "preset": ...,
        "method_params": {...}}``.
    panel
        Genes, or their number in each fold, as for :func:`train`; `None`: 300, or 50 with ``protocol="hest"``.
    split_by
        Unit held out: ``"patient"`` (all slides of a patient) or ``"slide"``.
    allow_shared_patients
        With ``split_by="slide"``, train on other slides of the held-out slide's patient. The scores then hold for
        further slides of the reference patients, not for new ones, and are labeled "same patient".
    protocol
        ``"honest"``, or for comparison with published scores ``"paper"`` (SpaHGC's: slides held out, patients shared,
        log10 of raw counts scaled to each slide's own range, the panel from all slides, the checkpoint of
        ``preset="paper"`` chosen on the scored slide) or ``"hest"`` (HEST-Benchmark's: the 50 most variable genes of
        all slides, log1p of raw counts, ridge with a fixed penalty on 256 components). The last two are optimistic,
        and are labeled so.
    n_seeds
        Number of seeds of each method that depends on one, counted up from `rng`. Others run once, with the first seed.
    rng
        First seed, or generator to draw it from.
    resume
        Folder that keeps each finished unit (fold, method, seed): the same call continues an interrupted run. Units of
        other methods, seeds, settings or data are computed and kept beside them. `None` keeps nothing.
    n_jobs
        Units that run side by side, one thread each. `None`: a running ``dask.distributed`` client, or
        :data:`spahgc.settings`, or one at a time on a GPU.
    key_added
        Key of the results.
    copy
        Return a copy of the table with the results, and leave the table unchanged.

    Returns
    -------
    `None`, or the copy with `copy`. Written for ``key_added="spahgc"``: ``uns["spahgc_cv"]``, scores and parameters
    (:func:`spahgc.get.cross_validation`), and unless the protocol is optimistic ``uns["spahgc_trust"]``, trust per gene
    of each method (:func:`spahgc.get.trust`), with its main columns for ``spahgc``, or the first method if it was not
    run, in ``var`` (see :func:`predict`).

    Raises
    ------
    KeyError
        If a slot, column or gene is missing.
    ValueError
        If no fold can be made without sharing patients, a slot holds invalid values, or a unit fails; finished units
        stay in `resume`.

    Examples
    --------
    >>> import spahgc
    >>> adata_ref, adata_target = spahgc.datasets.synthetic_tables()
    >>> spahgc.tl.cross_validate(adata_ref, methods=["ridge"], panel=5, n_jobs=1, progress=False)
    >>> spahgc.get.cross_validation(adata_ref).attrs["label"]
    'new patients'
    """
    from tqdm.auto import tqdm

    rules = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    if normalize is not None and normalize != rules.normalize:
        if rules.name != "honest":
            raise ValueError(f"protocol={rules.name!r} has its own unit: leave out normalize={normalize!r}.")
        rules = replace(rules, normalize=normalize)
    specs = _method_specs(methods)
    check_prediction_key(key_added)
    name = keys.slot(key_added, "cv")
    entry = adata_ref.uns.get(name)
    if not isinstance(entry, Mapping) or "scores" not in entry:
        check_unused(adata_ref, key_added, [("uns", name)])
    columns: dict[str, Any] = {"library_key": library_key, "patient_key": patient_key, "layer": layer}
    slots = reference_slots(adata_ref, normalize=rules.normalize, use_rep=use_rep, **columns)
    warn_of_alike(slots.patients.values())
    measured = slots.table[np.sort(np.concatenate(list(slots.rows.values())))]  # genes, and spots on tissue
    columns |= {"use_rep": slots.use_rep, "library_key": slots.library_key}
    by, shared_allowed = rules.split_by or split_by, allow_shared_patients or rules.split_by is not None
    folds = make_folds(slots.patients, split_by=by, allow_shared_patients=shared_allowed)
    wanted = rules.panel if panel is None else panel
    chosen = int(wanted) if isinstance(wanted, int | np.integer) else [str(gene) for gene in wanted]
    if rules.panel_from == "all" and isinstance(chosen, int):
        chosen = panel_of_all(measured, rules, chosen, **columns)
    size = chosen if isinstance(chosen, int) else len(chosen)
    # Make all methods now, so that a wrong parameter fails before anything runs.
    made = {
        label: get_method(spec["method"], **method_params(rules, spec["method"], spec["method_params"], size))
        for label, spec in specs.items()
    }
    first = rng_seed(rng)
    n_fits = {label: n_seeds if method.stochastic else 1 for label, method in made.items()}
    if rules.normalize != "none" and check.are_counts(slots.matrix):
        n_fits[CEILING_METHOD] = 1
    units = [
        Unit(fold.name, label, first + i) for fold in folds for label, n_runs in n_fits.items() for i in range(n_runs)
    ]
    settled: dict[str, Any] = {"protocol": rules.name, "rules": asdict(rules), "panel": chosen, "split_by": by}
    settled |= {"allow_shared_patients": shared_allowed, **columns}
    kept: dict[Unit, Path] = {}
    if resume is not None:
        data = _data_fingerprint(slots, measured.var_names.astype(str))
        run = {"spahgc": version("spahgc"), "data": data, **settled}
        kept = {unit: _kept_path(local_path(resume), unit, {**run, "method": specs.get(unit.method)}) for unit in units}
    results = {unit: scores for unit, path in kept.items() if (scores := _read_kept(path)) is not None}
    logger.info("%d folds, %d units, %d of them finished before.", len(folds), len(units), len(results))
    finished = set(results)

    def calls(cache: Path) -> Iterator[Any]:
        for fold in folds:
            missing = [unit for unit in units if unit.fold == fold.name and unit not in finished]
            if not missing:
                continue
            data, counts = fold_data(measured, fold, rules, panel=chosen, **columns)
            genes = data.cohort.genes
            where = measured.var_names.get_indexer(list(genes))
            for unit in missing:
                if unit.method == CEILING_METHOD:
                    of_unit = {"unit": unit, "genes": genes, "columns": where, "normalize": rules.normalize}
                    yield unit, run_ceiling, counts, of_unit
                else:
                    fit = {"unit": unit, "method": made[unit.method], "device": device, "peek": rules.peek}
                    yield unit, run_unit, data, {**fit, "cache": cache}

    show = settings.progress if progress is None else progress
    with (
        # The most similar spots of two slides, or of a graph, are the same in other folds and for other seeds.
        shared_folder(resume) as cache,
        tqdm(total=len(units), initial=len(results), desc="Cross-validation", unit="fit", disable=not show) as bar,
    ):
        for unit, scores in run_all(calls(cache), n_jobs=n_jobs, device=device):
            if kept:
                _keep(kept[unit], scores)
            results[unit] = scores
            bar.update()

    table = _table({unit: results[unit] for unit in units}, folds, slots.patients)
    n_shared = sum(bool(fold.shared_patients) for fold in folds)
    kind = "new patients" if not n_shared else "same patient" if n_shared == len(folds) else "same patient in part"
    label = f"{rules.optimistic}; {kind}" if rules.optimistic else kind
    seeds = list(range(first, first + n_seeds))
    params = {**settled, "label": label, "methods": specs, "seeds": seeds}
    params["folds"] = {fold.name: list(fold.held_out) for fold in folds}
    trusts: dict[str, Trust] = {}
    shown = ""
    if rules.optimistic:
        logger.warning("protocol=%r is %s. Compare its scores only with those of the same protocol.", rules.name, label)
    else:
        of_trust = {name: value for name, value in settled.items() if name not in ("rules", "panel")}
        of_trust |= {"normalize": rules.normalize, "seeds": seeds}
        trusts, shown = cross_validated_trust(table, specs, of_trust)
    adata = adata_ref.copy() if copy else adata_ref
    write_cross_validation(adata, key_added, table, params, trusts, shown)
    return adata if copy else None


def _method_specs(methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Method and parameters by label."""
    given: Mapping[str, Any] = methods if isinstance(methods, Mapping) else {name: {"method": name} for name in methods}
    if not given:
        raise ValueError("`methods` is empty. Name at least one.")
    if CEILING_METHOD in given:
        raise ValueError(f"The label {CEILING_METHOD!r} is reserved for the noise ceiling. Choose another label.")
    specs = {}
    for label, spec in given.items():
        unknown = set(spec) - {"method", "preset", "method_params"}
        if unknown:
            raise ValueError(
                f"methods[{label!r}] has {format_names(sorted(unknown))}. Available: 'method', 'preset', "
                f"'method_params'."
            )
        name, params = chosen_method(spec.get("method", label), spec.get("preset"), spec.get("method_params"))
        specs[str(label)] = {"method": name, "method_params": params}
    return specs


def _table(results: Mapping[Unit, pd.DataFrame], folds: Sequence[Fold], patients: Mapping[str, str]) -> pd.DataFrame:
    """Long table of scores, in the order of the units."""
    shared = {fold.name: set(fold.shared_patients) for fold in folds}
    parts = []
    for unit, scores in results.items():
        patient = scores["slide"].map(patients)
        part = scores.assign(patient=patient, shared_patient=patient.isin(shared[unit.fold]))
        parts.append(part.assign(method=unit.method, seed=unit.seed, fold=unit.fold))
    names = ("method", "slide", "patient", "gene", "metric", "fold")
    return pd.concat(parts, ignore_index=True)[list(CV_COLUMNS)].astype(dict.fromkeys(names, object))


def _kept_path(folder: Path, unit: Unit, rules: dict[str, Any]) -> Path:
    """File that keeps the scores of a unit; its name has a digest of everything on which they depend."""
    # Names of slides and methods may hold anything; the digest distinguishes those that are spelled alike.
    parts = [unit.fold, unit.method, str(unit.seed)]
    readable = ".".join("".join(c if c.isalnum() else "-" for c in part)[:40] for part in parts)
    return folder / f"{readable}.{digest(json.dumps([parts, rules], sort_keys=True))[:16]}.npz"


def _read_kept(path: Path) -> pd.DataFrame | None:
    """Scores of a unit, if it is finished."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = {name: arrays[name].astype(object) for name in ("slide", "metric", "gene")}
            return pd.DataFrame({**names, "value": arrays["value"]})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s cannot be read (%s), so it is computed again.", path, error)
        return None


def _keep(path: Path, scores: pd.DataFrame) -> None:
    """Keep the scores of a unit; the file appears complete or not at all."""
    names: dict[str, Any] = {name: scores[name].to_numpy(np.str_) for name in ("slide", "metric", "gene")}
    with replacing(path) as temporary:
        np.savez_compressed(temporary, value=scores["value"], **names)


def _data_fingerprint(slots: ReferenceSlots, genes: Sequence[str]) -> str:
    """SHA-256 of what a cross-validation reads from a table, whatever the order of its rows.

    Counts are hashed as sparse matrices over all genes, which :meth:`Cohort.fingerprint` would need as dense ones.
    """
    parts: list[Any] = list(genes)
    for name, rows in slots.rows.items():
        rows = rows[canonical_order(slots.coordinates[rows], slots.embedding[rows][:, :4])]
        counts = sp.csr_matrix(slots.matrix[rows], dtype=np.float64, copy=True)
        counts.sum_duplicates()
        counts.eliminate_zeros()
        parts += [name, slots.patients[name], slots.embedding[rows], slots.coordinates[rows]]
        parts += [counts.data, counts.indices.astype(np.int64), counts.indptr.astype(np.int64)]
        if slots.cellularity is not None:
            parts.append(slots.cellularity[rows])
    return digest(*parts)
