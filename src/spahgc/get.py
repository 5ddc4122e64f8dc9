"""Predictions and scores as objects to go on with in scanpy, squidpy and pandas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _keys as keys
from ._validate import listed

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_CV_COLUMNS = ("method", "slide", "patient", "gene", "metric", "value", "seed", "fold", "shared_patient")
_COLUMNS = ("slide", "patient", "method", "gene", "metric", "value")

__all__ = ["cross_validation", "predicted", "scores"]


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
    known of each gene (such as its scores, after :func:`spahgc.tl.evaluate`), and ``uns[key]`` with how it was made. A
    copy; nothing is shared.

    Raises
    ------
    KeyError
        If there is no such prediction.
    """
    from copy import deepcopy

    import anndata
    import pandas as pd

    table = prediction_table(adata, key)
    var = pd.DataFrame(index=table.columns.astype(str))
    if keys.scores(key) in adata.uns:
        for metric, values in mean_scores(adata, key).items():
            var[keys.gene(key, metric)] = values.reindex(var.index).to_numpy()
    kept = {name: deepcopy(part) for name, part in {key: adata.uns.get(key), **_slide_slots(adata)}.items() if part}
    obsm = {keys.SPATIAL: np.array(adata.obsm[keys.SPATIAL])} if keys.SPATIAL in adata.obsm else {}
    return anndata.AnnData(
        X=table.to_numpy(dtype=np.float32, copy=True), obs=adata.obs.copy(), var=var, uns=kept, obsm=obsm
    )


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
            f"expression. Scored here: {listed(k.removesuffix('_scores') for k in adata.uns if k.endswith('_scores'))}."
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
            f"Cross-validations here: {listed(k.removesuffix('_cv') for k in adata_ref.uns if k.endswith('_cv'))}."
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


def mean_scores(adata: AnnData, key: str) -> dict[str, pd.Series]:
    """Mean of each metric over slides, by gene; a gene that has no score on any slide is NaN."""
    means = scores(adata, key=key).groupby(["metric", "gene"])["value"].mean()
    return {metric: means[metric] for metric in keys.METRICS}


def prediction_table(adata: AnnData, key: str) -> pd.DataFrame:
    """``obsm[key]``, checked to be a prediction."""
    import pandas as pd

    table = adata.obsm.get(key)
    if not isinstance(table, pd.DataFrame):
        raise KeyError(
            f"obsm has no prediction {key!r}. Run spahgc.tl.predict(adata_ref, adata) first. "
            f"Predictions here: {listed(name for name in adata.obsm if isinstance(adata.obsm[name], pd.DataFrame))}."
        )
    return table
