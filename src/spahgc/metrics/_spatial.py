"""Spatial pattern of genes: Moran's I, and whether a prediction has that of the measurement."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from ._agreement import Scores, centred, pair, pearson, spearman

How = Literal["pearson", "spearman"]

# Further candidates, so that ties on a grid are decided here and not by the search tree.
_MARGIN = 16


def nearest_spots(coordinates: ArrayLike, k: int = 6) -> NDArray[np.intp]:
    """The `k` nearest other spots of each spot.

    Parameters
    ----------
    coordinates
        Positions, (n_obs, 2) or (n_obs, 3), in any unit.
    k
        Neighbours per spot; 6 is a ring of Visium spots. Fewer where the slide has no more spots.

    Returns
    -------
    Row numbers, (n_obs, min(k, n_obs - 1)), nearest first; of two at one distance, the lower comes first.
    """
    xy = np.asarray(coordinates, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] not in (2, 3):
        raise ValueError(f"coordinates has shape {xy.shape}; it has x, y (and z) of each spot.")
    if not np.isfinite(xy).all():
        raise ValueError("coordinates has NaN or infinite values.")
    if k < 1:
        raise ValueError(f"k is at least 1, not {k}.")
    n = len(xy)
    k = min(k, n - 1)
    if k < 1:
        return np.empty((n, 0), dtype=np.intp)
    width = min(k + 1 + _MARGIN, n)
    distances, candidates = cKDTree(xy).query(xy, k=width)
    # Of spots at one place, the tree may return any first.
    distances = np.where(candidates == np.arange(n)[:, None], np.inf, distances)
    scale = np.partition(distances, k - 1, axis=1)[:, k - 1].max() or 1.0
    order = np.lexsort((candidates, np.round(distances / scale, 9)), axis=1)[:, :k]
    return np.asarray(np.take_along_axis(candidates, order, axis=1), dtype=np.intp)


def morans_i(values: ArrayLike, neighbors: Any) -> Scores:
    """Moran's I of each gene: how alike neighbouring spots are, 1 at most, about 0 without a spatial pattern.

    The weights of a spot's neighbours sum to one (row-standardised). A spot without neighbours counts in the mean and
    the variance of a gene only.

    Parameters
    ----------
    values
        Expression of one slide, (n_obs, n_vars), in any unit.
    neighbors
        Neighbours of each spot: row numbers (n_obs, k), as of :func:`nearest_spots`, or a sparse matrix of weights
        (n_obs, n_obs), such as squidpy's ``obsp["spatial_connectivities"]``.

    Returns
    -------
    float64 (n_vars,). NaN for a gene that is constant or holds a NaN.

    References
    ----------
    Moran, P. A. P. (1950). Notes on continuous stochastic phenomena. Biometrika 37, 17-23.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"values is a matrix (n_obs, n_vars), not of shape {x.shape}.")
    weights = _weights(neighbors, x.shape[0])
    z = centred(x)
    return np.asarray((z * (weights @ z)).sum(axis=0) / (z * z).sum(axis=0) * (x.shape[0] / weights.sum()))


def morans_i_agreement(measured: ArrayLike, predicted: ArrayLike, neighbors: Any, *, how: How = "pearson") -> float:
    """Correlation over genes of the Moran's I of measured and predicted expression, for one slide.

    High where the genes that are spatially organised in the prediction are those that are in the tissue. It says
    nothing about the level: predictions hold no sampling noise, so their Moran's I is higher throughout.

    Parameters
    ----------
    measured, predicted
        Expression (n_obs, n_vars), in any unit.
    neighbors
        See :func:`morans_i`.
    how
        ``"pearson"`` or ``"spearman"``.

    Returns
    -------
    -1 to 1; NaN with fewer than two genes that vary in both, or if the values of these are all the same.
    """
    if how not in get_args(How):
        raise ValueError(f"how is one of {', '.join(map(repr, get_args(How)))}, not {how!r}.")
    a, b = (morans_i(values, neighbors) for values in pair(measured, predicted))
    there = ~np.isnan(a) & ~np.isnan(b)
    if there.sum() < 2:
        return float("nan")
    score = pearson if how == "pearson" else spearman
    return float(score(a[there, None], b[there, None])[0])


def _weights(neighbors: Any, n_obs: int) -> Any:
    """Row-standardised weights, sparse (n_obs, n_obs)."""
    if sp.issparse(neighbors):
        weights = sp.csr_array(neighbors).astype(np.float64)
        if weights.shape != (n_obs, n_obs):
            raise ValueError(f"neighbors has shape {weights.shape} for {n_obs} spots.")
    else:
        index = np.asarray(neighbors)
        if index.ndim != 2 or index.shape[0] != n_obs or not np.issubdtype(index.dtype, np.integer):
            raise ValueError(
                f"neighbors holds row numbers (n_obs, k) for {n_obs} spots, not {index.dtype} {index.shape}. Take "
                f"nearest_spots(coordinates), or a sparse matrix of weights."
            )
        if index.size and (index.min() < 0 or index.max() >= n_obs):
            raise ValueError(f"neighbors has row numbers outside 0 to {n_obs - 1}.")
        start = np.arange(n_obs + 1) * index.shape[1]
        weights = sp.csr_array((np.ones(index.size), index.ravel(), start), shape=(n_obs, n_obs))
    sums = np.asarray(weights.sum(axis=1)).ravel()
    if not sums.any():
        raise ValueError("neighbors is empty: Moran's I takes at least one pair of neighbouring spots.")
    inverse = np.divide(1.0, sums, out=np.zeros(n_obs), where=sums > 0)
    return sp.diags_array(inverse) @ weights
