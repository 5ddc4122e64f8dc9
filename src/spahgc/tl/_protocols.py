"""Protocols of a cross-validation: honest, or as published, for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from .._slides import Float32, Normalize, SplitBy
from .._tables import _slots as check
from .._tables._cohorts import reference_cohort, slide_rows

if TYPE_CHECKING:
    from anndata import AnnData

HEST_COMPONENTS = 256
HEST_MIN_FRACTION = 0.1


@dataclass(frozen=True)
class Protocol:
    """Unit of the expression, panel and splits of a cross-validation.

    Parameters
    ----------
    name
        Name, for the record.
    normalize
        Unit of the expression.
    panel
        Default number of genes.
    split_by
        Unit held out; `None` leaves it to the user.
    panel_from
        Slides that select the panel: those of the training fold, or all of them, including the scored one.
    panel_by
        ``"dispersion"``: as :func:`spahgc.tl.train`; ``"hvg"``: scanpy's highly variable genes on log1p of the raw
        counts, among genes in at least 10 % of the spots of each slide.
    rescale
        ``"range"``: each gene of each slide, including the scored one, to 0..1 by its own minimum and maximum;
        ``"natural"``: from log10 to the natural logarithm.
    peek
        Let SpaHGC's paper preset choose its checkpoint on the scored slide.
    fixed_ridge
        Ridge with HEST-Benchmark's penalty on 256 components, instead of tuned ridge.
    optimistic
        Reason why the scores look better than they are; empty if they do not.
    """

    name: str
    normalize: Normalize = "log1p"
    panel: int = 300
    split_by: SplitBy | None = None
    panel_from: Literal["training", "all"] = "training"
    panel_by: Literal["dispersion", "hvg"] = "dispersion"
    rescale: Literal["none", "range", "natural"] = "none"
    peek: bool = False
    fixed_ridge: bool = False
    optimistic: str = ""


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
    import anndata
    import scanpy

    found = [np.asarray((slide > 0).sum(axis=0)).ravel() >= HEST_MIN_FRACTION * slide.shape[0] for slide in counts]
    eligible = np.flatnonzero(np.all(found, axis=0))
    if len(eligible) <= n_genes:
        return eligible
    stacked = anndata.AnnData(sp.csr_matrix(sp.vstack([slide[:, eligible] for slide in counts]).astype(np.float32)))
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
