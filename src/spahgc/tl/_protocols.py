"""Protocols of a cross-validation, honest or as published for comparison, and its folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from anndata import AnnData

from .._checks import format_names
from .._slides import Float32, Normalize, SplitBy
from .._tables import _slots as check
from .._tables._cohorts import reference_cohort, slide_rows

HEST_COMPONENTS, HEST_MIN_FRACTION = 256, 0.1


@dataclass(frozen=True)
class Protocol:
    """Unit of the expression, panel and splits of a cross-validation."""

    name: str
    normalize: Normalize = "log1p"
    panel: int = 300  # default number of genes
    split_by: SplitBy | None = None  # `None`: as the user says
    panel_from: Literal["training", "all"] = "training"  # slides that select the panel; "all" includes the scored ones
    # As `train`, or scanpy's highly variable genes on log1p of raw counts.
    panel_by: Literal["dispersion", "hvg"] = "dispersion"
    # Each gene of each slide to 0..1 by its own range, or from log10 to the natural logarithm.
    rescale: Literal["none", "range", "natural"] = "none"
    peek: bool = False  # SpaHGC's paper preset chooses its checkpoint on the scored slide
    fixed_ridge: bool = False  # HEST-Benchmark's penalty on 256 components, instead of tuned ridge
    optimistic: str = ""  # reason why the scores look better than they are


PROTOCOLS: dict[str, Protocol] = {
    "honest": Protocol("honest"),
    "paper": Protocol(
        "paper",
        normalize="log10",
        split_by="slide",
        panel_from="all",
        rescale="range",
        peek=True,
        optimistic=(
            "optimistic: other slides of the scored patient are trained on; the scored slide takes part in choosing "
            "the panel and the checkpoint, and is scaled by its own range; sequencing depth passes for skill"
        ),
    ),
    "hest": Protocol(
        "hest",
        normalize="log10",
        panel=50,
        panel_from="all",
        panel_by="hvg",
        rescale="natural",
        fixed_ridge=True,
        optimistic=(
            "optimistic: the scored slides take part in choosing the most variable genes, and sequencing depth passes "
            "for skill"
        ),
    ),
}


def panel_of_all(adata: AnnData, protocol: Protocol, n_genes: int, **columns: Any) -> list[str]:
    """Panel selected on all slides, including the scored ones: only for protocols labeled optimistic."""
    if protocol.panel_by == "dispersion":
        _, recipe = reference_cohort(adata, panel=n_genes, normalize=protocol.normalize, **columns)
        return list(recipe.genes)
    counts = check.expression(adata, columns["layer"], what="reference", normalize=protocol.normalize)
    rows = slide_rows(adata, columns["library_key"]).values()
    chosen = highly_variable([sp.csr_array(counts)[index] for index in rows], n_genes)
    names = [str(name) for name in adata.var_names[chosen] if check.is_storable(name)]
    if not names:
        raise ValueError(
            f"No gene of the reference is detected in {HEST_MIN_FRACTION:.0%} of the spots of every slide, as required "
            f"by protocol={protocol.name!r}. Name the genes: panel=[...]."
        )
    return names


def highly_variable(counts: Sequence[Any], n_genes: int) -> np.ndarray:
    """Columns of the genes that HEST-Benchmark selects, from the counts of each slide."""
    import scanpy

    found = [np.asarray((slide > 0).sum(axis=0)).ravel() >= HEST_MIN_FRACTION * slide.shape[0] for slide in counts]
    eligible = np.flatnonzero(np.all(found, axis=0))
    if len(eligible) <= n_genes:
        return eligible
    stacked = AnnData(sp.csr_matrix(sp.vstack([slide[:, eligible] for slide in counts]).astype(np.float32)))
    scanpy.pp.log1p(stacked)
    genes = scanpy.pp.highly_variable_genes(stacked, n_top_genes=n_genes, inplace=False)
    return eligible[genes["highly_variable"].to_numpy()][:n_genes]


def rescaled(values: Float32, how: str) -> Float32:
    """Expression of one slide, (n_spots, n_genes), on the scale of a protocol."""
    if how == "natural":
        return (values * np.log(10.0)).astype(np.float32)
    if how == "range":
        low = values.min(axis=0)
        spread = values.max(axis=0) - low
        return ((values - low) / np.where(spread > 0, spread, 1.0)).astype(np.float32)
    return values


def method_params(protocol: Protocol, method: str, params: Mapping[str, Any], n_genes: int) -> dict[str, Any]:
    """Parameters of a method under a protocol."""
    if protocol.fixed_ridge and method == "ridge":
        # HEST-Benchmark's penalty: 100 / (components x genes).
        return {"penalty": 100 / (HEST_COMPONENTS * n_genes), "n_components": HEST_COMPONENTS, **params}
    return dict(params)


@dataclass(frozen=True)
class Fold:
    """Slides held out together and training slides, with the patients on both sides."""

    name: str  # the held-out patient or slide
    held_out: tuple[str, ...]
    training: tuple[str, ...]
    shared_patients: tuple[str, ...]
    split_by: SplitBy  # unit held out when tuning


def make_folds(
    patients: Mapping[str, str], *, split_by: SplitBy = "patient", allow_shared_patients: bool = False
) -> tuple[Fold, ...]:
    """Hold out each patient or each slide in turn, given the patient of each slide; folds are in order of name."""
    if len(patients) < 2:
        raise ValueError(f"Cross-validation needs at least two slides; the reference has {format_names(patients)}.")
    groups: dict[str, list[str]] = {}
    for slide, patient in patients.items():
        groups.setdefault(patient if split_by == "patient" else slide, []).append(slide)
    if len(groups) < 2:
        raise ValueError(
            f"All {len(patients)} slides are of one patient, {next(iter(groups))!r}, so no patient is left to train "
            f"on. To score predictions of further slides of this patient, pass split_by='slide', "
            f"allow_shared_patients=True; this says nothing about new patients."
        )
    folds = []
    for name, held_out in sorted(groups.items()):
        training = sorted(set(patients) - set(held_out))
        owners = {patients[slide] for slide in held_out}
        shared = owners & {patients[slide] for slide in training}
        # Tuning holds out slides only if all held-out slides are of training patients.
        inner: SplitBy = "slide" if shared == owners else "patient"
        folds.append(Fold(name, tuple(sorted(held_out)), tuple(training), tuple(sorted(shared)), inner))
    shared_folds = [fold for fold in folds if fold.shared_patients]
    if shared_folds and not allow_shared_patients:
        raise ValueError(
            f"With split_by='slide', {len(shared_folds)} of {len(folds)} held-out slides "
            f"({format_names((fold.name for fold in shared_folds), most=5)}) share their patient with training slides, "
            f"so their scores would say nothing about new patients. Pass split_by='patient', or "
            f"allow_shared_patients=True for same-patient scores, which are labeled so."
        )
    return tuple(folds)
