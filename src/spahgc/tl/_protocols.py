"""How a cross-validation is done: honestly, or as it was published, for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from .._slides import Cohort, Float32, Normalize, SplitBy, expression_of
from .._tables import _slots as check
from .._tables._cohorts import reference_cohort, slide_rows

if TYPE_CHECKING:
    from anndata import AnnData

HEST_COMPONENTS = 256
HEST_MIN_FRACTION = 0.1


@dataclass(frozen=True)
class Protocol:
    """What is fitted where, and in which unit it is scored.

    Parameters
    ----------
    name
        Name, for the record.
    normalize
        Unit of the expression.
    panel
        Number of genes, where the user names none.
    split_by
        What is held out; `None` leaves it to the user.
    panel_from
        Slides that choose the panel: those of the training fold, or all of them, the scored one included.
    panel_by
        ``"dispersion"``: :func:`~spahgc._expression.rank_genes`; ``"hvg"``: the highly variable genes of scanpy on
        log1p of the raw counts, among genes in at least 10 % of the spots of each slide.
    rescale
        ``"range"``: each gene of each slide, the scored one included, to 0..1 by its own minimum and maximum;
        ``"natural"``: from log10 to the natural logarithm.
    peek
        Let SpaHGC's paper preset choose its checkpoint on the scored slide.
    fixed_ridge
        Ridge with HEST-Benchmark's penalty on 256 components, instead of tuned ridge.
    optimistic
        What makes the scores look better than they are; empty if nothing does.
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


def get_protocol(protocol: str | Protocol) -> Protocol:
    """The protocol of that name."""
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"No protocol {protocol!r}. Available: {', '.join(map(repr, PROTOCOLS))}.")
    return PROTOCOLS[protocol]


def panel_of_all(
    adata: AnnData, protocol: Protocol, n_genes: int, *, library_key: str, layer: str | None, **columns: Any
) -> list[str]:
    """The panel that all slides choose, those to be scored included: only for protocols labelled optimistic."""
    if protocol.panel_by == "dispersion":
        _, recipe = reference_cohort(
            adata,
            panel=n_genes,
            normalize_as=protocol.normalize,
            library_key=library_key,
            layer=layer,
            **columns,
        )
        return list(recipe.genes)
    counts = sp.csr_array(check.counts(adata, layer, what="reference", normalize=protocol.normalize))
    chosen = highly_variable([counts[rows] for rows in slide_rows(adata, library_key).values()], n_genes)
    names = [str(name) for name in adata.var_names[chosen] if check.is_storable(name)]
    if not names:
        raise ValueError(
            f"No gene of the reference is found in {HEST_MIN_FRACTION:.0%} of the spots of every slide, as "
            f"protocol={protocol.name!r} asks. Name the genes: panel=[...]."
        )
    return names


def highly_variable(counts: Sequence[Any], n_genes: int) -> np.ndarray:
    """Columns of the genes that HEST-Benchmark takes, by the counts of each slide."""
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
    """Expression of one slide, (n_spots, n_genes), as a protocol scales it."""
    if how == "natural":
        return (values * np.log(10.0)).astype(np.float32)
    if how == "range":
        low = values.min(axis=0)
        spread = values.max(axis=0) - low
        return ((values - low) / np.where(spread > 0, spread, 1.0)).astype(np.float32)
    return values


def rescaled_cohort(cohort: Cohort, how: str) -> Cohort:
    """The cohort with every slide's expression scaled (:func:`rescaled`)."""
    if how == "none":
        return cohort
    return replace(cohort, slides=tuple(replace(s, expression=rescaled(expression_of(s), how)) for s in cohort))


def method_params(protocol: Protocol, method: str, params: Mapping[str, Any], n_genes: int) -> dict[str, Any]:
    """Parameters of a method under a protocol."""
    if protocol.fixed_ridge and method == "ridge":
        # The penalty of HEST-Benchmark: 100 / (components x genes).
        return {"penalty": 100 / (HEST_COMPONENTS * n_genes), "n_components": HEST_COMPONENTS, **params}
    return dict(params)
