"""How a score varies over slides: the model behind the trust in a gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._slides import Float64

MIN_UNITS = 3
"""Slides (or patients) held out from which on there is an interval: two may agree by chance, and hide all shift."""


@dataclass(frozen=True, eq=False)
class Shifts:
    """The fitted model ``z = gene mean + shift of the slide + residual``, see :func:`spahgc.tl._trust.gene_trust`."""

    means: Float64
    """Shrunken mean of each gene, (n_genes,); NaN where it has no score."""
    error: Float64
    """Variance of the shrunken means."""
    residual: tuple[float, float]
    """Variance of a new slide's residual, and its degrees of freedom."""
    shift: tuple[Float64, float]
    """Variance of a new slide's shift around the mean of the known ones, (n_genes,), and its degrees of freedom; NaN
    and 0 with fewer than three units."""

    @classmethod
    def fit(cls, z: Float64, units: NDArray[np.intp]) -> Shifts:
        """From z (n_slides, n_genes) with NaN where there is no score, and the unit of each slide."""
        here = np.isfinite(z).any(axis=1)
        z, units = z[here], np.unique(units[here], return_inverse=True)[1]
        by_unit = np.stack([mean_over(z[units == unit]) for unit in range(units.max() + 1)]) if len(z) else z
        n_units, n = len(by_unit), np.isfinite(by_unit).sum(axis=0)
        if n_units < 2:
            nothing = np.full(z.shape[1], np.nan)
            return cls(by_unit[0] if n_units else nothing, nothing, (np.nan, 0.0), (nothing, 0.0))
        means, shifts, left = _additive(by_unit)
        free = float(n.sum() - (n > 0).sum() - 2 * (n_units - 1))
        variance = float(np.nansum(left**2)) / free if free > 0 else 0.0
        between = (1 + 1 / n_units) * (shifts**2).sum(axis=0) / (n_units - 1)
        within = _within(z, units)
        n = np.where(n > 0, n, np.nan)
        # Of the spread of the means, what the residuals do not explain is that of the genes.
        known = np.isfinite(means)
        spread = float(np.var(means[known], ddof=1) - np.mean(variance / n[known])) if known.sum() > 1 else np.inf
        kept = spread / (spread + variance / n) if 0 < spread < np.inf else np.full(len(n), float(spread > 0))
        centre = float(np.mean(means[known])) if known.any() else np.nan
        residual = _total((variance, max(free, 1.0)), within[1])
        return cls(
            centre + kept * (means - centre),
            kept * variance / n,
            (float(residual[0]), residual[1]),
            _total((between, n_units - 1.0), within[0]) if n_units >= MIN_UNITS else (np.full(len(n), np.nan), 0.0),
        )

    def interval(self, level: float) -> tuple[Float64, Float64]:
        """Limits of the next slide's z, gene by gene."""
        own, (shift, free) = self.error + self.residual[0], self.shift
        if free == 0:
            return np.full(len(own), np.nan), np.full(len(own), np.nan)
        total = own + shift
        share = np.divide(shift, total, out=np.zeros(len(own)), where=total > 0)
        # The quantile of a sum of two t is a smooth function of the share that one has in it.
        shares = np.linspace(0, 1, 11) ** 2
        half = np.sqrt(total) * np.interp(
            share, shares, [_quantile(level, (1 - x, self.residual[1]), (x, free)) for x in shares]
        )
        return self.means - half, self.means + half


def _additive(z: Float64) -> tuple[Float64, Float64, Float64]:
    """Least-squares ``z = mean of the column + shift of the row``, with residuals.

    The shifts of a row (n_rows, n_columns) are linear in the means of the columns, and are 0 on average.
    """
    seen = np.isfinite(z)
    values, n_rows, n_columns = np.where(seen, z, 0.0), seen.sum(axis=0), seen.sum(axis=1)
    level = np.zeros(len(z))
    for _ in range(1000):
        means = ((values - level[:, None]) * seen).sum(axis=0) / np.maximum(n_rows, 1)
        new = ((values - means) * seen).sum(axis=1) / n_columns
        new -= new.mean()
        done = np.abs(new - level).max() < 1e-10
        level = new
        if done:
            break
    centred = np.where(n_rows > 0, means - means[n_rows > 0].mean(), 0.0)
    left = (values - means - level[:, None]) * seen
    scale = (centred**2 * seen).sum(axis=1)
    slope = np.divide((left * centred).sum(axis=1), scale, out=np.zeros(len(z)), where=scale > 1e-12)
    shifts = level[:, None] + (slope - slope.mean())[:, None] * centred
    means = np.where(n_rows > 0, means, np.nan)
    return means, shifts, np.where(seen, z - means - shifts, np.nan)


def _within(z: Float64, units: NDArray[np.intp]) -> tuple[tuple[Any, float], tuple[float, float]]:
    """What one slide of a unit varies beyond the mean of the unit's slides: shift and residual, as in `Shifts`."""
    n_slides = np.bincount(units)
    shift, left, n_left = np.zeros(z.shape[1]), 0.0, 0
    for unit in np.flatnonzero(n_slides > 1):
        rows = z[units == unit]
        _, shifts, rest = _additive(rows)
        shift += (shifts**2).sum(axis=0)
        n, left = np.isfinite(rest).sum(axis=0), left + float(np.nansum(rest**2))
        n_left += int(n.sum() - (n > 0).sum() - 2 * (len(rows) - 1))
    share, free = float(np.mean(1 - 1 / n_slides)), float(len(z) - len(n_slides))
    return (share * shift / max(free, 1.0), free), (share * left / max(n_left, 1), float(max(n_left, 0)))


def _total(one: tuple[Any, float], other: tuple[Any, float]) -> tuple[Any, float]:
    """Sum of two variances, and its degrees of freedom after Satterthwaite (of the means, over genes)."""
    total = one[0] + other[0]
    mean = [float(np.mean(variance)) for variance in (one[0], other[0])]
    spread = sum(part**2 / free for part, free in zip(mean, (one[1], other[1]), strict=True) if free > 0)
    return total, sum(mean) ** 2 / spread if spread > 0 else one[1]


def _quantile(level: float, one: tuple[float, float], other: tuple[float, float]) -> float:
    """Half-width that holds `level` of the sum of two independent t, each given by variance and degrees of freedom."""
    from scipy.optimize import brentq
    from scipy.special import stdtr, stdtrit

    scales, free, tail = np.sqrt([one[0], other[0]]), (one[1], other[1]), (1 + level) / 2
    if scales.min() == 0:
        return float(scales[0] * stdtrit(free[0], tail) + scales[1] * stdtrit(free[1], tail))
    draws = scales[1] * stdtrit(free[1], (np.arange(400) + 0.5) / 400)

    def excess(half: float) -> float:
        return float(stdtr(free[0], (half - draws) / scales[0]).mean() - tail)

    # Beyond the sum of the quantiles at half the tail, less than the tail is left.
    most = sum(scale * stdtrit(n, (1 + tail) / 2) for scale, n in zip(scales, free, strict=True))
    return float(brentq(excess, 0.0, 2 * float(most), xtol=1e-6))


def mean_over(values: Float64) -> Float64:
    """Mean over rows of what is not NaN."""
    seen = np.isfinite(values)
    n = seen.sum(axis=0)
    return np.where(n > 0, np.where(seen, values, 0.0).sum(axis=0) / np.maximum(n, 1), np.nan)
