"""Drawn slides with genes whose link to the image is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from .. import _keys
from ..io._assemble import assemble, concat
from ..io._image import read_image
from ..io._spots import Spots
from . import _tissue

if TYPE_CHECKING:
    from spatialdata import SpatialData

Float64 = NDArray[np.float64]

PITCH_UM, SPOT_DIAMETER_UM = 100.0, 55.0
DRIVERS = ("density", "colour", "size", "context")
LOCAL_UM = 55.0
"""Nuclei within this distance of a spot count as its own."""
CONTEXT_UM = (90.0, 230.0)
"""Nuclei between these distances are the surroundings of a spot."""
DEPTH = 15.0
"""Mean counts per gene and spot."""
DISPERSION = 8.0
"""Counts have the variance mean + mean^2 / DISPERSION."""


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

    Every slide is an RGB image of nuclei on stroma. Half of the genes are planted: a quarter of these each follows the
    density of the nuclei in the spot, the balance of eosin and haematoxylin, the size of the nuclei, or the density of
    the nuclei around the spot (90 to 230 um away, so that the surroundings matter), half of them upwards and half
    downwards. The other genes do not depend on the image: half of them vary smoothly over the slide, half only by
    chance. Counts are negative binomial. Stain, gene levels and sequencing depth differ between patients and slides;
    depth also differs between spots, mostly independent of the image.

    Parameters
    ----------
    n_slides
        Number of slides, named ``S1``, ``S2``, ...
    n_patients
        Number of patients, named ``P1``, ``P2``, ...; slides are dealt out in order, so ``S1``, ``S2`` are of ``P1`` by
        default.
    n_spots
        Spots per slide, on a square grid with a pitch of 100 um and a diameter of 55 um.
    n_genes
        Number of genes, at least 16.
    microns_per_pixel
        Scale of the images; a slide of 150 spots at 1 um per pixel has 1600 x 1600 pixels.
    rng
        Seed or generator. The same seed gives the same slides.

    Returns
    -------
    SpatialData in the layout of :func:`spahgc.io.read_st`. ``var`` of the table has ``planted`` (bool) and ``driver``
    (categorical: ``density``, ``colour``, ``size``, ``context``, ``none``); ``uns["synthetic"]["params"]`` has
    the parameters.

    Raises
    ------
    ValueError
        If there are fewer slides than patients, or too few spots or genes.
    """
    for name, value, least in (
        ("n_slides", n_slides, 1),
        ("n_patients", n_patients, 1),
        ("n_spots", n_spots, 4),
        ("n_genes", n_genes, 16),
    ):
        if value < least:
            raise ValueError(f"{name}={value}: at least {least}.")
    if n_patients > n_slides:
        raise ValueError(f"n_patients={n_patients} is more than n_slides={n_slides}: every patient needs a slide.")
    if not 0.2 <= microns_per_pixel <= 4:
        raise ValueError(f"microns_per_pixel={microns_per_pixel:g}: nuclei can be drawn from 0.2 to 4.")
    generator = np.random.default_rng(rng)
    patients = [slide * n_patients // n_slides for slide in range(n_slides)]
    stains = [_tissue.Stain.draw(generator) for _ in range(n_patients)]
    drawn = []
    for child, patient in zip(generator.spawn(n_slides), patients, strict=True):
        spots_um, array, inside, side_um = _layout(child, n_spots)
        tissue = _tissue.grow(child, inside, side_um)
        stain = _tissue.Stain.draw(child, stains[patient], spread=0.02)
        drawn.append(
            (array, spots_um, _tissue.draw(child, tissue, stain, microns_per_pixel), _drivers(tissue, spots_um))
        )
    var = _genes(n_genes)
    counts = _counts(generator, var, [item[3] for item in drawn], [item[1] for item in drawn], patients)
    slides = []
    for index, (array, spots_um, image, _) in enumerate(drawn):
        slides.append(
            assemble(
                f"S{index + 1}",
                Spots(array=array, pixel=spots_um / microns_per_pixel),
                read_image(image),
                counts=counts[index],
                var=var,
                microns_per_pixel=microns_per_pixel,
                spot_diameter_um=SPOT_DIAMETER_UM,
                patient=f"P{patients[index] + 1}",
            )
        )
    sdata = concat(slides)
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


def _layout(rng: np.random.Generator, n_spots: int) -> tuple[Float64, NDArray[np.int64], NDArray[np.float32], float]:
    """Spots (micrometres; array), the outline of the tissue on the grid of fields, and the side of the slide.

    The tissue is a round blob with a wavy edge; the `n_spots` innermost places of the grid are its spots.
    """
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
    steps = np.arange(np.ceil(side_um / _tissue.GRID_UM) + 1, dtype=np.float64) * _tissue.GRID_UM
    grid = np.stack(np.meshgrid(steps, steps), axis=-1)
    inside = 1 / (1 + np.exp((depth(grid) - edge) / 8.0))
    # no array is perfect
    spots = spots + rng.normal(0, 0.01 * PITCH_UM, spots.shape)
    return spots, array, inside.astype(np.float32), side_um


def _drivers(tissue: _tissue.Tissue, spots_um: Float64) -> Float64:
    """What the image shows at each spot, one column a driver, (n_spots, 4): realised, not only intended."""
    places, nuclei = cKDTree(tissue.places), tissue.taken.astype(np.float64)
    radius = tissue.radius
    near = places.query_ball_point(spots_um, LOCAL_UM)
    wide = places.query_ball_point(spots_um, CONTEXT_UM[1])
    inner = places.query_ball_point(spots_um, CONTEXT_UM[0])
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
    out[:, DRIVERS.index("colour")] = _tissue.at(tissue.colour, spots_um)
    return out


def _genes(n_genes: int) -> pd.DataFrame:
    """Names and drivers of the genes: half planted, in equal parts; of the others half smooth, half noise."""
    per_driver = n_genes // 2 // len(DRIVERS)
    names = [f"{driver}-{index:02d}" for driver in DRIVERS for index in range(per_driver)]
    drivers = [driver for driver in DRIVERS for _ in range(per_driver)]
    rest = n_genes - len(names)
    names += [f"smooth-{index:02d}" for index in range(rest // 2)] + [
        f"noise-{index:02d}" for index in range(rest - rest // 2)
    ]
    drivers += ["none"] * rest
    driver = pd.Categorical(drivers, categories=[*DRIVERS, "none"])
    return pd.DataFrame({"planted": driver != "none", "driver": driver}, index=pd.Index(names, dtype=object))


def _counts(
    rng: np.random.Generator, var: pd.DataFrame, drivers: list[Float64], spots_um: list[Float64], patients: list[int]
) -> list[sparse.csr_matrix]:
    """Counts of every slide, CSR float32 (n_spots, n_genes)."""
    n_genes = len(var)
    stacked = np.concatenate(drivers)
    scaled = [((slide - stacked.mean(axis=0)) / stacked.std(axis=0)).clip(-2.5, 2.5) for slide in drivers]
    # genes come in pairs of one level and strength, one up and one down: the sum over genes hardly follows the image,
    # so that normalising to it carries no planted signal into the other genes
    pair = np.arange(n_genes) // 2
    sign = np.where(np.arange(n_genes) % 2, -1.0, 1.0)
    level = rng.normal(0, 0.7, n_genes)[pair]
    strength = rng.uniform(0.6, 1.0, n_genes)[pair] * sign
    of_patient = rng.normal(0, 0.3, (max(patients) + 1, n_genes))
    out = []
    for child, slide, positions, patient in zip(rng.spawn(len(drivers)), scaled, spots_um, patients, strict=True):
        signal = np.zeros((len(slide), n_genes))
        for column, driver in enumerate(DRIVERS):
            genes = np.flatnonzero(var["driver"] == driver)
            signal[:, genes] = slide[:, [column]] * strength[genes]
        for gene in np.flatnonzero(var.index.str.startswith("smooth")):
            field = _tissue.smooth_field(child, float(positions.max()) + PITCH_UM, 100.0)
            signal[:, gene] = abs(strength[gene]) * _tissue.at(field, positions)
        log_share = level + of_patient[patient] + child.normal(0, 0.15, n_genes) + signal
        share = np.exp(log_share)
        share /= share.sum(axis=1, keepdims=True)
        density = slide[:, DRIVERS.index("density")]
        depth = np.exp(child.normal(0, 0.25) + child.normal(0, 0.35, len(slide)) + 0.12 * density)
        mean = DEPTH * n_genes * depth[:, None] * share
        rate = child.gamma(DISPERSION, mean / DISPERSION)
        out.append(sparse.csr_matrix(child.poisson(rate).astype(np.float32)))
    return out
