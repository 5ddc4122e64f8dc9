"""Slides as plain arrays: `Slide` is one tissue section, `Cohort` several with the same genes and embedding.

Spots are sorted by position and slides by name, so that the row order of a user's table never changes a result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ._checks import checked

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
SplitBy = Literal["patient", "slide"]
"""Unit held out when tuning: patients, to predict new patients, or slides, to predict further slides of known ones."""
BLOCK = 8192
"""Number of spots processed at once, which bounds memory."""


def blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Yield row slices that cover n spots."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class Moments:
    """Running mean and standard deviation of columns (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.n, self.mean, self._squares = 0, np.zeros(()), np.zeros(())

    def add(self, rows: NDArray[np.floating]) -> None:
        """Update the running moments with a block of shape (n, d)."""
        n, mean = len(rows), rows.mean(axis=0, dtype=np.float64)
        squares = np.square(rows - mean, dtype=np.float64).sum(axis=0)
        difference, total = mean - self.mean, self.n + n
        self._squares = self._squares + squares + difference**2 * (self.n * n / total)
        self.mean = self.mean + difference * (n / total)
        self.n = total

    @property
    def std(self) -> Float64:
        """Standard deviation of each column, (d,)."""
        return np.sqrt(self._squares / self.n)


class Rows:
    """Matrix view (n, d) that selects and standardizes rows on access, without copying the full matrix.

    Parameters
    ----------
    values
        Floating-point matrix, possibly memory-mapped, or other `Rows`. Rows are returned as float32.
    index
        Selected rows, in order. `None` selects all.
    mean, scale
        Shift and scale of each column, (d,).
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(
        self,
        values: NDArray[np.floating] | Rows,
        index: NDArray[np.intp] | None = None,
        *,
        mean: Float64 | None = None,
        scale: Float64 | None = None,
    ) -> None:
        self._values, self._index, self._mean, self._scale = values, index, mean, scale
        self.shape: tuple[int, int] = (len(values) if index is None else len(index), values.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[Any]) -> Float32:
        block = self._values[rows if self._index is None else self._index[rows]]
        if self._mean is None or self._scale is None:
            return np.asarray(block, dtype=np.float32)
        scaled = block.astype(np.float64)
        scaled -= self._mean
        scaled /= self._scale
        return scaled.astype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = np.empty(self.shape, np.float32)
        for rows in blocks(len(self)):
            whole[rows] = self[rows]
        return whole if dtype is None else whole.astype(dtype, copy=False)


class Stack(Rows):
    """View that concatenates matrices of equal width along the rows, without copying them."""

    def __init__(self, parts: Sequence[NDArray[np.floating] | Rows]) -> None:
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *map(len, parts)])[:-1]
        self.shape = (sum(map(len, parts)), parts[0].shape[1])

    def __getitem__(self, rows: slice | NDArray[Any]) -> Float32:
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            ranges = [slice(max(start - first, 0), max(stop - first, 0)) for first in self._starts.tolist()]
            found = [part[of_part] for part, of_part in zip(self._parts, ranges, strict=True)]
            found = [np.asarray(block, dtype=np.float32) for block in found if len(block)] or found[:1]
            return found[0] if len(found) == 1 else np.concatenate(found)
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"Rows {index.min()} to {index.max()} are asked for; there are rows 0 to {len(self) - 1}.")
        out = np.empty((*index.shape, self.shape[1]), np.float32)
        part_of = np.searchsorted(self._starts, index, side="right") - 1
        for i in np.unique(part_of):
            here = part_of == i
            out[here] = self._parts[i][index[here] - self._starts[i]]
        return out


@dataclass(frozen=True, eq=False)
class Slide:
    """One slide as arrays.

    Parameters
    ----------
    name
        Name of the slide, unique in a cohort.
    patient
        Patient (donor) of the slide. `None` if unknown, which is allowed for targets.
    embedding
        Tile embeddings, float32 (n_spots, n_features). Large embeddings and expression may be views that are read on
        access; ``slide.read()`` turns them into arrays.
    coordinates
        Spot positions (x, y) in any unit, float64 (n_spots, 2).
    expression
        Expression in the unit to predict, float32 (n_spots, n_genes). `None` for H&E-only slides.
    cellularity
        Mean hematoxylin optical density of each tile, float32 (n_spots,). `None` if unknown.
    moments
        Mean and divisor of each feature, (n_features,), with which the embedding is standardized. `None` takes those of
        the slide's own spots.

    Examples
    --------
    >>> import numpy as np
    >>> from spahgc._slides import Slide
    >>> slide = Slide("S1", "P1", np.zeros((3, 2), np.float32), np.arange(6.0).reshape(3, 2))
    >>> len(slide)
    3
    """

    name: str
    patient: str | None
    embedding: Float32
    coordinates: Float64
    expression: Float32 | None = None
    cellularity: Float32 | None = None
    moments: tuple[Float64, Float64] | None = None

    def __len__(self) -> int:
        return self.embedding.shape[0]

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Order of the spots by position, see `canonical_order`."""
        return canonical_order(self.coordinates, self.embedding[:, :4])

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Slide:
        """Return the slide with the given spots, in the given order."""
        return replace(
            self,
            embedding=self.embedding[index],
            coordinates=self.coordinates[index],
            expression=None if self.expression is None else self.expression[index],
            cellularity=None if self.cellularity is None else self.cellularity[index],
        )

    def read(self) -> Slide:
        """Return the slide with embedding and expression in memory."""
        expression = None if self.expression is None else np.asarray(self.expression)
        return replace(self, embedding=np.asarray(self.embedding), expression=expression)

    def without_expression(self) -> Slide:
        """Return the slide without its measured expression."""
        return replace(self, expression=None)


def canonical_order(coordinates: Float64, embedding: Float32) -> NDArray[np.intp]:
    """Sort spots by y, then x, then embedding (for spots at the same position)."""
    return np.lexsort(np.column_stack([coordinates[:, ::-1], embedding]).T[::-1])


@dataclass(frozen=True, eq=False)
class Cohort:
    """Reference slides with one panel and one embedding.

    Parameters
    ----------
    slides
        Slides with expression. They are sorted by name and their spots by position.
    genes
        Gene names, the columns of every slide's expression.

    Examples
    --------
    >>> import numpy as np
    >>> from spahgc._slides import Cohort, Slide
    >>> z, xy, y = np.zeros((3, 2), np.float32), np.arange(6.0).reshape(3, 2), np.ones((3, 1), np.float32)
    >>> Cohort((Slide("S2", "P2", z, xy, y), Slide("S1", "P1", z, xy, y)), ("ERBB2",)).patients
    ('P1', 'P2')
    """

    slides: tuple[Slide, ...]
    genes: tuple[str, ...]
    _canonical: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not self._canonical:
            ordered = sorted(self.slides, key=lambda slide: slide.name)
            object.__setattr__(self, "slides", tuple(slide.take(slide.order) for slide in ordered))
            object.__setattr__(self, "_canonical", True)

    @classmethod
    def in_order(cls, slides: Iterable[Slide], genes: tuple[str, ...]) -> Cohort:
        """Build a cohort from slides that are already sorted, without reading them."""
        return cls(tuple(slides), genes, _canonical=True)

    def __iter__(self) -> Iterator[Slide]:
        return iter(self.slides)

    def __len__(self) -> int:
        return len(self.slides)

    @property
    def n_spots(self) -> int:
        """Number of spots over all slides."""
        return sum(len(slide) for slide in self.slides)

    @property
    def patients(self) -> tuple[str | None, ...]:
        """Patient of each slide."""
        return tuple(slide.patient for slide in self.slides)

    def embedding(self) -> Float32:
        """Embeddings of all spots, (n_spots, n_features)."""
        return np.concatenate([slide.embedding for slide in self.slides])

    def expression(self) -> Float32:
        """Expression of all spots, (n_spots, n_genes)."""
        return np.concatenate([expression_of(slide) for slide in self.slides])

    def split(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """Split an array (n_spots, ...) by slide."""
        return np.split(rows, np.cumsum([len(slide) for slide in self.slides])[:-1])

    def with_embeddings(self, embeddings: Sequence[Float32 | Rows]) -> Cohort:
        """Return the cohort with another embedding of each slide."""
        slides = zip(self.slides, embeddings, strict=True)
        return replace(self, slides=tuple(replace(slide, embedding=cast("Float32", own)) for slide, own in slides))

    def slide_index(self) -> NDArray[np.intp]:
        """Slide index of each spot, (n_spots,)."""
        return np.repeat(np.arange(len(self.slides)), [len(slide) for slide in self.slides])

    def subset(self, names: Sequence[str]) -> Cohort:
        """Return the cohort with the named slides only."""
        keep = set(names)
        return replace(self, slides=tuple(slide for slide in self.slides if slide.name in keep))

    def read(self) -> Cohort:
        """Return the cohort with all arrays in memory."""
        return replace(self, slides=tuple(slide.read() for slide in self.slides))

    def standardized(self) -> Cohort:
        """Return the cohort with each slide's embedding standardized."""
        return replace(self, slides=tuple(standardize(slide) for slide in self.slides))

    def splits(self, by: SplitBy = "patient") -> tuple[tuple[str, ...], ...]:
        """Names of the slides to hold out together when tuning: by patient, or by slide if there is one patient."""
        groups: dict[str, list[str]] = {}
        alone = by == "slide" or len(set(self.patients)) == 1
        for slide in self.slides:
            groups.setdefault(slide.name if alone else str(slide.patient), []).append(slide.name)
        return tuple(tuple(names) for names in groups.values())

    def fingerprint(self) -> str:
        """SHA-256 of all arrays and names; equal cohorts give equal models."""
        digest = hashlib.sha256("\0".join(self.genes).encode())
        for slide in self.slides:
            digest.update(f"\0{slide.name}\0{slide.patient}".encode())
            density = () if slide.cellularity is None else (slide.cellularity,)
            for array in (slide.embedding, slide.coordinates, expression_of(slide), *density):
                digest.update(f"\0{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def expression_of(slide: Slide) -> Float32:
    """Return the expression of a slide, or raise if it was not measured."""
    if slide.expression is None:
        raise ValueError(f"Slide {slide.name!r} has no measured expression, so it cannot be used as a reference.")
    return slide.expression


def check_no_shared_patients(
    reference: Cohort, held_out: Sequence[Slide], *, allow_shared_patients: bool = False
) -> None:
    """Raise if held-out slides share patients with the reference, or are part of it.

    `allow_shared_patients` permits other slides of the same patients, never the held-out slide itself.
    """
    inside = sorted({slide.name for slide in held_out} & {slide.name for slide in reference})
    if inside:
        raise ValueError(
            f"Held-out slides {', '.join(map(repr, inside))} are also part of the reference, so training would see "
            f"the expression to be scored. Remove them from the reference."
        )
    if allow_shared_patients:
        return
    owners = {slide.patient for slide in reference if slide.patient is not None}
    shared = sorted({slide.patient for slide in held_out if slide.patient is not None} & owners)
    if shared:
        shared_text = "; ".join(
            f"patient {patient!r}: held out {_names_of(held_out, patient)}, reference {_names_of(reference, patient)}"
            for patient in shared
        )
        raise ValueError(
            f"Held-out and reference slides share patients ({shared_text}), so scores would overstate the accuracy on "
            f"new patients. Split by patient, or pass allow_shared_patients=True to label results 'same patient'."
        )


def _names_of(slides: Iterable[Slide], patient: str) -> str:
    return ", ".join(sorted(repr(slide.name) for slide in slides if slide.patient == patient))


def standardize(slide: Slide) -> Slide:
    """Standardize a slide's embedding per feature over its own spots; constant features become 0."""
    embedding: Any = slide.embedding
    mean, scale = slide.moments or standardization(embedding)
    scaled: Any = Rows(embedding, mean=mean, scale=scale)
    return replace(slide, embedding=scaled if isinstance(embedding, Rows) else np.asarray(scaled), moments=None)


def spot_signatures(values: NDArray[np.floating] | Rows) -> Float32:
    """A number per spot, float32 (n_spots,), that differs between spots with different values, (n_spots, n)."""
    rows = [np.asarray(values[block], np.float64).mean(axis=1) for block in blocks(len(values))]
    return np.concatenate(rows).astype(np.float32)


FEWEST_SPOTS = 10  # that differ, for slides to be called the same


def share_in_common(one: NDArray, other: NDArray) -> float:
    """Share of the signatures of the smaller slide that the other has too, without those that repeat on a slide."""
    kept = [values[counts == 1] for values, counts in (np.unique(x, return_counts=True) for x in (one, other))]
    return float(np.isin(*kept).sum() / max(min(map(len, kept)), FEWEST_SPOTS))


def standardization(embedding: Float32) -> tuple[Float64, Float64]:
    """Mean and standard deviation of each feature; infinite for constant features, which therefore become 0."""
    moments, largest = Moments(), np.zeros(embedding.shape[1])
    for rows in blocks(len(embedding)):
        block = embedding[rows].astype(np.float64)
        moments.add(block)
        largest = np.maximum(largest, np.abs(block).max(axis=0))
    constant = moments.std <= 1e-6 * np.maximum(1.0, largest)
    return moments.mean, np.where(constant, np.inf, moments.std)


Normalize = Literal["log1p", "log10", "none"]
UNITS = {"log1p": "log1p counts per 10k", "log10": "log10(counts + 1)", "none": "as given"}
"""Expression unit of each normalization."""
TARGET_SUM = 1e4


@checked()
def normalize(counts: Any, how: Normalize = "log1p", *, genes: NDArray[np.intp] | None = None) -> Float32:
    """Normalize counts (n_obs, n_vars), dense or sparse, to dense float32 (n_obs, n_genes).

    ``"log1p"``: counts per 10,000 over all genes, then log1p; ``"log10"``: log10(counts + 1), which retains sequencing
    depth; ``"none"``: unchanged. `genes` selects columns; depth is always the sum over all columns. Spots without
    counts are all zero.
    """
    depth = spot_depth(counts)
    chosen = counts if genes is None else counts[:, genes]
    values = np.asarray(chosen.toarray() if sp.issparse(chosen) else chosen, dtype=np.float64)
    if how == "log1p":
        values = np.log1p(values * (TARGET_SUM / np.where(depth > 0, depth, 1.0))[:, None])
    elif how == "log10":
        values = np.log10(values + 1.0)
    return values.astype(np.float32)


def spot_depth(counts: Any) -> NDArray[np.float64]:
    """Total counts of each spot, float64 (n_obs,)."""
    # A product with float64 ones does not overflow or round narrow count types, as sums of sparse matrices do.
    return np.asarray(counts @ np.ones(counts.shape[1]))


def rank_genes(counts: Sequence[Any], *, min_fraction: float = 0.05) -> NDArray[np.intp]:
    """Rank genes by their mean dispersion rank over the reference slides, most variable first.

    Genes detected in at most `min_fraction` of all spots, or absent from a slide, are excluded.
    """
    from scipy.stats import rankdata

    n_vars = counts[0].shape[1]
    found, ranks, absent = np.zeros(n_vars), np.zeros(n_vars), np.zeros(n_vars, dtype=bool)
    for matrix in counts:
        slide_counts = sp.csr_array(matrix)
        present = np.asarray((slide_counts > 0).sum(axis=0)).ravel()
        # Ties share their mean rank, so that column order does not decide between equal genes.
        ranks += rankdata(-dispersion(slide_counts))
        found += present
        absent |= present == 0
    n_spots = sum(matrix.shape[0] for matrix in counts)
    eligible = np.flatnonzero((found > min_fraction * n_spots) & ~absent)
    return eligible[np.argsort(ranks[eligible], kind="stable")]


def dispersion(counts: Any) -> NDArray[np.float64]:
    """Residual variance over mean of each gene's counts on one slide, float64 (n_vars,).

    Residuals are taken from the count expected at each spot's depth, so Poisson counts give 1 and genes without counts
    0. Plain variance over mean would rank genes by their correlation with depth.
    """
    matrix = sp.csr_array(counts).astype(np.float64)
    depth = spot_depth(matrix)
    total = np.asarray(matrix.sum(axis=0)).ravel()
    share = total / max(depth.sum(), 1.0)
    squares = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel()
    residual = squares - 2 * share * (matrix.T @ depth) + share**2 * (depth**2).sum()
    return np.asarray(np.divide(np.maximum(residual, 0.0), total, out=np.zeros_like(total), where=total > 0))
