"""Predictions and scores as objects to go on with in scanpy, squidpy and pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _keys as keys
from ._checks import format_names
from ._tables._cohorts import plain
from ._tables._predictions import in_store, in_table, panel
from ._tables._slots import coordinates, library_column

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_CV_COLUMNS = ("method", "slide", "patient", "gene", "metric", "value", "seed", "fold", "shared_patient")
_TRUST = "trust"
"""Entry of a prediction's record."""
VERDICTS = ("trusted", "weak", "not predictable", "not assessed")
"""Verdicts on a gene, from best to worst; the last one is that of a gene without any cross-validated score."""
_COLUMNS = ("slide", "patient", "method", "gene", "metric", "value")

__all__ = ["alignment", "cross_validation", "evidence", "predicted", "scores", "trust"]


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
    neighboring spots by the coordinates as given, and on the platform; NaN if unknown), and for the coordinates as
    ``given`` and for the best other ``candidate`` the evidence ``inside``, ``on_tissue``, ``outline``, ``expression``
    and their ``score``.

    Raises
    ------
    KeyError
        If the alignment was not checked.

    Examples
    --------
    >>> import spahgc
    >>> sdata = spahgc.datasets.synthetic_cohort(n_slides=1, n_patients=1)
    >>> spahgc.pp.check_alignment(sdata)
    >>> spahgc.get.alignment(sdata["table"])["image"].tolist()
    ['S1_image']
    """
    import pandas as pd

    slides = adata.uns.get(keys.ALIGNMENT, {}).get("slides")
    if not slides:
        raise KeyError(f"uns['{keys.ALIGNMENT}'] is missing. Run spahgc.pp.check_alignment(sdata) first.")
    evidence = ("inside", "on_tissue", "outline", "expression", "score")
    columns = ["verdict", "fix", "fixed", "image", "pitch_um", "platform_um", *(f"given_{name}" for name in evidence)]
    columns += ["candidate", *(f"candidate_{name}" for name in evidence)]
    rows = [{name: entry[name] for name in columns} for entry in slides.values()]
    return pd.DataFrame(rows, index=pd.Index(slides, name="slide"), columns=columns)


def predicted(adata: AnnData, *, key: str = keys.PREDICTION) -> AnnData:
    """The prediction as a table of its own, for scanpy, squidpy and spatialdata-plot.

    Parameters
    ----------
    adata
        Table that :func:`spahgc.tl.predict` wrote to. It is not changed.
    key
        The prediction's key.

    Returns
    -------
    AnnData with ``X`` the predicted expression (float32, n_obs x panel), ``obs``, ``obsm["spatial"]``,
    ``uns["spatial"]`` and the SpatialData region link of `adata` (for the slides it has spots of), ``var`` with what is
    known of each gene (its trust, if the model had any: see :func:`trust`; its scores, after
    :func:`spahgc.tl.evaluate`), and ``uns[key]`` with how it was made. A copy; nothing is shared.

    Where the prediction was written to a store, ``X`` is a dask array that reads it when it is asked for values;
    ``.to_memory()`` of the table reads all. Only the values come from the store.

    Raises
    ------
    KeyError
        If there is no such prediction.
    FileNotFoundError
        If its store is not there any more.
    ValueError
        If its store holds something else.
    """
    table = in_table(adata, key)
    values = in_store(adata, key) if table is None else table.to_numpy(dtype=np.float32, copy=True)
    out = without_values(adata, key, panel(adata, key))
    out.X = values
    return out


def without_values(adata: AnnData, key: str, genes: Sequence[str]) -> AnnData:
    """What :func:`predicted` returns, but for ``X``."""
    from copy import deepcopy

    import anndata
    import pandas as pd

    var = pd.DataFrame(index=pd.Index(genes))
    if _TRUST in adata.uns.get(key, {}):
        frame = trust_frame(adata.uns[key][_TRUST]).reindex(var.index)
        for column, name in keys.TRUST.items():
            var[keys.gene(key, name)] = as_verdicts(frame[column]) if column == "verdict" else frame[column]
    if keys.scores(key) in adata.uns:
        for metric, values in mean_scores(adata, key).items():
            var[keys.gene(key, metric)] = values.reindex(var.index).to_numpy()
    kept = {name: deepcopy(part) for name, part in {key: adata.uns.get(key), **_slide_slots(adata)}.items() if part}
    obsm = {keys.SPATIAL: np.array(adata.obsm[keys.SPATIAL])} if keys.SPATIAL in adata.obsm else {}
    return anndata.AnnData(obs=adata.obs.copy(), var=var, uns=kept, obsm=obsm)


def _slide_slots(adata: AnnData) -> dict[str, Any]:
    """``uns["spatial"]`` and the SpatialData link, restricted to slides that have spots in the table.

    A table cut from a larger one still lists the others, and squidpy and SpatialData take that for a fault.
    """
    images, link = adata.uns.get(keys.SPATIAL, {}), adata.uns.get(keys.SPATIALDATA_ATTRS, {})
    column = link.get("region_key")
    if column not in adata.obs:
        return {keys.SPATIAL: images, keys.SPATIALDATA_ATTRS: link}
    slides = set(adata.obs[column].dropna().astype(str))
    regions = link.get("region")
    if not isinstance(regions, str) and regions is not None:
        link = {**link, "region": [region for region in regions if str(region) in slides]}
    return {
        keys.SPATIAL: {name: part for name, part in images.items() if name in slides},
        keys.SPATIALDATA_ATTRS: link,
    }


def evidence(
    adata: AnnData,
    spots: str | Sequence[str] | None = None,
    *,
    adata_ref: AnnData | None = None,
    library_key: str | None = None,
    key: str = keys.PREDICTION,
) -> pd.DataFrame:
    """The reference spots behind the prediction of spots as a long table.

    Parameters
    ----------
    adata
        Table that :func:`spahgc.tl.explain` wrote to.
    spots
        Names of spots of `adata`, or one; `None` takes all.
    adata_ref
        The reference table, to have the names of its spots beside slide and position.
    library_key
        Column of ``adata_ref.obs`` that names the slide; `None` takes its SpatialData region key.
    key
        The prediction's key.

    Returns
    -------
    DataFrame with the columns ``spot``, ``rank`` (1 for the largest weight), ``slide``, ``patient``, ``x`` and ``y``
    (of the reference spot), ``weight`` (0 to 1; those of a spot sum to less than 1 where more reference spots were
    looked at than are kept), and with `adata_ref` ``reference``, the name of the reference spot.

    Raises
    ------
    KeyError
        If the prediction was not explained, or a spot is not there.
    ValueError
        If a reference spot is not in `adata_ref`.
    """
    import pandas as pd

    name = keys.evidence(key)
    if name not in adata.uns or keys.references(key) not in adata.obsm:
        raise KeyError(
            f"There is no evidence for {key!r}: no uns[{name!r}] with obsm[{keys.references(key)!r}]. Run "
            f"spahgc.tl.explain(model, adata, key={key!r}) with the model that predicted."
        )
    wanted = list(adata.obs_names) if spots is None else [spots] if isinstance(spots, str) else list(spots)
    rows = adata.obs_names.get_indexer(wanted)
    if (rows < 0).any():
        missing = [spot for spot, row in zip(wanted, rows, strict=True) if row < 0]
        raise KeyError(
            f"No spot {format_names(missing)} in obs_names, which begin with {format_names(adata.obs_names[:3])}."
        )
    references = np.asarray(adata.obsm[keys.references(key)])[rows]
    spot, rank = np.nonzero(references >= 0)
    of = references[spot, rank]
    entry = adata.uns[name]
    slide = np.asarray(entry["slide"])[of]
    table = pd.DataFrame(
        {
            "spot": np.asarray(wanted, dtype=object)[spot],
            "rank": rank + 1,
            "slide": np.asarray(entry["slides"], dtype=object)[slide],
            "patient": np.asarray(entry["patients"], dtype=object)[slide],
            "x": np.asarray(entry["x"])[of],
            "y": np.asarray(entry["y"])[of],
            "weight": np.asarray(adata.obsm[keys.weights(key)])[rows][spot, rank],
        }
    )
    if adata_ref is not None:
        table["reference"] = _names_at(adata_ref, table, library_key)
    return table


def _names_at(adata_ref: AnnData, table: pd.DataFrame, library_key: str | None) -> Any:
    """Names of the reference spots at some places of some slides."""
    import pandas as pd

    library_key = library_column(adata_ref, library_key, what="reference")
    places = coordinates(adata_ref, what="reference")
    there = pd.MultiIndex.from_arrays([adata_ref.obs[library_key].astype(str), places[:, 0], places[:, 1]])
    rows = pd.Series(np.arange(adata_ref.n_obs), index=there)
    rows = rows[~rows.index.duplicated()]
    found = rows.reindex(pd.MultiIndex.from_frame(table[["slide", "x", "y"]])).to_numpy()
    if np.isnan(found).any():
        first = table[np.isnan(found)].iloc[0]
        raise ValueError(
            f"adata_ref has no spot at ({first['x']:g}, {first['y']:g}) of slide {first['slide']!r}, nor "
            f"{int(np.isnan(found).sum()) - 1} others of the evidence. Pass the table that the model was trained on, "
            f"with its obsm['{keys.SPATIAL}'] as it was. Its slides: {format_names(sorted(set(adata_ref.obs[library_key])))}."
        )
    return adata_ref.obs_names.to_numpy()[found.astype(np.intp)]


def scores(adata: AnnData, *, key: str = keys.PREDICTION) -> pd.DataFrame:
    """Scores of a prediction as a long table.

    Parameters
    ----------
    adata
        Table that :func:`spahgc.tl.evaluate` wrote to.
    key
        The prediction's key.

    Returns
    -------
    DataFrame with the columns ``slide``, ``patient``, ``method``, ``gene``, ``metric``, ``value``: a row per slide,
    gene and metric.

    Raises
    ------
    KeyError
        If the prediction was not evaluated.
    """
    import pandas as pd

    name = keys.scores(key)
    if name not in adata.uns:
        raise KeyError(
            f"uns has no {name!r}: prediction {key!r} was not scored. Run spahgc.tl.evaluate(adata, key={key!r}) on "
            f"a table with measured "
            f"expression; what can be expected without one is in spahgc.get.trust. "
            f"Scored here: {format_names(k.removesuffix('_scores') for k in adata.uns if k.endswith('_scores'))}."
        )
    table = pd.DataFrame({column: np.asarray(values) for column, values in adata.uns[name].items()})
    # A file gives the keys of a dict back in another order.
    return table[sorted(table.columns, key=lambda column: _COLUMNS.index(column) if column in _COLUMNS else 99)]


def cross_validation(adata_ref: AnnData, *, key: str = keys.PREDICTION) -> pd.DataFrame:
    """Scores of a cross-validation as a long table.

    Parameters
    ----------
    adata_ref
        Table that :func:`spahgc.tl.cross_validate` wrote to.
    key
        Its ``key_added``.

    Returns
    -------
    DataFrame with the columns ``method``, ``slide``, ``patient``, ``gene``, ``metric``, ``value``, ``seed``, ``fold``
    and ``shared_patient``, as :func:`spahgc.tl.cross_validate` returned it; ``attrs`` holds ``protocol`` and ``label``.

    Raises
    ------
    KeyError
        If there is no such cross-validation.
    """
    import pandas as pd

    name = keys.cross_validation(key)
    if name not in adata_ref.uns:
        raise KeyError(
            f"uns has no {name!r}. Run spahgc.tl.cross_validate(adata_ref, key_added={key!r}) first. "
            f"Cross-validations here: {format_names(k.removesuffix('_cv') for k in adata_ref.uns if k.endswith('_cv'))}."
        )
    entry = adata_ref.uns[name]
    columns = {}
    for column in _CV_COLUMNS:
        values = entry["scores"][column]
        # Names are kept once each, beside the rows' numbers of names.
        coded = isinstance(values, Mapping)
        columns[column] = np.asarray(values["names"], dtype=object)[np.asarray(values["codes"])] if coded else values
    table = pd.DataFrame(columns)
    table.attrs = {name: str(entry[keys.PARAMS][name]) for name in ("protocol", "label")}
    return table


def trust(adata: AnnData, *, key: str = keys.PREDICTION, method: str | None = None) -> pd.DataFrame:
    """What to expect of each gene, and whether to trust it.

    Parameters
    ----------
    adata
        A prediction, made by a model that had trust, or a reference table after :func:`spahgc.tl.cross_validate`.
    key
        Key of the prediction, or of the cross-validation.
    method
        Label of the cross-validated method, for a reference table; `None` takes ``"spahgc"``, and if it was not run the
        first.

    Returns
    -------
    DataFrame by gene, best expected first: ``expected_pearson``, ``low`` and ``high`` (where the correlation on one
    more slide will be, with the probability ``attrs["level"]``), ``expected_depth_removed``, ``difference_to_ridge``,
    ``difference_to_depth``, ``share_of_ceiling``, ``n_slides``, ``verdict``; ``attrs`` holds how it was found, with the
    rule of the verdicts.

    Raises
    ------
    KeyError
        If there is no trust, or none of this method.
    """
    entry, stored = adata.uns.get(key), adata.uns.get(keys.trust(key))
    if method is None and isinstance(entry, Mapping) and _TRUST in entry:
        return trust_frame(entry[_TRUST])
    if not isinstance(stored, Mapping):
        raise KeyError(
            f"There is no trust per gene for {key!r}: no uns[{key!r}]['{_TRUST}'], no uns[{keys.trust(key)!r}]. "
            f"Run spahgc.tl.cross_validate(adata_ref), then spahgc.tl.predict(adata_ref, adata) with the same method."
        )
    label = stored[keys.PARAMS]["shown"] if method is None else method
    if label not in stored["methods"]:
        raise KeyError(f"There is no trust of method {label!r}. Available: {format_names(stored['methods'])}.")
    return trust_frame(stored["methods"][label])


def trust_frame(entry: Mapping[str, Any]) -> pd.DataFrame:
    """The table of a record of trust (see :mod:`spahgc.tl._trust_slots`), `None` and NaN alike NaN."""
    import pandas as pd

    params = plain(dict(entry[keys.PARAMS]))
    names = ["expected_pearson", "low", "high", "expected_depth_removed", f"difference_to_{params['baseline']}"]
    names += ["difference_to_depth", "share_of_ceiling"]
    columns: dict[str, Any] = {name: np.asarray(entry[name], dtype=np.float64) for name in names}
    columns["n_slides"] = np.asarray(entry["n_slides"], dtype=np.int64)
    columns["verdict"] = np.asarray(entry["verdict"], dtype=object)
    frame = pd.DataFrame(columns, index=pd.Index(np.asarray(entry["genes"], dtype=object), name="gene"))
    frame.attrs = params
    return frame


def as_verdicts(values: Any) -> Any:
    """Verdicts as a categorical, from best to worst."""
    import pandas as pd

    return pd.Categorical(values, categories=list(VERDICTS))


def mean_scores(adata: AnnData, key: str) -> dict[str, pd.Series]:
    """Mean of each metric over slides, by gene; a gene that has no score on any slide is NaN."""
    means = scores(adata, key=key).groupby(["metric", "gene"])["value"].mean()
    # Scores that were written before a metric was added lack it.
    return {metric: means[metric] for metric in keys.METRICS if metric in means}
