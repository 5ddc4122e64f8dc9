"""Which genes can be predicted, and how well, from the scores of a cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._checks import format_names
from .._slides import Float64, SplitBy
from ..get import VERDICTS
from ..metrics import GOOD
from ._shifts import Shifts, mean_over

if TYPE_CHECKING:
    import pandas as pd

TRUSTED, WEAK, NOT_PREDICTABLE, NOT_ASSESSED = VERDICTS
BAD, BEYOND_DEPTH = 0.15, 0.15
"""Limits of the verdicts: expected Pearson of a gene that is not predictable, and Pearson with depth removed of a
trusted one; the expected Pearson of a trusted gene is at least `GOOD`."""
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

    .. math:: z_{gs} = m_g + b_s + c_s (m_g - \bar m) + e_{gs}

    with gene means :math:`m_g` drawn around a common mean and shrunk towards it (empirical Bayes), a shift
    :math:`b_s + c_s (m_g - \bar m)` of a slide, on which all genes do better or worse and good genes more so than
    others, and a residual whose variance is pooled over genes. The interval is one of
    **prediction**: it covers the correlation that the gene will have on one more slide with probability `level`. Its
    variance is that of the shrunken mean, of the next slide's residual, and of the shift. There are few slides, so
    the variance of the shift is hardly known: the quantile is that of the sum of a t with as many degrees of freedom
    as there are slides less one, and of the residual's (Behrens and Fisher). Two slides
    may agree by chance, so with fewer than three there is no interval.

    Where patients were held out, a patient's slides are averaged first, patients take the place of slides in all of
    this, and the variance between slides of one patient is added. Where slides were held out (``split_by="slide"``),
    the interval is for further slides of the same patients, so a slide whose patient has no other slide is left out.

    Verdicts, from best to worst:

    ``trusted``
        expected Pearson of at least 0.3, interval above 0, and expected Pearson of at least 0.15 with depth removed
        (not asked where depth is not known for any gene).
    ``weak``
        all others: also a gene whose skill is depth alone, and every gene where there is no interval.
    ``not predictable``
        expected Pearson below 0.15.
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
        raise KeyError(
            f"The table of scores has no column {format_names(missing)}. Available: {format_names(table.columns)}."
        )
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
    """The rule of the verdicts on an expected Pearson correlation, in a line."""
    return (
        f"trusted: expected >= {GOOD:g}, {100 * level:g} % interval above 0, >= {BEYOND_DEPTH:g} with depth removed; "
        f"weak: the others; not predictable: expected < {BAD:g}"
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
    """Mean over seeds, a row per method, metric, slide and gene."""
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
                f"The table has no 'pearson' of method {method!r}. Methods: {format_names(table['method'].unique())}."
            )
        patients = own.assign(slide=own["slide"].astype(str)).groupby("slide")["patient"].first().astype(str)
        of_unit = np.unique(patients, return_inverse=True)[1]
        if split_by == "slide" or of_unit.max() == 0:
            mates = np.bincount(of_unit)[of_unit] > 1
            patients = patients[mates] if mates.any() else patients
            of_unit = np.arange(len(patients))
        means = table.assign(slide=table["slide"].astype(str), gene=table["gene"].astype(str))
        means = means.groupby(["method", "metric", "slide", "gene"], observed=True)["value"].mean().reset_index()
        return cls(means, list(patients.index), own["gene"].astype(str).unique().tolist(), of_unit)

    def matrix(self, method: str, metric: str) -> Float64:
        """Scores (n_slides, n_genes); NaN where there is none."""
        values = self.table[(self.table["method"] == method) & (self.table["metric"] == metric)]
        wide = values.pivot(index="slide", columns="gene", values="value")
        return wide.reindex(index=self.slides, columns=self.genes).to_numpy(dtype=np.float64)

    def z(self, method: str, metric: str) -> Float64:
        """Fisher's z of a correlation."""
        return np.arctanh(np.clip(self.matrix(method, metric), -_MOST, _MOST))

    def ceiling(self) -> Float64:
        """Mean noise ceiling of each gene; NaN where it is not known, or not above 0."""
        values = mean_over(self.matrix(CEILING_METHOD, CEILING_METRIC))
        return np.where(values > 0, values, np.nan)
