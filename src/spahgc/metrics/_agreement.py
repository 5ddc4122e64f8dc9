"""Per-gene agreement of two matrices over the spots of one slide."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Scores = NDArray[np.float64]

# Below this share of a column's magnitude, its spread is rounding error and the column counts as constant.
CONSTANT = 1e-7


def pearson(measured: ArrayLike, predicted: ArrayLike) -> Scores:
    """Pearson correlation of each gene over spots.

    Parameters
    ----------
    measured, predicted
        Expression (n_obs, n_vars), in any unit.

    Returns
    -------
    float64 (n_vars,). NaN for a gene that is constant in either matrix or holds a NaN.
    """
    a, b = pair(measured, predicted)
    return _cosine(centred(a), centred(b))


def spearman(measured: ArrayLike, predicted: ArrayLike) -> Scores:
    """Spearman rank correlation of each gene over spots; ties take their mean rank.

    Parameters
    ----------
    measured, predicted
        Expression (n_obs, n_vars), in any unit.

    Returns
    -------
    float64 (n_vars,). NaN for a gene that is constant in either matrix or holds a NaN.
    """
    a, b = pair(measured, predicted)
    missing = np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0)
    scores = pearson(rankdata(a, axis=0), rankdata(b, axis=0))
    # Ranks of rounding noise would look like a signal, so constant genes are found on the values.
    constant = np.isnan(centred(a)).any(axis=0) | np.isnan(centred(b)).any(axis=0)
    return np.where(missing | constant, np.nan, scores)


def rmse(measured: ArrayLike, predicted: ArrayLike) -> Scores:
    """Root mean squared error of each gene, in the unit of the expression.

    Parameters
    ----------
    measured, predicted
        Expression (n_obs, n_vars), in one unit.

    Returns
    -------
    float64 (n_vars,)
    """
    a, b = pair(measured, predicted)
    return np.asarray(np.sqrt(np.mean((a - b) ** 2, axis=0)))


def mae(measured: ArrayLike, predicted: ArrayLike) -> Scores:
    """Mean absolute error of each gene, in the unit of the expression.

    Parameters
    ----------
    measured, predicted
        Expression (n_obs, n_vars), in one unit.

    Returns
    -------
    float64 (n_vars,)
    """
    a, b = pair(measured, predicted)
    return np.asarray(np.mean(np.abs(a - b), axis=0))


def pearson_depth_removed(measured: ArrayLike, predicted: ArrayLike, depth: ArrayLike) -> Scores:
    """Pearson correlation of each gene after the log sequencing depth is regressed out of both matrices.

    What is left cannot come from knowing how many molecules a spot gave.

    Parameters
    ----------
    measured, predicted
        Expression (n_obs, n_vars), in any unit.
    depth
        Total counts of each spot over all genes, (n_obs,).

    Returns
    -------
    float64 (n_vars,). NaN for a gene that is constant in either matrix, or that depth explains whole; plain Pearson
    where all spots have the same depth; all NaN where the depth of some spot is not known (NaN).
    """
    a, b = pair(measured, predicted)
    values = _log_depth(depth, a.shape[0])
    if np.isnan(values).any():
        return np.full(a.shape[1], np.nan)
    log_depth = centred(values[:, None])
    if np.isnan(log_depth).any():
        return pearson(a, b)
    return _cosine(_without(centred(a), log_depth), _without(centred(b), log_depth))


def depth_only(measured: ArrayLike, depth: ArrayLike) -> Scores:
    """Pearson correlation of each gene with the log sequencing depth: the score of an oracle that knows nothing else.

    Where it is high, a correlation with measured expression says little about the gene.

    Parameters
    ----------
    measured
        Expression (n_obs, n_vars).
    depth
        Total counts of each spot over all genes, (n_obs,).

    Returns
    -------
    float64 (n_vars,)
    """
    a = np.asarray(measured, dtype=np.float64)
    return pearson(a, np.broadcast_to(_log_depth(depth, a.shape[0])[:, None], a.shape))


def share_above(scores: ArrayLike, threshold: float = 0.3) -> float:
    """Share of the genes that have a score which is above a threshold.

    A gene without a score (NaN) is left out, since whether a constant gene is above cannot be said. Where methods are
    compared, leave out the same genes for all.

    Parameters
    ----------
    scores
        A score per gene, (n_vars,).
    threshold
        Scores equal to it are not above it.

    Returns
    -------
    0 to 1; NaN if no gene has a score.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    return float((values > threshold).mean()) if len(values) else float("nan")


def _log_depth(depth: ArrayLike, n_obs: int) -> NDArray[np.float64]:
    values = np.asarray(depth, dtype=np.float64).ravel()
    if values.shape[0] != n_obs:
        raise ValueError(f"depth has {values.shape[0]} values for {n_obs} spots.")
    if (values < 0).any():
        raise ValueError("depth has negative values: it is the total count of each spot.")
    return np.log(values + 1.0)


def pair(measured: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two matrices of one shape, float64."""
    a, b = np.asarray(measured, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            f"measured and predicted are matrices (n_obs, n_vars) of one shape, not {a.shape} and {b.shape}."
        )
    if a.shape[0] < 2:
        raise ValueError(f"A score over spots needs at least two spots, not {a.shape[0]}.")
    return a, b


def centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns minus their mean; a constant column becomes NaN."""
    rest = values - values.mean(axis=0)
    scale = np.abs(values).max(axis=0)
    constant = np.sqrt(np.mean(rest**2, axis=0)) <= CONSTANT * np.where(scale > 0, scale, 1.0)
    return np.where(constant, np.nan, rest)


def _without(values: NDArray[np.float64], covariate: NDArray[np.float64]) -> NDArray[np.float64]:
    rest = values - covariate * (covariate * values).sum(axis=0) / (covariate**2).sum()
    explained = np.sqrt((rest**2).sum(axis=0)) <= CONSTANT * np.sqrt((values**2).sum(axis=0))
    return np.where(explained, np.nan, rest)


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> Scores:
    products = (a * b).sum(axis=0)
    norms = np.sqrt((a * a).sum(axis=0)) * np.sqrt((b * b).sum(axis=0))
    return np.clip(products / norms, -1.0, 1.0)
