"""Cross-validate methods on the reference slides."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _keys as keys
from .._checks import rng_seed
from .._disk import shared_folder
from .._settings import settings
from .._slides import Normalize, SplitBy
from .._tables import _slots as check
from ._folds import Fold, make_folds
from ._parallel import run_all
from ._plan import checked_slides, make_methods, method_specs, settled_panel
from ._protocols import Protocol, get_protocol, panel_of_all
from ._resume import Folder, data_fingerprint
from ._trust import CEILING_METHOD
from ._trust_slots import drop_trust, store_trust
from ._units import Result, Unit, fold_data, run_ceiling, run_unit

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("spahgc")

DEFAULT_METHODS = ("ridge", "context_ridge", "spahgc")


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
    protocol: str | Protocol = "honest",
    seeds: int = 3,
    rng: int | np.random.Generator = 0,
    resume: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
    key_added: str = keys.PREDICTION,
) -> pd.DataFrame:
    """Hold out each patient's slides in turn, train on the others, predict from the H&E alone, score.

    All that is fitted (panel, scalers, components, hyperparameters, epochs) is fitted on the training slides of the
    fold; the held-out slides' expression enters the scores and nothing else. The order of rows and slides does not
    matter.

    Parameters
    ----------
    adata_ref
        Table of the reference slides, as for :func:`train`.
    methods
        Names in :data:`spahgc.methods.METHODS`; or a label for each, with ``{"method": name, "preset": ...,
        "method_params": {...}}``.
    panel
        Genes, or how many to take in each fold, as for :func:`train`; `None`: 300, and 50 under ``protocol="hest"``.
    normalize
        Unit of the expression, as for :func:`train`; `None`: ``"log1p"``, under the other protocols theirs.
    use_rep, library_key, patient_key, layer
        As for :func:`train`.
    split_by
        What is held out: ``"patient"``, all slides of a patient at a time, or ``"slide"``.
    allow_shared_patients
        With ``split_by="slide"``, train on other slides of the held-out slide's patient. The scores then hold for other
        slides of the reference's own patients, not for new ones, and are labelled "same patient".
    protocol
        ``"honest"``, or for comparison with published scores ``"paper"`` (SpaHGC's: slides held out, patients shared,
        log10 of raw counts scaled to each slide's own range, the panel from all slides, the checkpoint of
        ``preset="paper"`` chosen on the scored slide) or ``"hest"`` (HEST-Benchmark's: the 50 most variable genes of
        all slides, log1p of raw counts, ridge with a fixed penalty on 256 components). The last two are optimistic,
        and are labelled so.
    seeds
        Seeds for each method that depends on one, counted up from `rng`. Others run once, and carry the first seed.
    rng
        First seed, or generator to draw it from.
    resume
        Folder that keeps each finished unit (fold, method, seed) at once: the same call goes on where it was stopped.
        Methods and seeds may be added later. `None`: nothing is kept of a run that is stopped.
    n_jobs
        Units that run side by side, one thread each. `None`: a running ``dask.distributed`` client is used; else
        :data:`spahgc.settings`, and one at a time on a GPU.
    device, progress
        `None` takes :data:`spahgc.settings`.
    key_added
        Key of what is written.

    Returns
    -------
    A long table with the columns ``method`` (the label), ``slide``, ``patient``, ``gene``, ``metric``, ``value``,
    ``seed``, ``fold`` and ``shared_patient`` (whether the patient was trained on). Metrics are those of
    :func:`evaluate`, and ``ceiling`` in rows of method ``measured``: the noise ceiling, which no method can be expected
    to pass (where there are counts). ``attrs`` says protocol and label. Written is ``uns["{key_added}_cv"]``: the table
    (:func:`spahgc.get.cross_validation`) and ``params``; and, unless the protocol is optimistic, trust per gene:
    ``uns["{key_added}_trust"]`` (:func:`spahgc.get.trust`), a record for each method, and of the method ``spahgc``
    (if it is not there, of the first) ``var["{key_added}_expected_pearson"]``, ``["{key_added}_trust_low"]``,
    ``["{key_added}_trust_high"]`` and ``["{key_added}_trust"]``, the verdict.

    Raises
    ------
    KeyError
        If a slot, column or gene is not there.
    ValueError
        If no fold can be made without sharing patients, values are not what they have to be, `resume` is the folder of
        another run, or a unit fails; finished units stay in `resume`.
    """
    rules = get_protocol(protocol)
    if normalize is not None and normalize != rules.normalize:
        if rules.name != "honest":
            raise ValueError(f"protocol={rules.name!r} has its own unit; leave normalize out, not {normalize!r}.")
        rules = Protocol(**{**asdict(rules), "normalize": normalize})
    if isinstance(seeds, bool) or seeds < 1:
        raise ValueError(f"seeds is a number of at least 1, not {seeds!r}.")
    specs = method_specs(methods)
    library_key, use_rep, patients, matrix = checked_slides(
        adata_ref, rules, use_rep=use_rep, library_key=library_key, patient_key=patient_key, layer=layer
    )
    _check_key(adata_ref, key_added)
    by = rules.split_by or split_by
    shared_allowed = allow_shared_patients or rules.split_by is not None
    folds = make_folds(patients, split_by=by, allow_shared_patients=shared_allowed)
    n_genes = settled_panel(panel, rules)
    columns: dict[str, Any] = {
        "use_rep": use_rep,
        "library_key": library_key,
        "patient_key": patient_key,
        "layer": layer,
    }
    if rules.panel_from == "all" and isinstance(n_genes, int):
        n_genes = panel_of_all(adata_ref, rules, n_genes, **columns)
    made = make_methods(specs, rules, n_genes)
    first = rng_seed(rng)
    n_fits = {label: seeds if method.stochastic else 1 for label, method in made.items()}
    if rules.normalize != "none" and check.are_counts(matrix):
        n_fits[CEILING_METHOD] = 1
    units = [
        Unit(fold.name, label, first + i) for fold in folds for label, n_runs in n_fits.items() for i in range(n_runs)
    ]
    params = {
        "protocol": rules.name,
        "rules": asdict(rules),
        "panel": n_genes,
        "split_by": by,
        "allow_shared_patients": shared_allowed,
        **columns,
    }
    folder = None
    if resume is not None:
        data = data_fingerprint(adata_ref, use_rep=use_rep, library_key=library_key, patients=patients, matrix=matrix)
        folder = Folder(resume, run={"data": data, **params}, methods=specs)
    results = {unit: result for unit in units if folder and (result := folder.read(unit))}
    missing = [unit for unit in units if unit not in results]
    logger.info("%d folds, %d units, %d of them finished before.", len(folds), len(units), len(results))

    def calls() -> Iterator[Any]:
        for fold in folds:
            of_fold = [unit for unit in missing if unit.fold == fold.name]
            if of_fold:
                shared, counts = fold_data(adata_ref, fold, rules, panel=n_genes, **columns)
                genes = shared.cohort.genes
                for unit in of_fold:
                    arguments: dict[str, Any] = {"unit": unit}
                    if unit.method == CEILING_METHOD:
                        where = adata_ref.var_names.get_indexer(list(genes))
                        yield (
                            unit,
                            run_ceiling,
                            counts,
                            {**arguments, "genes": genes, "columns": where, "how": rules.normalize},
                        )
                    else:
                        arguments |= {"method": made[unit.method], "device": device, "peek": rules.peek, "cache": cache}
                        yield unit, run_unit, shared, arguments

    from tqdm.auto import tqdm

    show = settings.progress if progress is None else progress
    with (
        # Which spots are most alike, of two slides or in a graph, is the same in other folds or for other seeds.
        shared_folder(resume) as cache,
        tqdm(total=len(units), initial=len(results), desc="Cross-validation", unit="fit", disable=not show) as bar,
    ):
        for unit, result in run_all(calls(), n_jobs=n_jobs, device=device):
            if folder:
                folder.write(unit, result)
            results[unit] = result
            bar.update()

    table = _table({unit: results[unit] for unit in units}, folds, patients)
    label = _label(rules, folds)
    table.attrs = {"protocol": rules.name, "label": label}
    adata_ref.uns[keys.cross_validation(key_added)] = {
        keys.PARAMS: {
            **params,
            "label": label,
            "methods": specs,
            "seeds": [first + i for i in range(seeds)],
            "folds": {fold.name: list(fold.held_out) for fold in folds},
        },
        "scores": _columns(table),
    }
    drop_trust(adata_ref, key_added)
    if not rules.optimistic:
        store_trust(
            adata_ref,
            table,
            methods=specs,
            params={
                "protocol": rules.name,
                "normalize": rules.normalize,
                "split_by": by,
                "allow_shared_patients": shared_allowed,
                **columns,
                "seeds": [first + i for i in range(seeds)],
            },
            key=key_added,
        )
    if rules.optimistic:
        logger.warning(
            "protocol=%r is %s. Compare such scores only with scores of the same protocol.", rules.name, label
        )
    return table


def _check_key(adata: AnnData, key: str) -> None:
    """The key is a plain name, and free or one of our own."""
    if not key or not all(c.isalnum() or c in "_-." for c in key):
        raise ValueError(f"key_added is made of letters, digits, '_', '-' and '.', not {key!r}.")
    name = keys.cross_validation(key)
    there = adata.uns.get(name)
    if there is not None and not (isinstance(there, Mapping) and "scores" in there):
        raise ValueError(
            f"uns[{name!r}] holds something else, where key_added={key!r} writes; it is never overwritten. Choose "
            f"another key_added."
        )


def _label(rules: Protocol, folds: Sequence[Fold]) -> str:
    """What the scores hold for."""
    n_shared = sum(bool(fold.shared_patients) for fold in folds)
    kind = "new patients" if not n_shared else "same patient" if n_shared == len(folds) else "same patient in part"
    return "; ".join(part for part in (rules.optimistic, kind) if part)


def _table(results: Mapping[Unit, Result], folds: Sequence[Fold], patients: Mapping[str, str]) -> pd.DataFrame:
    """The long table, in the order of the units."""
    import pandas as pd

    shared = {fold.name: set(fold.shared_patients) for fold in folds}
    parts = []
    for unit, result in results.items():
        n_slides, n_metrics, n_genes = result.values.shape
        names = np.array(result.slides, dtype=object)
        owners = np.array([patients[name] for name in result.slides], dtype=object)
        known = np.array([patients[name] in shared[unit.fold] for name in result.slides])
        each = n_metrics * n_genes
        parts.append(
            pd.DataFrame(
                {
                    "method": unit.method,
                    "slide": np.repeat(names, each),
                    "patient": np.repeat(owners, each),
                    "gene": np.tile(np.array(result.genes, dtype=object), n_slides * n_metrics),
                    "metric": np.tile(np.repeat(np.array(result.metrics, dtype=object), n_genes), n_slides),
                    "value": result.values.ravel(),
                    "seed": unit.seed,
                    "fold": unit.fold,
                    "shared_patient": np.repeat(known, each),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    """Columns as a file takes them: each name is kept once, beside the rows' numbers of names."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for name in table.columns:
        if table[name].dtype == object:
            codes, names = pd.factorize(table[name])
            columns[name] = {"codes": codes.astype(np.int32), "names": np.array(names, dtype=object)}
        else:
            columns[name] = table[name].to_numpy()
    return columns
