"""Alignment of spots and image on plain arrays: candidate transformations, evidence for each, decision."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._geometry import scale_of, transformed
from .._slides import Float32, Float64

MARGIN = 0.08  # lead in score that tells one candidate from another; calibrated in benchmarks/alignment.py
# Outline and expression, one of which a credible candidate reaches: at least 0.92 and 0.16 on slides that are right,
# 0.75 and 0.01 on the image of another slide.
FITS = (0.85, 0.1)
SAME_SCALE = 0.05  # scales that differ by less are one candidate: the first
REACH = 0.25  # shifts are searched up to this share of the image's longer side
MAX_STEPS = 6  # in each direction, so that a search of dense spots costs no more than one of arrays
MAX_SPOTS = 5000  # a random sample of this many spots is judged
SHIFTED_SPOTS = 2500  # at most, while shifts are searched
MIN_SPOTS = 50  # of fewer spots inside the image, expression is not judged
N_COMPONENTS = 10
N_GENES = 1000
UNCHANGED = "ok"


@dataclass(frozen=True, eq=False)
class Placement:
    """A fault in the coordinates in words, the fix in words, and the map from given to right pixels, (3, 3)."""

    fault: str
    fix: str
    affine: Float64


@dataclass(frozen=True, eq=False)
class Scene:
    """Spots of one slide, or a sample of them, and its image at low resolution."""

    sums: Float64  # see summed_image
    to_image: Float64  # map from full-resolution pixels (x, y, 1) to pixels of this image
    pixels: Float64  # centers as given, in full-resolution pixels (x, y): (n, 2)
    cell: float  # area per spot in square pixels
    covered: NDArray[np.bool_]  # whether tissue is expected there; the others show where the array had none
    n: int  # number of spots that these stand for
    expression: Float32 | None = None  # leading components of expression, (n, p)
    mirrored: bool | None = None  # whether array rows and columns run against each other as given, if known


@dataclass(frozen=True)
class Agreement:
    """Evidence for a placement, each part from 0 to 1.

    `inside` and `on_tissue` (tissue on at least half of their area) are shares of spots. `outline` is the Dice overlap
    of the area of the spots with the tissue. `expression` is the adjusted R2 of expression on the image's colors,
    without trends over the slide, times `inside`; 0 without counts.
    """

    inside: float
    on_tissue: float
    outline: float
    expression: float

    @property
    def score(self) -> float:
        """Score by which placements are compared."""
        return self.outline + self.expression

    def as_dict(self) -> dict[str, float]:
        """Evidence and score by name."""
        return asdict(self) | {"score": self.score}

    @property
    def fits(self) -> bool:
        """Whether outline or expression agree well enough for the placement to be credible."""
        return self.outline >= FITS[0] or self.expression >= FITS[1]


def placements(width: int, height: int, scales: Mapping[str, tuple[str, Float64]]) -> list[Placement]:
    """The eight symmetries of an image of this size, times scales; the identity first.

    `scales` maps a fault in words to its fix in words and the map (3, 3) that undoes it. One within
    :data:`SAME_SCALE` of an earlier one, or of the identity, is left out.
    """
    size = np.array([width, height, 1.0])
    kept = {"": ("", np.eye(3))}
    for fault, (fix, affine) in scales.items():
        moved = [affine @ np.linalg.inv(other) @ size - size for _, other in kept.values()]
        if min(np.abs(move[:2] / size[:2]).max() for move in moved) > SAME_SCALE:
            kept[fault] = fix, affine
    swap = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    x = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]])
    y = np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]])
    flip_x, flip_y = f"x = {width:g} - x", f"y = {height:g} - y"
    symmetries = [
        ("", "", np.eye(3)),
        ("x and y swapped", "swap x and y", swap),
        ("x flipped", flip_x, x),
        ("y flipped", flip_y, y),
        ("turned by 180 degrees", f"{flip_x}, {flip_y}", y @ x),
        ("turned by 90 degrees counter-clockwise", f"swap x and y, then {flip_x}", x @ swap),
        ("turned by 90 degrees clockwise", f"swap x and y, then {flip_y}", y @ swap),
        ("x and y swapped, both flipped", f"swap x and y, then {flip_x}, {flip_y}", y @ x @ swap),
    ]
    return [
        Placement(
            "; ".join(filter(None, (turned, scaled))) or UNCHANGED,
            "; ".join(filter(None, (unscale, turn))),
            flip @ affine,
        )
        for scaled, (unscale, affine) in kept.items()
        for turned, turn, flip in symmetries
    ]


def scaling(factor: float) -> Float64:
    """Map that multiplies coordinates by a factor, (3, 3)."""
    return np.diag([factor, factor, 1.0])


def summed_image(rgb: Float32, tissue: NDArray[np.bool_]) -> Float64:
    """Sums of an image (rows, columns, 3), from 0 to 1, and its tissue mask over all pixels above and left.

    Shape (rows + 1, columns + 1, 7): tissue, the optical densities of red, green and blue, and their squares.
    """
    density = -np.log10(np.maximum(rgb, 1 / 255))
    planes = np.dstack([tissue, density, density**2])
    sums = planes.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
    return np.pad(sums, ((1, 0), (1, 0), (0, 0)))


def judge(spots: Scene, placement: Float64) -> Agreement:
    """Evidence that the image gives for the map of a placement, (3, 3)."""
    affine = spots.to_image @ placement
    at = transformed(affine, spots.pixels)
    cell = spots.cell * scale_of(affine) ** 2
    sums, area, asked = _boxes(spots.sums, at, float(np.sqrt(cell)))
    share = sums[:, 0] / asked
    rows, columns = (size - 1 for size in spots.sums.shape[:2])
    inside = np.asarray(((at >= 0) & (at <= (columns, rows))).all(axis=1))
    weight = spots.n / len(at)
    both = weight * cell * share[spots.covered].sum()
    # If the array goes on beyond the tissue, only the tissue that it covers counts; otherwise all tissue of the image.
    tissue = float(spots.sums[-1, -1, 0]) if spots.covered.all() else weight * cell * share.sum()
    outline = 2 * both / (weight * cell * spots.covered.sum() + tissue)
    expression = 0.0
    used = (area > 0) & spots.covered
    if spots.expression is not None and used.sum() >= MIN_SPOTS:
        mean = sums[used] / area[used, None]
        deviation = np.sqrt(np.maximum(mean[:, 4:] - mean[:, 1:4] ** 2, 0))
        colors = np.column_stack([share[used], mean[:, 1:4], deviation])
        explained = explained_variance(spots.expression[used], colors, spots.pixels[used])
        expression = max(explained, 0.0) * float(inside[spots.covered].mean())
    on_tissue = float((share[spots.covered] >= 0.5).mean())
    return Agreement(float(inside.mean()), on_tissue, float(min(outline, 1.0)), expression)


def _boxes(sums: Float64, at: Float64, side: float) -> tuple[Float64, Float64, Float64]:
    """Sums over the boxes around points (n, k), their pixels inside the image (n,), and all their pixels (n,)."""
    limit = np.array(sums.shape[1::-1]) - 1
    low = np.round(at - side / 2).astype(np.int64)
    high = np.maximum(np.round(at + side / 2).astype(np.int64), low + 1)
    left, top = np.clip(low, 0, limit).T
    right, bottom = np.clip(high, 0, limit).T
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside, ((right - left) * (bottom - top)).astype(float), (high - low).prod(axis=1).astype(float)


def explained_variance(expression: Any, colors: Float64, places: Float64) -> float:
    """Adjusted R2 of expression (n, p) on colors (n, k), both without their trend over the slide."""
    surface = trend(places)
    x = _residual(colors, surface)
    # A constant color explains nothing and takes no degree of freedom.
    x = x[:, x.std(axis=0) > 1e-6]
    y = _residual(np.asarray(expression, dtype=np.float64), surface)
    total = float((y**2).sum())
    free = len(y) - surface.shape[1]
    if total == 0 or x.shape[1] == 0 or free <= x.shape[1]:
        return 0.0
    return 1 - float((_residual(y, x) ** 2).sum()) / total * free / (free - x.shape[1])


def trend(places: Float64) -> Float64:
    """Polynomials of second degree in x and y, (n, 6): smooth trends agree by chance, whatever lies on what."""
    x, y = ((places - places.mean(axis=0)) / max(float(places.std()), 1e-12)).T
    return np.column_stack([np.ones_like(x), x, y, x * x, x * y, y * y])


def _residual(values: Float64, on: Float64) -> Float64:
    return np.asarray(values - on @ np.linalg.lstsq(on, values, rcond=None)[0])


def components(expression: Float32, depth: Float64 | None) -> Float32:
    """Leading components of expression (n, genes), and the log of the total counts, scaled like the first: (n, p)."""
    from sklearn.utils.extmath import randomized_svd

    genes = np.argsort(-expression.var(axis=0), kind="stable")[:N_GENES]
    centered = expression[:, genes] - expression[:, genes].mean(axis=0)
    u, s, _ = randomized_svd(centered, min(N_COMPONENTS, *centered.shape), random_state=0)
    parts = u * s
    if depth is not None and depth.std() > 0:
        log = np.log1p(depth)
        parts = np.column_stack([parts, (log - log.mean()) / log.std() * parts[:, 0].std()])
    return np.asarray(parts, dtype=np.float32)


def decide(tried: Sequence[Placement], found: Sequence[Agreement], spots: Scene) -> tuple[int, list[int]]:
    """Placement with the highest score, and its rivals: those within the margin that put the spots somewhere else.

    Among them the handedness of the array decides if it supports the coordinates as given, or if these are no rival.
    Alone it never raises an alarm, because some tables have array_row and array_col exchanged.
    """
    score = np.array([agreement.score for agreement in found])
    best = int(score.argmax())
    level = [best]
    for k in np.argsort(-score, kind="stable").tolist():
        moved = transformed(tried[best].affine - tried[k].affine, spots.pixels)
        is_apart = np.median(np.hypot(*moved.T)) > np.sqrt(spots.cell) * scale_of(tried[best].affine)
        if score[k] > score[best] - MARGIN and is_apart:
            level.append(k)
    if len(level) > 1 and spots.mirrored is not None and (0 not in level or not spots.mirrored):
        upright = [k for k in level if spots.mirrored == (np.linalg.det(tried[k].affine[:2, :2]) < 0)]
        level = upright or level
    return level[0], level[1:]


def shift(spots: Scene, placement: Float64) -> tuple[Float64, Agreement]:
    """Shift in full-resolution pixels (x, y) that fits the outline best after a placement, and its evidence.

    Searched in steps from three spot distances (or a sixth of the reach) down to half a distance or a mask pixel.
    """
    some = slice(None, None, -(-len(spots.pixels) // SHIFTED_SPOTS))
    pixels, covered = spots.pixels[some], spots.covered[some]
    outline = replace(spots, expression=None, sums=spots.sums[..., :1], pixels=pixels, covered=covered)
    pixel, pitch = 1 / scale_of(spots.to_image), float(np.sqrt(spots.cell)) * scale_of(placement)
    reach = REACH * max(spots.sums.shape[:2]) * pixel
    step, last = max(3 * pitch, reach / MAX_STEPS), max(3 * pitch / 8, pixel / 2)
    n = int(reach / step)
    best, at = judge(outline, placement).outline, np.zeros(2)
    while step > last:
        middle = at
        for steps in itertools.product(range(-n, n + 1), repeat=2):
            moved = middle + step * np.array(steps)
            found = judge(outline, _translation(moved) @ placement).outline
            if found > best:
                best, at = found, moved
        step, n = step / 2, 1
    return at, judge(spots, _translation(at) @ placement)


def _translation(by: Float64) -> Float64:
    move = np.eye(3)
    move[:2, 2] = by
    return move
