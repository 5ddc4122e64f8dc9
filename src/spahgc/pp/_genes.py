"""Bring the genes of several tables to the same names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import between, checked, format_names
from .._tables._slots import Kind, are_counts, difference, ensembl_id, kind_of

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("spahgc")

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

    For reference slides from different sources before :func:`spahgc.io.concat`, or, with `reference`, for a measured
    target before it is scored against a prediction. Symbols and Ensembl ids are translated by what the tables
    themselves contain: ``var_names`` and columns of ``var`` such as ``gene_ids``, ``feature_id``, ``gene_symbols`` or
    ``feature_name`` of all tables. If tables with ids call a gene by different symbols, the first table's symbol is
    taken. Blanks around names and versions of Ensembl ids (``ENSG00000141736.13``) are removed; dots and hyphens in
    symbols (``AC000001.1``, ``HLA-DRB1``) stay. Genes that only one table has are kept.

    Parameters
    ----------
    adata
        Table, or tables, with genes; counts in ``X``, and in ``layers``, if genes are to be summed.
    reference
        Table, or names of genes (as ``model.genes``), whose names are taken as they are. It is not changed.
    ids
        ``"symbol"`` or ``"ensembl"``; `None` takes what the reference has, or without one, what most tables have.
    column
        Column of ``var`` with the names to use, if it is not one of those above; it takes precedence over
        ``var_names``.
    ignore_case
        Treat names that differ in upper and lower case only as one gene, as human ``ERBB2`` and mouse ``Erbb2``. If
        more than two names do, none is changed.
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
        If fewer genes than `min_shared` are shared; if genes to be summed do not hold counts in ``X`` and every layer,
        or have the same name under ``duplicates="error"``; or if a table has no genes. Nothing is changed then.

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
    given = [] if reference is None else [_read(reference, column)]
    genes = [_read(table, column) for table in tables]
    kinds = [kind_of(one.shown) for one in given or genes]
    kind: Kind = ids or ("ensembl" if kinds.count("ensembl") > kinds.count("symbol") else "symbol")
    namespace = _Namespace([*given, *genes], kind, has_reference=bool(given), ignore_case=ignore_case)
    named = [namespace.names(one) for one in genes]
    plans, params = [], []
    for i, (table, label, one, (names, remarks)) in enumerate(zip(tables, labels, genes, named, strict=True)):
        others = (name for j, (other, _) in enumerate(named) if j != i for name in other if name)
        target = given[0].shown if given else list(dict.fromkeys(others))
        n_shared = _count_shared(label, one, names, target, kind, min_shared)
        plans.append(_plan(table, one.shown, names, remarks, duplicates, label))
        options = {"ids": kind, "column": column, "ignore_case": ignore_case, "duplicates": duplicates}
        counts = {"n_before": len(names), "n_after": len(plans[-1][0]), "n_shared": n_shared}
        params.append({**options, "min_shared": min_shared, **counts, "version": version("spahgc")})
    # Nothing is changed before all tables were checked.
    results = [table.copy() if copy else table for table in tables]
    for result, one, (names, group, report), label, entry in zip(results, genes, plans, labels, params, strict=True):
        other_column, other = ("gene_ids", one.ids) if kind == "symbol" else ("gene_symbols", one.symbols)
        if other_column not in result.var and kind_of(one.shown) != kind:
            result.var[other_column] = list(other)
        _apply(result, names, group)
        result.uns[keys.GENES] = {keys.PARAMS: entry, "report": report}
        happened = report["what"].value_counts().to_dict()
        logger.log(
            logging.WARNING if {"dropped", "kept"} & set(happened) else logging.INFO,
            "%s: %d genes, now %d, %d shared%s. See uns[%r]['report'].",
            label,
            entry["n_before"],
            entry["n_after"],
            entry["n_shared"],
            "".join(f"; {n} {what}" for what, n in happened.items()),
            keys.GENES,
        )
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
    if column is not None and not any(column in table.var for table in [*tables, reference] if hasattr(table, "var")):
        available = "; ".join(
            f"{label}: {format_names(table.var.columns)}" for label, table in zip(labels, tables, strict=True)
        )
        raise KeyError(f"No table has a column {column!r} in var (column). Available: {available}.")


# Names as strings.


@dataclass(frozen=True)
class GeneNames:
    """Names of a table's genes as shown, their symbols, and Ensembl ids without version; empty if unknown."""

    shown: tuple[str, ...]
    symbols: tuple[str, ...]
    ids: tuple[str, ...]

    @classmethod
    def read(cls, shown: Sequence[str], *columns: Sequence[str]) -> GeneNames:
        """Take the first usable name of each kind from columns of names of the same genes."""
        symbols, ids = [], []
        for names in zip(*(columns or [shown]), strict=True):
            stripped = [name.strip() for name in names]
            ids.append(next((ensembl_id(name) for name in stripped if ensembl_id(name)), ""))
            usable = (n for n in stripped if n not in _MISSING and not ensembl_id(n) and not is_damaged(n))
            symbols.append(next(usable, ""))
        return cls(tuple(shown), tuple(symbols), tuple(ids))

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Symbol and id of the genes that have both."""
        return ((symbol, gene) for symbol, gene in zip(self.symbols, self.ids, strict=True) if symbol and gene)


def _read(table: Any, column: str | None) -> GeneNames:
    """Names of the genes of a table, or of a list of names."""
    if not hasattr(table, "var_names"):
        return GeneNames.read([str(name) for name in table])
    further = [table.var[name] for name in table.var if str(name).lower() in NAME_COLUMNS and name != column]
    first = [table.var[column]] if column is not None and column in table.var else []
    shown, *columns = (
        ["" if missing else str(name) for name, missing in zip(values, pd.isna(values), strict=True)]
        for values in (table.var_names, *first, table.var_names, *further)
    )
    return GeneNames.read(shown, *columns)


def is_damaged(name: str) -> bool:
    """Whether a name is what a spreadsheet made of a gene's name: ``1-Mar``, ``2-Sep``, ``2.31E+13``."""
    return _DAMAGED.fullmatch(name) is not None


class _Namespace:
    """One name for each gene of several tables, in which what one table knows serves the others."""

    def __init__(self, tables: Sequence[GeneNames], kind: Kind, *, has_reference: bool, ignore_case: bool) -> None:
        self.kind, self.ignore_case = kind, ignore_case
        self._symbol_of: dict[str, str] = {}
        self._ids_of: dict[str, set[str]] = {}
        for table in tables:
            for symbol, gene in table.pairs():
                self._symbol_of.setdefault(gene, symbol)  # the first table's symbol counts
                self._ids_of.setdefault(symbol, set()).add(gene)
        self._spelling: dict[str, str] = {}
        self._folded: dict[str, set[str]] = {}
        if has_reference:  # its own names stay, versions and blanks included
            for name, shown in zip(self._canonical(tables[0])[0], tables[0].shown, strict=True):
                self._add(name, shown)

    def names(self, genes: GeneNames) -> tuple[list[str], dict[int, str]]:
        """Names of a table's genes, empty for genes without one, and remarks on some genes by position."""
        names, remarks = self._canonical(genes)
        alike: dict[str, set[str]] = {}
        for name in names:
            alike.setdefault(name.casefold(), set()).add(name)
        spellings = []
        for i, name in enumerate(names):
            spelling = self._spelling.get(name, name)
            if self.ignore_case and name and name not in self._spelling:
                own, known = alike[name.casefold()], self._folded.get(name.casefold(), set())
                if len(known) == len(own) == 1:
                    spelling = self._spelling[next(iter(known))]
                elif len(known | own) > 1:
                    same = ", ".join(sorted(known | own))
                    remarks[i] = f"ambiguous: {same} differ in upper and lower case only"
            spellings.append(spelling)
        for name, spelling in zip(names, spellings, strict=True):
            if name == spelling:  # a name that the tables after this one are brought to
                self._add(name, spelling)
        return spellings, remarks

    def _add(self, name: str, spelling: str) -> None:
        if name and name not in self._spelling:
            self._spelling[name] = spelling
            self._folded.setdefault(name.casefold(), set()).add(name)

    def _canonical(self, genes: GeneNames) -> tuple[list[str], dict[int, str]]:
        """Names of the requested kind, and remarks on genes that get another one or none."""
        names, remarks = [], {}
        own: dict[str, set[str]] = {}
        for symbol, gene in genes.pairs():
            own.setdefault(symbol, set()).add(gene)
        for i, (shown, symbol, gene) in enumerate(zip(genes.shown, genes.symbols, genes.ids, strict=True)):
            if not symbol and not gene:
                name = ""
                damaged = is_damaged(shown.strip())
                remarks[i] = "a date or number that a spreadsheet made of a gene's name" if damaged else "no name"
            elif self.kind == "symbol":
                name = self._symbol_of.get(gene, symbol)
                if symbol and name != symbol and own.get(name, {gene}) != {gene}:
                    remarks[i] = f"ambiguous: {name} is another gene in this table"
                    name = symbol
                elif not name:
                    remarks[i] = "no symbol is known"
                    name = gene
            else:
                ids = {gene} if gene else self._ids_of.get(symbol, set())
                name = next(iter(ids)) if len(ids) == 1 else symbol
                if len(ids) != 1:
                    remarks[i] = f"ambiguous: {', '.join(sorted(ids))}" if ids else "no Ensembl id is known"
            names.append(name)
        return names, remarks


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


def _count_shared(
    label: str, genes: GeneNames, names: list[str], target: Sequence[str], kind: Kind, min_shared: float
) -> int:
    """Number of shared genes; raises if they are too few."""
    named = [name for name in names if name]
    if target:
        n, most, what = len(set(named) & set(target)), min(len(set(named)), len(set(target))), "shared"
    else:
        n, most, what = sum(kind_of([name]) == kind for name in named), len(names), f"called by {kind!r} names"
    if most and n >= min_shared * most:
        return n
    examples = f"{label} has {format_names(genes.shown, most=3)}"
    examples += f"; the reference or the other tables have {format_names(target, most=3)}" if target else ""
    advice = {
        "kind": "One side has Ensembl ids, the other symbols, and too few genes have both in the tables: put the other "
        "kind into a column of var, say gene_ids (10x: features.tsv; else scanpy.queries.biomart_annotations).",
        "case": "They differ in upper and lower case: if they are to be one gene (human ERBB2, mouse Erbb2), pass "
        "ignore_case=True.",
        "damaged": "Names are missing, or dates that a spreadsheet made of them: take them from the original file.",
    }
    cause = "damaged" if 2 * len(named) < len(names) else difference(named, target) if target else "kind"
    unknown = "Are they of the same species, and was one table cut to few genes? min_shared lowers the limit."
    raise ValueError(
        f"Only {n} of {most} genes ({n / max(1, most):.0%}) are {what}, fewer than min_shared={min_shared:g}. "
        f"{examples}. {advice.get(cause, unknown)}"
    )


# What becomes of the genes of a table.


def _plan(
    table: AnnData, shown: Sequence[str], names: list[str], remarks: dict[int, str], duplicates: str, label: str
) -> tuple[list[str], NDArray[np.intp], pd.DataFrame]:
    """Names that stay, in order; for each gene of the table which of them it goes into (-1: dropped); report."""
    members: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name:
            members.setdefault(name, []).append(i)
    repeated = {name: rows for name, rows in members.items() if len(rows) > 1}
    some = [f"{name} ({', '.join(shown[i] for i in rows[:3])})" for name, rows in list(repeated.items())[:3]]
    examples = ", ".join(some) + (", ..." if len(repeated) > 3 else "")
    if repeated and duplicates == "error":
        raise ValueError(
            f"{len(repeated)} names stand for several genes of {label}: {examples}. Pass duplicates='sum' to add their "
            "counts, or 'first' to keep the first."
        )
    if repeated and duplicates == "sum":
        columns = [i for rows in repeated.values() for i in rows]
        for key, matrix in [("X", table.X), *((f"layers[{name!r}]", layer) for name, layer in table.layers.items())]:
            part = None if matrix is None else matrix[:, columns]
            if part is not None and not are_counts(sp.csr_array(part) if sp.issparse(part) else np.asarray(part)):
                raise ValueError(
                    f"Genes of {label} have the same name ({examples}), and {label}.{key} does not hold counts that "
                    "could be added up. Start from raw counts and without layers made from them, or pass "
                    "duplicates='first'."
                )
    group = np.full(len(names), -1, dtype=np.intp)
    for position, rows in enumerate(members.values()):
        group[rows if duplicates == "sum" else rows[:1]] = position
    report: list[tuple[str, str, str, str]] = []
    for i, (gene, name) in enumerate(zip(shown, names, strict=True)):
        n = len(members.get(name, ()))
        if not name:
            report.append((gene, "", "dropped", remarks[i]))
            continue
        if gene != name:
            report.append((gene, name, "renamed", reason(gene, name)))
        if i in remarks:
            report.append((gene, name, "kept", remarks[i]))
        if group[i] < 0:
            report.append((gene, "", "dropped", f"not the first of {n} genes named {name}"))
        elif n > 1 and duplicates == "sum":
            report.append((gene, name, "summed", f"one of {n} genes of this name"))
    return list(members), group, pd.DataFrame(report, columns=["gene", "name", "what", "why"], dtype=object)


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
