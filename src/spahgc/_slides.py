"""Slides as plain arrays; expression units and gene ranking."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


Float64 = NDArray[np.float64]


SplitBy = Literal["patient", "slide"]
"""What is held out while tuning: patients, for targets of new patients; slides, for other slides of the same
patients."""


BLOCK = 8192
"""Spots that are worked on at once where all of them at once could be more than fits into memory."""


def blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """The rows of n spots, block by block."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class Moments:
    """Mean and standard deviation of columns, from blocks of rows (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.n, self.mean, self._squares = 0, np.zeros(()), np.zeros(())

    def add(self, rows: NDArray[np.floating]) -> None:
        """Take in a block of rows, (n, d)."""
        n, mean = len(rows), rows.mean(axis=0, dtype=np.float64)
        squares = np.square(rows - mean, dtype=np.float64).sum(axis=0)
        difference, total = mean - self.mean, self.n + n
        self._squares = self._squares + squares + difference**2 * (self.n * n / total)
        self.mean = self.mean + difference * (n / total)
        self.n = total

    @property
    def spread(self) -> Float64:
        """Standard deviation of each column, (d,)."""
        return np.sqrt(self._squares / self.n)


class Rows:
    """A matrix of which rows are chosen and scaled when they are read, so that no copy of the whole is made.

    It has the shape and the row indexing of an array, and becomes one where NumPy asks for one.

    Parameters
    ----------
    values
        Floating point, (n, d), or further :class:`Rows`; it may be memory-mapped. Rows that are read are float32.
    index
        The rows in question, in their order; `None` for all.
    mean, scale
        Subtracted from, and divided into, each column, (d,).
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
    """The rows of several matrices, one below the other, each read where it is.

    Parameters
    ----------
    parts
        Matrices of equal width, arrays or :class:`Rows`.
    """

    def __init__(self, parts: Sequence[NDArray[np.floating] | Rows]) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in self._parts])
        self.shape = (int(self._ends[-1]), self._parts[0].shape[1])

    def __getitem__(self, rows: slice | NDArray[Any]) -> Float32:
        if isinstance(rows, slice):
            return self._between(*rows.indices(len(self))[:2])
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"Rows {index.min()} to {index.max()} are asked for; there are rows 0 to {len(self) - 1}.")
        out = np.empty((*index.shape, self.shape[1]), np.float32)
        part_of = np.searchsorted(self._ends, index, side="right")
        for i in np.unique(part_of):
            here = part_of == i
            out[here] = self._parts[i][index[here] - (self._ends[i] - len(self._parts[i]))]
        return out

    def _between(self, start: int, stop: int) -> Float32:
        found = []
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            first = end - len(part)
            if first < stop and start < end:
                found.append(np.asarray(part[max(start - first, 0) : min(stop - first, len(part))], dtype=np.float32))
        return found[0] if len(found) == 1 else np.concatenate(found or [np.empty((0, self.shape[1]), np.float32)])


def _unread(array: object) -> bool:
    return isinstance(array, Rows)


@dataclass(frozen=True, eq=False)
class Slide:
    """One slide as arrays.

    Parameters
    ----------
    name
        Name of the slide, unique in a cohort.
    patient
        The patient (donor) of the slide; `None` if not known (a target may lack it).
    embedding
        Tile embeddings as the encoder gave them, float32 (n_spots, n_features). They may be :class:`Rows`, and so may
        the expression; ``slide.read()`` makes arrays of them.
    coordinates
        Spot positions (x, y), float64 (n_spots, 2); the unit is free, only neighbour ranks and ratios are used.
    expression
        Expression in the unit that is predicted, float32 (n_spots, n_genes); `None` for H&E only.
    cellularity
        Stain density of each tile (mean haematoxylin optical density), float32 (n_spots,); `None` if it is not known.
    """

    name: str
    patient: str | None
    embedding: Float32
    coordinates: Float64
    expression: Float32 | None = None
    cellularity: Float32 | None = None

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return self.embedding.shape[0]

    def __len__(self) -> int:
        return self.n_spots

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Canonical order of the spots: by y, then x, then embedding (for spots at one place)."""
        return canonical_order(self.coordinates, self.embedding[:, :4])

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Slide:
        """The slide restricted to some spots, in the given order."""
        return replace(
            self,
            embedding=self.embedding[index],
            coordinates=self.coordinates[index],
            expression=None if self.expression is None else self.expression[index],
            cellularity=None if self.cellularity is None else self.cellularity[index],
        )

    def read(self) -> Slide:
        """The slide with embedding and expression as arrays."""
        if not (_unread(self.embedding) or _unread(self.expression)):
            return self
        expression = None if self.expression is None else np.asarray(self.expression)
        return replace(self, embedding=np.asarray(self.embedding), expression=expression)

    def without_expression(self) -> Slide:
        """The slide as if it had H&E only."""
        return replace(self, expression=None)


def canonical_order(coordinates: Float64, embedding: Float32) -> NDArray[np.intp]:
    """Order of spots by y, then x, then the columns of `embedding` (for spots at one place)."""
    return np.lexsort(np.column_stack([coordinates[:, ::-1], embedding]).T[::-1])


@dataclass(frozen=True, eq=False)
class Cohort:
    """Reference slides with one panel and one embedding.

    Parameters
    ----------
    slides
        The slides; all carry expression. They are put into canonical order.
    genes
        Names of the genes, the columns of every slide's expression.
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
        """Of slides that are in canonical order: they are not read."""
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
        """An array with a row for each spot, (n_spots, ...), by slide."""
        return np.split(rows, np.cumsum([len(slide) for slide in self.slides])[:-1])

    def with_embeddings(self, embeddings: Sequence[Float32 | Rows]) -> Cohort:
        """The cohort with another embedding of each slide."""
        slides = zip(self.slides, embeddings, strict=True)
        return replace(self, slides=tuple(replace(slide, embedding=cast("Float32", own)) for slide, own in slides))

    def slide_index(self) -> NDArray[np.intp]:
        """Index of the slide of each spot, (n_spots,)."""
        return np.repeat(np.arange(len(self.slides)), [len(slide) for slide in self.slides])

    def subset(self, names: Sequence[str]) -> Cohort:
        """The cohort restricted to some slides."""
        keep = set(names)
        return replace(self, slides=tuple(slide for slide in self.slides if slide.name in keep))

    def read(self) -> Cohort:
        """The cohort with the embeddings and expression of every slide as arrays."""
        return replace(self, slides=tuple(slide.read() for slide in self.slides))

    def standardized(self) -> Cohort:
        """The cohort with every slide's embedding standardised (:func:`standardize`)."""
        return replace(self, slides=tuple(standardize(slide) for slide in self.slides))

    def splits(self, by: SplitBy = "patient") -> tuple[tuple[str, ...], ...]:
        """Groups of slides to hold out one at a time while tuning, by name.

        By patient, or by slide where `by` says so or there is a single patient, because nothing else can be held out
        there.
        """
        groups: dict[str, list[str]] = {}
        alone = by == "slide" or len(set(self.patients)) == 1
        for slide in self.slides:
            groups.setdefault(slide.name if alone else str(slide.patient), []).append(slide.name)
        return tuple(tuple(names) for names in groups.values())

    def fingerprint(self) -> str:
        """SHA-256 over all arrays and names: two cohorts with the same one give the same model."""
        digest = hashlib.sha256("\0".join(self.genes).encode())
        for slide in self.slides:
            digest.update(f"\0{slide.name}\0{slide.patient}".encode())
            density = () if slide.cellularity is None else (slide.cellularity,)
            for array in (slide.embedding, slide.coordinates, expression_of(slide), *density):
                digest.update(f"\0{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def expression_of(slide: Slide) -> Float32:
    """The expression of a reference slide; an error where it has none."""
    if slide.expression is None:
        raise ValueError(f"Slide {slide.name!r} has no expression and cannot be a reference.")
    return slide.expression


def check_no_shared_patients(
    reference: Cohort, held_out: Sequence[Slide], *, allow_shared_patients: bool = False
) -> None:
    """No patient of a held-out slide has a slide in the reference; an error where one has.

    A held-out slide that is itself in the reference is an error in any case: its expression would have been seen.

    Parameters
    ----------
    reference
        The slides that are fitted on.
    held_out
        The slides that are predicted and scored.
    allow_shared_patients
        Let other slides of the same patients be in the reference.
    """
    known = {slide.name for slide in reference}
    inside = sorted(slide.name for slide in held_out if slide.name in known)
    if inside:
        raise ValueError(
            f"Held-out slides {', '.join(map(repr, inside))} are in the reference as well, so their expression would "
            f"be seen. Take them out of the reference."
        )
    if allow_shared_patients:
        return
    owners = {slide.patient for slide in reference if slide.patient is not None}
    shared = sorted({slide.patient for slide in held_out if slide.patient is not None} & owners)
    if shared:
        said = "; ".join(
            f"patient {patient!r}: held out {_names_of(held_out, patient)}, reference {_names_of(reference, patient)}"
            for patient in shared
        )
        raise ValueError(
            f"Held-out and reference slides share patients ({said}), which makes scores look better than they are for "
            f"a new patient. Split by patient, or pass allow_shared_patients=True; results then say 'same patient'."
        )


def _names_of(slides: Iterable[Slide], patient: str) -> str:
    return ", ".join(sorted(repr(slide.name) for slide in slides if slide.patient == patient))


def standardize(slide: Slide) -> Slide:
    """Scale a slide's embedding to mean 0 and variance 1 per feature, over its own spots.

    Uses the slide's own images only, so it is the same for reference and target; a constant feature becomes 0. An
    embedding that is :class:`Rows` stays unread but for its moments.
    """
    mean, scale = standardization(slide.embedding)
    scaled = Rows(slide.embedding, mean=mean, scale=scale)
    return replace(slide, embedding=cast("Float32", scaled) if _unread(slide.embedding) else np.asarray(scaled))


def standardization(embedding: Float32) -> tuple[Float64, Float64]:
    """Mean and standard deviation of each feature; infinite for a constant feature, so that it becomes 0."""
    moments, largest = Moments(), np.zeros(embedding.shape[1])
    for rows in blocks(len(embedding)):
        block = embedding[rows].astype(np.float64)
        moments.add(block)
        largest = np.maximum(largest, np.abs(block).max(axis=0))
    constant = moments.spread <= 1e-6 * np.maximum(1.0, largest)
    return moments.mean, np.where(constant, np.inf, moments.spread)


Normalize = Literal["log1p", "log10", "none"]


UNITS: dict[str, str] = {
    "log1p": "log1p counts per 10k",
    "log10": "log10(counts + 1)",
    "none": "as given",
}
"""Unit of the expression that each `normalize` gives."""


TARGET_SUM = 1e4


def normalize(counts: Any, how: Normalize = "log1p", *, genes: NDArray[np.intp] | None = None) -> Float32:
    """Expression in the unit that is predicted.

    Parameters
    ----------
    counts
        Counts (n_obs, n_vars), dense or SciPy sparse; with `how` ``"none"`` any expression.
    how
        ``"log1p"``: counts per 10,000 over all genes, then log1p. ``"log10"``: log10(counts + 1), which keeps
        sequencing depth in. ``"none"``: as given.
    genes
        Columns to return; depth is still taken over all columns.

    Returns
    -------
    float32 (n_obs, n_genes), dense. A spot without counts is all zero.
    """
    if how not in get_args(Normalize):
        raise ValueError(f"normalize is one of {', '.join(map(repr, get_args(Normalize)))}, not {how!r}.")
    depth = spot_depth(counts)
    chosen = counts if genes is None else counts[:, genes]
    values = np.asarray(chosen.toarray() if sp.issparse(chosen) else chosen, dtype=np.float64)
    if how == "log1p":
        values = np.log1p(values * (TARGET_SUM / np.where(depth > 0, depth, 1.0))[:, None])
    elif how == "log10":
        values = np.log10(values + 1.0)
    return values.astype(np.float32)


def spot_depth(counts: Any) -> NDArray[np.float64]:
    """Total counts of each spot over all genes, float64 (n_obs,)."""
    # In float64 throughout, which a sum of a sparse matrix is not: a narrow type of the counts would overflow or round.
    return np.asarray(counts @ np.ones(counts.shape[1]))


def rank_genes(counts: Sequence[Any], *, min_fraction: float = 0.05) -> NDArray[np.intp]:
    """Genes by how variable they are on the reference slides, best first.

    Per slide a gene's dispersion is the variance of its counts around what the depth of each spot leads to expect,
    over its mean count (:func:`dispersion`); the genes are ordered by the mean over slides of their ranks, equal
    means by column. Genes found in at most `min_fraction` of all spots, or not at all on some slide, are left out.

    Parameters
    ----------
    counts
        Counts of each slide, (n_obs, n_vars), with the same genes.
    min_fraction
        Share of the spots (over all slides) in which a gene has to be found.
    """
    n_vars = counts[0].shape[1]
    found, ranks, absent = np.zeros(n_vars), np.zeros(n_vars), np.zeros(n_vars, dtype=bool)
    for matrix in counts:
        slide_counts = sp.csr_array(matrix)
        present = np.asarray((slide_counts > 0).sum(axis=0)).ravel()
        # Ties share their mean rank, so that no slide prefers one of two equal genes for its place in the table.
        ranks += _ranks(-dispersion(slide_counts))
        found += present
        absent |= present == 0
    n_spots = sum(matrix.shape[0] for matrix in counts)
    eligible = np.flatnonzero((found > min_fraction * n_spots) & ~absent)
    return eligible[np.argsort(ranks[eligible], kind="stable")]


def dispersion(counts: Any) -> NDArray[np.float64]:
    """Variance of each gene's counts around what depth leads to expect, over the mean count, float64 (n_vars,).

    A spot is expected to hold the slide's share of a gene times its own depth. The ratio is 1 for counts that vary by
    sampling alone (Poisson), 0 for a gene without counts. Plain variance over mean would rank genes by how well they
    follow depth; variance over mean of depth-normalised counts, by how noisy shallow spots are.

    Parameters
    ----------
    counts
        Counts of one slide, (n_obs, n_vars), dense or SciPy sparse.
    """
    matrix = sp.csr_array(counts).astype(np.float64)
    depth = spot_depth(matrix)
    total = np.asarray(matrix.sum(axis=0)).ravel()
    share = total / max(depth.sum(), 1.0)
    squares = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel()
    residual = squares - 2 * share * (matrix.T @ depth) + share**2 * (depth**2).sum()
    return np.asarray(np.divide(np.maximum(residual, 0.0), total, out=np.zeros_like(total), where=total > 0))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values))
