"""What a cross-validation is asked for, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import format_names
from .._tables import _slots as check
from .._tables._cohorts import slide_rows
from ..methods import METHODS, Method, get_method
from ._protocols import Protocol, method_params
from ._train import checked_params
from ._trust import CEILING_METHOD

if TYPE_CHECKING:
    from anndata import AnnData


def settled_panel(panel: int | Sequence[str] | None, rules: Protocol) -> int | list[str]:
    """A number of genes, or their names."""
    if isinstance(panel, str):
        raise TypeError(f"panel is a number of genes or a list of gene names, not the single string {panel!r}.")
    if panel is None:
        return rules.panel
    return int(panel) if isinstance(panel, int | np.integer) else [str(gene) for gene in panel]


def method_specs(methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Method and parameters by label, checked."""
    if isinstance(methods, str):
        raise TypeError(f"methods is a list of names or a dict, not the single string {methods!r}.")
    given: Mapping[str, Mapping[str, Any]] = (
        methods if isinstance(methods, Mapping) else {name: {"method": name} for name in methods}
    )
    if not given:
        raise ValueError("methods is empty; name at least one.")
    if CEILING_METHOD in given:
        raise ValueError(f"The label {CEILING_METHOD!r} is that of the noise ceiling; give the method another one.")
    specs = {}
    for label, spec in given.items():
        unknown = set(spec) - {"method", "preset", "method_params"}
        if unknown:
            raise ValueError(
                f"methods[{label!r}] has {format_names(sorted(unknown))}; it takes 'method', 'preset', 'method_params'."
            )
        name = spec.get("method", label)
        if name not in METHODS:
            raise ValueError(f"No method {name!r}. Available: {format_names(sorted(METHODS))}.")
        params = checked_params(name, spec.get("preset"), spec.get("method_params"))
        specs[str(label)] = {"method": name, "method_params": params}
    return specs


def make_methods(
    specs: Mapping[str, Mapping[str, Any]], rules: Protocol, n_genes: int | list[str]
) -> dict[str, Method]:
    """The methods, unfitted, so that a wrong parameter is found before anything runs."""
    size = n_genes if isinstance(n_genes, int) else len(n_genes)
    return {
        label: get_method(spec["method"], **method_params(rules, spec["method"], spec["method_params"], size))
        for label, spec in specs.items()
    }


def checked_slides(
    adata: AnnData,
    rules: Protocol,
    *,
    use_rep: str | None,
    library_key: str | None,
    patient_key: str,
    layer: str | None,
) -> tuple[str, str, dict[str, str], Any]:
    """Slide column, embedding, patient of each slide and expression; what is wrong with any slide is said here."""
    what = "reference"
    check.check_table(adata, what=what)
    library_key = check.library_column(adata, library_key, what=what)
    hint = f"If every slide is from another patient, pass patient_key={library_key!r}."
    check.column(adata, patient_key, what=what, parameter="patient_key", hint=hint)
    use_rep = check.representation(adata, use_rep, what=what)
    check.embedding(adata, use_rep, what=what)
    check.coordinates(adata, what=what)
    matrix = (
        check.expression(adata, layer, what=what)
        if rules.normalize == "none"
        else check.counts(adata, layer, what=what, normalize=rules.normalize)
    )
    patients = {}
    for slide, rows in slide_rows(adata, library_key).items():
        found = adata.obs[patient_key].iloc[rows].astype(str).unique()
        if len(found) > 1:
            raise ValueError(
                f"Slide {slide!r} of the reference has several patients in obs[{patient_key!r}]: {format_names(found)}."
            )
        patients[slide] = str(found[0])
    return library_key, use_rep, patients, matrix
