"""Find tiles that show no sharp, clean tissue: out of focus, ink, folds, glass."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from spatialdata import SpatialData

from .. import _keys as keys
from .._checks import between, checked
from .._geometry import PLAUSIBLE_MPP, transformed
from .._links import check_slides, pick_table, shallow_copy
from .._settings import logger, settings
from .._slides import Float64
from .._tables._slots import check_table
from ..encoders._texture import planes
from ._grid import covered_fractions
from ._images import LocatedSlide, locate
from ._tiles import TileReader
from ._tissue import is_ink, tissue_level, tissue_mask

# Chosen with benchmarks/tile_quality.py.
LIMITS = {"focus": 0.67, "ink": 0.3, "tissue": 0.1, "fold": 1.5}  # good tiles have up to 0.2 of ink: dense nuclei
LEAST_SHARP = 0.6  # ratio of detail that the sharpest quarter of a slide has at least; 0.62 on the softest of ten scans
DARK = 0.2  # largest HSV value of black ink; two layers of dense tissue have more
_BLOCKS = 4  # along a side of a tile; the median over blocks is not carried by one sharp edge


@checked(tile_um=between(2, 5000), microns_per_pixel=between(*PLAUSIBLE_MPP))
def tile_quality(
    sdata: SpatialData,
    *,
    table_key: str | None = None,
    tile_um: float = 112.0,
    microns_per_pixel: float | Mapping[str, float] | None = None,
    image_key: str | Mapping[str, str] | None = None,
    n_jobs: int | None = None,
    copy: bool = False,
) -> SpatialData | None:
    """Find spots whose tile shows no sharp, clean tissue.

    Parameters
    ----------
    sdata
        Slides with images, shapes and a table that annotates the shapes.
    table_key, tile_um, microns_per_pixel, image_key, n_jobs
        As in :func:`image_embedding`.
    copy
        Return a SpatialData with a copy of the table, and leave `sdata` unchanged.

    Returns
    -------
    `None`, or with `copy` the SpatialData with the new table. Written into the table:

    ``obs["tile_quality"]``
        Verdict, categorical: the first that applies of ``"ink"``, ``"no tissue"``, ``"out of focus"``, ``"fold"``, else
        ``"ok"``.
    ``obsm["tile_quality"]``
        DataFrame, float32: ``focus`` (ratio of detail of 1 to 2 pixels to detail of 2 to 4, median over 16 blocks,
        relative to the sharpest quarter of the slide's spots; out of focus below 0.67), ``ink`` (share of pen colors
        and black; above 0.3), ``tissue`` (share of the disk of diameter `tile_um` in the tissue mask; below 0.1),
        ``fold`` (density of the palest quarter of the tile, relative to the densest quarter of the slide's
        spots; above 1.5).
    ``uns["tile_quality"]["params"]``
        ``tile_um``, the limits, version of spahgc.

    Raises
    ------
    KeyError
        If the table, its link to shapes, or the shapes of some spots are missing.
    ValueError
        If a slide has no image or several, its scale is unknown, or the table has a ``tile_quality`` that spahgc did
        not write. Nothing is written.

    Notes
    -----
    Red ink looks like eosin, and is not found. Lymph follicles and dense tumor may be taken for folds, and folds of
    pale tissue are missed: look at them.

    Examples
    --------
    >>> import spahgc
    >>> sdata = spahgc.datasets.synthetic_cohort(n_slides=1, n_patients=1, n_spots=9)
    >>> spahgc.pp.tile_quality(sdata)
    >>> table = sdata["table"]
    >>> kept = table[table.obs["tile_quality"] == "ok"].copy()
    """
    name = pick_table(sdata, table_key)
    table = check_table(sdata.tables[name], what=f"sdata[{name!r}]")
    key = keys.TILE_QUALITY
    if key not in table.uns and (key in table.obs or key in table.obsm):
        raise ValueError(f"sdata[{name!r}] has a {key!r} that spahgc did not write: rename it, or delete it.")
    slides = locate(sdata, table, microns_per_pixel=microns_per_pixel, image_key=image_key)
    check_slides([slide.name for slide in slides], microns_per_pixel=microns_per_pixel, image_key=image_key)
    values = np.full((table.n_obs, len(LIMITS)), np.nan, np.float32)
    for slide in slides:
        values[slide.rows] = _measure(slide, tile_um, settings.workers(n_jobs))
    focus, ink, tissue, fold = values.T
    verdicts = {
        "ink": ink > LIMITS["ink"],
        "no tissue": tissue < LIMITS["tissue"],
        "out of focus": focus < LIMITS["focus"],
        "fold": fold > LIMITS["fold"],
    }
    verdict = np.select(list(verdicts.values()), list(verdicts), "ok")
    logger.info("Tiles: %s.", ", ".join(f"{what} {n}" for what, n in pd.Series(verdict).value_counts().items()))
    if copy:
        sdata = shallow_copy(sdata, name)
        table = sdata.tables[name]
    table.obs[key] = pd.Categorical(verdict, categories=["ok", *verdicts])
    table.obsm[key] = pd.DataFrame(values, index=table.obs_names, columns=list(LIMITS))
    table.uns[key] = {keys.PARAMS: {"tile_um": float(tile_um), "limits": LIMITS.copy(), "version": version("spahgc")}}
    return sdata if copy else None


def _measure(slide: LocatedSlide, tile_um: float, workers: int) -> Float64:
    """Measures of the spots of a slide, (n, 4)."""
    pixels = max(4 * _BLOCKS, round(tile_um / max(1.0, slide.levels[0].microns_per_pixel)))
    reader = TileReader(slide.levels, slide.centers, pixels, image=slide.image)
    order = reader.order([tile_um])
    with ThreadPoolExecutor(workers) as pool:
        found = np.array(list(pool.map(lambda spot: _look(reader.read(int(spot), tile_um)[0], tile_um), order)))
    focus, ink, density = found[np.argsort(order)].T
    level = tissue_level(slide.levels)
    mask, mpp = tissue_mask(level.array, level.microns_per_pixel)
    centers = transformed(level.affine, slide.centers) * level.microns_per_pixel / mpp
    tissue = covered_fractions(mask, centers, tile_um / 2 / mpp)
    # A quarter of the spots may be faulty before it moves the references.
    sharp, dense = max(float(np.quantile(focus, 0.75)), LEAST_SHARP), max(float(np.quantile(density, 0.75)), 1e-3)
    return np.column_stack([focus / sharp, ink, tissue, density / dense])


def _look(tile: NDArray[np.uint8], tile_um: float) -> tuple[float, float, float]:
    """Focus, share of ink, and optical density (green) of the palest quarter of a tile (3, h, w)."""
    gray = planes(tile)[0]
    fine, middle, coarse = (gaussian_filter(gray, sigma) for sigma in (1.0, 2.0, 4.0))
    side = gray.shape[0] // _BLOCKS
    detail, context = (_means(band**2, side) for band in (fine - middle, middle - coarse))
    focus = float(np.median(np.sqrt(detail / (context + 1e-12))))
    rgb = np.moveaxis(_means(tile, max(1, round(8 * gray.shape[0] / tile_um))), 0, -1) / 255  # nuclei are not ink
    ink = is_ink(rgb) | (rgb.max(axis=-1) < DARK)
    density = -np.log10(np.maximum(rgb[..., 1], 1 / 255))
    return focus, float(ink.mean()), float(np.quantile(density, 0.25))


def _means(plane: NDArray[np.generic], side: int) -> Float64:
    """Means of the whole squares of `side` pixels, over the last two axes."""
    n = plane.shape[-1] // side
    cut = plane[..., : n * side, : n * side]
    return np.asarray(cut.reshape(*cut.shape[:-2], n, side, n, side).mean(axis=(-3, -1), dtype=np.float64))
