"""The values of a prediction, whether the table holds them or a store does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _keys as keys
from .._checks import format_names
from .._disk import read_store
from .._slides import Float32

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


_WORKERS = 4
"""Chunks of a store that are read at once."""


def panel(adata: AnnData, key: str) -> list[str]:
    """The predicted genes."""
    table = in_table(adata, key)
    genes = adata.uns[key]["genes"] if table is None else table.columns
    return [str(gene) for gene in genes]


def values(adata: AnnData, key: str, genes: Sequence[str]) -> Float32:
    """Predicted expression of some genes of the panel, float32 (n_obs, n_genes), in memory."""
    import dask

    table = in_table(adata, key)
    if table is not None:
        return table[list(genes)].to_numpy(dtype=np.float32)
    at = {gene: i for i, gene in enumerate(panel(adata, key))}
    wanted = in_store(adata, key)[:, [at[gene] for gene in genes]]
    with dask.config.set(num_workers=_WORKERS):
        return np.asarray(wanted.compute(scheduler="threads"))


def stored_at(adata: AnnData, key: str) -> str | None:
    """Path of the store of a prediction; `None` if it has none."""
    entry = adata.uns.get(key)
    return str(entry[keys.STORE]) if isinstance(entry, Mapping) and keys.STORE in entry else None


def in_table(adata: AnnData, key: str) -> pd.DataFrame | None:
    """``obsm[key]``, checked to be a prediction; `None` if its values are in a store."""
    import pandas as pd

    table = adata.obsm.get(key)
    if isinstance(table, pd.DataFrame):
        return table
    if stored_at(adata, key) is not None:
        return None
    known = {name for name in adata.obsm if isinstance(adata.obsm[name], pd.DataFrame)}
    known |= {name for name in adata.uns if stored_at(adata, name) is not None}
    raise KeyError(
        f"obsm has no prediction {key!r}. Run spahgc.tl.predict(adata_ref, adata) first. "
        f"Predictions here: {format_names(sorted(known))}."
    )


def in_store(adata: AnnData, key: str) -> Any:
    """The values of a prediction in a store, for the spots of the table: dask array, float32 (n_obs, panel)."""
    path = Path(str(stored_at(adata, key)))
    try:
        store = read_store(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{error} The table's prediction {key!r} was written there. If it was moved, say where it is: "
            f"adata.uns[{key!r}][{keys.STORE!r}] = <path>; if it is lost, run spahgc.tl.predict again."
        ) from error
    again = "Run spahgc.tl.predict on this table, with a store of its own."
    if store.model != str(adata.uns[key]["model"]):
        raise ValueError(
            f"{path} holds a prediction of another model than the table's {key!r}: it was overwritten. {again}"
        )
    if store.names.equals(adata.obs_names):
        return store.values
    rows = store.names.get_indexer(adata.obs_names)
    if (rows < 0).any():
        raise ValueError(
            f"{path} has no prediction of {int((rows < 0).sum())} of the table's {adata.n_obs} spots, e.g. "
            f"{format_names(adata.obs_names[rows < 0], most=3)}. {again}"
        )
    return store.values[rows]
