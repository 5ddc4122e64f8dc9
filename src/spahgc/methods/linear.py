"""Linear methods: ridge regression with and without surroundings, smoothing, and controls without an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from .._checks import at_least
from .._geometry import spatial_knn
from .._slides import Cohort, Float32, Float64, Slide, SplitBy, blocks, expression_of, standardization
from ..metrics import pearson
from ._features import PCA, Context, ContextRows, GeneScale
from .base import BlockwiseMethod, RowValues, Run, State, check_needs, parameters

PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # relative to the total variance of the features
SIZES = (32, 64, 128, 256)  # numbers of principal components
GRID = 6  # Gaussian basis functions along each axis
RANK = 10  # leading components of the expression; 5 to 20 score alike
REACH = 2.0  # standard deviations between the mean position and the outermost basis functions


Smoothing = tuple[int, float]  # nearest spots to average over, and weight of their mean


def smooth(values: np.ndarray, slide: Slide, n_neighbors: int, weight: float) -> Float64:
    """Average values (n_spots, ...) of each spot with the mean over its nearest spots."""
    values = values.astype(np.float64)
    if n_neighbors == 0 or len(values) < 2:
        return values
    nearest = spatial_knn(slide.coordinates, n_neighbors)
    total = np.zeros_like(values)
    for neighbors in nearest.T:  # A gather of all neighbors would be n_neighbors copies of the slide.
        total += values[neighbors]
    return (1 - weight) * values + weight / nearest.shape[1] * total


class Hyperparameters(NamedTuple):
    """Tuned hyperparameters of ridge regression."""

    smoothing: Smoothing
    penalty: float  # relative to the total variance of the features
    n_components: int


NO_SMOOTHING: Smoothing = (0, 0.0)
# A plain mean over a spot and its 6 neighbors was worse than no smoothing on Visium and on legacy arrays.
SMOOTHINGS = (NO_SMOOTHING, (6, 0.25), (6, 0.5), (18, 0.25), (18, 0.5))
UNTUNED = Hyperparameters((6, 0.5), 3e-2, 64)  # for a single reference slide


class LinearFit(NamedTuple):
    """Ridge coefficients on principal components."""

    mean: Float64
    axes: Float64  # (n_features, r)
    coefficients: Float64  # (r, n_genes)
    intercept: Float64

    @classmethod
    def fit(cls, features: np.ndarray, values: np.ndarray, penalty: float, n_components: int) -> Self:
        """Fit `values` (n, n_genes) on `features` (n, d)."""
        pca = PCA.fit(features, n_components)
        intercept = values.mean(axis=0, dtype=np.float64)
        return cls(pca.mean, pca.axes, _coefficients(pca, pca(features), values - intercept, penalty), intercept)

    def __call__(self, features: np.ndarray) -> Float64:
        """Predicted values, (n, n_genes)."""
        return np.asarray((features - self.mean) @ self.axes @ self.coefficients + self.intercept)


def _coefficients(pca: PCA, scores: Float64, values: np.ndarray, penalty: float) -> Float64:
    # The scores are uncorrelated, so each component has its own one-dimensional ridge solution.
    return np.asarray((scores.T @ values) / (len(scores) * (pca.variance + penalty * pca.total))[:, None])


def tune(
    cohort: Cohort,
    features: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    *,
    split_by: SplitBy = "patient",
    penalties: Sequence[float] = PENALTIES,
    sizes: Sequence[int] = SIZES,
    smoothings: Sequence[Smoothing] = (NO_SMOOTHING,),
) -> Hyperparameters:
    """Select the hyperparameters with the best mean per-gene Pearson on held-out groups of reference slides.

    Each group of :meth:`Cohort.splits` counts the same. If several candidates are equally good, the first smoothing,
    the strongest penalty, and the smallest number of components are selected.
    """
    groups = cohort.splits(split_by)
    if len(groups) < 2 or len(smoothings) * len(penalties) * len(sizes) == 1:
        return Hyperparameters(
            smoothings[0] if len(smoothings) == 1 else UNTUNED.smoothing,
            penalties[0] if len(penalties) == 1 else UNTUNED.penalty,
            sizes[0] if len(sizes) == 1 else UNTUNED.n_components,
        )
    totals = np.zeros((len(smoothings), len(penalties), len(sizes)))
    for held_out in groups:
        train = [slide.name for slide in cohort if slide.name not in held_out]
        stacked, fitted = np.concatenate([features[n] for n in train]), np.concatenate([values[n] for n in train])
        pca, fitted = PCA.fit(stacked, max(sizes)), fitted - fitted.mean(axis=0, dtype=np.float64)
        scores = pca(stacked)
        coefficients = [_coefficients(pca, scores, fitted, penalty) for penalty in penalties]
        for slide in (slide for slide in cohort if slide.name in held_out):
            measured, components = expression_of(slide), pca(features[slide.name])
            for k, smoothing in enumerate(smoothings):
                # Smoothing the input of a linear function smooths its output.
                smoothed = smooth(components, slide, *smoothing)
                for i, j in np.ndindex(len(penalties), len(sizes)):
                    predicted = smoothed[:, : sizes[j]] @ coefficients[i][: sizes[j]]
                    totals[k, i, j] += mean_pearson(measured, predicted) / len(held_out)
    best = max(np.ndindex(*totals.shape), key=lambda at: (round(float(totals[at]), 6), -at[0], at[1], -at[2]))
    return Hyperparameters(smoothings[best[0]], penalties[best[1]], sizes[best[2]])


def mean_pearson(measured: Float32, predicted: Float64) -> float:
    """Mean per-gene Pearson correlation; 0 if it is undefined for all genes."""
    scores = pearson(measured, predicted)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0


@parameters(penalty=at_least(0), n_components=at_least(1), rank=at_least(1))
class Ridge(BlockwiseMethod):
    """Ridge regression on the standardized embedding, by principal components.

    Penalty and number of components are tuned on held-out reference patients or slides; with a single reference slide
    they are fixed.

    Parameters
    ----------
    relative
        Fit expression standardized per gene and slide, and scale predictions back to the mean level and standard
        deviation of the reference slides.
    penalty
        Penalty on the squared coefficients of the principal components, as scikit-learn's ``Ridge`` defines it. `None`
        tunes penalty and number of components.
    n_components
        Number of principal components to use with `penalty`.
    rank
        Leading components of the reference expression, standardized per gene and slide, to fit instead of the genes
        themselves; implies `relative`. `None` fits the genes.
    """

    relative: bool = False
    penalty: float | None = None
    n_components: int = 256
    rank: int | None = None

    name: ClassVar[str] = "ridge"
    smoothings: ClassVar[Sequence[Smoothing]] = (NO_SMOOTHING,)

    def fit(self, cohort: Cohort, run: Run) -> Self:
        is_scaled = self.relative or self.rank is not None
        scale = GeneScale.fit(cohort) if is_scaled else GeneScale.identity(cohort)
        values = self._standardize(cohort, scale, self.rank)
        features = {slide.name: np.asarray(self._features(slide)) for slide in cohort}
        stacked = np.concatenate(list(features.values()))
        candidates: dict[str, Any] = {}
        if self.penalty is not None:
            variance = max(float(stacked.astype(np.float64).var(axis=0).sum()), 1e-300)
            candidates = {"penalties": (self.penalty / (cohort.n_spots * variance),), "sizes": (self.n_components,)}
        self.tuned = tune(cohort, features, values, split_by=run.split_by, smoothings=self.smoothings, **candidates)
        self._fit = LinearFit.fit(stacked, np.concatenate(list(values.values())), *self.tuned[1:])
        return self

    def relative_values(self, slide: Slide) -> RowValues:
        features = self._features(slide)
        return lambda rows: self._fit(features[rows])

    def state(self) -> State:
        return {**self._fit._asdict(), **super().state()}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._fit = LinearFit(*(state[name] for name in LinearFit._fields))
        return super().restore(state, cohort)

    def _features(self, slide: Slide) -> Float32 | ContextRows:
        """Features to regress on, (n_spots, d)."""
        return slide.embedding


@parameters()
class LowRankRidge(Ridge):
    """Control: ridge regression on the ten leading components of the expression.

    Noise that genes do not share is left out of what is fitted. Parameters and tuning are those of :class:`Ridge`.
    """

    rank: int | None = RANK

    name: ClassVar[str] = "low_rank_ridge"


class ContextRidge(Ridge):
    """Ridge regression on the embedding of a spot and the mean embeddings of its 6, 18, and 60 nearest spots.

    Parameters and tuning are those of :class:`Ridge`.
    """

    name: ClassVar[str] = "context_ridge"
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def fit(self, cohort: Cohort, run: Run) -> Self:
        self._context = Context.fit(cohort.slides)
        return super().fit(cohort, run)

    def state(self) -> State:
        return {**super().state(), **self._context.arrays()}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._context = Context.from_arrays(state)
        return super().restore(state, cohort)

    def _features(self, slide: Slide) -> ContextRows:
        return ContextRows(self._context, slide)


class Fast(BlockwiseMethod):
    """Mean of ridge and context ridge on the ten leading components of the expression: ``preset="fast"`` of SpaHGC.

    A saved model holds coefficients, no embedding or expression of the reference spots.
    """

    name: ClassVar[str] = "fast"
    keeps_reference: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def fit(self, cohort: Cohort, run: Run) -> Self:
        self._members = [kind(rank=RANK).fit(cohort, run) for kind in (Ridge, ContextRidge)]
        self._standardize(cohort, GeneScale.fit(cohort))
        return self

    def relative_values(self, slide: Slide) -> RowValues:
        members = [member.relative_values(slide) for member in self._members]
        return lambda rows: np.mean([values(rows) for values in members], axis=0)

    def state(self) -> State:
        return {f"{m.name}.{key}": array for m in self._members for key, array in m.state().items()} | super().state()

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._members = []
        for kind in (Ridge, ContextRidge):
            of = {key.removeprefix(f"{kind.name}."): array for key, array in state.items()}
            self._members.append(kind(rank=RANK).restore(of, cohort))
        return super().restore(state, cohort)


class SmoothedRidge(Ridge):
    """Ridge regression whose predictions are averaged over neighboring spots.

    Number and weight of the neighbors are tuned together with penalty and number of components. The method shows how
    much a network that sees neighbors could gain by averaging noise.

    Parameters
    ----------
    relative, penalty, n_components, rank
        As for :class:`Ridge`. With `penalty`, only the smoothing is tuned.
    """

    name: ClassVar[str] = "smoothed_ridge"
    smoothings: ClassVar[Sequence[Smoothing]] = SMOOTHINGS
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def relative_values(self, slide: Slide) -> RowValues:
        values = super().relative_values(slide)
        whole = np.concatenate([values(rows) for rows in blocks(len(slide))])
        smoothed = smooth(whole, slide, *self.tuned.smoothing)
        return lambda rows: smoothed[rows]

    def state(self) -> State:
        return {**super().state(), "tuned": np.array([*self.tuned.smoothing, *self.tuned[1:]])}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        n_neighbors, weight, penalty, n_components = state["tuned"].tolist()
        self.tuned = Hyperparameters((int(n_neighbors), weight), penalty, int(n_components))
        return super().restore(state, cohort)


class Coordinates(Ridge):
    """Control without an image: ridge regression on a smooth basis of the spot position.

    Positions are standardized per slide and axis. The basis is a 6 x 6 grid of Gaussians that spans two standard
    deviations on each side. Slides of one block have been cut alike, so that a position on one slide predicts the
    same position on the next. Parameters and tuning are those of :class:`Ridge`.
    """

    name: ClassVar[str] = "coordinates"
    needs: ClassVar[frozenset[str]] = frozenset({"coordinates"})

    def _features(self, slide: Slide) -> Float32:
        position = _standardized(slide.coordinates - slide.coordinates.mean(axis=0))
        centers = np.linspace(-REACH, REACH, GRID)
        width = centers[1] - centers[0]
        x, y = (np.exp(-0.5 * ((axis[:, None] - centers) / width) ** 2) for axis in position.T)
        return np.einsum("ni,nj->nij", x, y).reshape(len(position), -1).astype(np.float32)


class Cellularity(Ridge):
    """Control that counts nuclei: ridge regression on the hematoxylin density of a spot's tile and its square.

    Both are standardized per slide. Parameters and tuning are those of :class:`Ridge`.
    """

    name: ClassVar[str] = "cellularity"
    needs: ClassVar[frozenset[str]] = frozenset({"cellularity"})

    def _features(self, slide: Slide) -> Float32:
        check_needs(self, slide)
        density = _standardized(np.asarray(slide.cellularity, dtype=np.float64)[:, None])
        return np.hstack([density, _standardized(density**2)]).astype(np.float32)


def _standardized(values: np.ndarray) -> Float64:
    mean, scale = standardization(values)
    return (values - mean) / scale


class GeneMean(BlockwiseMethod):
    """Control without a slide: mean expression of each gene over the reference, each slide counting the same.

    Its correlation within a slide is undefined. It is the baseline for RMSE and MAE.
    """

    name: ClassVar[str] = "gene_mean"
    needs: ClassVar[frozenset[str]] = frozenset()

    def fit(self, cohort: Cohort, run: Run) -> Self:
        self._standardize(cohort, GeneScale.fit(cohort))
        return self

    def relative_values(self, slide: Slide) -> RowValues:
        return lambda rows: np.zeros((rows.stop - rows.start, len(self._level)))
