"""Comparison of methods from a long table of scores, as benchmarks report it.

A score is averaged over seeds, then over the genes of a slide, the slides of a patient, and patients, so that neither
patients with many slides nor slides with many spots weigh more than others. Intervals resample patients and the slides
within them, because results have to generalize to new patients; genes and spots are not resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from .._checks import at_least, between, checked, format_names
from ._scores import Scores

MIN_PATIENTS = 5
_LEVELS = ["method", "patient", "slide", "gene"]


@dataclass(frozen=True)
class Interval:
    """Mean over slides within a patient, then over patients, and its percentile interval.

    Attributes
    ----------
    mean, low, high
        Mean and ends of the interval, which are NaN if there are fewer than two slides.
    level
        Fraction of the resampled means inside.
    n_patients, n_slides
        Patients and slides with a value.
    meaningful
        False with fewer than five patients: the interval then describes these slides and says little about others.
    unit
        What was resampled: patients and slides within them, or slides alone if there is one patient.
    """

    mean: float
    low: float
    high: float
    level: float
    n_patients: int
    n_slides: int
    meaningful: bool
    unit: Literal["patient", "slide"]


@checked(level=between(0, 1), n_resamples=at_least(1))
def bootstrap(
    values: ArrayLike,
    patients: Sequence[object] | NDArray,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    rng: int | np.random.Generator = 0,
) -> Interval:
    """Mean over slides, then patients, with a percentile interval from resampling patients, then their slides.

    Parameters
    ----------
    values
        Value per slide, (n_slides,), such as its mean score over genes. Slides without a value (NaN) are left out.
    patients
        Patient of each slide, (n_slides,).
    level
        Fraction of the resampled means inside the interval.
    n_resamples, rng
        Number of resamples, and their seed or generator.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.metrics.bootstrap([0.2, 0.4, 0.6], ["A", "A", "B"]).mean
    0.45
    """
    of_slide, labels = np.asarray(values, dtype=np.float64), np.asarray(patients)
    if of_slide.ndim != 1 or labels.shape != of_slide.shape:
        raise ValueError(
            f"`values` and `patients` must have one entry per slide, got shapes {of_slide.shape} and {labels.shape}."
        )
    of_slide, labels = of_slide[~np.isnan(of_slide)], labels[~np.isnan(of_slide)]
    names, patient, n_slides = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    mean = (np.bincount(patient, of_slide) / n_slides).mean() if len(of_slide) else np.nan
    low = high = np.nan
    if len(of_slide) > 1:
        tail = (1 - level) / 2
        low, high = np.quantile(_resampled(of_slide, patient, n_resamples, rng), [tail, 1 - tail])
    return Interval(
        mean=float(mean),
        low=float(low),
        high=float(high),
        level=level,
        n_patients=len(names),
        n_slides=len(of_slide),
        meaningful=len(names) >= MIN_PATIENTS,
        unit="slide" if len(names) == 1 else "patient",
    )


def _resampled(values: Scores, patient: NDArray[np.intp], n_resamples: int, rng: int | np.random.Generator) -> Scores:
    """Means of draws of patients, each with as many slides as it has, drawn from its own."""
    generator = np.random.default_rng(rng)
    n_patients = int(patient.max()) + 1
    drawn = generator.integers(n_patients, size=(n_resamples, n_patients))
    means = np.empty(drawn.shape)
    for i in range(n_patients):
        of_patient, places = values[patient == i], drawn == i
        slides = generator.integers(len(of_patient), size=(np.count_nonzero(places), len(of_patient)))
        means[places] = of_patient[slides].mean(axis=1)
    return np.asarray(means.mean(axis=1))


@checked(level=between(0, 1), n_resamples=at_least(1))
def summarize(
    table: pd.DataFrame,
    baseline: str | None = "ridge",
    *,
    metric: str = "pearson",
    level: float = 0.95,
    n_resamples: int = 2000,
    rng: int | np.random.Generator = 0,
) -> pd.DataFrame:
    """Summarize each method in one row: mean score and paired difference to a baseline, with their intervals.

    Differences are paired by gene and slide. Negative ones are lower than the baseline, which is better for errors.

    Parameters
    ----------
    table
        Long table of scores: ``method``, ``slide``, ``patient``, ``gene``, ``metric``, ``value``, and ``seed`` if there
        are several.
    baseline, metric
        A method and a metric of the table. Without a baseline, the comparison is NaN.
    level, n_resamples, rng
        See :func:`bootstrap`.

    Returns
    -------
    DataFrame with the methods as index, best first, and the columns

    - ``mean``, ``low``, ``high``: mean over genes, slides and patients, and its interval;
    - ``difference``, ``difference_low``, ``difference_high``: mean over the genes and slides with a score of both, and
      its interval;
    - ``relative``: difference divided by the baseline's mean over the same genes and slides, NaN if that is not
      positive;
    - ``n_slides``, ``n_patients``: with a score of the method;
    - ``undefined``: fraction of the genes of its slides without a score, such as the correlation of a constant
      prediction. They are left out of ``mean``, which flatters a method that predicts constants when unsure;
    - ``meaningful``: False if either interval rests on fewer than five patients;
    - ``unit``: ``"patient"``, or ``"slide"`` if all slides are from one patient.

    Raises
    ------
    KeyError, ValueError
        If a column, the metric or the baseline is not in the table, or the table contains a score twice.

    Examples
    --------
    >>> import pandas as pd, spahgc
    >>> table = pd.DataFrame({"method": ["ridge", "knn"], "slide": "S1", "patient": "A", "gene": "GNAS"})
    >>> spahgc.metrics.summarize(table.assign(metric="pearson", value=[0.3, 0.2])).index.tolist()
    ['ridge', 'knn']
    """
    scores, undefined = _by_method(table, metric)
    if baseline is not None and baseline not in scores:
        raise KeyError(f"The table has no scores of method {baseline!r}. Available: {format_names(scores.columns)}.")
    rows = {}
    for method in map(str, scores.columns):
        of_method, base = scores[method], scores[method if baseline is None else baseline]
        pair = of_method * np.nan if baseline is None else of_method - base
        mean = _interval(of_method, level=level, n_resamples=n_resamples, rng=rng)
        difference = _interval(pair, level=level, n_resamples=n_resamples, rng=rng)
        shared = _interval(base[pair.notna()], n_resamples=1).mean
        rows[method] = {
            "mean": mean.mean,
            "low": mean.low,
            "high": mean.high,
            "difference": difference.mean,
            "difference_low": difference.low,
            "difference_high": difference.high,
            "relative": difference.mean / shared if shared > 0 else np.nan,
            "n_slides": mean.n_slides,
            "n_patients": mean.n_patients,
            "undefined": float(undefined[method]),
            "meaningful": mean.meaningful and (baseline is None or difference.meaningful),
            "unit": mean.unit,
        }
    summary = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    return summary.sort_values("mean", ascending=metric in {"rmse", "mae"}, kind="stable")


def _by_method(table: pd.DataFrame, metric: str) -> tuple[pd.DataFrame, pd.Series]:
    """Mean score over seeds by patient, slide and gene, a column per method; and the fraction of NaN per method."""
    missing = [column for column in (*_LEVELS, "metric", "value") if column not in table]
    if missing:
        raise KeyError(f"The table has no column {', '.join(missing)}. Available: {format_names(table.columns)}.")
    rows = table[table["metric"] == metric]
    if not len(rows):
        raise KeyError(f"The table has no scores {metric!r}. Available: {format_names(table['metric'].unique())}.")
    # Slides of unknown patients may all be from one.
    patient = rows["patient"].astype(object).where(rows["patient"].notna(), "unknown")
    rows = rows.assign(patient=patient, method=rows["method"].astype(str))
    repeated = rows.duplicated([*_LEVELS, *(["seed"] if "seed" in rows else [])])
    if repeated.any():
        first = rows[repeated].iloc[0]
        raise ValueError(
            f"The table has {metric} of {first['method']!r} twice for gene {first['gene']!r} of slide "
            f"{first['slide']!r}. Keep the rows of one setting, and number repeats in a column 'seed'."
        )
    undefined = rows["value"].isna().groupby(rows["method"], observed=True).mean()
    return rows.groupby(_LEVELS, sort=False, observed=True)["value"].mean().unstack("method"), undefined


def _interval(
    scores: pd.Series, *, level: float = 0.95, n_resamples: int = 2000, rng: int | np.random.Generator = 0
) -> Interval:
    of_slide = scores.groupby(["patient", "slide"], observed=True).mean()
    patients = of_slide.index.get_level_values("patient").to_numpy()
    return bootstrap(of_slide.to_numpy(), patients, level=level, n_resamples=n_resamples, rng=rng)
