"""How well a gene could be predicted at most, given the sampling noise of its counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from .._slides import Normalize, normalize, spot_depth
from ._agreement import Scores, depth_only, pearson, pearson_depth_removed


def noise_ceiling(
    counts: Any,
    *,
    genes: NDArray[np.intp] | None = None,
    n_splits: int = 10,
    how: Normalize = "log1p",
    rng: int | np.random.Generator = 0,
) -> Scores:
    """Pearson correlation of each gene's measured expression with its true one, over the spots of a slide: an estimate.

    The molecules of each spot are split at random into two halves (binomial thinning), which are two measurements of
    one expression with independent noise. Their correlation r, the mean over splits, gives the reliability of the
    whole measurement, R = 2 r / (1 + r) (Spearman-Brown), and the ceiling, sqrt(R).

    Both halves of a spot are as deep as the spot lets them be, and log1p leaves some of that in sparse genes, which
    would pass for expression. With ``"log1p"`` log depth is therefore regressed out of the halves, and what it explains
    of the whole measurement counts as noise; a prediction that knows the depth can come out above the ceiling of a gene
    that follows it. With ``"log10"`` depth is part of what is measured.

    Parameters
    ----------
    counts
        Raw counts of one slide, (n_obs, n_vars), dense or SciPy sparse.
    genes
        Columns to return; depth is still taken over all columns.
    n_splits
        Number of random splits.
    how
        Unit of the expression, see :func:`spahgc._expression.normalize`; ``"none"`` has no halves.
    rng
        Seed or generator of the splits.

    Returns
    -------
    float64 (n_genes,), 0 to 1. 0 where the halves do not agree at all (r <= 0), NaN for a gene that is constant, or of
    which every split leaves one half constant.

    Raises
    ------
    ValueError
        If the counts are negative or no whole numbers.

    References
    ----------
    Spearman (1910) and Brown (1910), British Journal of Psychology 3, 271-295 and 296-322; binomial thinning of counts:
    Neufeld et al. (2024), Biostatistics 25, 270-287.
    """
    if how == "none":
        raise ValueError("how is 'log1p' or 'log10': expression as given cannot be split into halves.")
    if n_splits < 1:
        raise ValueError(f"n_splits is at least 1, not {n_splits}.")
    _check_counts(counts)
    columns = np.arange(counts.shape[1]) if genes is None else np.asarray(genes, dtype=np.intp)
    if len(np.unique(columns)) < len(columns):
        raise ValueError("genes names a column twice.")
    chosen = sp.csc_array(counts[:, columns]).astype(np.int64)
    # The genes that are not asked for matter by their sum alone, and its half is binomial as well.
    depth = spot_depth(counts)
    rest = np.rint(depth - spot_depth(chosen)).astype(np.int64)
    generator = np.random.default_rng(rng)
    total, n_defined = np.zeros(len(columns)), np.zeros(len(columns))
    for _ in range(n_splits):
        first, first_rest = chosen.copy(), generator.binomial(rest, 0.5)
        first.data = generator.binomial(chosen.data, 0.5)
        halves = ((first, first_rest), (chosen - first, rest - first_rest))
        a, b = (_normalized(half, others, how) for half, others in halves)
        r = pearson_depth_removed(a, b, depth) if how == "log1p" else pearson(a, b)
        total, n_defined = total + np.nan_to_num(r), n_defined + ~np.isnan(r)
    r = np.divide(total, n_defined, out=np.full(len(columns), np.nan), where=n_defined > 0)
    r = np.maximum(r, 0.0)
    reliability = 2 * r / (1 + r)
    if how == "log1p":
        # Where all spots are equally deep, depth explains nothing.
        reliability *= 1 - np.nan_to_num(depth_only(_normalized(chosen, rest, how), depth)) ** 2
    return np.asarray(np.sqrt(reliability))


def _normalized(counts: Any, others: NDArray[np.int64], how: Normalize) -> NDArray[np.float32]:
    """Expression of genes whose spots hold `others` molecules of other genes too."""
    whole = sp.hstack([counts, sp.csc_array(others[:, None])], format="csr")
    return normalize(whole, how, genes=np.arange(counts.shape[1]))


def _check_counts(counts: Any) -> None:
    values = counts.data if sp.issparse(counts) else np.asarray(counts)
    if getattr(counts, "ndim", 0) != 2:
        raise ValueError("counts is a matrix (n_obs, n_vars).")
    if values.size and (not np.isfinite(values).all() or values.min() < 0 or (values != np.rint(values)).any()):
        raise ValueError("counts has negative values or no whole numbers: splitting takes raw counts.")
