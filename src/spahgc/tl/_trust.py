"""Which genes can be predicted, and how well, from the scores of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from .. import _keys as keys
from .._settings import logger
from .._slides import Float64, SplitBy
from .._tables._cohorts import Recipe, plain
from .._tables._predictions import VERDICTS, Trust, reference_trusts
from ..methods import Method, get_method
from ..metrics import GOOD

TRUSTED, WEAK, NOT_PREDICTABLE, NOT_ASSESSED = VERDICTS
BAD, BEYOND_DEPTH = 0.15, 0.15  # expected Pearson of unpredictable genes, and of trusted genes with depth removed
CEILING_METHOD, CEILING_METRIC = "measured", "ceiling"  # rows of a table of scores that hold the noise ceiling
LEVEL, BASELINE = 0.9, "ridge"
RULE = (
    f"trusted: expected >= {GOOD:g}, {100 * LEVEL:g} % interval above 0, >= {BEYOND_DEPTH:g} with depth removed; "
    f"weak: the others; not predictable: expected < {BAD:g}"
)
MIN_UNITS = 3  # held-out slides (or patients) needed for an interval: two may agree by chance
_MOST = 0.999  # limit of correlations: Fisher's z of 1 is infinite
_SHOWN = "spahgc"  # method whose trust goes to `var`, if it was cross-validated


def gene_trust(
    table: pd.DataFrame, *, method: str, level: float = LEVEL, split_by: SplitBy = "patient"
) -> pd.DataFrame:
    r"""Expected score of each gene on a new slide, and whether to trust it.

    Scores are averaged over seeds. Fisher's z of the Pearson correlation of gene g on held-out slide s is modelled as

    .. math:: z_{gs} = m_g + b_s + c_s (m_g - \bar m) + e_{gs}

    with gene means :math:`m_g` shrunk towards a common mean (empirical Bayes), a shift of the slide, on which all genes
    do better or worse and good genes more so than others, and a residual whose variance is pooled over genes. The
    interval is one of **prediction**: it covers the correlation on one more slide with probability `level`. As few
    slides say little about the variance of the shift, its quantile is that of the sum of two t distributions (Behrens
    and Fisher), for shift and residual. With fewer than three slides there is no interval.

    If patients were held out, they take the place of slides, and the variance between slides of one patient is added.
    If slides were held out, a slide whose patient has no other slide is left out. Verdicts follow `RULE`; if depth is
    unknown for all genes, it is not required. Columns are those of :func:`spahgc.get.trust`.
    """
    own = table[(table["method"] == method) & (table["metric"] == "pearson")]
    patients = own.groupby("slide")["patient"].first()
    units = np.unique(patients, return_inverse=True)[1]
    if split_by == "slide" or units.max() == 0:
        mates = np.bincount(units)[units] > 1
        patients = patients[mates] if mates.any() else patients
        units = np.arange(len(patients))
    genes = pd.Index(own["gene"].unique(), name="gene", dtype=object)

    def scores(method: str, metric: str) -> Float64:
        rows = table[(table["method"] == method) & (table["metric"] == metric)]
        wide = rows.pivot_table(index="slide", columns="gene", values="value", observed=True)
        return wide.reindex(index=patients.index, columns=genes).to_numpy(dtype=np.float64)

    def fit(correlations: Float64) -> Shifts:
        return Shifts.fit(np.arctanh(np.clip(correlations, -_MOST, _MOST)), units)

    correlations = scores(method, "pearson")
    model = fit(correlations)
    low, high = np.tanh(model.interval(level))
    expected = np.tanh(model.means)
    removed = np.tanh(fit(scores(method, "pearson_depth_removed")).means)
    depth = np.tanh(fit(np.abs(scores(method, "depth_only"))).means)
    ceiling = mean_over(scores(CEILING_METHOD, CEILING_METRIC))
    beyond = (removed >= BEYOND_DEPTH) | np.isnan(removed).all()
    columns = {
        "expected_pearson": expected,
        "low": low,
        "high": high,
        "expected_depth_removed": removed,
        f"difference_to_{BASELINE}": expected - np.tanh(fit(scores(BASELINE, "pearson")).means),
        "difference_to_depth": expected - depth,
        "share_of_ceiling": expected / np.where(ceiling > 0, ceiling, np.nan),
        "n_slides": np.isfinite(correlations).sum(axis=0),
        "verdict": np.select(
            [np.isnan(expected), expected < BAD, (expected >= GOOD) & (low > 0) & beyond],
            [NOT_ASSESSED, NOT_PREDICTABLE, TRUSTED],
            WEAK,
        ).astype(object),
    }
    return pd.DataFrame(columns, index=genes).sort_values("expected_pearson", ascending=False, kind="stable")


def same_patient(table: pd.DataFrame, split_by: SplitBy) -> bool:
    """Whether held-out slides share patients with the training slides."""
    patients = table.drop_duplicates("slide")["patient"]
    return bool(patients.nunique() == 1 or (split_by == "slide" and patients.duplicated().any()))


def cross_validated_trust(
    table: pd.DataFrame, methods: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any]
) -> tuple[dict[str, Trust], str]:
    """Trust by label of each cross-validated method, and the label whose trust goes to ``var``."""
    by: SplitBy = params["split_by"]
    common = {
        **params,
        "level": LEVEL,
        "baseline": BASELINE,
        "rule": RULE,
        "same_patient": same_patient(table, by),
        "slides": sorted(table["slide"].unique()),
        "patients": sorted(table["patient"].unique()),
    }
    trusts = {
        label: Trust(gene_trust(table, method=label, split_by=by), {**common, "label": label, **spec})
        for label, spec in methods.items()
    }
    return trusts, _SHOWN if _SHOWN in trusts else next(iter(trusts))


def trust_for(adata_ref: AnnData, method: Method, slides: Sequence[str], recipe: Recipe) -> Trust | None:
    """Trust on the reference table that applies to a model: of the same method, unit, embedding and slides, or none."""
    trusts, _ = reference_trusts(adata_ref, keys.PREDICTION)
    wanted = _identity(method, recipe.normalize, recipe.use_rep, slides)
    differing: set[str] = set()
    for params in (trust.params for trust in trusts.values() if trust.params["method"] == method.name):
        other = get_method(method.name, **params["method_params"])
        found = _identity(other, params["normalize"], params["use_rep"], params["slides"])
        if found == wanted:
            frame = trusts[params["label"]].frame.reindex(list(recipe.genes))
            frame = frame.fillna({"verdict": NOT_ASSESSED, "n_slides": 0}).astype({"n_slides": int})
            return Trust(frame.sort_values("expected_pearson", ascending=False, kind="stable"), params)
        differing |= {name for name in wanted if wanted[name] != found[name]}
    if trusts:
        logger.warning(
            "The trust per gene in uns[%r] does not apply to this model (%s), so the model has none. "
            "Run spahgc.tl.cross_validate on the reference slides with the method and parameters of the training.",
            keys.slot(keys.PREDICTION, "trust"),
            f"{', '.join(sorted(differing))} differ" if differing else f"{method.name!r} was not cross-validated",
        )
    return None


def _identity(method: Method, unit: str, use_rep: str, slides: Sequence[str]) -> dict[str, Any]:
    return {"method_params": plain(method.params()), "normalize": unit, "use_rep": use_rep, "slides": sorted(slides)}


def trust_for_targets(trust: Trust, targets: Mapping[str, str | None], known: Sequence[str | None]) -> Trust:
    """Trust of a model on target slides, given with their patients: same-patient trust weakens on other patients."""
    other = sorted(slide for slide, patient in targets.items() if patient is None or patient not in known)
    params = {**trust.params, "other_patient": other if trust.params["same_patient"] else []}
    if not params["other_patient"]:
        return Trust(trust.frame, params)
    logger.warning(
        "Trust per gene was estimated on further slides of the reference patients, but %s not known to be of one of "
        "them: there, no gene is more than weak, and no interval is given. Cross-validate with slides of several "
        "patients, split_by='patient'.",
        f"{', '.join(other)} {'is' if len(other) == 1 else 'are'}",
    )
    weaker = trust.frame["verdict"].replace(TRUSTED, WEAK)
    return Trust(trust.frame.assign(low=np.nan, high=np.nan, verdict=weaker), params)


@dataclass(frozen=True, eq=False)
class Shifts:
    """Fitted model ``z = gene mean + shift of the slide + residual`` of :func:`gene_trust`."""

    means: Float64  # shrunken means of the genes (n_genes,), NaN without a score
    error: Float64  # their variance
    residual: tuple[float, float]  # variance of a new slide's residual, and its degrees of freedom
    shift: tuple[Float64, float]  # variance of a new slide's shift (n_genes,), and its degrees of freedom

    @classmethod
    def fit(cls, z: Float64, units: NDArray[np.intp]) -> Shifts:
        """Fit to z (n_slides, n_genes), NaN without a score, and the unit of each slide."""
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
        # The part of the spread of the means that the residuals do not explain is that of the genes.
        known = np.isfinite(means)
        spread = float(np.var(means[known], ddof=1) - np.mean(variance / n[known])) if known.sum() > 1 else np.inf
        kept = spread / (spread + variance / n) if 0 < spread < np.inf else np.full(len(n), float(spread > 0))
        center = float(np.mean(means[known])) if known.any() else np.nan
        residual = _total((variance, max(free, 1.0)), within[1])
        return cls(
            center + kept * (means - center),
            kept * variance / n,
            (float(residual[0]), residual[1]),
            _total((between, n_units - 1.0), within[0]) if n_units >= MIN_UNITS else (np.full(len(n), np.nan), 0.0),
        )

    def interval(self, level: float) -> tuple[Float64, Float64]:
        """Limits of the z of one further slide, by gene."""
        own, (shift, free) = self.error + self.residual[0], self.shift
        if free == 0:
            return np.full(len(own), np.nan), np.full(len(own), np.nan)
        total = own + shift
        share = np.divide(shift, total, out=np.zeros(len(own)), where=total > 0)
        # The quantile of a sum of two t is a smooth function of their shares, so it is interpolated.
        shares = np.linspace(0, 1, 11) ** 2
        quantiles = [_quantile(level, (1 - x, self.residual[1]), (x, free)) for x in shares]
        half = np.sqrt(total) * np.interp(share, shares, quantiles)
        return self.means - half, self.means + half


def _additive(z: Float64) -> tuple[Float64, Float64, Float64]:
    """Least-squares column means, shifts (linear in the means, 0 on average over rows) and residuals of z."""
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
    centered = np.where(n_rows > 0, means - means[n_rows > 0].mean(), 0.0)
    left = (values - means - level[:, None]) * seen
    scale = (centered**2 * seen).sum(axis=1)
    slope = np.divide((left * centered).sum(axis=1), scale, out=np.zeros(len(z)), where=scale > 1e-12)
    shifts = level[:, None] + (slope - slope.mean())[:, None] * centered
    means = np.where(n_rows > 0, means, np.nan)
    return means, shifts, np.where(seen, z - means - shifts, np.nan)


def _within(z: Float64, units: NDArray[np.intp]) -> tuple[tuple[Any, float], tuple[float, float]]:
    """Variances of shift and residual among the slides of a unit (patient), each with its degrees of freedom."""
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
    """Sum of two variances and its Satterthwaite degrees of freedom (of the means over genes)."""
    total = one[0] + other[0]
    mean = [float(np.mean(variance)) for variance in (one[0], other[0])]
    spread = sum(part**2 / free for part, free in zip(mean, (one[1], other[1]), strict=True) if free > 0)
    return total, sum(mean) ** 2 / spread if spread > 0 else one[1]


def _quantile(level: float, one: tuple[float, float], other: tuple[float, float]) -> float:
    """Half-width of the central `level` of the sum of two independent t (variance, degrees of freedom)."""
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
    """Mean over rows, ignoring NaN."""
    seen = np.isfinite(values)
    n = seen.sum(axis=0)
    return np.where(n > 0, np.where(seen, values, 0.0).sum(axis=0) / np.maximum(n, 1), np.nan)
