"""Structure among genes: whether those that go together in the tissue go together in the prediction."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._agreement import CONSTANT, Scores, centred, pair

_BLOCK = 512


def structure(measured: ArrayLike, predicted: ArrayLike) -> Scores:
    """Structural agreement of each gene: are its correlations with the other genes those that were measured?

    For each gene, the Pearson correlation of its row in the gene-gene correlation matrix of the measurement with that
    of the prediction, itself left out. Both matrices are Pearson correlations over the spots of the slide.

    Parameters
    ----------
    measured, predicted
        Expression (n_obs, n_vars), in any unit.

    Returns
    -------
    float64 (n_vars,). NaN for a gene that is constant in either matrix, which is left out of the rows of the others,
    and where fewer than two other genes are left.
    """
    return _correlation(_row_sums(measured, predicted))


def structure_agreement(measured: ArrayLike, predicted: ArrayLike) -> float:
    """Structural agreement of a slide: the correlation of all gene-gene correlations, measured and predicted.

    Parameters
    ----------
    measured, predicted
        Expression (n_obs, n_vars), in any unit.

    Returns
    -------
    Pearson correlation over all pairs of genes that vary in both; NaN with fewer than three of these.
    """
    return float(_correlation(np.nansum(_row_sums(measured, predicted), axis=1, keepdims=True))[0])


def _row_sums(measured: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """Sums over each gene's correlations with the others, a measured and b predicted: n, a, b, aa, bb, ab (6, n_vars).

    In blocks of genes, so that no matrix of all genes by all genes is held.
    """
    a, b = (centred(values) for values in pair(measured, predicted))
    kept = np.flatnonzero(~np.isnan(a).any(axis=0) & ~np.isnan(b).any(axis=0))
    a, b = (values[:, kept] / np.sqrt((values[:, kept] ** 2).sum(axis=0)) for values in (a, b))
    sums = np.full((6, np.shape(measured)[1]), np.nan)
    for start in range(0, len(kept), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(kept)))
        x, y = a[:, rows].T @ a, b[:, rows].T @ b
        own = (np.arange(len(rows)), rows)
        x[own] = y[own] = 0.0
        products = (x, y, x * x, y * y, x * y)
        sums[0, kept[rows]] = len(kept) - 1
        sums[1:, kept[rows]] = [product.sum(axis=1) for product in products]
    return sums


def _correlation(sums: NDArray[np.float64]) -> Scores:
    """Pearson from the sums of :func:`_row_sums`; NaN where one of the two does not vary."""
    n = np.where(sums[0] > 1, sums[0], np.nan)
    a, b, aa, bb, ab = sums[1:] / n
    spread_a, spread_b = np.sqrt(np.maximum(aa - a * a, 0)), np.sqrt(np.maximum(bb - b * b, 0))
    constant = (spread_a <= CONSTANT) | (spread_b <= CONSTANT)
    return np.clip((ab - a * b) / np.where(constant, np.nan, spread_a * spread_b), -1.0, 1.0)
