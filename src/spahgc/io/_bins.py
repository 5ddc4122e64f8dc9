"""From bins or cells to spots: Visium HD and Xenium at the size of another slide's spots."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .. import _keys
from .._checks import format_names
from .._geometry import side_of
from .._links import microns_per_unit, pick_table, regions
from .._slides import Float64
from .._tables._slots import are_counts, check_table
from ._assemble import check_slide_name
from ._lattice import LAYOUTS, Lattice, make_lattice, with_many

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")


def bin_to_spots(
    sdata: SpatialData,
    spot_um: float,
    *,
    pitch_um: float | None = None,
    layout: Literal["grid", "hex"] = "grid",
    min_bins: int = 1,
    table_key: str | None = None,
    layer: str | None = None,
    microns_per_pixel: float | Mapping[str, float] | None = None,
    slide: str | Mapping[str, str] | None = None,
) -> SpatialData:
    """Sum the counts of bins or cells over spots of a given size.

    Bins of a Visium HD slide are smaller than what a model of another slide's spots predicts, and hold few molecules;
    cells of a Xenium slide are as well. Their counts are summed over the spots of a lattice that covers the tissue; a
    bin or cell goes with its centre, to one spot at most.

    Parameters
    ----------
    sdata
        Slides with shapes (squares, circles, cells) and a table of raw counts that annotates them, as from
        `spatialdata_io.visium_hd` and `spatialdata_io.xenium`. It is not changed.
    spot_um
        Size of a spot in micrometres: side of the squares of a grid, diameter of the circles of a hexagonal lattice. A
        multiple of the bins' side gives all spots the same number of bins.
    pitch_um
        Distance of neighbouring spots, centre to centre, at least `spot_um`; `None` is `spot_um`, with which a grid
        covers the tissue without gaps, so that no count is lost.
    layout
        ``"grid"``: squares in rows and columns; ``"hex"``: circles in rows that are shifted by half a pitch against
        each other, as on a Visium slide (``spot_um=55, pitch_um=100, layout="hex"``).
    min_bins
        Fewest bins or cells of a spot; spots with fewer, most of them at the border of the tissue, are left out.
    table_key
        Name of the table; `None` takes the only one. Visium HD has one for each size of bins.
    layer
        Layer with the raw counts; `None` is ``X``.
    microns_per_pixel
        Micrometres per unit of the shapes' coordinates, a number or a dict by region; `None` takes what the slide says:
        ``uns["spatial"]``, the bins' size, or the areas of Xenium's cells.
    slide
        Name of the slide in the result, or a dict by region (name of the shapes); `None` is the region without
        ``_square_008um``, or with ``_spots`` behind it.

    Returns
    -------
    A new SpatialData with, for all slides,

    - the images of `sdata`: shared, not copied;
    - shapes ``{slide}``, squares or circles in the coordinates of the bins, with the bins' transformations;
    - table ``table``: ``X`` summed counts (CSR float32), ``obs["region"]``, ``obs["spot_id"]``, ``obs["array_row"]``,
      ``obs["array_col"]``, ``obs["n_bins"]`` (bins or cells of a spot) and text columns of the table that have one
      value a region (patient, sample); ``var`` of the table; ``obsm["spatial"]`` (x, y), float64;
      ``uns["spatial"][slide]["scalefactors"]`` with ``microns_per_pixel`` and ``spot_diameter_fullres``;
    - the attributes of `sdata`.

    Raises
    ------
    KeyError
        If the table, its link to shapes, the shapes or the layer are missing.
    TypeError
        If `sdata` is not a SpatialData.
    ValueError
        If sizes are not usable, the table holds no raw counts, the micrometres per unit are not known, two slides would
        have one name, or no spot has `min_bins`.

    Examples
    --------
    >>> hd = spatialdata_io.visium_hd("folder", bin_size=8)
    >>> spots = spahgc.io.bin_to_spots(hd, 56)
    >>> spahgc.pp.image_embedding(spots)
    """
    from spatialdata import SpatialData
    from spatialdata.models import TableModel
    from spatialdata.transformations import get_transformation

    if not isinstance(sdata, SpatialData):
        raise TypeError(f"sdata is a SpatialData, not {type(sdata).__name__}.")
    pitch = _check_sizes(spot_um, pitch_um, layout, min_bins)
    key = pick_table(sdata, table_key)
    table = check_table(sdata.tables[key], what=f"sdata[{key!r}]")
    matrix = _counts(table, key, layer)
    parts, shapes, entries = [], {}, {}
    members = np.full(table.n_obs, -1, dtype=np.intp)  # spot of each bin, over all slides
    n_spots = 0
    for region, rows, bins, centres in regions(sdata, table):
        name = _name(region, slide)
        if name in shapes:
            raise ValueError(f"Two regions would become one slide {name!r}. Pass slide={{region: name, ...}}.")
        mpp, source = microns_per_unit(table, region, rows, bins, centres, given=microns_per_pixel)
        start = centres.min(axis=0) - side_of(bins) / 2
        lattice = with_many(make_lattice((centres - start) * mpp, spot_um, pitch, layout), min_bins)
        if not len(lattice.centres):
            raise ValueError(
                f"No spot of slide {name!r} has {min_bins} bins or cells (min_bins). Larger spots have more."
            )
        members[rows] = np.where(lattice.spot < 0, -1, lattice.spot + n_spots)
        n_spots += len(lattice.centres)
        at = lattice.centres / mpp + start
        parts.append(_observations(table, name, rows, lattice, at))
        shapes[name] = _shapes(at, spot_um / mpp, layout, parts[-1][0].index, get_transformation(bins, get_all=True))
        factors = {"tissue_hires_scalef": 1.0, _keys.SPOT_DIAMETER: float(spot_um / mpp), _keys.MPP: float(mpp)}
        entries[name] = {"images": {}, "scalefactors": factors}
        logger.info(
            "%s: %d of %d bins or cells in %d spots of %g um, %.4g um per unit of their coordinates (from %s).",
            name, int((lattice.spot >= 0).sum()), len(rows), len(at), spot_um, mpp, source,
        )  # fmt: skip
    joined = _table(matrix, members, parts, table.var, entries)
    joined = TableModel.parse(joined, region=list(shapes), region_key=_keys.REGION, instance_key=_keys.INSTANCE)
    return SpatialData(images=dict(sdata.images), shapes=shapes, tables={_keys.TABLE: joined}, attrs=dict(sdata.attrs))


def _check_sizes(spot_um: float, pitch_um: float | None, layout: str, min_bins: int) -> float:
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is none of {format_names(LAYOUTS)}.")
    if not np.isfinite(spot_um) or spot_um <= 0:
        raise ValueError(f"spot_um={spot_um:g} is a size in micrometres, above 0.")
    pitch = spot_um if pitch_um is None else pitch_um
    if not np.isfinite(pitch) or pitch < spot_um:
        raise ValueError(
            f"pitch_um={pitch:g} is at least spot_um={spot_um:g}: spots that overlap would count molecules twice."
        )
    if isinstance(min_bins, bool) or min_bins != int(min_bins) or min_bins < 1:
        raise ValueError(f"min_bins is a whole number of at least 1, not {min_bins!r}.")
    return float(pitch)


def _counts(table: AnnData, key: str, layer: str | None) -> Any:
    """Raw counts of the bins, CSR."""
    if layer is not None and layer not in table.layers:
        raise KeyError(f"sdata[{key!r}].layers has no {layer!r} (layer). Available: {format_names(table.layers)}.")
    matrix = table.X if layer is None else table.layers[layer]
    if matrix is None or table.n_vars == 0:
        raise ValueError(f"sdata[{key!r}] has no counts to sum.")
    matrix = sparse.csr_array(matrix)
    if not are_counts(matrix):
        raise ValueError(
            f"sdata[{key!r}]{'.X' if layer is None else f'.layers[{layer!r}]'} does not hold raw counts (whole numbers "
            f"of at least 0), and sums of other values mean nothing. Pass layer=<raw counts>; layers: "
            f"{format_names(table.layers)}."
        )
    return matrix


def _name(region: str, slide: str | Mapping[str, str] | None) -> str:
    given = slide.get(region) if isinstance(slide, Mapping) else slide
    bins = re.sub(r"_?square_\d{3}um", "", region)
    name = given if given is not None else (bins or "spots") if bins != region else f"{region}_spots"
    check_slide_name(name)
    return name


def _observations(
    table: AnnData, name: str, rows: NDArray[np.intp], lattice: Lattice, at: Float64
) -> tuple[pd.DataFrame, Float64]:
    """``obs`` of one slide's spots, and where they lie."""
    names = pd.Index([f"{name}_{x}x{y}" for x, y in zip(lattice.column, lattice.row, strict=True)], dtype=object)
    obs = pd.DataFrame(
        {
            _keys.REGION: name,
            _keys.INSTANCE: names.to_numpy(),
            "array_row": lattice.row,
            "array_col": lattice.column,
            _keys.N_BINS: np.bincount(lattice.spot[lattice.spot >= 0], minlength=len(names)),
        },
        index=names,
    )
    attrs = table.uns[_keys.SPATIALDATA_ATTRS]
    for column in table.obs.columns.difference([*obs.columns, attrs["region_key"], attrs["instance_key"]]):
        values = table.obs[column].iloc[rows]
        if not pd.api.types.is_numeric_dtype(values) and values.notna().all() and (values == values.iloc[0]).all():
            obs[column] = values.iloc[0]
    return obs, at


def _shapes(at: Float64, size: float, layout: str, index: pd.Index, transformations: dict[str, Any]) -> Any:
    from geopandas import GeoDataFrame
    from shapely import box
    from spatialdata.models import ShapesModel

    if layout == "hex":
        return ShapesModel.parse(at, geometry=0, radius=size / 2, index=index, transformations=transformations)
    squares = box(*(at - size / 2).T, *(at + size / 2).T)
    return ShapesModel.parse(GeoDataFrame({"geometry": squares}, index=index), transformations=transformations)


def _table(
    matrix: Any,
    members: NDArray[np.intp],
    parts: list[tuple[pd.DataFrame, Float64]],
    var: pd.DataFrame,
    entries: dict[str, Any],
) -> AnnData:
    """The table of all spots; the counts come from one product of sparse matrices."""
    from anndata import AnnData

    obs = pd.concat([part for part, _ in parts])
    obs = obs.dropna(axis=1).copy()  # what only some slides have
    for column in obs.columns:
        if obs[column].dtype == object and column != _keys.INSTANCE:
            obs[column] = obs[column].astype("category")
    bins = np.flatnonzero(members >= 0)
    sums = sparse.csr_array(
        (np.ones(len(bins), np.float32), (members[bins], bins)), shape=(len(obs), len(members)), dtype=np.float32
    )
    counts = sparse.csr_matrix(sums @ matrix, dtype=np.float32)
    counts.sort_indices()
    return AnnData(
        counts,
        obs=obs,
        var=var.copy(),
        obsm={_keys.SPATIAL: np.concatenate([at for _, at in parts])},
        uns={_keys.SPATIAL: entries},
    )
