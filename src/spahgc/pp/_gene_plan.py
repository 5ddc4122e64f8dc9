"""What becomes of the genes of a table that get new names: renamed, summed, dropped; and doing it in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .._tables._slots import are_counts
from ._gene_names import reason

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

Duplicates = Literal["sum", "first", "error"]


@dataclass(frozen=True)
class Plan:
    """What becomes of the genes of a table."""

    names: list[str]
    """Names of the genes that stay, in order."""
    group: NDArray[np.intp]
    """For each gene of the table, which of `names` it goes into; -1 if it is dropped."""
    report: pd.DataFrame
    """Columns ``gene``, ``name``, ``what``, ``why``."""

    @property
    def first(self) -> NDArray[np.intp]:
        """The first gene of the table that goes into each of `names`."""
        kept = np.flatnonzero(self.group >= 0)
        return kept[np.unique(self.group[kept], return_index=True)[1]]


def plan(
    table: AnnData,
    shown: Sequence[str],
    names: list[str],
    remarks: dict[int, str],
    *,
    duplicates: Duplicates,
    label: str,
) -> Plan:
    import pandas as pd

    members: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name:
            members.setdefault(name, []).append(i)
    twice = {name: rows for name, rows in members.items() if len(rows) > 1}
    if twice and duplicates == "error":
        raise ValueError(
            f"{len(twice)} names stand for several genes of {label}: {_examples(twice, shown)}. Pass duplicates='sum' "
            f"to add their counts up, or 'first' to keep the first."
        )
    if twice and duplicates == "sum":
        _check_counts(table, [i for rows in twice.values() for i in rows], label, _examples(twice, shown))
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
    return Plan(list(members), group, pd.DataFrame(report, columns=["gene", "name", "what", "why"], dtype=object))


def apply(table: AnnData, todo: Plan) -> None:
    """Rename, sum and drop genes in place."""
    if len(todo.names) == table.n_vars:
        table.var_names = todo.names
        return
    kept = np.flatnonzero(todo.group >= 0)
    to_name = sp.csr_array(
        (np.ones(len(kept), np.int8), (kept, todo.group[kept])), shape=(table.n_vars, len(todo.names))
    )
    result = table[:, todo.first].copy()
    if len(kept) > len(todo.names):
        if table.X is not None:
            result.X = _summed(table.X, to_name)
        for key, matrix in table.layers.items():
            result.layers[key] = _summed(matrix, to_name)
        result.var = _agreed(table.var, result.var, todo.group)
    result.var_names = todo.names
    table.__init__(result)  # how AnnData takes another number of genes in place; a SpatialData that holds it sees it


def _summed(matrix: Any, to_name: sp.csr_array) -> Any:
    """Columns of a matrix added up by name; sparse or dense as before, in a type that holds the sums."""
    dtype = np.promote_types(matrix.dtype, np.float32 if matrix.dtype.kind == "f" else np.int32)
    total = matrix @ to_name.astype(dtype)
    return type(matrix)(total) if sp.issparse(matrix) else np.asarray(total)


def _agreed(var: pd.DataFrame, kept: pd.DataFrame, group: NDArray[np.intp]) -> pd.DataFrame:
    """``var`` of the genes that are kept, without numbers on which genes that were summed differ."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    for column in var:
        if is_numeric_dtype(var[column]) and not is_bool_dtype(var[column]):
            values = var[column].reset_index(drop=True)[group >= 0]
            differ = values.groupby(group[group >= 0]).nunique(dropna=False).to_numpy() > 1
            if differ.any():
                kept[column] = kept[column].mask(differ)
    return kept


def _check_counts(table: AnnData, columns: list[int], label: str, examples: str) -> None:
    """The columns that are to be summed hold counts, in ``X`` and in every layer."""
    for key, matrix in {"X": table.X, **{f"layers[{name!r}]": layer for name, layer in table.layers.items()}}.items():
        if matrix is None:
            continue
        part = sp.csr_array(matrix[:, columns]) if sp.issparse(matrix) else np.asarray(matrix)[:, columns]
        if not are_counts(part):
            raise ValueError(
                f"Genes of {label} have the same name ({examples}), and {label}.{key} does not hold counts that could "
                f"be added up. Start from raw counts and without layers made from them, or pass duplicates='first'."
            )


def _examples(twice: dict[str, list[int]], shown: Sequence[str]) -> str:
    some = [f"{name} ({', '.join(shown[i] for i in rows[:3])})" for name, rows in list(twice.items())[:3]]
    return ", ".join(some) + (", ..." if len(twice) > 3 else "")
