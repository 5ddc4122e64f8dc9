"""Checks of the slots of a table; each error says what, where, what is available and what to run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import format_names
from .._slides import Float32, Float64, blocks

if TYPE_CHECKING:
    from anndata import AnnData


Kind = Literal["symbol", "ensembl"]


_ENSEMBL = re.compile(r"(ENS(?:[A-Z]{3,4})?G\d{11})(?:\.\d+)?(_PAR_Y)?")


def ensembl_id(name: str) -> str:
    """The Ensembl gene id that a name is, without its version; empty for any other name."""
    found = _ENSEMBL.fullmatch(name)
    return found[1] + (found[2] or "") if found else ""


def kind_of(names: Iterable[str]) -> Kind:
    """What most of the names are."""
    share = Counter(bool(ensembl_id(name.strip())) for name in names)
    return "ensembl" if share[True] > share[False] else "symbol"


def difference(names: Iterable[str], others: Iterable[str]) -> Literal["kind", "version", "case", ""]:
    """In what two lists of names mainly differ: Ensembl ids and symbols, versions of the ids, or upper case."""
    names, others = list(names), list(others)
    if kind_of(names) != kind_of(others):
        return "kind"
    half = 0.5 * max(1, len(names))
    ids = {ensembl_id(name) for name in others} - {""}
    if sum(ensembl_id(name) in ids for name in names) > half:
        return "version"
    folded = {name.casefold() for name in others}
    return "case" if sum(name.casefold() in folded for name in names) > half else ""


_WITHOUT_EXPRESSION = {
    "reference": "A reference needs measured expression; a slide with H&E only is a target.",
    "target": "There is nothing to score the prediction against: a slide with H&E only has no scores.",
}


def check_table(adata: Any, *, what: str) -> AnnData:
    """An AnnData with at least one spot and unique names."""
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        hint = " Pass the table: sdata['table']." if hasattr(adata, "tables") else ""
        raise TypeError(f"{what} is an AnnData table, not {type(adata).__name__}.{hint}")
    if adata.n_obs == 0:
        raise ValueError(f"{what} has no spots (n_obs is 0).")
    if adata.isbacked:
        raise ValueError(f"{what} is backed by a file. Load it whole: adata = adata.to_memory().")
    for axis, index in (("obs", adata.obs_names), ("var", adata.var_names)):
        if not index.is_unique:
            again = index[index.duplicated()].unique()
            raise ValueError(
                f"{what}.{axis}_names has {len(again)} duplicated names: {format_names(again, most=5)}. "
                f"Run adata.{axis}_names_make_unique(), or drop the copies."
            )
    return adata


def library_column(adata: AnnData, library_key: str | None, *, what: str) -> str:
    """Name of the ``obs`` column that says which slide a spot is on."""
    if library_key is None:
        library_key = adata.uns.get(keys.SPATIALDATA_ATTRS, {}).get("region_key")
        if library_key is None:
            raise KeyError(
                f"{what} does not say which slide each spot is on: it has no uns['{keys.SPATIALDATA_ATTRS}'] and "
                f"library_key was "
                f"not given. Pass library_key=<column of obs>; available: {format_names(adata.obs.columns)}."
            )
    return column(adata, library_key, what=what, parameter="library_key")


def column(adata: AnnData, key: str, *, what: str, parameter: str, hint: str = "") -> str:
    """Name of an ``obs`` column that is there and has no missing values."""
    if key not in adata.obs:
        raise KeyError(
            f"{what}.obs has no column {key!r} ({parameter}). Available: "
            f"{format_names(adata.obs.columns)}.{' ' + hint if hint else ''}"
        )
    if adata.obs[key].isna().any():
        raise ValueError(f"{what}.obs[{key!r}] ({parameter}) is missing for {int(adata.obs[key].isna().sum())} spots.")
    return key


def representation(adata: AnnData, use_rep: str | None, *, what: str) -> str:
    """Name of the ``obsm`` entry with the embeddings."""
    found = [key for key in adata.obsm if key.startswith(keys.IMAGE_PREFIX)]
    if use_rep is None and len(found) == 1:
        return found[0]
    run = "Run spahgc.pp.image_embedding(sdata), or put embeddings you have into obsm['image_<encoder>']"
    if use_rep is None:
        problem = (
            f"several embeddings: {format_names(found)}. Pass use_rep" if found else f"no embedding ('image_*'). {run}"
        )
        raise KeyError(f"{what}.obsm has {problem}. Available in obsm: {format_names(adata.obsm)}.")
    if use_rep not in adata.obsm:
        raise KeyError(
            f"{what}.obsm has no {use_rep!r} (use_rep). Available in obsm: {format_names(adata.obsm)}. {run}."
        )
    return use_rep


def embedding(adata: AnnData, use_rep: str, *, what: str) -> Float32:
    """Embeddings as float32 (n_obs, d), finite."""
    values = adata.obsm[use_rep]
    values = values.toarray() if sp.issparse(values) else np.asarray(values)
    if values.ndim != 2 or values.shape[1] == 0 or not np.issubdtype(values.dtype, np.number):
        raise ValueError(
            f"{what}.obsm[{use_rep!r}] is a numeric matrix (n_obs, width), not {values.dtype} of shape {values.shape}."
        )
    values = values.astype(np.float32, copy=False)
    bad = np.concatenate([~np.isfinite(values[rows]).all(axis=1) for rows in blocks(len(values))])
    if bad.any():
        raise ValueError(
            f"{what}.obsm[{use_rep!r}] has NaN or infinite values in {int(bad.sum())} of {len(bad)} spots, e.g. "
            f"{format_names(adata.obs_names[bad], most=3)}. Embed them again, or drop those spots."
        )
    return values


def coordinates(adata: AnnData, *, what: str) -> Float64:
    """Spot positions as float64 (n_obs, 2), finite."""
    if keys.SPATIAL not in adata.obsm:
        raise KeyError(
            f"{what}.obsm has no '{keys.SPATIAL}' (pixel coordinates x, y). Available in obsm: {format_names(adata.obsm)}. "
            "Read the slide with spahgc.io.read_st or spatialdata_io, or set it."
        )
    values = np.asarray(adata.obsm[keys.SPATIAL], dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"{what}.obsm['{keys.SPATIAL}'] is (n_obs, 2): x and y, not {values.shape}.")
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{what}.obsm['{keys.SPATIAL}'] has NaN or infinite values in {int(bad.sum())} spots, e.g. "
            f"{format_names(adata.obs_names[bad], most=3)}. Drop those spots."
        )
    return values


def cellularity(adata: AnnData, *, what: str) -> Float32 | None:
    """Stain density of the tiles, float32 (n_obs,), finite; `None` where ``obs`` has no numbers of that name."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    column = adata.obs.get(keys.CELLULARITY)
    if column is None or is_bool_dtype(column) or not is_numeric_dtype(column):
        return None
    values = column.to_numpy(dtype=np.float32, na_value=np.nan)
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(
            f"{what}.obs['{keys.CELLULARITY}'] has NaN or infinite values in {int(bad.sum())} of {len(bad)} spots, "
            f"e.g. {format_names(adata.obs_names[bad], most=3)}. Run spahgc.pp.image_embedding again, or drop the column or "
            f"those spots."
        )
    return values


def expression(adata: AnnData, layer: str | None, *, what: str) -> Any:
    """The expression matrix, ``X`` or a layer; dense or CSR, finite."""
    if layer is not None and layer not in adata.layers:
        raise KeyError(
            f"{what}.layers has no {layer!r} (layer). Available: {format_names(adata.layers)}; X is layer=None."
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None or adata.n_vars == 0:
        problem = "X is None" if matrix is None else "n_vars is 0"
        raise ValueError(f"{what} has no expression ({problem}). {_WITHOUT_EXPRESSION[what]}")
    matrix = sp.csr_array(matrix) if sp.issparse(matrix) else np.asarray(matrix)
    if matrix.dtype == np.float16:  # which SciPy's sparse matrices do not take
        matrix = matrix.astype(np.float32)
    if not np.isfinite(_values(matrix)).all():
        raise ValueError(f"{_matrix_name(what, layer)} has NaN or infinite values.")
    return matrix


def counts(adata: AnnData, layer: str | None, *, what: str, normalize: str) -> Any:
    """Raw counts, ``X`` or a layer: whole numbers of at least 0, not all 0."""
    matrix = expression(adata, layer, what=what)
    values = _values(matrix)
    name = _matrix_name(what, layer)
    advice = (
        f"normalize={normalize!r} starts from raw counts: pass layer=<layer with raw counts> (layers: "
        f"{format_names(adata.layers)}), "
        "or normalize='none' to take the values as they are"
    )
    if negative(matrix):
        raise ValueError(f"{name} has negative values, so it does not hold counts. {advice}.")
    if (values != np.round(values)).any():
        raise ValueError(f"{name} has values that are not whole numbers, so it does not hold counts. {advice}.")
    if not values.any():
        raise ValueError(f"{name} is all zero: no expression was measured. {_WITHOUT_EXPRESSION[what]}")
    return matrix


def are_counts(matrix: Any) -> bool:
    """Whether a matrix (dense or CSR) holds whole numbers of at least 0 only."""
    return not negative(matrix) and bool((_values(matrix) == np.round(_values(matrix))).all())


def negative(matrix: Any) -> bool:
    """Whether a matrix (dense or CSR) has values below 0."""
    return bool((_values(matrix) < 0).any())


def measured(matrix: Any) -> NDArray[np.bool_]:
    """Rows of a matrix (dense or CSR) that are not all zero."""
    return np.asarray((matrix != 0).sum(axis=1)).ravel() > 0


def is_storable(gene: str) -> bool:
    """Whether a gene's name can be that of a column in HDF5 and zarr files, where ``/`` parts groups."""
    return "/" not in gene and gene not in ("", ".", "..", "_index")


def _values(matrix: Any) -> Any:
    return matrix.data if sp.issparse(matrix) else matrix


def genes_in(wanted: Sequence[str], available: Any, *, what: str) -> None:
    """All wanted genes are among the available ones."""
    missing = [gene for gene in wanted if gene not in available]
    if missing:
        raise KeyError(
            f"{len(missing)} of {len(wanted)} genes asked for are not in {what}.var_names: {format_names(missing)}. "
            f"It has {len(available)} genes such as {format_names(list(available)[:3])}.{naming_hint(missing, available)}"
        )


def naming_hint(wanted: Sequence[str], available: Iterable[str]) -> str:
    """What to do where one side has Ensembl ids and the other symbols, or versions or case differ; empty otherwise."""
    advice = {
        "kind": "The one side uses {here}, the other {there}: put the same kind into var_names of both. "
        "spahgc.pp.harmonize_genes does so where a table has both kinds",
        "version": "The Ensembl ids differ in their versions only: spahgc.pp.harmonize_genes takes them off",
        "case": "The names differ in upper and lower case only (human and mouse symbols?): spell them alike in both; "
        "spahgc.pp.harmonize_genes(..., ignore_case=True) does",
    }.get(difference(wanted, available := list(available)))
    here, there = ("Ensembl ids", "symbols") if kind_of(wanted) == "ensembl" else ("symbols", "Ensembl ids")
    return f" {advice.format(here=here, there=there)}." if advice else ""


def _matrix_name(what: str, layer: str | None) -> str:
    return f"{what}.X" if layer is None else f"{what}.layers[{layer!r}]"
