"""From bins or cells to spots: Visium HD and Xenium at the spot size of another slide."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse
from shapely import box
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from .. import _keys
from .._checks import above, at_least, checked, format_names
from .._geometry import Float64, side_of
from .._links import check_slides, microns_per_unit, pick_table, regions
from .._settings import logger
from .._tables._slots import are_counts, check_table, expression, ways_to_counts
from ._concat import check_slide_name, concat, link_spots

Layout = Literal["grid", "hex"]


@checked(spot_diameter_um=above(0), pitch_um=above(0), min_bins=at_least(1), microns_per_pixel=above(0))
def bin_to_spots(
    sdata: SpatialData,
    spot_diameter_um: float,
    *,
    pitch_um: float | None = None,
    layout: Layout = "grid",
    min_bins: int = 1,
    table_key: str | None = None,
    layer: str | None = None,
    microns_per_pixel: float | Mapping[str, float] | None = None,
    slide: str | Mapping[str, str] | None = None,
) -> SpatialData:
    """Sum the counts of bins or cells over spots of a given size.

    Bins of Visium HD and cells of Xenium are smaller than the spots that a model of another slide predicts, and hold
    few molecules. A bin or cell is assigned by its center, to at most one spot.

    Parameters
    ----------
    sdata
        Slides with shapes (squares, circles, cells) and a table of raw counts that annotates them, as from
        `spatialdata_io.visium_hd` and `spatialdata_io.xenium`. It is not changed.
    spot_diameter_um
        Spot size in micrometers: side of the squares of a grid, diameter of the circles of a hexagonal lattice. With a
        multiple of the bins' side all spots have the same number of bins.
    pitch_um
        Center-to-center distance of neighboring spots, at least `spot_diameter_um`, which is the default. A grid then
        covers the tissue without gaps, so no count is lost.
    layout
        ``"grid"`` for squares in rows and columns, ``"hex"`` for circles in rows that are shifted by half a pitch, as
        on a Visium slide (``spot_diameter_um=55, pitch_um=100, layout="hex"``).
    min_bins
        Minimum number of bins or cells per spot. Other spots, mostly at the border of the tissue, are left out.
    table_key
        Name of the table. Not needed if there is only one; Visium HD has one for each bin size.
    layer
        Layer with the raw counts. Defaults to ``X``.
    microns_per_pixel
        Micrometers per unit of the shapes' coordinates, a number or a dict by region. Defaults to ``uns["spatial"]``,
        the bin size, or the areas of Xenium's cells.
    slide
        Name of the slide in the result, or a dict by region (name of the shapes). Defaults to the region without
        ``_square_008um``, or with ``_spots`` appended.

    Returns
    -------
    New SpatialData in the layout of :func:`read_st`, with the images (shared, not copied) and attributes of `sdata`,
    shapes ``{slide}`` (squares or circles, with the transformations of the bins), and ``table``: ``X`` summed counts,
    ``obs["n_bins"]``, text columns with one value per region (patient, sample), and ``var`` of the table.

    Raises
    ------
    KeyError, ValueError
        If table, link, shapes or layer are missing, the table holds no raw counts, or the scale is unknown.

    Examples
    --------
    >>> import spahgc
    >>> sdata = spahgc.datasets.synthetic_cohort(n_slides=1, n_patients=1, n_spots=16, n_genes=16)
    >>> spots = spahgc.io.bin_to_spots(sdata, 200)
    >>> int(spots["table"].obs["n_bins"].sum())
    16
    """
    pitch = spot_diameter_um if pitch_um is None else pitch_um
    if pitch < spot_diameter_um:
        raise ValueError(
            f"`pitch_um` must be at least spot_diameter_um={spot_diameter_um:g}, got {pitch:g}: overlapping spots "
            "would count molecules twice."
        )
    key = pick_table(sdata, table_key)
    what = f"sdata[{key!r}]"
    table = check_table(sdata.tables[key], what=what)
    matrix = sparse.csr_array(expression(table, layer, what=what))
    if not are_counts(matrix):
        raise ValueError(
            f"{what}{'.X' if layer is None else f'.layers[{layer!r}]'} does not hold raw counts (integers of at least "
            f"0), so sums have no meaning. Pass layer=<raw counts>; layers: {format_names(table.layers)}."
            f"{ways_to_counts(table, matrix)}"
        )
    parts = []
    slides = regions(sdata, table)
    check_slides([spots.name for spots in slides], slide=slide, microns_per_pixel=microns_per_pixel)
    for region, rows, bins, centers in slides:
        name = slide.get(region) if isinstance(slide, Mapping) else slide
        if name is None:
            without_bins = re.sub(r"_?square_\d{3}um", "", region)
            name = f"{region}_spots" if without_bins == region else without_bins or "spots"
        check_slide_name(name)
        mpp, source = microns_per_unit(table, region, rows, bins, centers, given=microns_per_pixel)
        start = centers.min(axis=0) - side_of(bins) / 2
        spot, at, places = assign_spots((centers - start) * mpp, spot_diameter_um, pitch, layout, min_bins=min_bins)
        if not len(at):
            raise ValueError(f"No spot of slide {name!r} has {min_bins} bins or cells (min_bins). Use larger spots.")
        at, size, inside = at / mpp + start, spot_diameter_um / mpp, np.flatnonzero(spot >= 0)
        members = (np.ones(len(inside), np.float32), (spot[inside], rows[inside]))
        counts = sparse.csr_matrix(sparse.csr_array(members, shape=(len(at), table.n_obs)) @ matrix, dtype=np.float32)
        counts.sort_indices()
        obs = _observations(table, name, rows, spot, places)
        part = AnnData(counts, obs=obs, var=table.var.copy(), obsm={_keys.SPATIAL: at})
        shapes = link_spots(
            part,
            name,
            None,
            diameter=size,
            microns_per_pixel=mpp,
            transformations=get_transformation(bins, get_all=True),
            outlines=box(*(at - size / 2).T, *(at + size / 2).T) if layout == "grid" else None,
        )
        parts.append(SpatialData(shapes={name: shapes}, tables={_keys.TABLE: part}))
        logger.info(
            "%s: %d of %d bins or cells in %d spots of %g um, %.4g um per unit of their coordinates (from %s).",
            name, len(inside), len(rows), len(at), spot_diameter_um, mpp, source,
        )  # fmt: skip
    joined = concat(parts)
    # Without columns that only some slides have.
    joined.tables[_keys.TABLE].obs = joined.tables[_keys.TABLE].obs.dropna(axis=1)
    return SpatialData(
        images=dict(sdata.images), shapes=dict(joined.shapes), tables=dict(joined.tables), attrs=dict(sdata.attrs)
    )


def assign_spots(
    points: Float64, size: float, pitch: float, layout: Layout, *, min_bins: int = 1
) -> tuple[NDArray[np.intp], Float64, NDArray[np.int64]]:
    """Spot of each point (x, y) on a lattice or -1; centers and places (column, row) of spots with enough points."""
    if layout == "grid":
        place = np.floor(points / pitch).astype(np.int64)
        centers = (place + 0.5) * pitch
        inside = (np.abs(points - centers) <= size / 2).all(axis=1)
    else:
        # A hexagonal lattice is two rectangular ones, even rows and odd rows: take the nearer point of the two.
        height = pitch * np.sqrt(3) / 2
        cell, shift = np.array([pitch, 2 * height]), np.array([pitch / 2, height])
        points = points - size / 2  # the first spots touch the border of the tissue, as in a grid
        even, odd = np.round(points / cell), np.round((points - shift) / cell)
        far = [((points - (corner * cell + by)) ** 2).sum(axis=1) for corner, by in ((even, 0), (odd, shift))]
        nearer = far[1] < far[0]
        corner = np.where(nearer[:, None], odd, even)
        place = np.column_stack([corner[:, 0], 2 * corner[:, 1] + nearer]).astype(np.int64)
        centers = corner * cell + nearer[:, None] * shift + size / 2
        inside = np.minimum(*far) <= (size / 2) ** 2
    place -= place.min(axis=0)
    code = place[:, 1] * (place[:, 0].max() + 1) + place[:, 0]
    _, first, of_point, n_points = np.unique(code[inside], return_index=True, return_inverse=True, return_counts=True)
    kept = n_points >= min_bins
    spot = np.full(len(points), -1, dtype=np.intp)
    spot[inside] = np.where(kept, np.cumsum(kept) - 1, -1)[of_point]
    return spot, np.asarray(centers[inside][first[kept]], dtype=np.float64), place[inside][first[kept]]


def _observations(
    table: AnnData, name: str, rows: NDArray[np.intp], spot: NDArray[np.intp], places: NDArray[np.int64]
) -> pd.DataFrame:
    """``obs`` of the spots of a slide."""
    names = pd.Index([f"{name}_{x}x{y}" for x, y in places], dtype=object)
    obs = pd.DataFrame({"array_row": places[:, 1], "array_col": places[:, 0]}, index=names)
    obs[_keys.N_BINS] = np.bincount(spot[spot >= 0], minlength=len(names))
    attrs = table.uns[_keys.SPATIALDATA_ATTRS]
    link = [_keys.REGION, _keys.INSTANCE, attrs["region_key"], attrs["instance_key"]]
    for column in table.obs.columns.difference([*obs.columns, *link]):
        values = table.obs[column].iloc[rows]
        if not pd.api.types.is_numeric_dtype(values) and values.notna().all() and (values == values.iloc[0]).all():
            obs[column] = pd.Categorical([values.iloc[0]] * len(obs))
    return obs
