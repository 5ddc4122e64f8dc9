"""Expression units and the choice of the gene panel, on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ._slides import Float32

Normalize = Literal["log1p", "log10", "none"]

UNITS: dict[str, str] = {
    "log1p": "log1p counts per 10k",
    "log10": "log10(counts + 1)",
    "none": "as given",
}
"""Unit of the expression that each `normalize` gives."""

TARGET_SUM = 1e4


def normalize(counts: Any, how: Normalize = "log1p", *, genes: NDArray[np.intp] | None = None) -> Float32:
    """Expression in the unit that is predicted.

    Parameters
    ----------
    counts
        Counts (n_obs, n_vars), dense or SciPy sparse; with `how` ``"none"`` any expression.
    how
        ``"log1p"``: counts per 10,000 over all genes, then log1p. ``"log10"``: log10(counts + 1), which keeps sequencing
        depth in. ``"none"``: as given.
    genes
        Columns to return; depth is still taken over all columns.

    Returns
    -------
    float32 (n_obs, n_genes), dense. A spot without counts is all zero.
    """
    if how not in get_args(Normalize):
        raise ValueError(f"normalize is one of {', '.join(map(repr, get_args(Normalize)))}, not {how!r}.")
    depth = spot_depth(counts)
    chosen = counts if genes is None else counts[:, genes]
    values = np.asarray(chosen.toarray() if sp.issparse(chosen) else chosen, dtype=np.float64)
    if how == "log1p":
        values = np.log1p(values * (TARGET_SUM / np.where(depth > 0, depth, 1.0))[:, None])
    elif how == "log10":
        values = np.log10(values + 1.0)
    return values.astype(np.float32)


def spot_depth(counts: Any) -> NDArray[np.float64]:
    """Total counts of each spot over all genes, float64 (n_obs,)."""
    return np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()


def rank_genes(counts: Sequence[Any], *, min_fraction: float = 0.05) -> NDArray[np.intp]:
    """Genes by how variable they are on the reference slides, best first.

    Per slide a gene's dispersion is the variance over the mean of its counts per 10k; the genes are ordered by the mean
    over slides of the rank of that. Genes found in at most `min_fraction` of all spots, or constant on a slide, are left out.

    Parameters
    ----------
    counts
        Counts of each slide, (n_obs, n_vars), with the same genes.
    min_fraction
        Share of the spots (over all slides) in which a gene has to be found.
    """
    found, n_spots = np.zeros(counts[0].shape[1]), 0
    ranks, constant = np.zeros(counts[0].shape[1]), np.zeros(counts[0].shape[1], dtype=bool)
    for matrix in counts:
        depth = spot_depth(matrix)
        scale = TARGET_SUM / np.where(depth > 0, depth, 1.0)
        scaled = sp.diags_array(scale) @ sp.csr_array(matrix).astype(np.float64)
        mean = np.asarray(scaled.mean(axis=0)).ravel()
        variance = np.asarray(scaled.multiply(scaled).mean(axis=0)).ravel() - mean**2
        dispersion = np.divide(variance, mean, out=np.zeros_like(mean), where=mean > 0)
        # Ties (genes never seen on the slide) share their mean rank, so the order of the genes decides nothing.
        ranks += _ranks(-dispersion)
        constant |= variance <= 1e-12
        found += np.asarray((scaled > 0).sum(axis=0)).ravel()
        n_spots += matrix.shape[0]
    eligible = np.flatnonzero((found > min_fraction * n_spots) & ~constant)
    return eligible[np.argsort(ranks[eligible], kind="stable")]


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values))
