"""Bring the genes of several tables to the same names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_args

from .. import _keys as keys
from .._checks import format_names
from .._tables._slots import Kind, difference, kind_of
from ._gene_names import Genes, Namespace
from ._gene_plan import Duplicates, apply, plan

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("spahgc")

NAME_COLUMNS = (
    *("gene_ids", "gene_id", "feature_id", "ensembl_id", "ensembl", "ensembl_gene_id"),
    *("gene_symbols", "gene_symbol", "gene_names", "gene_name", "feature_name", "symbol", "symbols", "hgnc_symbol"),
)
"""Columns of ``var``, in lower case, in which readers keep further names of genes."""


def harmonize_genes(
    adata: AnnData | Sequence[AnnData],
    *,
    reference: AnnData | Sequence[str] | None = None,
    ids: Kind | None = None,
    column: str | None = None,
    ignore_case: bool = False,
    duplicates: Duplicates = "sum",
    min_shared: float = 0.5,
    copy: bool = False,
) -> AnnData | list[AnnData] | None:
    """Call the genes of several tables by the same names.

    For reference slides from different sources before :func:`spahgc.io.concat`, or, with `reference`, for a measured
    target before it is scored against a prediction. Symbols and Ensembl ids are translated with what the tables say
    themselves: ``var_names`` and columns of ``var`` such as ``gene_ids``, ``feature_id``, ``gene_symbols`` or
    ``feature_name``. What one table knows serves the others; nothing is looked up elsewhere, and nothing is guessed.
    Where tables that have ids call a gene by different symbols, the first table's symbol is taken. Blanks around names
    and versions of Ensembl ids (``ENSG00000141736.13``) go; dots and hyphens in symbols (``AC000001.1``, ``HLA-DRB1``)
    stay. Genes that only one table has are kept.

    Parameters
    ----------
    adata
        Table, or tables, with genes; counts in ``X``, and in ``layers``, where genes are to be summed.
    reference
        Table, or names of genes (as ``model.genes``), whose names are taken as they are. It is not changed.
    ids
        ``"symbol"`` or ``"ensembl"``; `None` takes what the reference has, or without one, what most of the tables
        have.
    column
        Column of ``var`` with the names to go by, where it is another than those above; it comes before ``var_names``.
    ignore_case
        Take names that differ in upper and lower case only for one gene, as human ``ERBB2`` and mouse ``Erbb2``. Where
        more than two names do, none is changed.
    duplicates
        What to do with genes of one table that have the same name: ``"sum"`` adds their counts up, ``"first"`` keeps
        the first, ``"error"`` refuses.
    min_shared
        Least share of genes found again: of the table's or of the reference's, whichever are fewer. With several
        tables and no reference, the genes of all other tables take its place; with one table and no reference, it is
        the share that has a name of the kind asked for.
    copy
        Return copies (a list, if `adata` is one), and leave the tables as they are.

    Returns
    -------
    `None`, or with `copy` the copy or copies. Changed are ``var_names``, and, where genes are summed or dropped, ``X``,
    ``layers``, ``var``, ``varm`` and ``varp``: of genes that are summed, the first one's row stays, without the numbers
    in ``var`` on which they differ. ``raw`` stays as it is. Written are:

    ``var["gene_ids"]`` or ``var["gene_symbols"]``
        What is known of the other kind, where ``var_names`` held it and ``var`` has no such column.

    ``uns["spahgc_genes"]["report"]``
        DataFrame with the columns ``gene`` (name before), ``name`` (now; empty if dropped), ``what`` (``"renamed"``,
        ``"summed"``, ``"dropped"``, or ``"kept"`` for a gene that could not be brought to the names asked for) and
        ``why``. Genes to which nothing happened are not in it.
    ``uns["spahgc_genes"]["params"]``
        Parameters, numbers of genes before and after, and how many were found again.

    Raises
    ------
    KeyError
        If no table has the `column`.
    TypeError
        If something is not a table, or `reference` not a table or list of names.
    ValueError
        If fewer genes than `min_shared` are found again; if genes are to be summed in a matrix or layer that does not
        hold counts, or have the same name under ``duplicates="error"``; if a table has no genes; or if an argument is
        not usable. Nothing is changed then.

    Examples
    --------
    >>> spahgc.pp.harmonize_genes([slide["table"] for slide in slides])
    >>> joined = spahgc.io.concat(slides)
    >>> spahgc.pp.harmonize_genes(adata_target, reference=model.genes)
    """
    several = isinstance(adata, list | tuple)
    tables: list[AnnData] = list(adata) if several else [adata]
    labels = [f"adata[{i}]" if several else "adata" for i in range(len(tables))]
    _check(tables, labels, ids=ids, duplicates=duplicates, min_shared=min_shared, with_reference=reference is not None)
    given = [] if reference is None else [_reference(reference, column)]
    _check_column(tables, labels, reference, column)
    genes = [_genes(table, column) for table in tables]
    kind = ids or _common_kind(given or genes)
    space = Namespace([*given, *genes], kind, reference=bool(given), ignore_case=ignore_case)
    found = [space.names(one) for one in genes]

    targets = [given[0].shown] * len(tables) if given else _of_the_others([names for names, _ in found])
    shared = [
        _shared(label, one, names, target, kind, min_shared)
        for label, one, (names, _), target in zip(labels, genes, found, targets, strict=True)
    ]
    plans = [
        plan(table, one.shown, *names, duplicates=duplicates, label=label)
        for table, one, names, label in zip(tables, genes, found, labels, strict=True)
    ]
    results = [table.copy() if copy else table for table in tables]
    for result, one, todo, label, n_shared in zip(results, genes, plans, labels, shared, strict=True):
        params: dict[str, Any] = {"ids": kind, "column": column, "ignore_case": ignore_case, "duplicates": duplicates}
        params |= {"min_shared": min_shared, "n_before": result.n_vars, "n_after": len(todo.names)}
        params |= {"n_shared": n_shared, "version": version("spahgc")}
        _keep_other_kind(result, one, kind)
        apply(result, todo)
        result.uns[keys.GENES] = {keys.PARAMS: params, "report": todo.report}
        _log(label, params, todo.report)
    if not copy:
        return None
    return results if several else results[0]


def _check(
    tables: list[Any], labels: list[str], *, ids: Any, duplicates: Any, min_shared: float, with_reference: bool
) -> None:
    from anndata import AnnData

    if not tables:
        raise ValueError("adata is an empty list: harmonize_genes needs at least one table.")
    for table, label in zip(tables, labels, strict=True):
        if not isinstance(table, AnnData):
            hint = " Pass the table: sdata['table']." if hasattr(table, "tables") else ""
            raise TypeError(f"{label} is an AnnData table, not {type(table).__name__}.{hint}")
        if table.isbacked:
            raise ValueError(f"{label} is backed by a file. Load it whole: adata = adata.to_memory().")
        if table.n_vars == 0:
            raise ValueError(f"{label} has no genes (n_vars is 0): a slide with H&E only has none to rename.")
    if any(table is other for i, table in enumerate(tables) for other in tables[:i]):
        raise ValueError("adata has the same table twice.")
    for name, value, allowed in (
        ("ids", ids, (None, *get_args(Kind))),
        ("duplicates", duplicates, get_args(Duplicates)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} is one of {', '.join(map(repr, allowed))}, not {value!r}.")
    if ids is not None and with_reference:
        raise ValueError(f"ids={ids!r} is settled by the reference: its own names are taken. Leave ids out.")
    if not 0 <= min_shared <= 1:
        raise ValueError(f"min_shared is a share, 0 to 1, not {min_shared!r}.")


def _check_column(tables: list[AnnData], labels: list[str], reference: Any, column: str | None) -> None:
    from anndata import AnnData

    if column is None or any(column in table.var for table in [*tables, reference] if isinstance(table, AnnData)):
        return
    available = "; ".join(
        f"{label}: {format_names(table.var.columns)}" for label, table in zip(labels, tables, strict=True)
    )
    raise KeyError(f"No table has a column {column!r} in var (column). Available: {available}.")


def _genes(table: AnnData, column: str | None) -> Genes:
    shown = _strings(table.var_names)
    further = [name for name in table.var if str(name).lower() in NAME_COLUMNS and name != column]
    columns = [_strings(table.var[name]) for name in further]
    if column is not None and column in table.var:
        return Genes.read(shown, _strings(table.var[column]), shown, *columns)
    return Genes.read(shown, shown, *columns)


def _keep_other_kind(table: AnnData, genes: Genes, kind: Kind) -> None:
    """Keep ids beside symbols, and symbols beside ids, where they would go with ``var_names``."""
    column, known = ("gene_ids", genes.ids) if kind == "symbol" else ("gene_symbols", genes.symbols)
    if column not in table.var and kind_of(genes.shown) != kind:
        table.var[column] = list(known)


def _reference(reference: Any, column: str | None) -> Genes:
    from anndata import AnnData

    if isinstance(reference, AnnData):
        genes = _genes(reference, column)
    elif isinstance(reference, str) or not isinstance(reference, Iterable):
        hint = " Pass model.genes." if hasattr(reference, "genes") else ""
        raise TypeError(f"reference is a table or a list of gene names, not {type(reference).__name__}.{hint}")
    else:
        genes = Genes.read([str(name) for name in reference])
    if not genes.shown:
        raise ValueError("reference has no genes.")
    return genes


def _strings(values: Any) -> list[str]:
    """Names as strings, empty where one is missing."""
    import pandas as pd

    return ["" if missing else str(name) for name, missing in zip(values, pd.isna(values), strict=True)]


def _common_kind(tables: Sequence[Genes]) -> Kind:
    """What most of the tables have; symbols, where as many have the one as the other."""
    kinds = [kind_of(genes.shown) for genes in tables]
    return "ensembl" if kinds.count("ensembl") > kinds.count("symbol") else "symbol"


def _of_the_others(names: list[list[str]]) -> list[Sequence[str]]:
    """For each of several tables, the names in all others; for a single one, none."""
    return [
        list(dict.fromkeys(name for j, other in enumerate(names) if j != i for name in other if name))
        for i in range(len(names))
    ]


def _shared(label: str, genes: Genes, names: list[str], target: Sequence[str], kind: Kind, min_shared: float) -> int:
    """Number of genes found again, if they are enough."""
    named = [name for name in names if name]
    if target:
        n, most, where = len(set(named) & set(target)), min(len(set(named)), len(set(target))), "found again"
    else:
        n, most, where = sum(kind_of([name]) == kind for name in named), len(names), f"called by {kind!r} names"
    if most and n >= min_shared * most:
        return n
    seen = f"{label} has {format_names(genes.shown, most=3)}"
    seen += f"; the reference or the other tables have {format_names(target, most=3)}" if target else ""
    advice = {
        "kind": "One side has Ensembl ids, the other symbols, and too few genes have both in the tables: put the other "
        "kind into a column of var, say gene_ids (10x: features.tsv; else scanpy.queries.biomart_annotations).",
        "case": "They differ in upper and lower case: if they are to be one gene (human ERBB2, mouse Erbb2), pass "
        "ignore_case=True.",
        "damaged": "Names are missing, or dates that a spreadsheet made of them: take them from the original file.",
        "": "Are they of the same species, and was one table cut to few genes? min_shared lowers the limit.",
    }
    cause = "damaged" if 2 * len(named) < len(names) else difference(named, target) if target else "kind"
    raise ValueError(
        f"Only {n} of {most} genes ({n / max(1, most):.0%}) are {where}, fewer than min_shared={min_shared:g}. {seen}. "
        f"{advice.get(cause, advice[''])}"
    )


def _log(label: str, params: dict[str, Any], report: pd.DataFrame) -> None:
    what = list(report["what"])
    counts = ", ".join(
        f"{what.count(kind)} {kind}" for kind in ("renamed", "summed", "dropped", "kept") if kind in what
    )
    level = logging.WARNING if {"dropped", "kept"} & set(what) else logging.INFO
    logger.log(
        level,
        "%s: %d genes, now %d, %d found again%s. See uns[%r]['report'].",
        label,
        params["n_before"],
        params["n_after"],
        params["n_shared"],
        f"; {counts}" if counts else "",
        keys.GENES,
    )
