"""Predictions and scores as objects to continue with in scanpy, squidpy and pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from . import _keys as keys
from ._checks import checked, format_names
from ._tables._predictions import (
    Trust,
    prediction_table,
    read_cross_validation,
    read_prediction,
    read_scores,
    reading,
    reference_trusts,
    write_mean_scores,
)
from ._tables._slots import coordinates, library_column, on_tissue

__all__ = ["alignment", "cross_validation", "evidence", "predicted", "scores", "trust"]


@checked()
def alignment(adata: AnnData) -> pd.DataFrame:
    """Verdict and evidence of :func:`spahgc.pp.check_alignment`.

    Parameters
    ----------
    adata
        Table of the SpatialData that was checked.

    Returns
    -------
    A row per slide: ``verdict`` (``"ok"``, the fault in words, or ``"unclear"``), ``fix`` (what undoes it, in
    full-resolution pixels), ``fixed`` (whether that was done), ``image``, ``pitch_um`` and ``platform_um`` (distance of
    neighboring spots by the coordinates, and on the platform; NaN if unknown), and for coordinates as ``given`` and for
    the best other ``candidate`` ``inside``, ``on_tissue``, ``outline``, ``expression`` and their ``score``.

    Raises
    ------
    KeyError
        If the alignment was not checked.

    Examples
    --------
    >>> import spahgc
    >>> sdata = spahgc.datasets.synthetic_cohort(n_slides=1, n_patients=1, n_spots=30)
    >>> spahgc.pp.check_alignment(sdata)
    >>> spahgc.get.alignment(sdata["table"])["image"].tolist()
    ['S1_image']
    """
    slides = keys.part(adata.uns, keys.ALIGNMENT, "slides")
    if not slides:
        raise KeyError(f"uns['{keys.ALIGNMENT}'] is missing. Run spahgc.pp.check_alignment(sdata) first.")
    evidence = ("inside", "on_tissue", "outline", "expression", "score")
    columns = ["verdict", "fix", "fixed", "image", "pitch_um", "platform_um", *(f"given_{name}" for name in evidence)]
    columns += ["candidate", *(f"candidate_{name}" for name in evidence)]
    with reading(f"uns['{keys.ALIGNMENT}']", "Run spahgc.pp.check_alignment(sdata) again."):
        return pd.DataFrame([dict(of) for of in slides.values()], index=pd.Index(slides, name="slide"), columns=columns)


@checked()
def predicted(adata: AnnData, *, key: str = keys.PREDICTION, all_spots: bool = False) -> AnnData:
    """Prediction as a table of its own, for scanpy, squidpy and spatialdata-plot.

    Parameters
    ----------
    adata
        Table that :func:`spahgc.tl.predict` wrote to. It is not changed.
    key
        Key of the prediction.
    all_spots
        Keep spots beside the tissue (``obs["in_tissue"]`` is 0), which are left out otherwise.

    Returns
    -------
    AnnData with the predicted expression in ``X`` (float32, n_obs x panel), trust and scores of each gene in ``var``,
    and copies of ``obs``, ``obsm["spatial"]``, ``uns["spatial"]``, ``uns[key]`` and the SpatialData region link. If the
    prediction was written to a store, ``X`` is a dask array that reads it on access.

    Raises
    ------
    KeyError
        If there is no such prediction.
    FileNotFoundError, ValueError
        If its store does not exist any more, or holds something else.

    Examples
    --------
    >>> import spahgc
    >>> adata_ref, adata_target = spahgc.datasets.synthetic_tables()
    >>> spahgc.tl.predict(adata_ref, adata_target, method="knn", panel=5)
    >>> spahgc.get.predicted(adata_target).shape
    (25, 5)
    """
    if not all_spots and not (on := on_tissue(adata, what="adata")).all() and on.any():
        adata = adata[on]
    prediction = read_prediction(adata, key)
    out = prediction_table(adata, key, prediction)
    if keys.slot(key, "scores") in adata.uns:
        write_mean_scores(out, key, read_scores(adata, key))
    in_memory = hasattr(prediction.values, "to_numpy")
    out.X = prediction.values.to_numpy(dtype=np.float32, copy=True) if in_memory else prediction.values
    return out


@checked()
def evidence(
    adata: AnnData,
    spots: str | Sequence[str] | None = None,
    *,
    adata_ref: AnnData | None = None,
    library_key: str | None = None,
    key: str = keys.PREDICTION,
) -> pd.DataFrame:
    """Reference spots behind the prediction of spots as a long table.

    Parameters
    ----------
    adata
        Table that :func:`spahgc.tl.explain` wrote to.
    spots
        Names of spots of `adata`, or one; `None` takes all.
    adata_ref
        Reference table, to add the names of the reference spots.
    library_key
        Column of ``adata_ref.obs`` with the slide; `None` takes its SpatialData region key.
    key
        Key of the prediction.

    Returns
    -------
    DataFrame with the columns ``spot``, ``rank`` (1 for the largest weight), ``slide``, ``patient``, ``x`` and ``y``
    (of the reference spot, pixels), ``weight`` in [0, 1] (the weights of a spot sum to less than 1 if it has more
    reference spots than are kept), and with `adata_ref` ``reference``, the name of the reference spot.

    Raises
    ------
    KeyError
        If the prediction was not explained, or a spot does not exist.
    ValueError
        If a reference spot is not in `adata_ref`.

    Examples
    --------
    >>> import spahgc
    >>> adata_ref, adata_target = spahgc.datasets.synthetic_tables()
    >>> model = spahgc.tl.train(adata_ref, method="knn", panel=5)
    >>> spahgc.tl.predict(model, adata_target)
    >>> spahgc.tl.explain(model, adata_target, n_references=3)
    >>> spahgc.get.evidence(adata_target, adata_target.obs_names[0])["rank"].tolist()
    [1, 2, 3]
    """
    name, index = keys.slot(key, "evidence"), keys.slot(key, "references")
    if name not in adata.uns or index not in adata.obsm:
        raise KeyError(
            f"Prediction {key!r} has no evidence: uns[{name!r}] or obsm[{index!r}] is missing. Run "
            f"spahgc.tl.explain(model, adata, key={key!r}) with the model that made the prediction."
        )
    wanted = pd.Index([spots] if isinstance(spots, str) else adata.obs_names if spots is None else spots, dtype=object)
    rows = adata.obs_names.get_indexer(wanted)
    if (rows < 0).any():
        raise KeyError(
            f"No spot {format_names(wanted[rows < 0])} in obs_names, which begin with "
            f"{format_names(adata.obs_names[:3])}."
        )
    with reading(f"uns[{name!r}]", "Run spahgc.tl.explain again."):
        references = np.asarray(adata.obsm[index])[rows]
        spot, rank = np.nonzero(references >= 0)
        of, entry = references[spot, rank], adata.uns[name]
        slide = np.asarray(entry["slide"])[of]
        table = pd.DataFrame(
            {
                "spot": wanted.to_numpy()[spot],
                "rank": rank + 1,
                "slide": np.asarray(entry["slides"], dtype=object)[slide],
                "patient": np.asarray(entry["patients"], dtype=object)[slide],
                "x": np.asarray(entry["x"])[of],
                "y": np.asarray(entry["y"])[of],
                "weight": np.asarray(adata.obsm[keys.slot(key, "weights")])[rows][spot, rank],
            }
        )
    if adata_ref is not None:
        table["reference"] = _names_at(adata_ref, table, library_key)
    return table


def _names_at(adata_ref: AnnData, table: pd.DataFrame, library_key: str | None) -> Any:
    """Names of the reference spots at the positions of a table of evidence."""
    slides = adata_ref.obs[library_column(adata_ref, library_key, what="reference")].astype(str)
    places = coordinates(adata_ref, what="reference")
    index = pd.MultiIndex.from_arrays([slides, places[:, 0], places[:, 1]])
    rows = pd.Series(np.arange(adata_ref.n_obs), index=index)
    rows = rows[~rows.index.duplicated()].reindex(pd.MultiIndex.from_frame(table[["slide", "x", "y"]]))
    missing = table[rows.isna().to_numpy()]
    if len(missing):
        first = missing.iloc[0]
        raise ValueError(
            f"adata_ref has no spot at ({first['x']:g}, {first['y']:g}) of slide {first['slide']!r}, nor "
            f"{len(missing) - 1} other spots of the evidence. Pass the table that the model was trained on, with its "
            f"original obsm['{keys.SPATIAL}']. Its slides: {format_names(sorted(set(slides)))}."
        )
    return adata_ref.obs_names.to_numpy()[rows.to_numpy(dtype=np.intp)]


@checked()
def scores(adata: AnnData, *, key: str = keys.PREDICTION) -> pd.DataFrame:
    """Scores of a prediction as a long table.

    Parameters
    ----------
    adata
        Table that :func:`spahgc.tl.evaluate` wrote to.
    key
        Key of the prediction.

    Returns
    -------
    DataFrame with the columns ``slide``, ``patient``, ``method``, ``gene``, ``metric``, ``value``: a row per slide,
    gene and metric.

    Raises
    ------
    KeyError
        If the prediction was not evaluated.

    Examples
    --------
    >>> import spahgc
    >>> adata_ref, adata_target = spahgc.datasets.synthetic_tables()
    >>> spahgc.tl.predict(adata_ref, adata_target, method="knn", panel=5)
    >>> spahgc.tl.evaluate(adata_target)
    >>> sorted(spahgc.get.scores(adata_target)["slide"].unique())
    ['S4']
    """
    return read_scores(adata, key)


@checked()
def cross_validation(adata_ref: AnnData, *, key: str = keys.PREDICTION) -> pd.DataFrame:
    """Scores of a cross-validation as a long table.

    Parameters
    ----------
    adata_ref
        Table that :func:`spahgc.tl.cross_validate` wrote to.
    key
        Key of the cross-validation, its ``key_added``.

    Returns
    -------
    DataFrame with the columns ``method`` (the label), ``slide``, ``patient``, ``gene``, ``metric``, ``value``,
    ``seed``, ``fold`` and ``shared_patient`` (whether the patient has slides in the training fold). Metrics are those
    of :func:`spahgc.tl.evaluate`, and ``ceiling`` in rows of method ``measured``: the noise ceiling, an upper bound for
    any method (only with counts). ``attrs`` holds ``protocol`` and ``label``.

    Raises
    ------
    KeyError
        If there is no such cross-validation.

    Examples
    --------
    >>> import spahgc
    >>> adata_ref, adata_target = spahgc.datasets.synthetic_tables()
    >>> spahgc.tl.cross_validate(adata_ref, methods=["ridge"], panel=5, n_jobs=1, progress=False)
    >>> spahgc.get.cross_validation(adata_ref)["fold"].unique().tolist()
    ['P1', 'P2']
    """
    return read_cross_validation(adata_ref, key)


@checked()
def trust(adata: AnnData, *, key: str = keys.PREDICTION, method: str | None = None) -> pd.DataFrame:
    """Expected score of each gene, and whether to trust it.

    Parameters
    ----------
    adata
        Prediction of a model with trust, or reference table after :func:`spahgc.tl.cross_validate`.
    key
        Key of the prediction or the cross-validation.
    method
        Label of the cross-validated method, for a reference table; `None` takes ``"spahgc"``, or the first method if
        it was not run.

    Returns
    -------
    DataFrame by gene, best expected first, with the columns of :doc:`/outputs`; ``attrs`` holds how they were
    estimated, with the ``level`` of the interval and the ``rule`` of the verdicts.

    Raises
    ------
    KeyError
        If there is no trust, or none of this method.

    Examples
    --------
    >>> import spahgc
    >>> adata_ref, adata_target = spahgc.datasets.synthetic_tables()
    >>> spahgc.tl.cross_validate(adata_ref, methods=["ridge"], panel=5, n_jobs=1, progress=False)
    >>> spahgc.get.trust(adata_ref, method="ridge")["verdict"].notna().all()
    np.True_
    """
    entry = adata.uns.get(key)
    if method is None and isinstance(entry, dict) and "trust" in entry:
        with reading(f"uns[{key!r}]['trust']", "Predict again."):
            return Trust.from_slots(entry["trust"]).frame
    trusts, shown = reference_trusts(adata, key)
    if not trusts:
        raise KeyError(
            f"There is no trust per gene for {key!r}: no uns[{key!r}]['trust'], no uns['{keys.slot(key, 'trust')}']. "
            f"Run spahgc.tl.cross_validate(adata_ref), then spahgc.tl.predict(adata_ref, adata) with the same method."
        )
    label = shown if method is None else method
    if label not in trusts:
        raise KeyError(f"There is no trust of method {label!r}. Available: {format_names(trusts)}.")
    return trusts[label].frame
