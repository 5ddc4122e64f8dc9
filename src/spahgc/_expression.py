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
        ``"log1p"``: counts per 10,000 over all genes, then log1p. ``"log10"``: log10(counts + 1), which keeps
        sequencing depth in. ``"none"``: as given.
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
    # In float64 throughout, which a sum of a sparse matrix is not: a narrow type of the counts would overflow or round.
    return np.asarray(counts @ np.ones(counts.shape[1]))


def rank_genes(counts: Sequence[Any], *, min_fraction: float = 0.05) -> NDArray[np.intp]:
    """Genes by how variable they are on the reference slides, best first.

    Per slide a gene's dispersion is the variance of its counts around what the depth of each spot leads to expect,
    over its mean count (:func:`dispersion`); the genes are ordered by the mean over slides of their ranks, equal
    means by column. Genes found in at most `min_fraction` of all spots, or not at all on some slide, are left out.

    Parameters
    ----------
    counts
        Counts of each slide, (n_obs, n_vars), with the same genes.
    min_fraction
        Share of the spots (over all slides) in which a gene has to be found.
    """
    n_vars = counts[0].shape[1]
    found, ranks, absent = np.zeros(n_vars), np.zeros(n_vars), np.zeros(n_vars, dtype=bool)
    for matrix in counts:
        slide_counts = sp.csr_array(matrix)
        present = np.asarray((slide_counts > 0).sum(axis=0)).ravel()
        # Ties share their mean rank, so that no slide prefers one of two equal genes for its place in the table.
        ranks += _ranks(-dispersion(slide_counts))
        found += present
        absent |= present == 0
    n_spots = sum(matrix.shape[0] for matrix in counts)
    eligible = np.flatnonzero((found > min_fraction * n_spots) & ~absent)
    return eligible[np.argsort(ranks[eligible], kind="stable")]


def dispersion(counts: Any) -> NDArray[np.float64]:
    """Variance of each gene's counts around what depth leads to expect, over the mean count, float64 (n_vars,).

    A spot is expected to hold the slide's share of a gene times its own depth. The ratio is 1 for counts that vary by
    sampling alone (Poisson), 0 for a gene without counts. Plain variance over mean would rank genes by how well they
    follow depth; variance over mean of depth-normalised counts, by how noisy shallow spots are.

    Parameters
    ----------
    counts
        Counts of one slide, (n_obs, n_vars), dense or SciPy sparse.
    """
    matrix = sp.csr_array(counts).astype(np.float64)
    depth = spot_depth(matrix)
    total = np.asarray(matrix.sum(axis=0)).ravel()
    share = total / max(depth.sum(), 1.0)
    squares = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel()
    residual = squares - 2 * share * (matrix.T @ depth) + share**2 * (depth**2).sum()
    return np.asarray(np.divide(np.maximum(residual, 0.0), total, out=np.zeros_like(total), where=total > 0))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values))
