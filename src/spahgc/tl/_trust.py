"""Which genes can be predicted, and how well, from the scores of a cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._slides import Float64, SplitBy
from .._validate import listed

if TYPE_CHECKING:
    import pandas as pd

TRUSTED, WEAK, NOT_PREDICTABLE, NOT_ASSESSED = "trusted", "weak", "not predictable", "not assessed"
VERDICTS = (TRUSTED, WEAK, NOT_PREDICTABLE, NOT_ASSESSED)
"""Verdicts from best to worst; the last one is that of a gene without any score."""
GOOD, BAD, BEYOND_DEPTH = 0.3, 0.1, 0.15
"""Limits of the verdicts: expected Pearson of a trusted gene, of one that is not predictable, and what has to be left
of a trusted gene's Pearson once depth is removed."""
CEILING_METHOD, CEILING_METRIC = "measured", "ceiling"
"""Rows of a table of scores that hold the noise ceiling."""
_NEEDED = ("method", "slide", "patient", "gene", "metric", "value")
_MOST = 0.999
"""Correlations are taken to be no nearer to 1: Fisher's z of 1 is infinite."""


def gene_trust(
    table: pd.DataFrame, *, method: str, baseline: str = "ridge", level: float = 0.9, split_by: SplitBy = "patient"
) -> pd.DataFrame:
    r"""What to expect of each gene on a new slide, and whether to trust it.

    Scores are averaged over seeds. Fisher's z of the Pearson correlation of gene g on held-out slide s is modelled as

    .. math:: z_{gs} = m_g + b_s + e_{gs}

    with gene means :math:`m_g` drawn around a common mean and shrunk towards it (empirical Bayes), a shift
    :math:`b_s` of all genes of a slide, and a residual whose variance is pooled over genes. The interval is one of
    **prediction**: it covers the correlation that the gene will have on one more slide with probability `level`. Its
    variance is that of the shrunken mean, of the next slide's residual, and of the shift. There are few slides, so
    the variance of the shift is hardly known: the quantile is that of the sum of a t with as many degrees of freedom
    as there are slides less one, and of the residual's (Behrens and Fisher). With two slides it is therefore
    nearly without use, and with one there is none.

    Where patients were held out, a patient's slides are averaged first, patients take the place of slides in all of
    this, and the variance between slides of one patient is added. Where slides were held out (``split_by="slide"``),
    the interval is for further slides of the same patients, so a slide whose patient has no other slide is left out.

    Verdicts, from best to worst:

    ``trusted``
        expected Pearson of at least 0.3, interval above 0, and expected Pearson of at least 0.15 with depth removed
        (not asked where depth is not known for any gene).
    ``weak``
        all others: also a gene whose skill is depth alone, and every gene where a single slide was held out.
    ``not predictable``
        expected Pearson below 0.1.
    ``not assessed``
        no score on any held-out slide.

    Parameters
    ----------
    table
        Scores of a cross-validation, with the columns ``method``, ``slide``, ``patient``, ``gene``, ``metric``,
        ``value`` and perhaps ``seed``. Scores may be NaN, and genes may be missing on some slides.
    method
        The method to assess.
    baseline
        The method it is compared with.
    level
        Probability that the interval covers.
    split_by
        What was held out; with a single patient it is slides in any case.

    Returns
    -------
    DataFrame by gene, best expected first: ``expected_pearson``, ``low`` and ``high`` (the interval),
    ``expected_depth_removed``, ``difference_to_ridge`` (named after `baseline`; NaN where that was not run),
    ``difference_to_depth`` (to the size of the gene's correlation with log depth), ``share_of_ceiling`` (of the noise
    ceiling, rows of method ``measured`` and metric ``ceiling``; NaN if there are none), ``n_slides`` with a score, and
    ``verdict``.

    Raises
    ------
    KeyError
        If the table lacks a column, or has no Pearson of the method.
    ValueError
        If `level` is not between 0 and 1.
    """
    import pandas as pd

    missing = [name for name in _NEEDED if name not in table]
    if missing:
        raise KeyError(f"The table of scores has no column {listed(missing)}. Available: {listed(table.columns)}.")
    if not 0 < level < 1:
        raise ValueError(f"level is a probability between 0 and 1, not {level!r}.")
    scores = Scores.of(table, method, split_by)
    z = scores.z(method, "pearson")
    model = Shifts.fit(z, scores.units)
    low, high = model.interval(level)
    expected = np.tanh(model.means)
    removed = np.tanh(Shifts.fit(scores.z(method, "pearson_depth_removed"), scores.units).means)
    depth = np.tanh(Shifts.fit(np.abs(scores.z(method, "depth_only")), scores.units).means)
    columns = {
        "expected_pearson": expected,
        "low": np.tanh(low),
        "high": np.tanh(high),
        "expected_depth_removed": removed,
        f"difference_to_{baseline}": expected - np.tanh(Shifts.fit(scores.z(baseline, "pearson"), scores.units).means),
        "difference_to_depth": expected - depth,
        "share_of_ceiling": expected / scores.ceiling(),
        "n_slides": np.isfinite(z).sum(axis=0),
        "verdict": verdicts(expected, np.tanh(low), removed),
    }
    frame = pd.DataFrame(columns, index=pd.Index(scores.genes, name="gene", dtype=object))
    return frame.sort_values("expected_pearson", ascending=False, kind="stable")


def verdicts(expected: Float64, low: Float64, removed: Float64) -> list[str]:
    """The verdict on each gene, by the rule that :func:`gene_trust` states."""
    beyond = (removed >= BEYOND_DEPTH) | np.isnan(removed).all()
    return np.select(
        [np.isnan(expected), expected < BAD, (expected >= GOOD) & (low > 0) & beyond],
        [NOT_ASSESSED, NOT_PREDICTABLE, TRUSTED],
        WEAK,
    ).tolist()


def rule(level: float) -> str:
    """The rule of the verdicts in a sentence."""
    return (
        f"trusted: expected Pearson at least {GOOD:g}, {100 * level:g} % interval above 0, and at least "
        f"{BEYOND_DEPTH:g} with depth removed; not predictable: expected below {BAD:g}; weak: the others"
    )


def same_patient(table: pd.DataFrame, split_by: SplitBy) -> bool:
    """Whether the slides that were held out are of patients that the training had other slides of."""
    slides = table.loc[table["method"] != CEILING_METHOD, ["slide", "patient"]].drop_duplicates().astype(str)
    alone = slides["patient"].nunique() == 1
    return bool(alone or (split_by == "slide" and slides["patient"].duplicated().any()))


@dataclass(frozen=True, eq=False)
class Scores:
    """A long table of scores as matrices (n_slides, n_genes)."""

    table: pd.DataFrame
    """Mean over seeds, by method, metric, slide and gene."""
    slides: list[str]
    genes: list[str]
    units: NDArray[np.intp]
    """What was held out at a time: index of the slide's patient, or of the slide."""

    @classmethod
    def of(cls, table: pd.DataFrame, method: str, split_by: SplitBy) -> Scores:
        """The slides that count for `method`, and all its genes."""
        own = table[(table["method"] == method) & (table["metric"] == "pearson")]
        if own.empty:
            raise KeyError(
                f"The table has no 'pearson' of method {method!r}. Methods: {listed(table['method'].unique())}."
            )
        patients = own.assign(slide=own["slide"].astype(str)).groupby("slide")["patient"].first().astype(str)
        of_unit = np.unique(patients, return_inverse=True)[1]
        if split_by == "slide" or of_unit.max() == 0:
            mates = np.bincount(of_unit)[of_unit] > 1
            patients = patients[mates] if mates.any() else patients
            of_unit = np.arange(len(patients))
        means = table.assign(slide=table["slide"].astype(str), gene=table["gene"].astype(str))
        means = means.groupby(["method", "metric", "slide", "gene"], observed=True)["value"].mean()
        return cls(means, list(patients.index), own["gene"].astype(str).unique().tolist(), of_unit)

    def matrix(self, method: str, metric: str) -> Float64:
        """Scores (n_slides, n_genes); NaN where there is none."""
        if (method, metric) not in self.table.index.droplevel(["slide", "gene"]):
            return np.full((len(self.slides), len(self.genes)), np.nan)
        wide = self.table.loc[method, metric].unstack("gene")
        return np.asarray(wide.reindex(index=self.slides, columns=self.genes), dtype=np.float64)

    def z(self, method: str, metric: str) -> Float64:
        """Fisher's z of a correlation."""
        return np.arctanh(np.clip(self.matrix(method, metric), -_MOST, _MOST))

    def ceiling(self) -> Float64:
        """Mean noise ceiling of each gene; NaN where it is not known, or not above 0."""
        values = _mean(self.matrix(CEILING_METHOD, CEILING_METRIC))
        return np.where(values > 0, values, np.nan)


@dataclass(frozen=True, eq=False)
class Shifts:
    """The fitted model ``z = gene mean + shift of the slide + residual``, see :func:`gene_trust`."""

    means: Float64
    """Shrunken mean of each gene, (n_genes,); NaN where it has no score."""
    error: Float64
    """Variance of the shrunken means."""
    residual: tuple[float, float]
    """Variance of a new slide's residual, and its degrees of freedom."""
    shift: tuple[float, float]
    """Variance of a new slide's shift around the mean of the known ones, and its degrees of freedom; NaN and 0 with a
    single unit."""

    @classmethod
    def fit(cls, z: Float64, units: NDArray[np.intp]) -> Shifts:
        """From z (n_slides, n_genes) with NaN where there is no score, and the unit of each slide."""
        here = np.isfinite(z).any(axis=1)
        z, units = z[here], np.unique(units[here], return_inverse=True)[1]
        by_unit = np.stack([_mean(z[units == unit]) for unit in range(units.max() + 1)]) if len(z) else z
        n_units, n = len(by_unit), np.isfinite(by_unit).sum(axis=0)
        if n_units < 2:
            means = by_unit[0] if n_units else np.full(z.shape[1], np.nan)
            return cls(means, np.zeros(z.shape[1]), (np.nan, 0.0), (np.nan, 0.0))
        means, shifts, left = _additive(by_unit)
        free = n.sum() - (n > 0).sum() - n_units + 1
        variance = float(np.nansum(left**2) / free) if free > 0 else 0.0
        between = float((shifts**2).sum() / (n_units - 1))
        shift = [((1 + 1 / n_units) * between, n_units - 1.0)]
        residual = [(variance, float(max(free, 1)))]
        _add_within(z, units, shift, residual)
        n = np.where(n > 0, n, np.nan)
        # A gene that was seen on few slides is drawn more towards the mean of all.
        spread = max(float(np.nanvar(means, ddof=1) - np.nanmean(variance / n)), 0.0) if (n > 0).sum() > 1 else np.inf
        kept = np.ones_like(n) if variance == 0 or np.isinf(spread) else spread / (spread + variance / n)
        centre = float(np.nanmean(means))
        return cls(centre + kept * (means - centre), kept * variance / n, _total(residual), _total(shift))

    def interval(self, level: float) -> tuple[Float64, Float64]:
        """Limits of the next slide's z, gene by gene."""
        half = np.full(len(self.means), np.nan)
        if self.shift[1] > 0:
            of_gene = self.error + self.residual[0]
            for value in np.unique(of_gene[np.isfinite(of_gene)]):
                half[of_gene == value] = _quantile(level, (float(value), self.residual[1]), self.shift)
        return self.means - half, self.means + half


def _additive(z: Float64) -> tuple[Float64, Float64, Float64]:
    """Least-squares ``z = mean of the column + shift of the row``, shifts around 0, with residuals."""
    seen = np.isfinite(z)
    values, n_rows, n_columns = np.where(seen, z, 0.0), seen.sum(axis=0), seen.sum(axis=1)
    shifts = np.zeros(len(z))
    for _ in range(1000):
        means = ((values - shifts[:, None]) * seen).sum(axis=0) / np.maximum(n_rows, 1)
        new = ((values - means) * seen).sum(axis=1) / n_columns
        new -= new.mean()
        done = np.abs(new - shifts).max() < 1e-10
        shifts = new
        if done:
            break
    means = np.where(n_rows > 0, means, np.nan)
    return means, shifts, np.where(seen, z - means - shifts[:, None], np.nan)


def _add_within(z: Float64, units: NDArray[np.intp], shift: list[Any], residual: list[Any]) -> None:
    """What a single slide of a patient varies beyond the mean of the patient's slides."""
    n_slides = np.bincount(units)
    free, several = len(z) - len(n_slides), np.flatnonzero(n_slides > 1)
    if free == 0:
        return
    shifts = np.zeros(len(z))
    left, n_left = 0.0, 0
    for unit in several:
        rows = np.flatnonzero(units == unit)
        _, shifts[rows], rest = _additive(z[rows])
        left += float(np.nansum(rest**2))
        n = np.isfinite(rest).sum(axis=0)
        n_left += int(n.sum() - (n > 0).sum() - len(rows) + 1)
    share = float(np.mean(1 - 1 / n_slides))
    shift.append((share * float((shifts**2).sum()) / free, float(free)))
    if n_left > 0:
        residual.append((share * left / n_left, float(n_left)))


def _total(parts: list[tuple[float, float]]) -> tuple[float, float]:
    """Sum of variances, and its degrees of freedom after Satterthwaite."""
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / free for variance, free in parts)
    return total, total**2 / spread if spread > 0 else min(free for _, free in parts)


def _quantile(level: float, one: tuple[float, float], other: tuple[float, float]) -> float:
    """Half-width that holds `level` of the sum of two independent t, each given by variance and degrees of freedom."""
    from scipy.optimize import brentq
    from scipy.stats import t

    scales = np.sqrt([one[0], other[0]])
    tail = (1 + level) / 2
    if scales.min() == 0:
        return float(scales[0] * t.ppf(tail, one[1]) + scales[1] * t.ppf(tail, other[1]))
    draws = scales[1] * t.ppf((np.arange(4000) + 0.5) / 4000, other[1])

    def excess(half: float) -> float:
        return float(t.cdf((half - draws) / scales[0], one[1]).mean() - tail)

    most = scales[0] * t.ppf(1 - (1 - tail) / 2, one[1]) + scales[1] * t.ppf(1 - (1 - tail) / 2, other[1])
    return float(brentq(excess, 0.0, 2 * most + 1e-9))


def _mean(values: Float64) -> Float64:
    """Mean over rows of what is not NaN."""
    seen = np.isfinite(values)
    n = seen.sum(axis=0)
    return np.where(n > 0, np.where(seen, values, 0.0).sum(axis=0) / np.maximum(n, 1), np.nan)
