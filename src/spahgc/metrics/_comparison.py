"""Methods beside each other, from a long table of scores: what a benchmark reports.

A score is averaged over seeds, then over the genes of a slide, the slides of a patient, and patients, so that neither a
patient with many slides nor a slide with many spots weighs more than another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._intervals import Interval, bootstrap

if TYPE_CHECKING:
    import pandas as pd

_ERRORS = ("rmse", "mae")
_COLUMNS = ("method", "slide", "patient", "gene", "metric", "value")
_LEVELS = ["method", "patient", "slide", "gene"]


def paired_difference(
    table: pd.DataFrame,
    method: str,
    baseline: str = "ridge",
    *,
    metric: str = "pearson",
    level: float = 0.95,
    n_resamples: int = 2000,
    rng: int | np.random.Generator = 0,
) -> Interval:
    """Mean difference of a method to a baseline, paired gene by gene on the same slides.

    Seeds are averaged first, then the difference is taken for each gene of a slide, and averaged over genes, slides
    and patients. Genes and slides that only one of the two has a score for are left out.

    Parameters
    ----------
    table
        Long table of scores: ``method``, ``slide``, ``patient``, ``gene``, ``metric``, ``value`` and, if there are
        several, ``seed``.
    method, baseline
        Methods of the table.
    metric
        Metric of the table.
    level, n_resamples, rng
        See :func:`bootstrap`.

    Returns
    -------
    The mean difference and its interval. Below zero means lower than the baseline, which for errors is better.

    Raises
    ------
    KeyError
        If a column, the metric or a method is not in the table.
    ValueError
        If a score is there twice.
    """
    scores = _by_method(_rows(table, metric))
    return _interval(_of(scores, method) - _of(scores, baseline), level=level, n_resamples=n_resamples, rng=rng)


def summarize(
    table: pd.DataFrame,
    baseline: str | None = "ridge",
    *,
    metric: str = "pearson",
    level: float = 0.95,
    n_resamples: int = 2000,
    rng: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """One row a method: mean score with its interval, and the paired difference to a baseline with its own.

    Parameters
    ----------
    table
        Long table of scores: ``method``, ``slide``, ``patient``, ``gene``, ``metric``, ``value`` and, if there are
        several, ``seed``.
    baseline
        Method that the others are compared with; `None` leaves the comparison NaN.
    metric
        Metric of the table.
    level, n_resamples, rng
        See :func:`bootstrap`.

    Returns
    -------
    DataFrame with the methods as index, best first, and the columns

    - ``mean``, ``low``, ``high``: mean over genes, slides, patients, and its interval;
    - ``difference``, ``difference_low``, ``difference_high``: see :func:`paired_difference`;
    - ``relative``: the difference as a share of the baseline's mean over the same genes and slides, NaN where
      that mean is not above zero;
    - ``n_slides``, ``n_patients``: with a score of the method;
    - ``undefined``: share of the genes of its slides that have no score, such as a constant prediction's correlation.
      They are left out of ``mean``, so a method that predicts constants where it is unsure looks better than it is;
    - ``meaningful``: False where either interval rests on fewer than five patients;
    - ``unit``: ``"patient"``, or ``"slide"`` where all slides are of one patient.

    Raises
    ------
    KeyError
        If a column, the metric or the baseline is not in the table.
    ValueError
        If a score is there twice.
    """
    import pandas as pd

    chosen = _rows(table, metric)
    scores, undefined = _by_method(chosen), _undefined(chosen)
    rows = {}
    for method in map(str, scores.columns):
        own, base = scores[method], _of(scores, method if baseline is None else baseline)
        pair = own * np.nan if baseline is None else own - base
        mean = _interval(own, level=level, n_resamples=n_resamples, rng=rng)
        difference = _interval(pair, level=level, n_resamples=n_resamples, rng=rng)
        shared = _interval(base[pair.notna()], n_resamples=1).mean
        rows[str(method)] = {
            "mean": mean.mean,
            "low": mean.low,
            "high": mean.high,
            "difference": difference.mean,
            "difference_low": difference.low,
            "difference_high": difference.high,
            "relative": difference.mean / shared if shared > 0 else np.nan,
            "n_slides": mean.n_slides,
            "n_patients": mean.n_patients,
            "undefined": undefined[method],
            "meaningful": mean.meaningful and (baseline is None or difference.meaningful),
            "unit": mean.unit,
        }
    summary = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    return summary.sort_values("mean", ascending=metric in _ERRORS, kind="stable")


def _rows(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of one metric, checked."""
    missing = [column for column in _COLUMNS if column not in table]
    if missing:
        raise KeyError(
            f"The table of scores has no column {', '.join(missing)}. Available: {', '.join(map(str, table.columns))}."
        )
    rows = table[table["metric"] == metric]
    if not len(rows):
        raise KeyError(
            f"The table has no scores {metric!r}. Available: {', '.join(map(repr, table['metric'].unique()))}."
        )
    # Slides whose patient is not known may all be of one.
    patient = rows["patient"].astype(object).where(rows["patient"].notna(), "unknown")
    rows = rows.assign(patient=patient, method=rows["method"].astype(str))
    doubled = rows.duplicated([*_LEVELS, *(["seed"] if "seed" in rows else [])])
    if doubled.any():
        first = rows[doubled].iloc[0]
        raise ValueError(
            f"The table has {metric} of {first['method']!r} twice for gene {first['gene']!r} of slide "
            f"{first['slide']!r}: keep the rows of one setting, and name repeats by a column 'seed'."
        )
    return rows


def _by_method(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, a row per patient, slide and gene, a column per method; NaN where there is no score."""
    return rows.groupby(_LEVELS, sort=False, observed=True)["value"].mean().unstack("method")


def _undefined(rows: pd.DataFrame) -> dict[str, float]:
    """Share of each method's scores that are NaN."""
    shares = rows["value"].isna().groupby(rows["method"], observed=True).mean()
    return {str(method): float(share) for method, share in shares.items()}


def _of(scores: pd.DataFrame, method: str) -> pd.Series:
    if method not in scores:
        available = ", ".join(map(repr, scores.columns))
        raise KeyError(f"The table has no scores of method {method!r}. Available: {available}.")
    return scores[method]


def _interval(
    scores: pd.Series, *, level: float = 0.95, n_resamples: int = 2000, rng: int | np.random.Generator = 0
) -> Interval:
    of_slide = scores.groupby(["patient", "slide"], observed=True).mean()
    patients = of_slide.index.get_level_values("patient").to_numpy()
    return bootstrap(of_slide.to_numpy(), patients, level=level, n_resamples=n_resamples, rng=rng)
