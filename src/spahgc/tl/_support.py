"""How well the reference covers a target: support of a spot, and distance of neighboring spots."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from .. import _keys as keys
from .._geometry import neighbor_distance
from .._run import Progress, no_progress, with_progress
from .._slides import Cohort, Float32, Float64, Slide, Stack, expression_of, share_in_common, spot_signatures
from .._tables import _slots as check
from .._tables._cohorts import SAME_SECTION, slide_rows

N_NEIGHBORS = 7  # reference spots whose distance counts
N_COMPONENTS = 32  # principal components of the raw embedding in which distances are taken
MAX_SPOTS = 32_768  # reference spots that count, evenly over the reference, so that the time to fit is bounded
PITCH_RATIO = 2.0  # ratio of the pitch of target and reference from which on `warn_of_pitch` warns
LOW_SUPPORT, LOW_MEDIAN = 0.05, 0.1  # of a spot, and median of a slide, not covered by the reference: foreign.py
_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class Support:
    r"""Support of a spot: fraction of reference spots that are no closer to the other reference slides than the spot.

    The distance of a spot to some slides is its mean Euclidean distance to the 7 nearest of their spots, in the
    leading 32 principal components of the embedding. The embedding is used **as the encoder gave it**, scaled over the
    whole reference and not by slide, so that another stain, tissue or species shows. Each reference spot i, of slide
    s(i), is compared on equal terms: its distance :math:`d_i` to the slides other than s(i), and that of the spot x,
    :math:`d_{-s(i)}(x)`, to the same slides (with a single slide: both to its other spots). Then

    .. math:: support(x) = \frac{1 + |\{i : d_i \ge d_{-s(i)}(x)\}|}{1 + n}

    over the n reference spots (at most 32,768, evenly over the slides). It is about uniform on 0 to 1 for a slide that
    differs from the reference slides as these differ from each other (it is the p-value of a leave-one-slide-out
    conformal test), and near 0 for a spot that is farther away than any of them.
    """

    mean: Float64
    scale: Float64
    axes: Float64
    banks: tuple[Float64, ...]  # of each reference slide, spots in the components, (n_spots, r)
    distances: tuple[Float64, ...]  # of each reference slide, its spots' distances to the others, ascending
    signatures: tuple[Float32, ...]  # of each reference slide's embedding, see `spot_signatures`
    measured: tuple[Float32, ...]  # the same of its expression

    @classmethod
    def fit(cls, reference: Cohort) -> Self:
        """Fit to reference slides, embeddings as the encoder gave them."""
        from ..methods._features import PCA
        from ..methods.kernel import evenly

        some = evenly(reference.n_spots, MAX_SPOTS)
        raw = Stack([slide.embedding for slide in reference])[some].astype(np.float64)
        mean, scale = raw.mean(axis=0), raw.std(axis=0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        scaled = (raw - mean) / scale
        pca = PCA.fit(scaled, N_COMPONENTS)
        bank, slide = pca(scaled), reference.slide_index()[some]
        slides = np.unique(slide)  # a small one of very many may have no spot among them
        banks = tuple(bank[slide == one] for one in slides)
        distances = [
            _nearest(own, own, exclude_self=True) if len(slides) == 1 else _nearest(own, bank[slide != one])
            for one, own in zip(slides, banks, strict=True)
        ]
        sorted_distances = tuple(np.sort(_mean_of_nearest(found)) for found in distances)
        signatures = tuple(spot_signatures(slide.embedding) for slide in reference)
        measured = tuple(spot_signatures(expression_of(slide)) for slide in reference)
        return cls(mean, scale, pca.axes, banks, sorted_distances, signatures, measured)

    def seen(self, slide: Slide) -> int | None:
        """Number of the reference slide that is the same section as a slide, by embeddings or expression of spots."""
        for values, known in ((slide.embedding, self.signatures), (slide.expression, self.measured)):
            if values is not None:
                own = spot_signatures(values)
                shares = [share_in_common(own, signatures) for signatures in known]
                if max(shares) >= SAME_SECTION:
                    return int(np.argmax(shares))
        return None

    def __call__(self, embedding: NDArray[np.float32], *, progress: Progress = no_progress) -> NDArray[np.float32]:
        """Support of spots in [0, 1], float32 (n_spots,), from embeddings as the encoder gave them."""
        support, n = np.empty(len(embedding), np.float32), sum(len(bank) for bank in self.banks)
        for rows in with_progress(len(embedding), progress):
            nearest, slide = self._nearest_of_all(embedding[rows])
            n_farther = np.zeros(len(nearest))
            for index, distances in enumerate(self.distances):
                others = nearest if len(self.banks) == 1 else np.where(slide == index, np.inf, nearest)
                # With the tolerance, a distance that is equal up to rounding does not count as smaller.
                limit = _mean_of_nearest(others) * (1 - 1e-9)
                n_farther += len(distances) - np.searchsorted(distances, limit, side="left")
            support[rows] = (1 + n_farther) / (1 + n)
        return support

    def _nearest_of_all(self, embedding: NDArray[np.float32]) -> tuple[Float64, NDArray[np.intp]]:
        """Smallest distances of each spot and their slides: 14, so that 7 remain whichever slide is left out."""
        scores = ((embedding.astype(np.float64) - self.mean) / self.scale) @ self.axes
        nearest = _nearest(scores, self.banks[0])
        slide = np.zeros(nearest.shape, np.intp)
        for index, bank in enumerate(self.banks[1:], start=1):
            more = _nearest(scores, bank)
            nearest = np.concatenate([nearest, more], axis=1)
            slide = np.concatenate([slide, np.full(more.shape, index)], axis=1)
            if nearest.shape[1] > 2 * N_NEIGHBORS:
                best = np.argpartition(nearest, 2 * N_NEIGHBORS - 1, axis=1)[:, : 2 * N_NEIGHBORS]
                nearest, slide = np.take_along_axis(nearest, best, axis=1), np.take_along_axis(slide, best, axis=1)
        return nearest, slide

    def arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, to be saved."""
        return {
            "mean": self.mean,
            "scale": self.scale,
            "axes": np.ascontiguousarray(self.axes),
            "banks": np.concatenate(self.banks),
            "distances": np.concatenate(self.distances),
            "n_spots": np.array([len(bank) for bank in self.banks]),
            "signatures": np.concatenate(self.signatures),
            "measured": np.concatenate(self.measured),
            "n_signatures": np.array([len(own) for own in self.signatures]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Inverse of :meth:`arrays`."""
        ends = np.cumsum(arrays["n_spots"])[:-1]
        banks, distances = (tuple(np.split(arrays[name], ends)) for name in ("banks", "distances"))
        last = np.cumsum(arrays["n_signatures"])[:-1]
        known = (tuple(np.split(arrays[name], last)) for name in ("signatures", "measured"))
        return cls(arrays["mean"], arrays["scale"], arrays["axes"], banks, distances, *known)


def _mean_of_nearest(distances: Float64) -> Float64:
    """Mean of the (at most) 7 smallest finite distances of each row, (n,); 0 if there are none."""
    nearest = np.sort(distances, axis=1)[:, :N_NEIGHBORS]
    found = np.isfinite(nearest)
    return np.asarray(np.where(found, nearest, 0.0).sum(axis=1) / np.maximum(found.sum(axis=1), 1))


def _nearest(query: Float64, bank: Float64, *, exclude_self: bool = False) -> Float64:
    """Unordered distances of each query to its nearest rows of the bank, (n_query, at most 7)."""
    k = min(N_NEIGHBORS, len(bank) - exclude_self)
    rows = max(1, _CHUNK * 2048 // max(1, len(bank)))
    nearest = [np.empty((0, k))]
    for start in range(0, len(query), rows):
        distances = cdist(query[start : start + rows], bank)
        if exclude_self:
            np.fill_diagonal(distances[:, start:], np.inf)
        nearest.append(np.partition(distances, max(k - 1, 0), axis=1)[:, :k])
    return np.concatenate(nearest)


def pitches(adata: AnnData, use_rep: str, library_key: str | None, *, what: str) -> dict[str, float]:
    """Median distance of neighboring spots of each slide (um), for slides whose scale the embedding records."""
    scale = keys.part(adata.uns, use_rep, keys.PARAMS, keys.MPP)
    if not scale:
        return {}
    positions = check.coordinates(adata, what=what)
    found = {}
    for name, rows in slide_rows(adata, check.library_column(adata, library_key, what=what)).items():
        if name in scale and len(rows) > 1:
            found[name] = neighbor_distance(positions[rows]) * float(scale[name])
    return found


def warn_of_pitch(reference: Mapping[str, float], target: Mapping[str, float], *, stacklevel: int) -> None:
    """Warn of target slides whose spots are more than twice as far apart as the reference's, or less than half."""
    usual = float(np.median(list(reference.values()))) if reference else np.nan
    off = {name: um for name, um in target.items() if um < usual / PITCH_RATIO or um > usual * PITCH_RATIO}
    if off:
        slides = ", ".join(f"{name!r} {um:.3g}" for name, um in off.items())
        warnings.warn(
            f"Neighboring spots are {usual:.3g} um apart in the reference, and in the target {slides} um: what was "
            f"learned from the neighbors of a spot does not carry over. Place the target spots at the distance of the "
            f"reference (H&E only: spahgc.pp.tissue_grid; bins and cells: spahgc.io.bin_to_spots), or check "
            f"microns_per_pixel of both.",
            UserWarning,
            stacklevel=stacklevel,
        )
