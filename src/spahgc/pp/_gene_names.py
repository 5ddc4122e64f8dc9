"""Names of genes as plain strings: symbols, Ensembl ids, and one namespace for the genes of several tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .._tables._slots import Kind, ensembl_id

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec)"


# What a spreadsheet makes of MARCH1, SEPT2, DEC1 and of clones such as 2310009E13: two genes may become one date.
_DAMAGED = re.compile(
    rf"\d{{1,2}}-{_MONTH}(?:-\d+)?|{_MONTH}-\d\d|\d{{4}}-\d\d-\d\d(?: 00:00:00)?|\d\.\d+E\+\d+", re.IGNORECASE
)


_MISSING = {"", "nan", "<NA>"}


def is_damaged(name: str) -> bool:
    """Whether a name is what a spreadsheet made of a gene's name: ``1-Mar``, ``2-Sep``, ``2.31E+13``."""
    return _DAMAGED.fullmatch(name) is not None


@dataclass(frozen=True)
class Genes:
    """What a table says of its genes; each field has one entry a gene, empty where it is not known."""

    shown: tuple[str, ...]
    """Names as they are in the table."""
    symbols: tuple[str, ...]
    ids: tuple[str, ...]
    """Ensembl ids without version."""

    @classmethod
    def read(cls, shown: Sequence[str], *columns: Sequence[str]) -> Genes:
        """From columns of names of the same genes; the first usable name of each kind counts."""
        symbols, ids = [], []
        for names in zip(*(columns or [shown]), strict=True):
            stripped = [name.strip() for name in names]
            ids.append(next((ensembl_id(name) for name in stripped if ensembl_id(name)), ""))
            usable = (n for n in stripped if n not in _MISSING and not ensembl_id(n) and not is_damaged(n))
            symbols.append(next(usable, ""))
        return cls(tuple(shown), tuple(symbols), tuple(ids))


class Namespace:
    """One name for each gene of several tables; what one table knows of symbols and ids serves the others.

    Parameters
    ----------
    tables
        The tables in order of precedence: where they call a gene differently, the first one counts.
    kind
        What genes are called by.
    reference
        Whether the first table's own names are kept, versions and blanks included.
    ignore_case
        Whether names that differ in upper and lower case only are one gene.
    """

    def __init__(self, tables: Sequence[Genes], kind: Kind, *, reference: bool, ignore_case: bool) -> None:
        self.kind, self.ignore_case = kind, ignore_case
        self._symbol_of: dict[str, str] = {}
        self._ids_of: dict[str, set[str]] = {}
        for table in tables:
            for symbol, gene in _both(table):
                self._symbol_of.setdefault(gene, symbol)
                self._ids_of.setdefault(symbol, set()).add(gene)
        self._spelling: dict[str, str] = {}
        self._folded: dict[str, set[str]] = {}
        if reference:
            for name, shown in zip(self._canonical(tables[0])[0], tables[0].shown, strict=True):
                self._add(name, shown)

    def names(self, genes: Genes) -> tuple[list[str], dict[int, str]]:
        """Names of a table's genes, empty for one that has none; and remarks on some genes, by position."""
        names, remarks = self._canonical(genes)
        alike: dict[str, set[str]] = {}
        for name in names:
            alike.setdefault(name.casefold(), set()).add(name)
        out = []
        for i, name in enumerate(names):
            spelling = self._spelling.get(name, name)
            if self.ignore_case and name and name not in self._spelling:
                known = self._folded.get(name.casefold(), set())
                same = known | alike[name.casefold()]
                if len(known) == len(alike[name.casefold()]) == 1:
                    spelling = self._spelling[next(iter(known))]
                elif len(same) > 1:
                    remarks[i] = f"ambiguous: {', '.join(sorted(same))} differ in upper and lower case only"
            out.append(spelling)
        for name, spelling in zip(names, out, strict=True):
            if name == spelling:  # a name that the tables after this one are brought to
                self._add(name, spelling)
        return out, remarks

    def _add(self, name: str, spelling: str) -> None:
        if name and name not in self._spelling:
            self._spelling[name] = spelling
            self._folded.setdefault(name.casefold(), set()).add(name)

    def _canonical(self, genes: Genes) -> tuple[list[str], dict[int, str]]:
        """Names of the kind asked for, and remarks on genes that get another or none."""
        names, remarks = [], {}
        own: dict[str, set[str]] = {}
        for symbol, gene in _both(genes):
            own.setdefault(symbol, set()).add(gene)
        for i, (shown, symbol, gene) in enumerate(zip(genes.shown, genes.symbols, genes.ids, strict=True)):
            if not symbol and not gene:
                names.append("")
                damaged = is_damaged(shown.strip())
                remarks[i] = "a date or number that a spreadsheet made of a gene's name" if damaged else "no name"
            elif self.kind == "symbol":
                new = self._symbol_of.get(gene, symbol)
                if symbol and new != symbol and own.get(new, {gene}) != {gene}:
                    remarks[i] = f"ambiguous: {new} is another gene in this table"
                    new = symbol
                names.append(new or gene)
                if not new:
                    remarks[i] = "no symbol is known"
            else:
                ids = {gene} if gene else self._ids_of.get(symbol, set())
                names.append(next(iter(ids)) if len(ids) == 1 else symbol)
                if len(ids) != 1:
                    remarks[i] = f"ambiguous: {', '.join(sorted(ids))}" if ids else "no Ensembl id is known"
        return names, remarks


def reason(shown: str, name: str) -> str:
    """Why a gene has another name now."""
    if shown.strip() == name:
        return "blanks around the name"
    before, after = ensembl_id(shown.strip()), ensembl_id(name)
    if before and before == after:
        return "version of the Ensembl id"
    if bool(before) != bool(after):
        return "symbol of this Ensembl id" if before else "Ensembl id of this symbol"
    return "upper and lower case" if shown.strip().casefold() == name.casefold() else "another name of the same gene"


def _both(genes: Genes) -> Iterator[tuple[str, str]]:
    return ((symbol, gene) for symbol, gene in zip(genes.symbols, genes.ids, strict=True) if symbol and gene)
