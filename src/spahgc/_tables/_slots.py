"""Checks of the slots of a table; each error says what, where, what is available and what to run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from .. import _keys as keys
from .._checks import format_names
from .._settings import logger
from .._slides import Float32, Float64, blocks

Kind = Literal["symbol", "ensembl"]
_ENSEMBL = re.compile(r"(ENS(?:[A-Z]{3,4})?G\d{11})(?:\.\d+)?(_PAR_Y)?")
# Controls of Xenium, CosMx and MERSCOPE, spike-ins (ERCC1 to ERCC8 are genes), isotype controls and antibodies.
_CONTROL = re.compile(
    r"(negative[ _-]?control|negcontrol|negprb|negprobe|systemcontrol|falsecode|(unassigned|deprecated)[ _-]|"
    r"(unassigned|deprecated)codeword|(mouse|rat|hamster)[ _-]ig[gma]|antisense[_-]|intergenic[_-]|"
    r"genomic[ _-]?control|blank[ _-]?\d|ercc-\d{5}|sirv\d).*|"
    r"negative[ _-]?\d+|.*[_-]isotype.*|.*_totalseq[abcd]?|(adt|prot|hto)[_-].+|hashtag[ _-]?\d.*|system_control.*",
    re.IGNORECASE,
)
# Kinds of features in ``feature_types``; what is not among them counts as genes, as GENCODE's biotypes do.
_NO_GENE = re.compile(
    r"antibod|adt|hto|hashtag|crispr|guide|control|codeword|blank|multiplex|isotype|peak|spike|custom|^proteins?$|"
    r"^protein (?:expression|capture)|genomic"
)
_XY = (
    *(("x", "y"), ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("imagecol", "imagerow"), ("pixel_x", "pixel_y")),
    *(("x_centroid", "y_centroid"), ("center_x", "center_y"), ("x_location", "y_location"), ("col", "row")),
    *(("centerx_global_px", "centery_global_px"), ("spatial_1", "spatial_2"), ("array_col", "array_row")),
)
_FARTHEST, _MOST_COUNTS = 1e9, 2.0**24  # pixels between spots; counts of a gene, which float32 holds exactly
_WITHOUT_EXPRESSION = "Measured expression is needed here; an H&E-only slide can be a target."


def ensembl_id(name: str) -> str:
    """Ensembl gene id without its version; empty for any other name."""
    found = _ENSEMBL.fullmatch(name)
    return found[1] + (found[2] or "") if found else ""


def kind_of(names: Iterable[str]) -> Kind:
    """Kind of most of the gene names."""
    is_ensembl = [bool(ensembl_id(name.strip())) for name in names]
    return "ensembl" if 2 * sum(is_ensembl) > len(is_ensembl) else "symbol"


def species_of(names: Iterable[str]) -> Literal["human", "mouse", "not known"]:
    """Species that gene names belong to, by Ensembl prefix or by the case of symbols."""
    names = [ensembl_id(name) or name for name in names]
    human = sum(name.startswith("ENSG0") or (not name.startswith("ENS") and name.isupper()) for name in names)
    mouse = sum(name.startswith("ENSMUSG") or (name[:1].isupper() and name[1:].islower()) for name in names)
    half = 0.5 * len(names)
    return "human" if human > half else "mouse" if mouse > half else "not known"


def difference(names: Iterable[str], others: Iterable[str]) -> Literal["kind", "version", "case", ""]:
    """Main difference of two lists of gene names: Ensembl ids or symbols, versions of the ids, or upper case."""
    names, others = list(names), list(others)
    if kind_of(names) != kind_of(others):
        return "kind"
    half = 0.5 * max(1, len(names))
    ids = {ensembl_id(name) for name in others} - {""}
    if sum(ensembl_id(name) in ids for name in names) > half:
        return "version"
    folded = {name.casefold() for name in others}
    return "case" if sum(name.casefold() in folded for name in names) > half else ""


def check_table(adata: AnnData, *, what: str) -> AnnData:
    """Raise unless a table is in memory and has at least one spot and unique names."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"{what} must be an AnnData table, got {type(adata).__name__}.")
    if adata.n_obs == 0:
        raise ValueError(f"{what} has no spots (n_obs is 0).")
    if adata.isbacked or not isinstance(adata.obs, pd.DataFrame):  # read_lazy has obs on disk, too
        raise ValueError(f"{what} is backed by a file. Load it into memory first: adata = adata.to_memory().")
    for axis, index in (("obs", adata.obs_names), ("var", adata.var_names)):
        if not index.is_unique:
            again = index[index.duplicated()].unique()
            raise ValueError(
                f"{what}.{axis}_names has {len(again)} duplicated names: {format_names(again, most=5)}. "
                f"Run adata.{axis}_names_make_unique(), or drop the copies."
            )
    return adata


def library_column(adata: AnnData, library_key: str | None, *, what: str) -> str:
    """Name of the ``obs`` column with the slide of each spot."""
    if library_key is None:
        library_key = keys.part(adata.uns, keys.SPATIALDATA_ATTRS).get("region_key")
    if library_key is None:
        raise KeyError(
            f"{what} does not say which slide each spot is on: it has no uns['{keys.SPATIALDATA_ATTRS}'], and "
            f"library_key was not given. Pass library_key=<column of obs>; available: "
            f"{format_names(adata.obs.columns)}."
        )
    return column(adata, library_key, what=what, parameter="library_key")


def column(adata: AnnData, key: str, *, what: str, parameter: str, hint: str = "") -> str:
    """Name of an ``obs`` column that exists and has no missing values."""
    if key not in adata.obs:
        raise KeyError(
            f"{what}.obs has no column {key!r} ({parameter}). Available: {format_names(adata.obs.columns)}.{hint}"
        )
    if adata.obs[key].isna().any():
        raise ValueError(
            f"{what}.obs[{key!r}] ({parameter}) is missing for {int(adata.obs[key].isna().sum())} spots.{hint}"
        )
    return key


def representation(adata: AnnData, use_rep: str | None, *, what: str) -> str:
    """Name of the ``obsm`` entry with the embeddings."""
    found = [key for key in adata.obsm if key.startswith(keys.IMAGE_PREFIX)]
    if use_rep is None and len(found) == 1:
        return found[0]
    if use_rep in adata.obsm:
        return str(use_rep)
    if use_rep is None and found:
        problem = f"several embeddings: {format_names(found)}. Pass use_rep"
    else:
        problem = "no embedding ('image_*')" if use_rep is None else f"no {use_rep!r} (use_rep)"
        problem += ". Run spahgc.pp.image_embedding(sdata), or put your own embeddings into obsm['image_<encoder>']"
    raise KeyError(f"{what}.obsm has {problem}. Available in obsm: {format_names(adata.obsm)}.")


def in_memory(values: Any, name: str) -> Any:
    """Matrix of a slot as CSR array or array of numbers in native byte order, from whatever container holds it."""
    if isinstance(values, pd.DataFrame):  # nullable and arrow columns have missing values of their own
        values = values.to_numpy(np.float64, na_value=np.nan) if _has_numbers(values) else values.to_numpy()
    try:
        for read in ("compute", "to_memory"):  # dask arrays; sparse data sets on disk
            values = getattr(values, read)() if hasattr(values, read) else values
        if sp.issparse(values) and values.dtype.isnative:
            return sp.csr_array(values)
        if sp.issparse(values):
            values = values.tocsr()
            parts = (values.data.astype(values.dtype.newbyteorder("=")), values.indices, values.indptr)
            return sp.csr_array(parts, shape=values.shape)
        values = np.asarray(values)
        if values.dtype == object:
            values = values.astype(np.float64)
    except MemoryError:
        raise MemoryError(f"{name} does not fit into memory. Select spots or genes, then adata.to_memory().") from None
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} does not hold a matrix of numbers, got {type(values).__name__} ({error}). Load the table with "
            "adata = adata.to_memory(), or convert the matrix with scipy.sparse.csr_matrix or numpy.asarray."
        ) from error
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise ValueError(f"{name} must be a numeric matrix, got {values.dtype} of shape {values.shape}.")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _has_numbers(frame: pd.DataFrame) -> bool:
    return all(is_numeric_dtype(kind) for kind in frame.dtypes)


def libraries(adata: AnnData) -> dict[str, Mapping[str, Any]]:
    """Entries of ``uns["spatial"]`` by slide, without flags (CELLxGENE) and positions (converters) that lie there."""
    entries = adata.uns.get(keys.SPATIAL)
    named = entries.items() if isinstance(entries, Mapping) else ()
    return {str(name): entry for name, entry in named if isinstance(entry, Mapping)}


def embedding(adata: AnnData, use_rep: str, *, what: str) -> Float32:
    """Embeddings as float32 (n_obs, d), finite."""
    values = in_memory(adata.obsm[use_rep], f"{what}.obsm[{use_rep!r}]")
    values = values.toarray() if sp.issparse(values) else values
    if values.ndim != 2 or values.shape[1] == 0 or not np.issubdtype(values.dtype, np.number):
        raise ValueError(
            f"{what}.obsm[{use_rep!r}] must be a numeric matrix (n_obs, width), got {values.dtype} of shape "
            f"{values.shape}."
        )
    values = values.astype(np.float32, copy=False)
    bad = np.concatenate([~np.isfinite(values[rows]).all(axis=1) for rows in blocks(len(values))])
    _check_finite(adata, bad, f"{what}.obsm[{use_rep!r}]", "Embed them again, or drop those spots.")
    return values


def coordinates(adata: AnnData, *, what: str) -> Float64:
    """Spot positions as float64 (n_obs, 2), finite."""
    name = f"{what}.obsm['{keys.SPATIAL}']"
    if keys.SPATIAL not in adata.obsm:
        raise KeyError(
            f"{what}.obsm has no '{keys.SPATIAL}' (pixel coordinates x, y). Available in obsm: "
            f"{format_names(adata.obsm)}. Read the slide with spahgc.io.read_st or spatialdata_io, or set it."
        )
    values = adata.obsm[keys.SPATIAL]
    if isinstance(values, pd.DataFrame):  # whose columns may stand in any order, as rows before columns
        named = {str(column).casefold(): column for column in values}
        pair = next((pair for pair in _XY if named.keys() >= set(pair)), None)
        values = values if pair is None else values[[named[name] for name in pair]]
    values = in_memory(values, name)
    values = np.asarray(values.toarray() if sp.issparse(values) else values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"{name} must have shape (n_obs, 2), x and y, got {values.shape}.")
    _check_finite(adata, np.asarray(~np.isfinite(values).all(axis=1)), name, "Drop those spots.")
    if len(values) > 1 and not 1 / _FARTHEST < np.ptp(values, axis=0).max() < _FARTHEST:
        raise ValueError(
            f"{name} does not tell the spots apart: x and y range from {values.min():g} to {values.max():g}."
        )
    _check_not_local(adata, values, name)
    return values


def _check_not_local(adata: AnnData, xy: Float64, name: str) -> None:
    """Raise if the fields of view of a slide (CosMx) all cover the same place."""
    fov = next((column for column in adata.obs if column.lower() in ("fov", "fov_name", "fov_id")), None)
    if fov is None:
        return
    slide = adata.obs.get(
        keys.part(adata.uns, keys.SPATIALDATA_ATTRS).get("region_key"), pd.Series("", adata.obs_names)
    )
    places = pd.DataFrame(xy, columns=["x", "y"]).assign(slide=slide.astype(str).to_numpy())
    for _, of_slide in places.groupby("slide"):
        fields = of_slide[["x", "y"]].groupby(adata.obs[fov].astype(str).to_numpy()[of_slide.index])
        whole = np.ptp(of_slide[["x", "y"]].to_numpy(), axis=0)
        sides = (fields.max() - fields.min()).to_numpy()
        if len(sides) >= 3 and (np.median(sides, axis=0) > 0.7 * whole).all():
            ready = [f"obsm[{key!r}]" for key in adata.obsm if "global" in key.lower()]
            ready += [f"obs[{key!r}]" for key in adata.obs if "global" in key.lower()]
            raise ValueError(
                f"{name} is local to each field of view: the {len(sides)} fields in obs[{fov!r}] lie on top of each "
                f"other. Set positions on the whole slide, adata.obsm['{keys.SPATIAL}'] = <x, y>; columns that may "
                f"hold them: {format_names(ready)}. If each field has its own image, make it a slide of its own."
            )


def cellularity(adata: AnnData, *, what: str) -> Float32 | None:
    """Stain density of the tiles, float32 (n_obs,), finite; `None` if ``obs`` has no numbers of that name."""
    column = adata.obs.get(keys.CELLULARITY)
    if column is None or is_bool_dtype(column) or not is_numeric_dtype(column):
        return None
    values = column.to_numpy(dtype=np.float32, na_value=np.nan)
    advice = "Run spahgc.pp.image_embedding again, or drop the column or those spots."
    _check_finite(adata, np.asarray(~np.isfinite(values)), f"{what}.obs['{keys.CELLULARITY}']", advice)
    return values


def on_tissue(adata: AnnData, *, what: str) -> NDArray[np.bool_]:
    """Spots on tissue by ``obs["in_tissue"]`` (numbers, truth values or text); spots without an entry count as such."""
    if keys.IN_TISSUE not in adata.obs:
        return np.ones(adata.n_obs, dtype=bool)
    column = adata.obs[keys.IN_TISSUE]
    text = column.astype(object).map(lambda value: str(value).strip().casefold())
    beside = text.isin(["0", "0.0", "false", "f", "no"])
    other = ~(beside | column.isna() | text.isin(["1", "1.0", "true", "t", "yes"]))
    if other.any():
        raise ValueError(
            f"{what}.obs['{keys.IN_TISSUE}'] must be 0 or 1, or True or False, got "
            f"{format_names(column[other].unique(), most=3)}. Correct it, or delete the column."
        )
    return ~beside.to_numpy(dtype=bool)


def genes_only(adata: AnnData, *, what: str) -> AnnData:
    """View of a table without features that are no genes, which are named in the log; the table itself if all are."""
    names = adata.var_names.astype(str)
    other = np.array([bool(_CONTROL.fullmatch(name)) for name in names])
    column = next((name for name in ("feature_types", "feature_type") if name in adata.var), None)
    if column is not None:
        kinds = adata.var[column].astype(object).map(lambda kind: " ".join(str(kind).split()).casefold())
        other = other | kinds.str.contains(_NO_GENE).to_numpy(dtype=bool)
    if not other.any():
        return adata
    if other.all():
        raise ValueError(
            f"None of the {adata.n_vars} features of {what} is a gene, by their names and var[{column!r}]. Correct the "
            "column, or delete it."
        )
    logger.warning(
        "%d of %d features of %s are no genes (%s) and are left out.",
        other.sum(), adata.n_vars, what, format_names(names[other], most=3),
    )  # fmt: skip
    return adata[:, ~other]


def _check_finite(adata: AnnData, bad: NDArray[np.bool_], name: str, advice: str) -> None:
    if bad.any():
        raise ValueError(
            f"{name} has NaN or infinite values in {int(bad.sum())} of {len(bad)} spots, e.g. "
            f"{format_names(adata.obs_names[bad], most=3)}. {advice}"
        )


def expression(adata: AnnData, layer: str | None, *, what: str, normalize: str = "none") -> Any:
    """Expression matrix, ``X`` or a layer, dense or CSR: raw counts, or with `normalize` ``"none"`` finite values."""
    name = f"{what}.X" if layer is None else f"{what}.layers[{layer!r}]"
    if layer is not None and layer not in adata.layers:
        raise KeyError(
            f"{what}.layers has no {layer!r} (layer). Available: {format_names(adata.layers)}; X is layer=None."
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None or adata.n_vars == 0:
        problem = "X is None" if matrix is None else "n_vars is 0"
        raise ValueError(f"{what} has no expression ({problem}). {_WITHOUT_EXPRESSION}")
    matrix = in_memory(matrix, name)
    if matrix.dtype == np.float16:  # which SciPy's sparse matrices do not support
        matrix = matrix.astype(np.float32)
    if not np.isfinite(_values(matrix)).all():
        raise ValueError(f"{name} has NaN or infinite values.")
    if normalize == "none":
        return matrix
    if not are_counts(matrix):
        problem = "negative values" if negative(matrix) else "values that are not whole numbers"
        raise ValueError(
            f"{name} has {problem}, so it does not hold counts. normalize={normalize!r} needs raw counts: pass "
            f"layer=<layer with raw counts> (layers: {format_names(adata.layers)}), or normalize='none' to use the "
            f"values as they are.{ways_to_counts(adata, matrix)}"
        )
    if _values(matrix).max(initial=0) >= _MOST_COUNTS:
        raise ValueError(f"{name} has values of {_MOST_COUNTS:,.0f} or more, which no gene has as counts in a spot.")
    if not _values(matrix).any():
        raise ValueError(f"{name} is all zero: no expression was measured. {_WITHOUT_EXPRESSION}")
    return matrix


def ways_to_counts(adata: AnnData, matrix: Any) -> str:
    """Advice for a matrix without counts: ``.raw`` if it has them, or what to do with expected or corrected counts."""
    if adata.raw is not None and are_counts(in_memory(adata.raw.X, "adata.raw.X")):
        return " Raw counts are in .raw: adata = adata.raw.to_adata()."
    if negative(matrix) or keys.SCANPY_LOG in adata.uns:
        return ""
    return (
        " Expected or corrected counts (Proseg, SpotClean, SoupX): round them, adata.layers['counts'] = "
        "adata.X.round(), and pass layer='counts'; or normalize them yourself, scanpy.pp.normalize_total(adata, "
        "target_sum=1e4) and scanpy.pp.log1p(adata), and pass normalize='none'."
    )


def check_on_panels(adata: AnnData, genes: Sequence[str], matrices: Mapping[str, Any]) -> None:
    """Raise if a slide did not measure a gene, so that its values are zeros from joining (`io.concat`).

    Readers of legacy arrays leave out genes without counts: a table with more genes of one count than of none is
    taken for such a one, and its zeros stay. Elsewhere a gene was not measured if at least 10 counts are expected.
    """
    known = adata.varm.get(keys.MEASURED_ON)
    if known is None:
        return
    at = adata.var_names.get_indexer(list(genes))
    cut = set()
    for name, matrix in matrices.items():
        total = np.asarray(matrix.sum(axis=0)).ravel()[known[name].to_numpy()] if name in known else np.ones(0)
        if (total == 1).sum() > max(0.01 * len(total), (total == 0).sum()):
            cut.add(name)
    known = known.iloc[at]
    counts = {name: np.asarray(matrix[:, at].sum(axis=0)).ravel() for name, matrix in matrices.items()}
    depth = {name: float(matrix.sum()) for name, matrix in matrices.items()}
    for i, gene in enumerate(genes):
        there = [name for name in matrices if name not in known or known[name].iloc[i]]
        share = sum(counts[name][i] for name in there) / max(sum(depth[name] for name in there), 1.0)
        lacking = [name for name in matrices if name not in there and name not in cut and share * depth[name] >= 10]
        if lacking:
            raise ValueError(
                f"Gene {gene!r} of the panel was not measured on {format_names(lacking)}: its zeros there come from "
                f"joining (varm['{keys.MEASURED_ON}']). Leave it out of the panel, leave out those slides, or join "
                "with spahgc.io.concat(..., join='inner')."
            )


def are_counts(matrix: Any) -> bool:
    """Whether a matrix (dense or CSR) holds only whole numbers of at least 0."""
    return not negative(matrix) and bool((_values(matrix) == np.round(_values(matrix))).all())


def negative(matrix: Any) -> bool:
    """Whether a matrix (dense or CSR) has values below 0."""
    return bool((_values(matrix) < 0).any())


def measured(matrix: Any) -> NDArray[np.bool_]:
    """Rows of a matrix (dense or CSR) that are not all zero."""
    return np.asarray((matrix != 0).sum(axis=1)).ravel() > 0


def is_storable(gene: str) -> bool:
    """Whether HDF5 and Zarr files can name a column like this gene; ``/`` separates groups there."""
    return "/" not in gene and gene not in ("", ".", "..", "_index")


def _values(matrix: Any) -> Any:
    return matrix.data if sp.issparse(matrix) else matrix


def genes_in(wanted: Sequence[str], available: Any, *, what: str) -> None:
    """Raise unless all wanted genes are available."""
    missing = [gene for gene in wanted if gene not in available]
    if missing:
        raise KeyError(
            f"{len(missing)} of {len(wanted)} requested genes are not in {what}.var_names: {format_names(missing)}. It "
            f"has {len(available)} genes such as {format_names(list(available)[:3])}.{naming_hint(missing, available)}"
        )


def naming_hint(wanted: Sequence[str], available: Iterable[str]) -> str:
    """Advice for names that differ in kind, version or case; empty otherwise."""
    available = list(available)
    here, there = ("Ensembl ids", "symbols") if kind_of(wanted) == "ensembl" else ("symbols", "Ensembl ids")
    advice = {
        "kind": f" One table uses {here}, the other {there}: use the same kind of names in var_names of both. "
        "spahgc.pp.harmonize_genes converts them if a table has both kinds.",
        "version": " The Ensembl ids differ only in their versions: spahgc.pp.harmonize_genes removes them.",
        "case": " The names differ only in upper and lower case (human and mouse symbols?): use the same spelling in "
        "both tables, or run spahgc.pp.harmonize_genes(..., ignore_case=True).",
    }
    return advice.get(difference(wanted, available), "")
