"""Drawn slides with genes whose link to the image is known.

Tissue is nuclei on fibrous stroma, stained by the Beer-Lambert law. Smooth fields lie on a grid of `GRID_UM`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.special import ndtr
from spatialdata import SpatialData

from .. import _keys
from .._checks import at_least, between, checked
from .._slides import Float32, Float64
from ..io import concat, read_st
from ..io._st import spot_names

PITCH_UM, SPOT_DIAMETER_UM = 100.0, 55.0
DRIVERS = ("density", "color", "size", "context")
GRID_UM = 10.0  # step of the smooth fields
LATTICE_UM = 11.0  # distance of places for nuclei: 8,300 per mm2 if all are taken, as in dense tumor
RADIUS_UM = (2.6, 5.2)  # smallest and largest mean nuclear radius
SHARE = (0.08, 0.85)  # smallest and largest fraction of places that hold a nucleus
# Optical density of hematoxylin and eosin in red, green, blue: reference vectors of Macenko et al., ISBI 2009.
STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))


@checked(
    n_slides=at_least(1),
    n_patients=at_least(1),
    n_spots=at_least(4),
    n_genes=at_least(16),
    microns_per_pixel=between(0.2, 4),
)
def synthetic_cohort(
    *,
    n_slides: int = 4,
    n_patients: int = 2,
    n_spots: int = 150,
    n_genes: int = 200,
    microns_per_pixel: float = 1.0,
    rng: int | np.random.Generator = 0,
) -> SpatialData:
    """Draw slides with H&E-like images and counts with a known link to them.

    Half of the genes are planted. A quarter of these each follows the density of nuclei in the spot, the balance of
    eosin and hematoxylin, the size of the nuclei, or the density of nuclei around the spot (90 to 230 um away, so the
    surroundings matter); half of them increase and half decrease. The other genes do not depend on the image: half vary
    smoothly over the slide, half by chance only. Counts are negative binomial. Stain, gene levels and sequencing depth
    differ between patients and slides; depth also differs between spots, mostly independent of the image.

    Parameters
    ----------
    n_slides
        Number of slides, named ``S1``, ``S2``, ...
    n_patients
        Number of patients, named ``P1``, ``P2``, ...; slides are assigned in order, so ``S1`` and ``S2`` belong to
        ``P1`` by default.
    n_spots
        Spots per slide, on a square grid with a pitch of 100 um and a diameter of 55 um.
    n_genes
        Number of genes.
    microns_per_pixel
        Scale of the images; a slide of 150 spots has 1600 x 1600 pixels at 1 um per pixel.
    rng
        Seed or generator. The same seed gives the same slides.

    Returns
    -------
    SpatialData in the layout of :func:`spahgc.io.read_st`. ``var`` of the table has ``planted`` (bool) and ``driver``
    (categorical: ``density``, ``color``, ``size``, ``context``, ``none``); ``uns["synthetic"]["params"]`` has the
    parameters.

    Raises
    ------
    ValueError
        If a number is out of range, or there are fewer slides than patients.

    Examples
    --------
    >>> import spahgc
    >>> sdata = spahgc.datasets.synthetic_cohort(n_slides=2, n_spots=9, n_genes=16)
    >>> sdata["table"].shape
    (18, 16)
    """
    if n_patients > n_slides:
        raise ValueError(f"`n_patients` must be at most n_slides={n_slides}, got {n_patients}.")
    generator = np.random.default_rng(rng)
    patients = [slide * n_patients // n_slides for slide in range(n_slides)]
    stains = [_stain(generator, np.array(STAINS), 243.0, 0.04) for _ in range(n_patients)]
    tables, images, spots, drivers = [], [], [], []
    for child, patient in zip(generator.spawn(n_slides), patients, strict=True):
        spots_um, array, inside, side_um = _layout(child, n_spots)
        tissue = _tissue(child, inside, side_um)
        images.append(_draw(child, tissue, inside, _stain(child, *stains[patient], 0.02), microns_per_pixel))
        columns = np.column_stack([array, spots_um / microns_per_pixel])
        tables.append(pd.DataFrame(columns, columns=["x", "y", "pixel_x", "pixel_y"]))
        spots.append(spots_um)
        drivers.append(_drivers(tissue, spots_um))
    # Half of the genes are planted, in equal parts; of the others half are smooth, half noise.
    n_each = n_genes // 2 // len(DRIVERS)
    n_rest = n_genes - n_each * len(DRIVERS)
    kinds = {**dict.fromkeys(DRIVERS, n_each), "smooth": n_rest // 2, "noise": n_rest - n_rest // 2}
    names = [f"{kind}-{index:02d}" for kind, n in kinds.items() for index in range(n)]
    drawn = [kind if kind in DRIVERS else "none" for kind, n in kinds.items() for _ in range(n)]
    driver = pd.Categorical(drawn, categories=[*DRIVERS, "none"])
    var = pd.DataFrame({"planted": driver != "none", "driver": driver}, index=pd.Index(names, dtype=object))
    counts = _counts(generator, var, drivers, spots, patients)
    slides = []
    for index, patient in enumerate(patients):
        slide = read_st(
            pd.DataFrame(counts[index], spot_names(tables[index][["x", "y"]].to_numpy()), var.index),
            tables[index],
            images[index],
            slide=f"S{index + 1}",
            patient=f"P{patient + 1}",
            microns_per_pixel=microns_per_pixel,
            spot_diameter_um=SPOT_DIAMETER_UM,
        )
        slides.append(slide)
    sdata = concat(slides)
    sdata.tables[_keys.TABLE].var = var
    sdata.tables[_keys.TABLE].uns[_keys.SYNTHETIC] = {
        _keys.PARAMS: {
            "n_slides": n_slides,
            "n_patients": n_patients,
            "n_spots": n_spots,
            "n_genes": n_genes,
            _keys.MPP: float(microns_per_pixel),
            "rng": "generator" if isinstance(rng, np.random.Generator) else int(rng),
        }
    }
    return sdata


def synthetic_tables() -> tuple[AnnData, AnnData]:
    """Two small tables for examples: reference slides of two patients, and a target slide of a third.

    ``obsm["image_own"]`` holds counts of eight genes in place of image features, so scores mean nothing.
    """
    adata = synthetic_cohort(n_patients=3, n_spots=25, microns_per_pixel=4).tables[_keys.TABLE]
    adata.obsm[_keys.image("own")] = adata.X[:, :8].toarray()
    target = adata.obs[_keys.PATIENT] == "P3"
    return adata[~target].copy(), adata[target].copy()


def _layout(rng: np.random.Generator, n_spots: int) -> tuple[Float64, NDArray[np.int64], Float32, float]:
    """Spots (micrometers; array), outline of the tissue on the grid of fields, and side of the slide."""
    # Tissue is a round blob with a wavy edge; the innermost positions of the array are its spots.
    n = int(np.ceil(np.sqrt(n_spots / 0.68)))
    side_um = (n + 1) * PITCH_UM
    waves = [(k, rng.normal(0, 0.10 / k), rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5)]

    def depth(points: NDArray[Any]) -> Float64:
        offset = points - side_um / 2
        angle = np.arctan2(offset[..., 1], offset[..., 0])
        edge = 1 + sum(height * np.cos(k * angle + phase) for k, height, phase in waves)
        return np.linalg.norm(offset, axis=-1) / edge

    array = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2)
    spots = (array + 1.0) * PITCH_UM
    order = np.sort(np.argsort(depth(spots), kind="stable")[:n_spots])
    array, spots = array[order].astype(np.int64), spots[order]
    edge = depth(spots).max() + 0.5 * PITCH_UM
    steps = np.arange(np.ceil(side_um / GRID_UM) + 1, dtype=np.float64) * GRID_UM
    grid = np.stack(np.meshgrid(steps, steps), axis=-1)
    inside = 1 / (1 + np.exp((depth(grid) - edge) / 8.0))
    # No array is perfect.
    spots = spots + rng.normal(0, 0.01 * PITCH_UM, spots.shape)
    return spots, array, inside.astype(np.float32), side_um


def _drivers(tissue: Tissue, spots_um: Float64) -> Float64:
    """Image features that drive planted genes at each spot, one column per driver, (n_spots, 4)."""
    tree, nuclei, radius = cKDTree(tissue.places), tissue.taken.astype(np.float64), tissue.radius
    # Nuclei within 55 um of a spot count as its own; those 90 to 230 um away are its surroundings.
    near, inner, wide = (tree.query_ball_point(spots_um, reach) for reach in (55.0, 90.0, 230.0))
    out = np.empty((len(spots_um), len(DRIVERS)))
    for row, (own, large, small) in enumerate(zip(near, wide, inner, strict=True)):
        around = np.setdiff1d(large, small)
        taken = np.asarray(own)[tissue.taken[own]] if own else np.array([], dtype=int)
        out[row] = (
            nuclei[own].mean() if own else 0.0,
            0.0,
            radius[taken].mean() if len(taken) else radius.mean(),
            nuclei[around].mean() if len(around) else nuclei.mean(),
        )
    out[:, 1] = _at(tissue.color, spots_um)
    return out


def _counts(
    rng: np.random.Generator, var: pd.DataFrame, drivers: list[Float64], spots_um: list[Float64], patients: list[int]
) -> list[Float32]:
    """Counts of every slide, (n_spots, n_genes)."""
    n_genes = len(var)
    stacked = np.concatenate(drivers)
    scaled = [((slide - stacked.mean(axis=0)) / stacked.std(axis=0)).clip(-2.5, 2.5) for slide in drivers]
    # Genes come in pairs of equal level and strength, one up and one down: the sum over genes hardly follows the image,
    # so normalization carries no planted signal into the other genes.
    pair = np.arange(n_genes) // 2
    level = rng.normal(0, 0.7, n_genes)[pair]
    strength = rng.uniform(0.6, 1.0, n_genes)[pair] * np.where(np.arange(n_genes) % 2, -1.0, 1.0)
    of_patient = rng.normal(0, 0.3, (max(patients) + 1, n_genes))
    out = []
    for child, slide, positions, patient in zip(rng.spawn(len(drivers)), scaled, spots_um, patients, strict=True):
        signal = np.zeros((len(slide), n_genes))
        for column, driver in enumerate(DRIVERS):
            genes = np.flatnonzero(var["driver"] == driver)
            signal[:, genes] = slide[:, [column]] * strength[genes]
        for gene in np.flatnonzero(var.index.str.startswith("smooth")):
            field = _smooth_field(child, float(positions.max()) + PITCH_UM, 100.0)
            signal[:, gene] = abs(strength[gene]) * _at(field, positions)
        share = np.exp(level + of_patient[patient] + child.normal(0, 0.15, n_genes) + signal)
        share /= share.sum(axis=1, keepdims=True)
        depth = np.exp(child.normal(0, 0.25) + child.normal(0, 0.35, len(slide)) + 0.12 * slide[:, 0])
        mean = 15.0 * n_genes * depth[:, None] * share  # 15 counts per gene and spot
        rate = child.gamma(8.0, mean / 8.0)  # variance mean + mean^2 / 8
        out.append(child.poisson(rate).astype(np.float32))
    return out


def _stain(rng: np.random.Generator, vectors: Float64, white: float, spread: float) -> tuple[Float64, float]:
    """Optical density (2, 3) and white of the glass that differ from the given ones in hue, strength and brightness."""
    hue = np.abs(vectors + rng.normal(0, spread, vectors.shape))
    hue *= np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(hue, axis=1, keepdims=True)
    strength = np.exp(rng.normal(0, 2 * spread, (2, 1)))
    return hue * strength, float(np.clip(white + rng.normal(0, 50 * spread), 230, 252))


class Tissue(NamedTuple):
    """Tissue of a slide: share of eosin as a smooth field; positions (x, y) for nuclei, which are taken, and sizes."""

    side_um: float
    color: Float32
    places: Float64
    taken: NDArray[np.bool_]
    radius: Float64


def _tissue(rng: np.random.Generator, inside: Float32, side_um: float) -> Tissue:
    """Draw the fields and place the nuclei."""
    # Density has two scales: without clusters the surroundings of a spot would tell no more than the spot itself.
    domains, clusters = _smooth_field(rng, side_um, 170), _smooth_field(rng, side_um, 35)
    density = ndtr((0.75 * domains + 0.65 * clusters) * 1.1)
    size = ndtr(1.2 * _smooth_field(rng, side_um, 110))
    color = ndtr(1.2 * _smooth_field(rng, side_um, 110))
    steps = np.arange(LATTICE_UM / 2, side_um, LATTICE_UM)
    places = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    places = places + rng.uniform(-0.45, 0.45, places.shape) * LATTICE_UM
    places = places[_at(inside, places) > 0.5]
    taken = rng.random(len(places)) < SHARE[0] + (SHARE[1] - SHARE[0]) * _at(density, places)
    mean = RADIUS_UM[0] + (RADIUS_UM[1] - RADIUS_UM[0]) * _at(size, places)
    return Tissue(side_um, color, places, taken, mean * np.exp(rng.normal(0, 0.12, len(places))))


def _smooth_field(rng: np.random.Generator, side_um: float, length_um: float) -> Float32:
    """Random field of mean 0 and variance 1, smoothed by a Gaussian of width `length_um`; float32 (n, n)."""
    n = int(np.ceil(side_um / GRID_UM)) + 1
    # The filter runs over more than the slide, so that borders are like the middle.
    margin = int(np.ceil(2 * length_um / GRID_UM))
    noise = rng.standard_normal((n + 2 * margin, n + 2 * margin)).astype(np.float32)
    smooth = gaussian_filter(noise, length_um / GRID_UM)[margin : margin + n, margin : margin + n]
    return np.asarray((smooth - smooth.mean()) / smooth.std(), dtype=np.float32)


def _at(values: NDArray[Any], points: Float64) -> Float64:
    """Values of a field at points (x, y) in micrometers, (n,)."""
    index = np.clip(np.rint(points / GRID_UM).astype(int), 0, values.shape[0] - 1)
    return values[index[:, 1], index[:, 0]].astype(np.float64)


def _draw(
    rng: np.random.Generator, tissue: Tissue, inside: Float32, stain: tuple[Float64, float], mpp: float
) -> NDArray[np.uint8]:
    """Draw tissue as an RGB image, uint8 (side, side, 3)."""
    side = round(tissue.side_um / mpp)
    inside, color = _to_pixels(inside, side, mpp), _to_pixels(tissue.color, side, mpp)
    fibers = _fibers(rng, side, mpp)
    # Clefts between bundles of fibers are glass.
    bundles = gaussian_filter(fibers, 2.5 / mpp)
    clefts = np.clip(3 * (bundles / bundles.std() + 2.6), 0.05, 1)
    covered = np.clip(6 * (inside - 0.5) + 0.5, 0, 1) * clefts
    nuclei = _nuclei(rng, tissue, side, mpp)
    grain = gaussian_filter(rng.standard_normal((side, side), dtype=np.float32), 0.8 / mpp)
    hematoxylin = nuclei * (1 + 0.4 * grain) + (0.28 - 0.22 * color) * (1 + 0.15 * fibers)
    eosin = (0.20 + 0.42 * color) * (1 + 0.18 * fibers) * (1 - 0.6 * nuclei)
    layers = [gaussian_filter(part.clip(0, None) * covered, 0.6 / mpp) for part in (hematoxylin, eosin)]
    rgb = np.float32(stain[1]) * np.exp(-(np.stack(layers, axis=-1) @ stain[0].astype(np.float32)))
    rgb += 2 * rng.standard_normal((side, side, 1), dtype=np.float32)
    return np.asarray(rgb.clip(0, 255).round(), dtype=np.uint8)


def _to_pixels(values: Float32, side: int, mpp: float) -> Float32:
    """Field of the grid at the pixels of the image, bilinear."""
    position = np.minimum((np.arange(side) + 0.5) * mpp / GRID_UM, values.shape[0] - 1.001)
    left = position.astype(int)
    weights = np.zeros((side, values.shape[0]), dtype=np.float32)
    weights[np.arange(side), left] = left + 1 - position
    weights[np.arange(side), left + 1] = position - left
    return np.asarray(weights @ values @ weights.T)


def _fibers(rng: np.random.Generator, side: int, mpp: float) -> Float32:
    """Fibrous texture of mean 0 and variance about 1: streaks in four directions, each in its own patches."""
    across, along = 1.1 / mpp, 8.0 / mpp
    rows, columns = np.arange(side)[:, None], np.arange(side)[None, :]
    texture, total = np.zeros((side, side), dtype=np.float32), np.zeros((side, side), dtype=np.float32)
    for direction in range(4):
        noise = rng.standard_normal((side, side), dtype=np.float32)
        # Along x, or along y and then sheared by -45, 0 or 45 degrees.
        streaks = gaussian_filter(noise, (across, along) if direction == 3 else (along, across), mode="wrap")
        if direction < 2:
            streaks = np.take_along_axis(streaks, (columns + (2 * direction - 1) * rows) % side, axis=1)
        weight = np.exp(2.0 * _to_pixels(_smooth_field(rng, side * mpp, 60), side, mpp))
        texture += streaks / streaks.std() * weight
        total += weight**2
    return np.asarray(texture / np.sqrt(total), dtype=np.float32)


def _nuclei(rng: np.random.Generator, tissue: Tissue, side: int, mpp: float) -> Float32:
    """Nuclei as filled ellipses with soft edges: 0 outside, about 1 inside; float32 (side, side)."""
    centers, radius = tissue.places[tissue.taken] / mpp, tissue.radius[tissue.taken] / mpp
    n = len(centers)
    ratio, angle = rng.uniform(0.6, 1.0, n), rng.uniform(0, np.pi, n)
    darkness = rng.uniform(0.75, 1.15, n)
    reach = int(np.ceil(1.4 * radius.max(initial=1.0))) + 1
    window = np.arange(-reach, reach + 1)
    corner = np.floor(centers).astype(int)
    columns, rows = (corner[:, axis, None] + window for axis in (0, 1))
    dx = (columns + 0.5 - centers[:, :1])[:, None, :]
    dy = (rows + 0.5 - centers[:, 1:])[:, :, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    # Equal area at every ratio: a round and a long nucleus of one radius hold as much stain.
    long, short = (radius / np.sqrt(ratio))[:, None, None], (radius * np.sqrt(ratio))[:, None, None]
    distance = np.sqrt(((dx * cos + dy * sin) / long) ** 2 + ((dy * cos - dx * sin) / short) ** 2)
    value = np.clip((1 - distance) * radius[:, None, None] + 0.5, 0, 1) * darkness[:, None, None]
    within = (value > 0) & ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    flat = (rows[:, :, None] * side + columns[:, None, :])[within]
    image = np.zeros(side * side, dtype=np.float32)
    np.maximum.at(image, flat, value[within].astype(np.float32))
    return image.reshape(side, side)
