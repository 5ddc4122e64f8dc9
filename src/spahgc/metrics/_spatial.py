"""Spatial pattern of genes: Moran's I, and its agreement between prediction and measurement."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike

from .._checks import checked
from ._scores import Scores, centered, pair, pearson, spearman


@checked()
def morans_i(values: ArrayLike, neighbors: Any) -> Scores:
    """Moran's I of each gene: similarity of neighboring spots, at most 1, and about 0 without a spatial pattern.

    The weights of the neighbors of a spot sum to one (row-standardized). A spot without neighbors only contributes to
    the mean and the variance of a gene.

    Parameters
    ----------
    values
        Expression of one slide, (n_obs, n_vars), in any unit.
    neighbors
        Neighbors of each spot: row numbers (n_obs, k) from :func:`spatial_knn`, or a sparse matrix of weights
        (n_obs, n_obs), such as squidpy's ``obsp["spatial_connectivities"]``.

    Returns
    -------
    float64 (n_vars,). NaN for a gene that is constant or has a NaN.

    Raises
    ------
    ValueError
        If `values` is not a matrix, or `neighbors` does not fit its spots or is empty.

    References
    ----------
    Moran, P. A. P. (1950). Notes on continuous stochastic phenomena. Biometrika 37, 17-23.

    Examples
    --------
    >>> import numpy as np, spahgc
    >>> position = np.arange(20.0)[:, None]
    >>> neighbors = spahgc.metrics.spatial_knn(np.hstack([position, 0 * position]), 2)
    >>> spahgc.metrics.morans_i(position, neighbors).round(1)
    array([1.])
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"`values` must be a matrix (n_obs, n_vars), got shape {x.shape}.")
    weights = _weights(neighbors, x.shape[0])
    z = centered(x)
    return np.asarray((z * (weights @ z)).sum(axis=0) / (z * z).sum(axis=0) * (x.shape[0] / weights.sum()))


@checked()
def morans_i_agreement(
    measured: ArrayLike, predicted: ArrayLike, neighbors: Any, *, method: Literal["pearson", "spearman"] = "pearson"
) -> float:
    """Correlation over genes of the Moran's I of measured and predicted expression, for one slide.

    High if the spatially organized genes of the prediction are those of the tissue. Levels are not compared:
    predictions contain no sampling noise, so their Moran's I is higher throughout.

    Parameters
    ----------
    measured, predicted
        Expression (n_obs, n_vars), in any unit.
    neighbors
        See :func:`morans_i`.
    method
        Correlation coefficient.

    Returns
    -------
    -1 to 1; NaN with fewer than two genes that vary in both, or if their values are all equal.

    Examples
    --------
    >>> import numpy as np, spahgc
    >>> rng = np.random.default_rng(0)
    >>> xy, values = rng.normal(size=(30, 2)), rng.normal(size=(30, 5))
    >>> round(spahgc.metrics.morans_i_agreement(values, 2 * values, spahgc.metrics.spatial_knn(xy, 6)), 2)
    1.0
    """
    a, b = (morans_i(values, neighbors) for values in pair(measured, predicted))
    defined = ~np.isnan(a) & ~np.isnan(b)
    if defined.sum() < 2:
        return float("nan")
    score = pearson if method == "pearson" else spearman
    return float(score(a[defined, None], b[defined, None])[0])


def _weights(neighbors: Any, n_obs: int) -> Any:
    """Row-standardized weights, sparse (n_obs, n_obs)."""
    if sp.issparse(neighbors):
        weights = sp.csr_array(neighbors).astype(np.float64)
        if weights.shape != (n_obs, n_obs):
            raise ValueError(f"`neighbors` has shape {weights.shape} for {n_obs} spots.")
    else:
        index = np.asarray(neighbors)
        if index.ndim != 2 or index.shape[0] != n_obs or not np.issubdtype(index.dtype, np.integer):
            raise ValueError(
                f"`neighbors` must be row numbers (n_obs, k) for {n_obs} spots, got {index.dtype} {index.shape}. Use "
                "spatial_knn(coordinates, k), or a sparse matrix of weights."
            )
        if index.size and (index.min() < 0 or index.max() >= n_obs):
            raise ValueError(f"`neighbors` has row numbers outside 0 to {n_obs - 1}.")
        start = np.arange(n_obs + 1) * index.shape[1]
        weights = sp.csr_array((np.ones(index.size), index.ravel(), start), shape=(n_obs, n_obs))
    sums = np.asarray(weights.sum(axis=1)).ravel()
    if not sums.any():
        raise ValueError("`neighbors` is empty: Moran's I needs at least one pair of neighboring spots.")
    inverse = np.divide(1.0, sums, out=np.zeros(n_obs), where=sums > 0)
    return sp.diags_array(inverse) @ weights
