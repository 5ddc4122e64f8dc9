"""The mean over patients of a value per slide, with an interval.

What generalises is the patient: it is patients that are drawn again, then slides within them; genes and spots are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._agreement import Scores

MIN_PATIENTS = 5
"""With fewer patients than this an interval says little, and is labelled as not meaningful."""


@dataclass(frozen=True)
class Interval:
    """A mean over patients and its percentile interval."""

    mean: float
    """Mean over slides within a patient, then over patients."""
    low: float
    """Lower end; NaN where there is one slide."""
    high: float
    """Upper end; NaN where there is one slide."""
    level: float
    """Share of the resampled means that lie inside."""
    n_patients: int
    """Patients with a value."""
    n_slides: int
    """Slides with a value."""
    meaningful: bool
    """False below five patients: the interval then says how the slides at hand vary, and little about others."""
    unit: Literal["patient", "slide"]
    """What was drawn again: patients and slides within them, or only slides where all are of one patient."""


def bootstrap(
    values: ArrayLike,
    patients: Sequence[object] | NDArray,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    rng: int | np.random.Generator = 0,
) -> Interval:
    """Mean over slides, then patients, with a percentile interval from drawing patients, then slides within them.

    Parameters
    ----------
    values
        A value per slide, (n_slides,), such as its mean score over genes. A slide without one (NaN) is left out.
    patients
        Patient of each slide.
    level
        Share of the resampled means that the interval holds.
    n_resamples
        Number of draws.
    rng
        Seed or generator of the draws.

    Returns
    -------
    The mean and its interval, `low` and `high` NaN where there are fewer than two slides.
    """
    of_slide, labels = np.asarray(values, dtype=np.float64), np.asarray(patients)
    if of_slide.ndim != 1 or labels.shape != of_slide.shape:
        raise ValueError(f"values and patients hold one entry per slide, not {of_slide.shape} and {labels.shape}.")
    if not 0 < level < 1:
        raise ValueError(f"level is between 0 and 1, not {level}.")
    if n_resamples < 1:
        raise ValueError(f"n_resamples is at least 1, not {n_resamples}.")
    there = ~np.isnan(of_slide)
    of_slide, labels = of_slide[there], labels[there]
    names, patient, n_slides = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    low, high = np.nan, np.nan
    if len(of_slide) > 1:
        tail = (1 - level) / 2
        low, high = np.quantile(_resampled(of_slide, patient, n_resamples, rng), [tail, 1 - tail])
    return Interval(
        mean=_over_patients(of_slide, patient, n_slides),
        low=float(low),
        high=float(high),
        level=level,
        n_patients=len(names),
        n_slides=len(of_slide),
        meaningful=len(names) >= MIN_PATIENTS,
        unit="slide" if len(names) == 1 else "patient",
    )


def _over_patients(values: Scores, patient: NDArray[np.intp], n_slides: NDArray[np.intp]) -> float:
    if not len(values):
        return float("nan")
    return float((np.bincount(patient, values) / n_slides).mean())


def _resampled(values: Scores, patient: NDArray[np.intp], n_resamples: int, rng: int | np.random.Generator) -> Scores:
    """Means of `n_resamples` draws of patients, each with as many slides as it has, drawn from its own."""
    generator = np.random.default_rng(rng)
    n_patients = int(patient.max()) + 1
    drawn = generator.integers(n_patients, size=(n_resamples, n_patients))
    means = np.empty(drawn.shape)
    for i in range(n_patients):
        own, places = values[patient == i], drawn == i
        slides = generator.integers(len(own), size=(np.count_nonzero(places), len(own)))
        means[places] = own[slides].mean(axis=1)
    return np.asarray(means.mean(axis=1))
