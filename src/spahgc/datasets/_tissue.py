"""Drawing H&E-like slides: nuclei on fibrous stroma, stained by Beer-Lambert's law. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

Float32 = NDArray[np.float32]

GRID_UM = 10.0
"""Step of the smooth fields, micrometres."""
LATTICE_UM = 11.0
"""Distance of places where a nucleus may be: 8 300 per mm2 where all are taken, as in dense tumour."""
RADIUS_UM = (2.6, 5.2)
"""Smallest and largest mean nuclear radius."""
SHARE = (0.08, 0.85)
"""Smallest and largest share of the places that hold a nucleus."""
HAEMATOXYLIN = (0.5626, 0.7201, 0.4062)
EOSIN = (0.2159, 0.8012, 0.5581)
"""Optical density of the stains in red, green, blue: the reference vectors of Macenko et al., ISBI 2009."""


@dataclass(frozen=True)
class Stain:
    """How a slide was stained and scanned: optical density (2, 3) of the two stains, and the white of the glass."""

    vectors: NDArray[np.float64]
    white: float

    @classmethod
    def draw(cls, rng: np.random.Generator, base: Stain | None = None, *, spread: float = 0.04) -> Stain:
        """A stain that differs from `base` (the textbook's by default) in hue, strength and brightness."""
        vectors = np.array([HAEMATOXYLIN, EOSIN]) if base is None else base.vectors
        hue = np.abs(vectors + rng.normal(0, spread, vectors.shape))
        hue *= np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(hue, axis=1, keepdims=True)
        strength = np.exp(rng.normal(0, 2 * spread, (2, 1)))
        white = 243.0 if base is None else base.white
        return cls(vectors=hue * strength, white=float(np.clip(white + rng.normal(0, 50 * spread), 230, 252)))


@dataclass(frozen=True)
class Tissue:
    """A piece of tissue: smooth fields on a grid of `GRID_UM` (values 0 to 1), and nuclei in micrometres.

    ``places`` (m, 2) are all positions where a nucleus could be, ``taken`` (m,) says which hold one, ``radius`` (m,) is
    its size.
    """

    side_um: float
    colour: Float32
    inside: Float32
    places: NDArray[np.float64]
    taken: NDArray[np.bool_]
    radius: NDArray[np.float64]

    @property
    def nuclei(self) -> NDArray[np.float64]:
        """Centres (x, y) of the nuclei in micrometres."""
        return self.places[self.taken]


def smooth_field(rng: np.random.Generator, side_um: float, length_um: float) -> Float32:
    """A random field with mean 0 and variance 1 that varies over `length_um`, on the grid; float32 (n, n)."""
    n = int(np.ceil(side_um / GRID_UM)) + 1
    # the filter runs over more than the slide, so that the borders are like the middle
    margin = int(np.ceil(2 * length_um / GRID_UM))
    noise = rng.standard_normal((n + 2 * margin, n + 2 * margin)).astype(np.float32)
    smooth = gaussian_filter(noise, length_um / GRID_UM)[margin : margin + n, margin : margin + n]
    return np.asarray((smooth - smooth.mean()) / smooth.std(), dtype=np.float32)


def at(values: NDArray[Any], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A field of the grid at points (x, y) in micrometres, (n,)."""
    index = np.clip(np.rint(points / GRID_UM).astype(int), 0, values.shape[0] - 1)
    return values[index[:, 1], index[:, 0]].astype(np.float64)


def grow(rng: np.random.Generator, inside: Float32, side_um: float) -> Tissue:
    """Draw the fields of a piece of tissue and place its nuclei.

    The density of the nuclei has two scales, domains and small clusters: without the second the surroundings of a spot
    would say no more than the spot itself.
    """
    domains, clusters = smooth_field(rng, side_um, 170), smooth_field(rng, side_um, 35)
    density = ndtr((0.75 * domains + 0.65 * clusters) * 1.1)
    size = ndtr(1.2 * smooth_field(rng, side_um, 110))
    colour = ndtr(1.2 * smooth_field(rng, side_um, 110))
    steps = np.arange(LATTICE_UM / 2, side_um, LATTICE_UM)
    places = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    places = places + rng.uniform(-0.45, 0.45, places.shape) * LATTICE_UM
    places = places[at(inside, places) > 0.5]
    low, high = SHARE
    taken = rng.random(len(places)) < low + (high - low) * at(density, places)
    smallest, largest = RADIUS_UM
    radius = (smallest + (largest - smallest) * at(size, places)) * np.exp(rng.normal(0, 0.12, len(places)))
    return Tissue(side_um=side_um, colour=colour, inside=inside, places=places, taken=taken, radius=radius)


def draw(rng: np.random.Generator, tissue: Tissue, stain: Stain, microns_per_pixel: float) -> NDArray[np.uint8]:
    """Draw a piece of tissue as an RGB image, uint8 (side, side, 3)."""
    side = round(tissue.side_um / microns_per_pixel)
    inside = _to_pixels(tissue.inside, side, microns_per_pixel)
    colour = _to_pixels(tissue.colour, side, microns_per_pixel)
    fibres = _fibres(rng, side, microns_per_pixel)
    # clefts between bundles of fibres are glass
    bundles = gaussian_filter(fibres, 2.5 / microns_per_pixel)
    clefts = np.clip(3 * (bundles / bundles.std() + 2.6), 0.05, 1)
    tissue_here = np.clip(6 * (inside - 0.5) + 0.5, 0, 1) * clefts
    nuclei = _nuclei(rng, tissue, side, microns_per_pixel)
    grain = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), 0.8 / microns_per_pixel)
    haematoxylin = nuclei * (1 + 0.4 * grain) + (0.28 - 0.22 * colour) * (1 + 0.15 * fibres)
    eosin = (0.20 + 0.42 * colour) * (1 + 0.18 * fibres) * (1 - 0.6 * nuclei)
    blur = 0.6 / microns_per_pixel
    density = np.stack(
        [gaussian_filter(part.clip(0, None) * tissue_here, blur) for part in (haematoxylin, eosin)], axis=-1
    )
    rgb = np.float32(stain.white) * np.exp(-(density @ stain.vectors.astype(np.float32)))
    rgb += 2 * rng.standard_normal((side, side, 1), dtype=np.float32)
    return np.asarray(rgb.clip(0, 255).round(), dtype=np.uint8)


def _to_pixels(values: Float32, side: int, microns_per_pixel: float) -> Float32:
    """A field of the grid at the pixels of the image, bilinear."""
    position = np.minimum((np.arange(side) + 0.5) * microns_per_pixel / GRID_UM, values.shape[0] - 1.001)
    left = position.astype(int)
    weights = np.zeros((side, values.shape[0]), dtype=np.float32)
    weights[np.arange(side), left] = left + 1 - position
    weights[np.arange(side), left + 1] = position - left
    return np.asarray(weights @ values @ weights.T)


def _fibres(rng: np.random.Generator, side: int, microns_per_pixel: float) -> Float32:
    """Fibrous texture of mean 0 and variance about 1: streaks in four directions, each in its own patches."""
    across, along = 1.1 / microns_per_pixel, 8.0 / microns_per_pixel
    rows, columns = np.arange(side)[:, None], np.arange(side)[None, :]
    texture, total = np.zeros((side, side), dtype=np.float32), np.zeros((side, side), dtype=np.float32)
    for direction in range(4):
        noise = rng.standard_normal((side, side), dtype=np.float32)
        # along x, or along y and then sheared by -45, 0 or 45 degrees
        streaks = gaussian_filter(noise, (across, along) if direction == 3 else (along, across), mode="wrap")
        if direction < 2:
            streaks = np.take_along_axis(streaks, (columns + (2 * direction - 1) * rows) % side, axis=1)
        patches = _to_pixels(smooth_field(rng, side * microns_per_pixel, 60), side, microns_per_pixel)
        weight = np.exp(2.0 * patches)
        texture += streaks / streaks.std() * weight
        total += weight**2
    return np.asarray(texture / np.sqrt(total), dtype=np.float32)


def _nuclei(rng: np.random.Generator, tissue: Tissue, side: int, microns_per_pixel: float) -> Float32:
    """Nuclei as filled ellipses with soft edges: 0 outside, about 1 inside; float32 (side, side)."""
    centres = tissue.nuclei / microns_per_pixel
    radius = tissue.radius[tissue.taken] / microns_per_pixel
    n = len(centres)
    ratio, angle = rng.uniform(0.6, 1.0, n), rng.uniform(0, np.pi, n)
    darkness = rng.uniform(0.75, 1.15, n)
    reach = int(np.ceil(1.4 * radius.max(initial=1.0))) + 1
    window = np.arange(-reach, reach + 1)
    corner = np.floor(centres).astype(int)
    columns, rows = (corner[:, axis, None] + window for axis in (0, 1))
    dx = (columns + 0.5 - centres[:, :1])[:, None, :]
    dy = (rows + 0.5 - centres[:, 1:])[:, :, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    # same area at every ratio: a round and a long nucleus of one radius hold as much stain
    long, short = (radius / np.sqrt(ratio))[:, None, None], (radius * np.sqrt(ratio))[:, None, None]
    distance = np.sqrt(((dx * cos + dy * sin) / long) ** 2 + ((dy * cos - dx * sin) / short) ** 2)
    value = np.clip((1 - distance) * radius[:, None, None] + 0.5, 0, 1) * darkness[:, None, None]
    within = (value > 0) & ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    flat = (rows[:, :, None] * side + columns[:, None, :])[within]
    image = np.zeros(side * side, dtype=np.float32)
    np.maximum.at(image, flat, value[within].astype(np.float32))
    return image.reshape(side, side)
