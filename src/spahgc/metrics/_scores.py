"""Scores of each gene over the spots of one slide, and the highest score that noise allows.

`measured` and `predicted` are matrices (n_obs, n_vars) of the same shape with at least two spots. Scores of genes are
float64 (n_vars,), NaN for a gene that is constant in either matrix or has a NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from .._checks import at_least, checked
from .._slides import Normalize, spot_depth
from .._slides import normalize as normalize_counts

Scores = NDArray[np.float64]

GOOD = 0.3  # Pearson correlation above which the prediction of a gene is called good.
# Columns whose spread is a smaller share of their magnitude are constant: the rest is rounding error.
CONSTANT = 1e-7
_BLOCK = 512  # genes


@checked()
def pearson(measured: ArrayLike, predicted: ArrayLike) -> Scores:
    """Pearson correlation of each gene over spots.

    Parameters
    ----------
    measured, predicted
        Expression (n_obs, n_vars), in any unit, of at least two spots.

    Returns
    -------
    float64 (n_vars,). NaN for a gene that is constant in either matrix or has a NaN.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.metrics.pearson([[0, 1], [1, 1], [2, 4]], [[0, 3], [2, 3], [4, 0]]).round(2)
    array([ 1., -1.])
    """
    a, b = _pair(measured, predicted)
    return _cosine(_centered(a), _centered(b))


@checked()
def spearman(measured: ArrayLike, predicted: ArrayLike) -> Scores:
    """Spearman rank correlation of each gene over spots; ties take their mean rank. See :func:`pearson`.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.metrics.spearman([[0], [1], [2]], [[0], [1], [50]])
    array([1.])
    """
    a, b = _pair(measured, predicted)
    # Constant genes are found on the values, because ranks of rounding noise would look like a signal.
    undefined = np.isnan(_centered(a) + _centered(b)).any(axis=0)
    return np.where(undefined, np.nan, pearson(rankdata(a, axis=0), rankdata(b, axis=0)))


@checked()
def rmse(measured: ArrayLike, predicted: ArrayLike) -> Scores:
    """Root mean squared error of each gene, in the unit of both matrices. See :func:`pearson`.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.metrics.rmse([[0, 1], [0, 1]], [[3, 1], [3, 1]])
    array([3., 0.])
    """
    a, b = _pair(measured, predicted)
    return np.asarray(np.sqrt(np.mean((a - b) ** 2, axis=0)))


@checked()
def mae(measured: ArrayLike, predicted: ArrayLike) -> Scores:
    """Mean absolute error of each gene, in the unit of both matrices. See :func:`pearson`.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.metrics.mae([[0, 1], [0, 1]], [[3, 1], [1, 1]])
    array([2., 0.])
    """
    a, b = _pair(measured, predicted)
    return np.asarray(np.mean(np.abs(a - b), axis=0))


@checked()
def pearson_depth_removed(measured: ArrayLike, predicted: ArrayLike, depth: ArrayLike) -> Scores:
    """Pearson correlation of each gene after regressing the log sequencing depth out of both matrices.

    The remaining correlation cannot come from predicting how many molecules a spot yields.

    Parameters
    ----------
    measured, predicted
        See :func:`pearson`.
    depth
        Total counts of each spot over all genes, (n_obs,).

    Returns
    -------
    float64 (n_vars,). NaN also for a gene that is fully explained by depth, and for all genes if the depth of any spot
    is unknown (NaN); plain Pearson if all spots have the same depth.

    Examples
    --------
    >>> import spahgc
    >>> values, depth = [[0], [1], [2], [2]], [10, 100, 1000, 10]
    >>> spahgc.metrics.pearson_depth_removed(values, values, depth).round(2)
    array([1.])
    """
    a, b = _pair(measured, predicted)
    values = _log_depth(depth, a.shape[0])
    if np.isnan(values).any():
        return np.full(a.shape[1], np.nan)
    log_depth = _centered(values)
    if np.isnan(log_depth).any():
        return pearson(a, b)
    return _cosine(_residual(_centered(a), log_depth), _residual(_centered(b), log_depth))


@checked()
def depth_only(measured: ArrayLike, depth: ArrayLike) -> Scores:
    """Pearson correlation of each gene with the log sequencing depth: the score of a prediction of depth alone.

    If it is high, a correlation with measured expression says little about the gene. See
    :func:`pearson_depth_removed`.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.metrics.depth_only([[0], [1], [2]], [9, 99, 999]).round(2)
    array([1.])
    """
    a = np.asarray(measured, dtype=np.float64)
    return pearson(a, np.broadcast_to(_log_depth(depth, a.shape[0]), a.shape))


@checked()
def share_above(scores: ArrayLike, threshold: float = GOOD) -> float:
    """Fraction (0 to 1) of the genes whose score exceeds a threshold; NaN if no gene has a score.

    Genes without a score (NaN), such as constant ones, are left out. To compare methods, leave out the same genes for
    all of them.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.metrics.share_above([0.1, 0.5, float("nan")])
    0.5
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    return float((values > threshold).mean()) if len(values) else float("nan")


@checked()
def structure(measured: ArrayLike, predicted: ArrayLike) -> Scores:
    """Structural agreement of each gene: whether its correlations with the other genes are those measured.

    Pearson correlation of the row of a gene in the gene-gene correlation matrix of the measurement with its row in
    that of the prediction, without the gene itself. Genes without a score (see :func:`pearson`) are left out of the
    rows of the others; all are NaN if fewer than two other genes are left.

    Examples
    --------
    >>> import numpy as np, spahgc
    >>> values = np.random.default_rng(0).normal(size=(20, 4))
    >>> spahgc.metrics.structure(values, 2 * values).round(2)
    array([1., 1., 1., 1.])
    """
    a, b = (_centered(values) for values in _pair(measured, predicted))
    scores = np.full(a.shape[1], np.nan)
    kept = np.flatnonzero(~np.isnan(a + b).any(axis=0))
    if len(kept) < 3:
        return scores
    a, b = (values[:, kept] / np.sqrt((values[:, kept] ** 2).sum(axis=0)) for values in (a, b))
    for start in range(0, len(kept), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(kept)))
        x, y = a[:, rows].T @ a, b[:, rows].T @ b
        itself = (np.arange(len(rows)), rows)
        x[itself] = y[itself] = 0.0
        mean_x, mean_y, xx, yy, xy = (v.sum(axis=1) / (len(kept) - 1) for v in (x, y, x * x, y * y, x * y))
        std_x, std_y = np.sqrt(np.maximum(xx - mean_x**2, 0)), np.sqrt(np.maximum(yy - mean_y**2, 0))
        varies = (std_x > CONSTANT) & (std_y > CONSTANT)
        scores[kept[rows]] = (xy - mean_x * mean_y) / np.where(varies, std_x * std_y, np.nan)
    return np.clip(scores, -1.0, 1.0)


@checked(n_splits=at_least(1))
def noise_ceiling(
    counts: Any,
    *,
    genes: NDArray[np.intp] | None = None,
    n_splits: int = 10,
    normalize: Normalize = "log1p",
    rng: int | np.random.Generator = 0,
) -> Scores:
    """Estimate the Pearson correlation of each gene's measured with its true expression over the spots of a slide.

    The molecules of each spot are split at random into two halves (binomial thinning), two measurements of the same
    expression with independent noise. Their correlation r, averaged over splits, gives the reliability of the whole
    measurement, R = 2 r / (1 + r) (Spearman-Brown), and the ceiling, sqrt(R).

    Both halves of a spot share its depth, and log1p leaves some of that in sparse genes, which would pass for
    expression. With ``"log1p"``, log depth is therefore regressed out of the halves, and the part of the whole
    measurement that it explains counts as noise; a prediction of depth can exceed the ceiling of a gene that follows
    depth. With ``"log10"``, depth is part of the measurement.

    Parameters
    ----------
    counts
        Raw counts of one slide, (n_obs, n_vars), dense or SciPy sparse.
    genes
        Columns to return; depth is the sum over all columns.
    n_splits, rng
        Number of random splits, and their seed or generator.
    normalize
        Unit of the expression: ``"log1p"`` of counts per 10,000, or ``"log10"`` of counts + 1; not ``"none"``.

    Returns
    -------
    float64 (n_genes,), 0 to 1. 0 if the halves do not agree (r <= 0); NaN for a gene that is constant, or that is
    constant in one half of every split.

    Raises
    ------
    ValueError
        If the counts are negative or not integers, a gene is requested twice, or `normalize` is ``"none"``.

    References
    ----------
    Spearman (1910) and Brown (1910), British Journal of Psychology 3, 271-295 and 296-322; binomial thinning of counts:
    Neufeld et al. (2024), Biostatistics 25, 270-287.

    Examples
    --------
    >>> import numpy as np, spahgc
    >>> counts = np.random.default_rng(0).poisson([5, 50], size=(100, 2))
    >>> spahgc.metrics.noise_ceiling(counts).shape
    (2,)
    """
    if normalize == "none":
        raise ValueError("normalize='none' has no noise ceiling: only counts can be split into halves.")
    values = counts.data if sp.issparse(counts) else np.asarray(counts)
    raw = not values.size or (np.isfinite(values).all() and values.min() >= 0 and (values == np.rint(values)).all())
    if getattr(counts, "ndim", 0) != 2 or not raw:
        raise ValueError(
            "`counts` must be a matrix (n_obs, n_vars) of raw counts to be split, without negative, missing or "
            "fractional values."
        )
    columns = np.arange(counts.shape[1]) if genes is None else np.asarray(genes, dtype=np.intp)
    if len(np.unique(columns)) < len(columns):
        raise ValueError("`genes` contains a column twice.")
    chosen = sp.csc_array(counts[:, columns]).astype(np.int64)
    # Of the other genes only the sum matters, whose half is binomial as well.
    depth = spot_depth(counts)
    rest = np.rint(depth - spot_depth(chosen)).astype(np.int64)

    def normalized(part: Any, others: NDArray[np.int64]) -> NDArray[np.float32]:
        whole = sp.hstack([part, sp.csc_array(others[:, None])], format="csr")
        return normalize_counts(whole, normalize, genes=np.arange(part.shape[1]))

    generator = np.random.default_rng(rng)
    total, n_defined = np.zeros(len(columns)), np.zeros(len(columns))
    for _ in range(n_splits):
        first, first_rest = chosen.copy(), generator.binomial(rest, 0.5)
        first.data = generator.binomial(chosen.data, 0.5)
        a, b = normalized(first, first_rest), normalized(chosen - first, rest - first_rest)
        r = pearson_depth_removed(a, b, depth) if normalize == "log1p" else pearson(a, b)
        total, n_defined = total + np.nan_to_num(r), n_defined + ~np.isnan(r)
    r = np.maximum(np.divide(total, n_defined, out=np.full(len(columns), np.nan), where=n_defined > 0), 0.0)
    reliability = 2 * r / (1 + r)
    if normalize == "log1p":
        # If all spots have the same depth, it explains nothing (NaN).
        reliability *= 1 - np.nan_to_num(depth_only(normalized(chosen, rest), depth)) ** 2
    return np.asarray(np.sqrt(reliability))


def _pair(measured: ArrayLike, predicted: ArrayLike) -> tuple[Scores, Scores]:
    """Convert measured and predicted expression to float64, or raise if they are not matrices of the same shape."""
    a, b = np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or len(a) < 2:
        raise ValueError(
            "`measured` and `predicted` must be matrices (n_obs, n_vars) of one shape with at least two spots, got "
            f"{a.shape} and {b.shape}."
        )
    return a, b


def _centered(values: Scores) -> Scores:
    """Subtract the mean of each column; a constant column becomes NaN."""
    rest = values - values.mean(axis=0)
    scale = np.abs(values).max(axis=0)
    constant = np.sqrt(np.mean(rest**2, axis=0)) <= CONSTANT * np.where(scale > 0, scale, 1.0)
    return np.where(constant, np.nan, rest)


def _log_depth(depth: ArrayLike, n_obs: int) -> Scores:
    values = np.asarray(depth, dtype=np.float64).reshape(-1, 1)
    if len(values) != n_obs or (values < 0).any():
        raise ValueError(
            f"`depth` must be the total count of each of {n_obs} spots, at least 0, got {len(values)} values."
        )
    return np.log(values + 1.0)


def _residual(values: Scores, covariate: Scores) -> Scores:
    rest = values - covariate * (covariate * values).sum(axis=0) / (covariate**2).sum()
    explained = np.sqrt((rest**2).sum(axis=0)) <= CONSTANT * np.sqrt((values**2).sum(axis=0))
    return np.where(explained, np.nan, rest)


def _cosine(a: Scores, b: Scores) -> Scores:
    norms = np.sqrt((a * a).sum(axis=0)) * np.sqrt((b * b).sum(axis=0))
    return np.clip((a * b).sum(axis=0) / norms, -1.0, 1.0)
