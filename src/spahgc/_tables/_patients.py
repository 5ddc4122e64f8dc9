"""Patients as they are written in tables: one name for one patient, and none for an unknown one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import pandas as pd

from .._checks import format_names
from .._settings import logger

_UNKNOWN = {"", "-", "--", "?", ".", "na", "n/a", "n.a.", "nan", "nat", "none", "null", "<na>", "unknown", "unk"}
_UNKNOWN |= {"unspecified", "undefined", "tbd", "no data", "#n/a", "\N{EM DASH}", "unknown patient", "unknown donor"}
# Among them the missing values of INSDC: "not collected", "missing: not provided", "restricted access".
_MISSING = re.compile(
    r"missing\b.*|not (known|available|applicable|specified|collected|provided|recorded)|restricted access"
)


def patient_name(value: Any) -> str | None:
    """Name of a patient, or `None` if the value stands for an unknown one.

    Blanks at the ends do not count, runs of blanks are one, and a whole number is written without decimals: ``1``,
    ``1.0``, ``"1"`` and ``" 1.0 "`` are one patient. Bytes are decoded, and characters brought to one form (NFKC).
    """
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    text = "" if value is None or value is pd.NA else " ".join(unicodedata.normalize("NFKC", text).split())
    text = re.sub(r"^(\d+)\.0*$", r"\1", text)
    return None if text.casefold() in _UNKNOWN or _MISSING.fullmatch(text.casefold()) else text


def patient_names(column: pd.Series) -> pd.Series:
    """:func:`patient_name` of every entry of a column, as objects."""
    names = {value: patient_name(value) for value in column.unique()}
    return column.astype(object).map(lambda value: names[value] if value in names else patient_name(value))


def warn_of_alike(patients: Iterable[str | None]) -> None:
    """Warn of patients whose names differ only in case, leading zeros or separators: they may be one person."""
    alike: dict[str, set[str]] = {}
    for name in {patient for patient in patients if patient is not None}:
        plain = re.sub(r"^(patient|p)(?=\d)", "", re.sub(r"[\W_]+", "", name).casefold())
        alike.setdefault(re.sub(r"(?<!\d)0+(?=\d)", "", plain), set()).add(name)
    for names in alike.values():
        if len(names) > 1:
            logger.warning(
                "Patients %s are counted as different. If they are one person, give them one name in obs: otherwise a "
                "known patient passes for a new one.",
                format_names(sorted(names)),
            )
