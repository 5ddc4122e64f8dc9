"""Where trust per gene is kept: on the reference table, with a model, on a prediction.

A record of trust is ``{"params": {...}, "genes": [...], <column>: [...]}``, made of what both JSON and an AnnData file
take.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _keys as keys
from .._slides import Cohort, SplitBy
from .._tables._cohorts import Recipe, plain
from ..get import as_verdicts, trust_frame
from ..methods import Method, get_method
from ._trust import NOT_ASSESSED, TRUSTED, WEAK, gene_trust, rule, same_patient

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("spahgc")

LEVEL = 0.9
"""Probability that an interval covers."""
BASELINE = "ridge"
_SHOWN = "spahgc"
"""Method of which ``var`` holds the trust, if it was cross-validated."""


def record(trust: pd.DataFrame, params: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a frame that :func:`~spahgc.tl._trust.gene_trust` made."""
    columns = {
        name: np.array(trust[name], dtype=object if trust[name].dtype == object else None) for name in trust.columns
    }
    return {keys.PARAMS: dict(params), "genes": np.array(trust.index, dtype=object), **columns}


def store_trust(
    adata_ref: AnnData,
    table: pd.DataFrame,
    *,
    methods: Mapping[str, Mapping[str, Any]],
    params: Mapping[str, Any],
    key: str = keys.PREDICTION,
) -> None:
    """Put the trust in each gene on the reference table, for every method of a cross-validation.

    Parameters
    ----------
    adata_ref
        Table of the reference slides.
    table
        Scores of the cross-validation.
    methods
        ``{"method": ..., "method_params": ...}`` by label.
    params
        Of the cross-validation: ``split_by``, ``normalize``, ``use_rep``, and whatever else is to be kept.
    key
        Key of the cross-validation. Written are ``uns["{key}_trust"]``, a record by label, and of the method ``spahgc``
        (if it was not run, of the first) ``var["{key}_expected_pearson"]``, ``["{key}_trust_low"]``,
        ``["{key}_trust_high"]``, ``["{key}_trust"]``.
    """
    by: SplitBy = params["split_by"]
    slides = table.drop_duplicates("slide").set_index("slide")["patient"].astype(str)
    common = {
        **params,
        "level": LEVEL,
        "baseline": BASELINE,
        "rule": rule(LEVEL),
        "same_patient": same_patient(table, by),
        "slides": [str(slide) for slide in sorted(slides.index)],
        "patients": sorted(set(slides)),
    }
    records = {
        label: record(
            gene_trust(table, method=label, baseline=BASELINE, level=LEVEL, split_by=by),
            {**common, "label": label, **spec},
        )
        for label, spec in methods.items()
    }
    shown = _SHOWN if _SHOWN in records else next(iter(records))
    adata_ref.uns[keys.trust(key)] = {keys.PARAMS: {"shown": shown}, "methods": records}
    write_columns(adata_ref, records[shown], key)


def drop_trust(adata_ref: AnnData, key: str = keys.PREDICTION) -> None:
    """Take trust off a reference table."""
    adata_ref.uns.pop(keys.trust(key), None)
    drop_columns(adata_ref, key)


def write_columns(adata: AnnData, entry: Mapping[str, Any], key: str) -> None:
    """The main columns of a record into ``var``; NaN for genes that it does not hold."""
    frame = trust_frame(entry).reindex(adata.var_names)
    for column, name in keys.TRUST.items():
        values = as_verdicts(frame[column]) if column == "verdict" else frame[column].to_numpy()
        adata.var[keys.gene(key, name)] = values


def drop_columns(adata: AnnData, key: str) -> None:
    """Take what :func:`write_columns` wrote out of ``var``."""
    adata.var.drop(columns=[keys.gene(key, name) for name in keys.TRUST.values()], errors="ignore", inplace=True)


def trust_for(
    adata_ref: AnnData, method: Method, cohort: Cohort, recipe: Recipe, *, key: str = keys.PREDICTION
) -> dict[str, Any] | None:
    """The record on the reference table that holds for a model trained on it; `None` if there is none.

    It holds if the same method was cross-validated, with the same parameters, unit and embedding, on the slides that
    the model is trained on and no others: a slide that was put aside as a target must not have entered.
    """
    entry = adata_ref.uns.get(keys.trust(key))
    if not isinstance(entry, Mapping) or "methods" not in entry:
        return None
    wanted = _identity(method.name, method.params(), recipe.normalize, recipe.use_rep, [slide.name for slide in cohort])
    differing: set[str] = set()
    for of_method in entry["methods"].values():
        params = plain(dict(of_method[keys.PARAMS]))
        if params["method"] != method.name:
            continue
        made = get_method(params["method"], **params["method_params"]).params()
        found = _identity(params["method"], made, params["normalize"], params["use_rep"], params["slides"])
        if found == wanted:
            return _plain_record(of_method, list(recipe.genes))
        differing |= {name for name in wanted if wanted[name] != found[name]}
    logger.warning(
        "The trust per gene in uns[%r] does not apply to this model (%s), and is left off. "
        "Run spahgc.tl.cross_validate on the reference slides with the method and parameters of the training.",
        keys.trust(key),
        f"{', '.join(sorted(differing))} differ" if differing else f"{method.name!r} was not cross-validated",
    )
    return None


def _identity(method: str, params: Mapping[str, Any], unit: str, use_rep: str, slides: Sequence[str]) -> dict[str, Any]:
    return {
        "method": method,
        "method_params": plain(dict(params)),
        "normalize": unit,
        "use_rep": use_rep,
        "slides": sorted(map(str, slides)),
    }


def _plain_record(entry: Mapping[str, Any], genes: Sequence[str]) -> dict[str, Any]:
    """The record of the genes of a panel, in Python types, `None` for NaN; genes it has not are not assessed."""
    frame = trust_frame(entry).reindex(list(genes))
    frame["verdict"] = frame["verdict"].fillna(NOT_ASSESSED)
    frame["n_slides"] = frame["n_slides"].fillna(0).astype(int)
    frame = frame.sort_values("expected_pearson", ascending=False, kind="stable")
    columns: dict[str, Any] = {
        str(name): [None if value != value else value for value in frame[name].tolist()] for name in frame
    }
    return {keys.PARAMS: plain(dict(entry[keys.PARAMS])), "genes": [str(gene) for gene in frame.index], **columns}


def for_targets(
    entry: Mapping[str, Any], targets: Mapping[str, str | None], known: Sequence[str | None]
) -> dict[str, Any]:
    """A model's record as it holds for target slides.

    Parameters
    ----------
    entry
        The model's record.
    targets
        Patient of each target slide; `None` if not known.
    known
        Patients of the reference.

    Returns
    -------
    A record with arrays. Trust that was found on slides of the reference's own patients says little about another
    patient: if a target slide is of one, or of one that is not named, no gene is more than weak, there is no
    interval, and ``params["other_patient"]`` names the slides.
    """
    params = dict(entry[keys.PARAMS])
    other = sorted(slide for slide, patient in targets.items() if patient is None or patient not in known)
    frame = trust_frame(entry)
    params["other_patient"] = other if params["same_patient"] else []
    if params["other_patient"]:
        frame[["low", "high"]] = np.nan
        frame["verdict"] = frame["verdict"].replace(TRUSTED, WEAK)
        logger.warning(
            "Trust per gene was found on held-out slides of the reference's own patients, and %s not known to be of "
            "one of them: no gene is more than weak there, and no interval is given. Cross-validate with slides of "
            "several patients, split_by='patient'.",
            f"{', '.join(other)} {'is' if len(other) == 1 else 'are'}",
        )
    return record(frame, params)
