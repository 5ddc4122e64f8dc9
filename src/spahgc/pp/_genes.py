"""Bring the genes of several tables to the same names."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import between, checked, format_names
from .._settings import logger
from .._tables._slots import Kind, are_counts, difference, ensembl_id, kind_of

# Columns of `var`, in lower case, in which readers keep further names of genes.
NAME_COLUMNS = (
    *("gene_ids", "gene_id", "feature_id", "ensembl_id", "ensembl", "ensembl_gene_id"),
    *("gene_symbols", "gene_symbol", "gene_names", "gene_name", "feature_name", "symbol", "symbols", "hgnc_symbol"),
)
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec)"
# What a spreadsheet makes of MARCH1, SEPT2, DEC1 and of clones such as 2310009E13: two genes may become one date.
_DAMAGED = re.compile(
    rf"\d{{1,2}}-{_MONTH}(?:-\d+)?|{_MONTH}-\d\d|\d{{4}}-\d\d-\d\d(?: 00:00:00)?|\d\.\d+E\+\d+", re.IGNORECASE
)
_MISSING = {"", "nan", "<NA>"}


@checked(min_shared=between(0, 1))
def harmonize_genes(
    adata: AnnData | Sequence[AnnData],
    *,
    reference: AnnData | Sequence[str] | None = None,
    ids: Kind | None = None,
    column: str | None = None,
    ignore_case: bool = False,
    duplicates: Literal["sum", "first", "error"] = "sum",
    min_shared: float = 0.5,
    copy: bool = False,
) -> AnnData | list[AnnData] | None:
    """Call the genes of several tables by the same names.

    For reference slides before :func:`spahgc.io.concat`, or, with `reference`, for a measured target before it is
    scored against a prediction. Symbols and Ensembl ids are translated by ``var_names`` and columns of ``var`` such as
    ``gene_ids`` or ``feature_name`` of all tables; the first table's symbol of an id counts. Blanks around names and
    versions of Ensembl ids are removed. Genes that only one table has are kept.

    Parameters
    ----------
    adata
        Table, or tables, with genes; counts in ``X``, and in ``layers``, if genes are to be summed.
    reference
        Table, or names of genes (as ``model.genes``), whose names are taken as they are. It is not changed.
    ids
        ``"symbol"`` or ``"ensembl"``; `None` takes what the reference has, or without one, what most tables have.
    column
        Further column of ``var`` with names, which takes precedence over ``var_names``.
    ignore_case
        Treat two names that differ in upper and lower case only as one gene, as human ``ERBB2`` and mouse ``Erbb2``.
    duplicates
        What to do with genes of one table that have the same name: ``"sum"`` adds their counts, ``"first"`` keeps
        the first, ``"error"`` raises.
    min_shared
        Least share of shared genes, of the table's or of the reference's, whichever are fewer. Several tables without
        reference are compared with the genes of all other tables; of one table alone, it is the share of genes that
        have a name of the requested kind.
    copy
        Return copies (a list, if `adata` is one), and leave the tables unchanged.

    Returns
    -------
    `None`, or with `copy` the copy or copies. Changed are ``var_names``, and, if genes are summed or dropped, ``X``,
    ``layers``, ``var``, ``varm`` and ``varp``: of summed genes, the first one's row stays, without the numbers in
    ``var`` on which they differ. ``raw`` stays as it is. Written are:

    ``var["gene_ids"]`` or ``var["gene_symbols"]``
        Names of the other kind, if ``var_names`` held them and ``var`` has no such column.
    ``uns["spahgc_genes"]["report"]``
        DataFrame of the genes to which something happened: ``gene`` (name before), ``name`` (now; empty if dropped),
        ``what`` (``"renamed"``, ``"summed"``, ``"dropped"``, or ``"kept"`` for a gene without a name of the requested
        kind) and ``why``.
    ``uns["spahgc_genes"]["params"]``
        Parameters, numbers of genes before and after, and of shared genes.

    Raises
    ------
    KeyError
        If no table has the `column`.
    ValueError
        If fewer genes than `min_shared` are shared, genes to be summed do not hold counts, genes have the same name
        under ``duplicates="error"``, or a table has no genes. Nothing is changed then.

    Examples
    --------
    >>> import anndata, numpy, spahgc
    >>> adata = anndata.AnnData(numpy.array([[1, 2, 3]]))
    >>> adata.var_names = ["ERBB2", " ERBB2", "TP53"]
    >>> spahgc.pp.harmonize_genes(adata)
    >>> adata.to_df().values.tolist()
    [[3, 3]]
    """
    several = not hasattr(adata, "var_names")
    tables: list[Any] = list(adata) if several else [adata]
    labels = [f"adata[{i}]" if several else "adata" for i in range(len(tables))]
    _check(tables, labels, reference, ids, column)
    given = [] if reference is None else [read_names(reference, column)]
    genes = [read_names(table, column) for table in tables]
    kinds = [kind_of(one["shown"]) for one in given or genes]
    kind: Kind = ids or ("ensembl" if kinds.count("ensembl") > kinds.count("symbol") else "symbol")
    _name(given, genes, kind, ignore_case=ignore_case)
    options: dict[str, Any] = {"ids": kind, "column": column, "ignore_case": ignore_case, "duplicates": duplicates}
    options |= {"min_shared": min_shared, "version": version("spahgc")}
    plans: list[tuple[list[str], NDArray[np.intp], dict[str, Any]]] = []
    for i, (table, label, one) in enumerate(zip(tables, labels, genes, strict=True)):
        others = (name for other in [*genes[:i], *genes[i + 1 :]] for name in other["name"] if name)
        target = list(given[0]["shown"] if given else dict.fromkeys(others))
        n_shared = _count_shared(label, one, target, kind, min_shared)
        names, group, report = _plan(table, one, duplicates, label)
        counts = {"n_before": len(one), "n_after": len(names), "n_shared": n_shared}
        plans.append((names, group, {keys.PARAMS: options | counts, "report": report}))
    # Nothing is changed before all tables were checked.
    results = [table.copy() if copy else table for table in tables]
    other_column, other = ("gene_ids", "id") if kind == "symbol" else ("gene_symbols", "symbol")
    for result, one, (names, group, entry), label in zip(results, genes, plans, labels, strict=True):
        if other_column not in result.var and kind_of(one["shown"]) != kind:
            result.var[other_column] = list(one[other])
        _apply(result, names, group)
        result.uns[keys.GENES] = entry
        happened = entry["report"]["what"].value_counts().to_dict()
        logger.log(
            logging.WARNING if {"dropped", "kept"} & set(happened) else logging.INFO,
            "%s: %d genes, now %d, %d shared%s. See uns[%r]['report'].",
            label, len(one), len(names), entry[keys.PARAMS]["n_shared"],
            "".join(f"; {n} {what}" for what, n in happened.items()), keys.GENES,
        )  # fmt: skip
    if not copy:
        return None
    return results if several else results[0]


def _check(tables: list[Any], labels: list[str], reference: Any, ids: str | None, column: str | None) -> None:
    if not tables:
        raise ValueError("`adata` is an empty list; it needs at least one table.")
    for table, label in zip(tables, labels, strict=True):
        if table.isbacked:
            raise ValueError(f"{label} is backed by a file. Load it whole: adata = adata.to_memory().")
        if table.n_vars == 0:
            raise ValueError(f"{label} has no genes (n_vars is 0): a slide with H&E only has none to rename.")
    if len({id(table) for table in tables}) < len(tables):
        raise ValueError("`adata` has the same table twice.")
    if reference is not None and ids is not None:
        raise ValueError(f"ids={ids!r} has no effect with a reference, whose own names are taken. Leave ids out.")
    if reference is not None and len(getattr(reference, "var_names", reference)) == 0:
        raise ValueError("`reference` has no genes.")
    available = [name for table in [*tables, reference] if hasattr(table, "var") for name in table.var]
    if column is not None and column not in available:
        names = format_names(dict.fromkeys(available))
        raise KeyError(f"No table has a column {column!r} in var (column). Available: {names}.")


def read_names(table: Any, column: str | None = None) -> pd.DataFrame:
    """Names of genes as ``shown``, and the first usable ``symbol`` and ``id`` (without version); empty if unknown."""
    is_table = hasattr(table, "var_names")
    sources = [_text(table.var_names if is_table else table)]
    genes = pd.DataFrame({"shown": sources[0], "symbol": "", "id": ""}, dtype=object)
    if is_table:
        if column is not None and column in table.var:
            sources.insert(0, _text(table.var[column]))
        further = [name for name in table.var if str(name).lower() in NAME_COLUMNS and name != column]
        sources += [_text(table.var[name]) for name in further]
    for source in sources:
        stripped = source.str.strip()
        ids = stripped.map(ensembl_id)
        usable = (ids == "") & ~stripped.isin(_MISSING) & ~stripped.map(is_damaged)
        genes["symbol"] = genes["symbol"].where(genes["symbol"] != "", stripped.where(usable, ""))
        genes["id"] = genes["id"].where(genes["id"] != "", ids)
    return genes


def _text(values: Any) -> pd.Series:
    """Values as strings; missing ones are empty."""
    series = pd.Series(list(values), dtype=object)
    return series.map(str).where(series.notna(), "")


def is_damaged(name: str) -> bool:
    """Whether a name is what a spreadsheet made of a gene's name: ``1-Mar``, ``2-Sep``, ``2.31E+13``."""
    return _DAMAGED.fullmatch(name) is not None


def _name(given: list[pd.DataFrame], tables: list[pd.DataFrame], kind: Kind, *, ignore_case: bool) -> None:
    """Add the ``name`` of each gene (empty if none), and a ``remark`` on genes that keep another one or get none.

    What one table knows serves the others.
    """
    pairs = _pairs(pd.concat([*given, *tables]))
    spelling: dict[str, str] = {}
    for reference in given:  # its own names stay, versions and blanks included
        _canonical(reference, pairs, kind)
        own = reference[(reference["name"] != "") & (reference["shown"] != "")].drop_duplicates("name")
        spelling = dict(zip(own["name"], own["shown"], strict=True))
    for one in tables:
        _canonical(one, pairs, kind)
        names = one["name"].copy()
        one["name"] = names.map(spelling).fillna(names)
        if ignore_case:
            _match_case(one, names, spelling)
        same = names[(names == one["name"]) & (names != "")]
        spelling |= {name: name for name in same if name not in spelling}  # tables after this one are brought to it


def _pairs(genes: pd.DataFrame) -> pd.DataFrame:
    """Symbols and ids of the genes that have both."""
    return genes.loc[(genes["symbol"] != "") & (genes["id"] != ""), ["symbol", "id"]].drop_duplicates()


def _id_of_symbol(pairs: pd.DataFrame) -> pd.Series:
    """Id by symbol; empty if there are several."""
    ids = pairs.set_index("symbol")["id"]
    return ids.mask(ids.index.duplicated(keep=False), "").loc[~ids.index.duplicated()]


def _canonical(genes: pd.DataFrame, pairs: pd.DataFrame, kind: Kind) -> None:
    """Add the names of a kind, by the symbols and ids that all tables know, and remarks."""
    symbol, gene = genes["symbol"], genes["id"]
    remark = pd.Series("", index=genes.index, dtype=object)
    if kind == "symbol":
        name = gene.map(pairs.drop_duplicates("id").set_index("id")["symbol"]).fillna(symbol)  # the first table's
        holder = name.map(_id_of_symbol(_pairs(genes)))
        moved = (symbol != "") & (name != symbol) & holder.notna() & (holder != gene)
        remark[moved] = "ambiguous: " + name[moved] + " is another gene in this table"
        name = name.mask(moved, symbol)
        remark[name == ""] = "no symbol is known"
        name = name.mask(name == "", gene)
    else:
        known = symbol.map(_id_of_symbol(pairs))
        name = gene.mask(gene == "", known.fillna(""))
        remark[name == ""] = "no Ensembl id is known"
        for i in name.index[(name == "") & (known == "")]:
            remark[i] = f"ambiguous: {', '.join(sorted(pairs.loc[pairs['symbol'] == symbol[i], 'id']))}"
        name = name.mask(name == "", symbol)
    damaged = genes["shown"].str.strip().map(is_damaged)
    remark[(name == "") & ~damaged] = "no name"
    remark[(name == "") & damaged] = "a date or number that a spreadsheet made of a gene's name"
    genes["name"], genes["remark"] = name, remark


def _match_case(genes: pd.DataFrame, names: pd.Series, spelling: dict[str, str]) -> None:
    """Give names that differ from one known name in upper and lower case only that name's spelling."""
    own = set(names)
    alike: dict[str, set[str]] = {}
    for name in {*own, *spelling}:
        alike.setdefault(name.casefold(), set()).add(name)
    for i, name in names.items():
        same = alike[name.casefold()]
        if not name or name in spelling or len(same) == 1:
            continue
        (other,) = same - {name} if len(same) == 2 else [""]
        if other in spelling and other not in own:
            genes.loc[i, "name"] = spelling[other]
        else:
            genes.loc[i, "remark"] = f"ambiguous: {', '.join(sorted(same))} differ in upper and lower case only"


def reason(shown: str, name: str) -> str:
    """Why a gene is renamed."""
    if shown.strip() == name:
        return "blanks around the name"
    before, after = ensembl_id(shown.strip()), ensembl_id(name)
    if before and before == after:
        return "version of the Ensembl id"
    if bool(before) != bool(after):
        return "symbol of this Ensembl id" if before else "Ensembl id of this symbol"
    return "upper and lower case" if shown.strip().casefold() == name.casefold() else "another name of the same gene"


def _count_shared(label: str, genes: pd.DataFrame, target: list[str], kind: Kind, min_shared: float) -> int:
    """Number of shared genes; raises if they are too few."""
    named = [name for name in genes["name"] if name]
    if target:
        n, most, what = len(set(named) & set(target)), min(len(set(named)), len(set(target))), "shared"
    else:
        n, most, what = sum(kind_of([name]) == kind for name in named), len(genes), f"called by {kind!r} names"
    if most and n >= min_shared * most:
        return n
    examples = f"{label} has {format_names(genes['shown'], most=3)}"
    examples += f"; the reference or the other tables have {format_names(target, most=3)}" if target else ""
    advice = {
        "kind": "One side has Ensembl ids, the other symbols, and too few genes have both in the tables: put the other "
        "kind into a column of var, say gene_ids (10x: features.tsv; else scanpy.queries.biomart_annotations).",
        "case": "They differ in upper and lower case: if they are to be one gene (human ERBB2, mouse Erbb2), pass "
        "ignore_case=True.",
        "damaged": "Names are missing, or dates that a spreadsheet made of them: take them from the original file.",
    }
    cause = "damaged" if 2 * len(named) < len(genes) else difference(named, target) if target else "kind"
    unknown = "Are they of the same species, and was one table cut to few genes? min_shared lowers the limit."
    raise ValueError(
        f"Only {n} of {most} genes ({n / max(1, most):.0%}) are {what}, fewer than min_shared={min_shared:g}. "
        f"{examples}. {advice.get(cause, unknown)}"
    )


def _plan(
    table: AnnData, genes: pd.DataFrame, duplicates: str, label: str
) -> tuple[list[str], NDArray[np.intp], pd.DataFrame]:
    """Names that stay, in order; for each gene of the table which of them it goes into (-1: dropped); report."""
    named = genes["name"].mask(genes["name"] == "")
    repeated = named.notna() & named.duplicated(keep=False)
    if repeated.any() and duplicates != "first":
        members = genes[repeated].groupby("name", sort=False)["shown"]
        some = [f"{name} ({', '.join(shown[:3])})" for name, shown in itertools.islice(members, 3)]
        examples = ", ".join(some) + (", ..." if members.ngroups > 3 else "")
        if duplicates == "error":
            raise ValueError(
                f"{members.ngroups} names stand for several genes of {label}: {examples}. Pass duplicates='sum' to add "
                "their counts, or 'first' to keep the first."
            )
        for key, matrix in {"X": table.X, **{f"layers[{name!r}]": table.layers[name] for name in table.layers}}.items():
            part = None if matrix is None else matrix[:, repeated.to_numpy()]
            if part is not None and not are_counts(sp.csr_array(part) if sp.issparse(part) else np.asarray(part)):
                raise ValueError(
                    f"Genes of {label} have the same name ({examples}), and {label}.{key} does not hold counts that "
                    "could be added up. Start from raw counts and without layers made from them, or pass "
                    "duplicates='first'."
                )
    group, names = pd.factorize(named)
    later = named.notna() & named.duplicated() & (duplicates == "first")
    group[later] = -1
    n = named.map(named.value_counts()).fillna(0).astype(int).astype(str)
    why = [reason(*pair) for pair in zip(genes["shown"], genes["name"], strict=True)]
    # In the order in which a gene that several of them happen to has them in the report.
    events = [
        ("dropped", named.isna(), genes["remark"]),
        ("renamed", named.notna() & (genes["shown"] != genes["name"]), pd.Series(why)),
        ("kept", named.notna() & (genes["remark"] != ""), genes["remark"]),
        ("dropped", later, "not the first of " + n + " genes named " + genes["name"]),
        ("summed", repeated & (duplicates == "sum"), "one of " + n + " genes of this name"),
    ]
    report = pd.concat(
        [
            genes[chosen].rename(columns={"shown": "gene"}).assign(what=what, why=text[chosen])
            for what, chosen, text in events
        ]
    )
    report.loc[report["what"] == "dropped", "name"] = ""
    report = report.sort_index(kind="stable").reset_index(drop=True)[["gene", "name", "what", "why"]]
    return list(names), group, report


def _apply(table: AnnData, names: list[str], group: NDArray[np.intp]) -> None:
    """Rename, sum and drop genes in place."""
    if len(names) == table.n_vars:
        table.var_names = names
        return
    kept = np.flatnonzero(group >= 0)
    group = group[kept]
    result = table[:, kept[np.unique(group, return_index=True)[1]]].copy()
    if len(kept) > len(names):
        # Not scanpy.get.aggregate, which makes sparse counts a dense float64 matrix and refuses sparse arrays.
        sums = sp.csr_array((np.ones(len(kept), np.int8), (kept, group)), shape=(table.n_vars, len(names)))
        if table.X is not None:
            result.X = _summed(table.X, sums)
        for key, matrix in table.layers.items():
            result.layers[key] = _summed(matrix, sums)
        for column in table.var.select_dtypes("number"):
            # A number on which summed genes differ says nothing about their sum.
            differ = table.var[column].iloc[kept].groupby(group).nunique(dropna=False).to_numpy() > 1
            if differ.any():
                result.var[column] = result.var[column].mask(differ)
    result.var_names = names
    table.__init__(result)  # how AnnData takes another number of genes in place; a SpatialData that holds it sees it


def _summed(matrix: Any, sums: sp.csr_array) -> Any:
    """Product with a matrix of group members, of the same type, in a dtype that holds the sums."""
    dtype = np.promote_types(matrix.dtype, np.float32 if matrix.dtype.kind == "f" else np.int32)
    total = matrix @ sums.astype(dtype)
    return type(matrix)(total) if sp.issparse(matrix) else np.asarray(total)
