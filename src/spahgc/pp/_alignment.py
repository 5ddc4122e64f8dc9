"""Whether spots lie where the image says they do, on arrays: candidate transformations, evidence, verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._slides import Float32, Float64

MARGIN = 0.08
"""Lead in score from which on one candidate is told from another; calibrated in ``benchmarks/alignment.py``."""
FITS = (0.85, 0.1)
"""Outline and expression, one of which a candidate has to reach to be believed: 0.92 and 0.16 at least on slides that
are right, 0.75 and 0.01 on the image of another slide."""
SAME_SCALE = 0.05
"""Scales that differ by less are one candidate: the first."""
REACH = 0.25
"""Shifts are looked for up to this share of the image's longer side."""
MAX_SPOTS = 5000
"""Of more spots, this many drawn at random are judged."""
MIN_SPOTS = 50
"""Of fewer spots inside the image, expression says nothing."""
N_COMPONENTS = 10
N_GENES = 1000

IDENTITY = "ok"


@dataclass(frozen=True, eq=False)
class Candidate:
    """What may have happened to coordinates, and what undoes it."""

    fault: str
    """What would be wrong, in words; :data:`IDENTITY` for nothing."""
    fix: str
    affine: Float64
    """From pixels as given (x, y, 1) to right ones, at full resolution: (3, 3)."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image at low resolution."""

    sums: Float64
    """Sums over all pixels above and left, (rows + 1, columns + 1, 7): tissue, the optical densities of red, green and
    blue, and their squares."""
    affine: Float64
    """From full-resolution pixels (x, y, 1) to pixels of this: (3, 3)."""

    @property
    def tissue(self) -> float:
        """Number of tissue pixels."""
        return float(self.sums[-1, -1, 0])


@dataclass(frozen=True, eq=False)
class Spots:
    """Spots of one slide."""

    pixels: Float64
    """Centres as given, in full-resolution pixels (x, y): (n, 2)."""
    cell: float
    """Area that belongs to a spot, in square pixels."""
    covered: NDArray[np.bool_]
    """Whether tissue is expected there (``in_tissue``); the others show where the array had no tissue: (n,)."""
    n: int
    """How many spots these stand for, if they are a sample."""
    expression: Float32 | None = None
    """Leading components of expression: (n, p); `None` where there are no counts."""
    mirrored: bool | None = None
    """Whether array rows and columns run against each other as given; `None` if they are not known."""


@dataclass(frozen=True)
class Evidence:
    """What speaks for a candidate; all from 0 to 1."""

    inside: float
    """Share of spots inside the image."""
    on_tissue: float
    """Share of spots with tissue on at least half of their area."""
    outline: float
    """Agreement of the area of the spots with the tissue, 2 |both| / (|spots| + |tissue|) (Dice)."""
    expression: float
    """Share of the spots' expression that colour and tissue at their place explain (adjusted R2, trend removed), times
    `inside`; 0 where there are no counts."""

    @property
    def score(self) -> float:
        """What candidates are compared by."""
        return self.outline + self.expression

    @property
    def fits(self) -> bool:
        """Whether it is good enough to be believed."""
        return self.outline >= FITS[0] or self.expression >= FITS[1]


def candidates(width: int, height: int, scales: Mapping[str, tuple[str, Float64]]) -> list[Candidate]:
    """The eight ways to lay an image on itself, times scales; the identity first.

    Parameters
    ----------
    width, height
        Of the image at full resolution.
    scales
        Fault in words -> fix in words, and the affine map (3, 3) that undoes it. One within :data:`SAME_SCALE` of an
        earlier one, or of no change, is left out.
    """
    kept: list[tuple[str, str, Float64]] = [("", "", np.eye(3))]
    size = np.array([width, height, 1.0])
    for fault, (fix, affine) in scales.items():
        moves = [np.abs((affine @ np.linalg.inv(other) @ size - size)[:2] / size[:2]).max() for *_, other in kept]
        if min(moves) > SAME_SCALE:
            kept.append((fault, fix, affine))
    return [
        Candidate(
            "; ".join(part for part in (turned, scaled) if part) or IDENTITY,
            "; ".join(part for part in (unscale, turn) if part),
            flip @ affine,
        )
        for scaled, unscale, affine in kept
        for turned, turn, flip in _dihedral(width, height)
    ]


def _dihedral(width: float, height: float) -> list[tuple[str, str, Float64]]:
    """Fault, fix in words, fix as an affine map, for the eight symmetries of a frame; no change first."""
    swap = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    x = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])
    y = np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]])
    flip_x, flip_y = f"x = {width:g} - x", f"y = {height:g} - y"
    return [
        ("", "", np.eye(3)),
        ("x and y swapped", "swap x and y", swap),
        ("x flipped", flip_x, x),
        ("y flipped", flip_y, y),
        ("turned by 180 degrees", f"{flip_x}, {flip_y}", y @ x),
        ("turned by 90 degrees counter-clockwise", f"swap x and y, then {flip_x}", x @ swap),
        ("turned by 90 degrees clockwise", f"swap x and y, then {flip_y}", y @ swap),
        ("x and y swapped, both flipped", f"swap x and y, then {flip_x}, {flip_y}", y @ x @ swap),
    ]


def scale(factor: float) -> Float64:
    """The affine map that multiplies coordinates by a factor."""
    return np.diag([factor, factor, 1.0])


def picture(rgb: Float32, tissue: NDArray[np.bool_], affine: Float64) -> Picture:
    """Prepare an image (rows, columns, 3), values 0..1, with its tissue mask (rows, columns)."""
    density = -np.log10(np.maximum(rgb, 1 / 255))
    planes = np.dstack([tissue, density, density**2])
    sums = planes.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    return Picture(np.pad(sums, ((1, 0), (1, 0), (0, 0))), affine)


def judge(spots: Spots, image: Picture, candidate: Candidate) -> Evidence:
    """What the image says about a candidate."""
    affine = image.affine @ candidate.affine
    at = spots.pixels @ affine[:2, :2].T + affine[:2, 2]
    cell = spots.cell * abs(np.linalg.det(affine[:2, :2]))
    sums, area, asked = _boxes(image.sums, at, float(np.sqrt(cell)))
    share = sums[:, 0] / asked
    rows, columns = (size - 1 for size in image.sums.shape[:2])
    inside = np.asarray(((at >= 0) & (at <= (columns, rows))).all(axis=1))
    weight = spots.n / len(at)
    both = weight * cell * share[spots.covered].sum()
    # Where the array goes on beyond the tissue, only what it covers counts; else all tissue of the image does.
    tissue = image.tissue if spots.covered.all() else weight * cell * share.sum()
    outline = 2 * both / (weight * cell * spots.covered.sum() + tissue)
    expression = 0.0
    used = (area > 0) & spots.covered
    if spots.expression is not None and used.sum() >= MIN_SPOTS:
        mean = sums[used] / area[used, None]
        deviation = np.sqrt(np.maximum(mean[:, 4:] - mean[:, 1:4] ** 2, 0))
        colours = np.column_stack([share[used], mean[:, 1:4], deviation])
        explained = _explained(spots.expression[used], colours, spots.pixels[used])
        expression = max(explained, 0.0) * float(inside[spots.covered].mean())
    return Evidence(
        inside=float(inside.mean()),
        on_tissue=float((share[spots.covered] >= 0.5).mean()),
        outline=float(min(outline, 1.0)),
        expression=expression,
    )


def _boxes(sums: Float64, at: Float64, side: float) -> tuple[Float64, Float64, Float64]:
    """Sums over the boxes around points (n, k), their pixels inside the image (n,), and their pixels in all (n,)."""
    limit = np.array(sums.shape[1::-1]) - 1
    low = np.round(at - side / 2).astype(np.int64)
    high = np.maximum(np.round(at + side / 2).astype(np.int64), low + 1)
    left, top = np.clip(low, 0, limit).T
    right, bottom = np.clip(high, 0, limit).T
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside, ((right - left) * (bottom - top)).astype(float), (high - low).prod(axis=1).astype(float)


def _explained(expression: Any, colours: Float64, places: Float64) -> float:
    """Adjusted R2 of expression (n, p) on colours (n, k), both without their trend over the slide."""
    surface = trend(places)
    x = _residual(colours, surface)
    # A colour that is the same everywhere explains nothing and takes no degree of freedom.
    x = x[:, x.std(axis=0) > 1e-6]
    y = _residual(np.asarray(expression, dtype=np.float64), surface)
    total = float((y**2).sum())
    free = len(y) - surface.shape[1]
    if total == 0 or x.shape[1] == 0 or free <= x.shape[1]:
        return 0.0
    return 1 - float((_residual(y, x) ** 2).sum()) / total * free / (free - x.shape[1])


def trend(places: Float64) -> Float64:
    """Polynomials of second degree in x and y, (n, 6).

    Smooth trends of colour and expression over a slide agree by chance whatever lies on what.
    """
    x, y = ((places - places.mean(axis=0)) / max(float(places.std()), 1e-12)).T
    return np.column_stack([np.ones_like(x), x, y, x * x, x * y, y * y])


def _residual(values: Float64, on: Float64) -> Float64:
    return np.asarray(values - on @ np.linalg.lstsq(on, values, rcond=None)[0])


def components(expression: Float32, depth: Float64 | None) -> Float32:
    """Leading components of expression (n, genes), and the log of the total counts, scaled like the first: (n, p)."""
    from sklearn.utils.extmath import randomized_svd

    genes = np.argsort(-expression.var(axis=0), kind="stable")[:N_GENES]
    centred = expression[:, genes] - expression[:, genes].mean(axis=0)
    u, s, _ = randomized_svd(centred, min(N_COMPONENTS, *centred.shape), random_state=0)
    parts = u * s
    if depth is not None and depth.std() > 0:
        log = np.log1p(depth)
        parts = np.column_stack([parts, (log - log.mean()) / log.std() * parts[:, 0].std()])
    return np.asarray(parts, dtype=np.float32)


def lattice(points: Float64) -> tuple[float, float]:
    """Area per point, and distance of neighbours on the regular lattice of that area (hexagonal or square)."""
    from scipy.spatial import Delaunay, KDTree

    some = points
    if len(points) > 4 * MAX_SPOTS:  # neighbours, not a sample
        some = points[np.argsort(np.abs(points - np.median(points, axis=0)).max(axis=1))[: 4 * MAX_SPOTS]]
    corners = some[Delaunay(some, qhull_options="QJ").simplices]
    (ax, ay), (bx, by) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
    area = float(np.median(np.abs(ax * by - ay * bx)))
    nearest = float(np.median(np.asarray(KDTree(some).query(some, k=2)[0])[:, 1]))
    # A hexagonal lattice has 0.866 squared distances a point, a square one 1, and more where it is not exact.
    return area, float(np.sqrt(area / 0.866 if area < 0.93 * nearest**2 else area))


def decide(
    tried: Sequence[Candidate], found: Sequence[Evidence], spots: Spots, margin: float = MARGIN
) -> tuple[int, list[int]]:
    """The candidate with the highest score, and those that cannot be told from it.

    Its rivals are within the margin and put spots somewhere else. Among them the handedness of the array settles it
    if that speaks for the coordinates as given, or if these are no rival: alone it never raises an alarm, as there are
    tables whose array_row and array_col are exchanged.
    """
    score = np.array([evidence.score for evidence in found])
    best = int(score.argmax())
    close = [int(k) for k in np.argsort(-score, kind="stable") if score[k] > score[best] - margin]
    level = [k for k in close if k == best or _apart(tried, best, k, spots)]
    if len(level) > 1 and spots.mirrored is not None and (0 not in level or not spots.mirrored):
        upright = [k for k in level if spots.mirrored == (np.linalg.det(tried[k].affine[:2, :2]) < 0)]
        level = upright or level
    return level[0], level[1:]


def _apart(tried: Sequence[Candidate], a: int, b: int, spots: Spots) -> bool:
    """Whether two candidates put the spots somewhere else, by more than their distance."""
    difference = tried[a].affine - tried[b].affine
    moved = spots.pixels @ difference[:2, :2].T + difference[:2, 2]
    stretch = np.sqrt(abs(np.linalg.det(tried[a].affine[:2, :2])))
    return bool(np.median(np.hypot(*moved.T)) > np.sqrt(spots.cell) * stretch)


def shift(spots: Spots, image: Picture, candidate: Candidate) -> tuple[Float64, Evidence]:
    """The shift, in full-resolution pixels (x, y), that suits the outline best after a candidate, and its evidence.

    From steps of three spot distances down to half of one: where the outline says, no closer.
    """
    outline = replace(spots, expression=None)
    step = 3 * float(np.sqrt(spots.cell * abs(np.linalg.det(candidate.affine[:2, :2]))))
    limits = np.array(image.sums.shape[1::-1]) / np.sqrt(abs(np.linalg.det(image.affine[:2, :2])))
    n = int(REACH * limits.max() / step)
    best, at = judge(outline, image, candidate).outline, np.zeros(2)
    last = step / 8
    while step > last:
        middle = at
        for i in range(-n, n + 1):
            for j in range(-n, n + 1):
                moved = middle + step * np.array([i, j])
                found = judge(outline, image, _shifted(candidate, moved)).outline
                if found > best:
                    best, at = found, moved
        step, n = step / 2, 1
    return at, judge(spots, image, _shifted(candidate, at))


def _shifted(candidate: Candidate, by: Float64) -> Candidate:
    move = np.eye(3)
    move[:2, 2] = by
    return replace(candidate, affine=move @ candidate.affine)
