"""From a table to its shapes and from shapes to images: which table, which slides, where the spots lie."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import _keys as keys
from ._checks import format_names
from ._geometry import (
    DIFFERS,
    PLAUSIBLE_MPP,
    VISIUM_PITCH_UM,
    VISIUM_SPOT_UM,
    shape_areas,
    side_of,
    visium_pitch,
)
from ._slides import Float64

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


logger = logging.getLogger("spahgc")

AXES = ("x", "y")


def pick_table(sdata: SpatialData, table_key: str | None = None) -> str:
    """Name of the table to work on.

    Parameters
    ----------
    sdata
        Slides.
    table_key
        Name of the table; `None` takes the only one, or ``"table"``, or the only one that is linked to shapes.

    Raises
    ------
    KeyError
        If there is no such table, none at all, or several fit.
    """
    tables = sdata.tables
    if table_key is not None:
        if table_key not in tables:
            raise KeyError(f"sdata has no table {table_key!r} (table_key). Available: {format_names(tables)}.")
        return table_key
    linked = [name for name in tables if tables[name].uns.get(keys.SPATIALDATA_ATTRS)]
    for found in (list(tables), [keys.TABLE] if keys.TABLE in tables else [], linked):
        if len(found) == 1:
            return str(found[0])
    if not tables:
        raise KeyError(
            "sdata has no table. A slide with H&E only gets one with spots on the tissue from spahgc.pp.tissue_grid."
        )
    told = "; ".join(f"{name!r}: {tables[name].n_obs} rows on {_region(tables[name])}" for name in tables)
    raise KeyError(f"sdata has {len(tables)} tables ({told}). Pass table_key=<one of them>.")


def _region(table: AnnData) -> str:
    region = table.uns.get(keys.SPATIALDATA_ATTRS, {}).get("region")
    if not region:
        return "no shapes"
    return format_names([region] if isinstance(region, str) else region, most=3)


def regions(table: AnnData) -> list[tuple[str, NDArray[np.intp], Any]]:
    """Slide name, rows and instance ids of each region of a table."""
    attrs = table.uns.get(keys.SPATIALDATA_ATTRS)
    if not attrs or any(attrs.get(key) is None for key in ("region", "region_key", "instance_key")):
        raise KeyError(
            f"The table is not linked to shapes: uns['{keys.SPATIALDATA_ATTRS}'] is missing or incomplete. Read the "
            "slide with spahgc.io.read_st or spatialdata_io, or link it: spatialdata.models.TableModel.parse(table, "
            "region=<shapes>, region_key=<column>, instance_key=<column>)."
        )
    names = [attrs["region"]] if isinstance(attrs["region"], str) else list(attrs["region"])
    for key in ("region_key", "instance_key"):
        if attrs[key] not in table.obs:
            raise KeyError(
                f"table.obs has no column {attrs[key]!r}, its {key} in uns['{keys.SPATIALDATA_ATTRS}']. Available: "
                f"{format_names(table.obs.columns)}."
            )
    of_spot = table.obs[attrs["region_key"]].astype(str).to_numpy()
    unknown = ~np.isin(of_spot, names)
    if unknown.any():
        raise ValueError(
            f"{int(unknown.sum())} spots have a {attrs['region_key']!r} that is not among the table's regions "
            f"({format_names(names)}): {format_names(sorted(set(of_spot[unknown])))}."
        )
    instances = table.obs[attrs["instance_key"]].to_numpy()
    found = ((name, np.flatnonzero(of_spot == name)) for name in names)
    return [(name, rows, instances[rows]) for name, rows in found if len(rows)]


def shapes_of(sdata: SpatialData, table: AnnData, name: str, rows: NDArray[np.intp], instances: Any) -> Any:
    """The shapes of a slide's spots, in the order of the rows.

    Where the table annotates labels (as `spatialdata_io.xenium` reads cells), the shapes that have the same ids, if
    there is one such element.
    """
    if name not in sdata.shapes:
        shapes, instances = _instead_of_labels(sdata, table, name, rows)
    else:
        shapes = sdata.shapes[name]
    if not shapes.index.is_unique:
        raise ValueError(f"The index of shapes {name!r} has duplicates: spots cannot be told apart.")
    at = shapes.index.get_indexer(instances)
    if (at < 0).any():
        raise KeyError(
            f"{int((at < 0).sum())} of {len(at)} spots of slide {name!r} have no shape, e.g. "
            f"{format_names(instances[at < 0], most=3)}; the shapes' index is like {format_names(shapes.index[:3])} "
            f"({shapes.index.dtype})."
        )
    attrs = shapes.attrs
    shapes = shapes.iloc[at]
    shapes.attrs = attrs  # the transformations, which not every version of pandas carries over
    return shapes


def _instead_of_labels(sdata: SpatialData, table: AnnData, name: str, rows: NDArray[np.intp]) -> tuple[Any, Any]:
    """Shapes with the ids that a text column of the table has, and these ids."""
    found = []
    for column in table.obs:
        values = table.obs[column].to_numpy()[rows]
        # Numbers would fit by chance: every element may count from 1.
        if isinstance(values[0], str):
            found += [(key, column, values) for key, shapes in sdata.shapes.items() if _all_in(values, shapes.index)]
    labels = name in sdata.labels
    if labels and len(found) == 1:
        key, column, values = found[0]
        logger.info("%r is a labels element: taking the shapes %r, which have the ids in obs[%r].", name, key, column)
        return sdata.shapes[key], values
    told = f"The table annotates {name!r}, which is not among the shapes."
    if labels:
        told += " It is a labels element: spahgc needs circles or polygons."
    told += f" Available shapes: {format_names(sdata.shapes)}."
    attrs = table.uns[keys.SPATIALDATA_ATTRS]
    for key, column, _ in found:
        told += (
            f" {key!r} has the ids in obs[{column!r}]: to take it, table.obs[{attrs['region_key']!r}] = "
            f"pandas.Categorical([{key!r}] * table.n_obs); sdata.set_table_annotates_spatialelement(<table>, "
            f"region={key!r}, region_key={attrs['region_key']!r}, instance_key={column!r})."
        )
    if labels and not found:
        told += (
            f" No shapes have its ids. Make some, spatialdata.to_polygons(sdata[{name!r}]), and link the table to "
            "them, sdata.set_table_annotates_spatialelement. Xenium: spatialdata_io.xenium(..., cells_as_circles=True)."
        )
    raise KeyError(told)


def _all_in(values: NDArray[Any], index: Any) -> bool:
    return values[0] in index and bool((index.get_indexer(values) >= 0).all()) if index.is_unique else False


def centres_of(shapes: Any, name: str) -> Float64:
    """Centres of shapes in their own coordinates, (n, 2)."""
    points = shapes.geometry.centroid
    centres = np.column_stack([points.x, points.y]).astype(np.float64)
    bad = ~np.isfinite(centres).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{int(bad.sum())} spots of slide {name!r} have no coordinates, e.g. {format_names(shapes.index[bad], most=3)}."
        )
    return centres


def systems_of(element: Any) -> set[str]:
    """Names of the coordinate systems that an element lies in."""
    from spatialdata.transformations import get_transformation

    return set(get_transformation(element, get_all=True))


def affine_between(shapes: Any, raster: Any, system: str) -> Float64:
    """From coordinates of the shapes (x, y, 1) to pixels of one resolution of an image, through a system of both."""
    from spatialdata.transformations import get_transformation

    to_system = get_transformation(shapes, system).to_affine_matrix(AXES, AXES)
    return np.asarray(np.linalg.inv(get_transformation(raster, system).to_affine_matrix(AXES, AXES)) @ to_system)


_BINS = re.compile(r"(?:^|_)square_(\d{3})um(?:$|[_-])")


_XENIUM_COLUMNS = ("cell_area", "nucleus_area", "transcript_counts")


def microns_per_unit(
    table: AnnData,
    name: str,
    rows: NDArray[np.intp],
    shapes: Any,
    centres: Float64,
    *,
    given: float | Mapping[str, float] | None,
    recorded: Sequence[tuple[str, Any, float]] = (),
) -> tuple[float, str]:
    """Micrometres per unit of a slide's spot coordinates, and where that is from.

    Parameters
    ----------
    table, name, rows
        The table, a slide and its rows.
    shapes, centres
        The spots' shapes and their centres, in the order of the rows.
    given
        What the user says, for all slides or by slide; counts before all else.
    recorded
        Images with their own scale: where it is recorded, micrometres per pixel, pixels per unit of the spots'
        coordinates.
    """
    entry = table.uns.get(keys.SPATIAL, {}).get(name, {}).get("scalefactors", {}).get(keys.MPP)
    said: list[tuple[str, Any, float]] = [
        ("microns_per_pixel", given.get(name) if isinstance(given, Mapping) else given, 1.0),
        (f"uns['{keys.SPATIAL}'][{name!r}]['scalefactors']['{keys.MPP}']", entry, 1.0),
        *recorded,
    ]
    measured = _measured(table.obs.iloc[rows], name, shapes, centres)
    for source, value, unit in said:
        if value is None:
            continue
        found = _plausible(value, source, name) * unit
        if measured is not None and abs(found / measured[0] - 1) > DIFFERS:
            logger.warning(
                "%s of slide %r says %.4g um per unit of the spots' coordinates, but %s say %.4g. Which is right?",
                source, name, found, measured[1], measured[0],
            )  # fmt: skip
        return found, source
    if measured is not None:
        return _plausible(*measured, name), measured[1]
    raise ValueError(
        f"How many micrometres a full-resolution pixel of slide {name!r} measures is not known: {said[1][0]} is "
        f"missing. Pass microns_per_pixel=<number>, or a dict by slide: {{{name!r}: <number>}}. On Visium it is "
        f"{VISIUM_SPOT_UM:g} / spot_diameter_fullres; else distance of neighbouring spots in um over the same in "
        "pixels. Where the spots' coordinates are in micrometres, as a Xenium's, it is 1."
    )


def _plausible(value: Any, source: str, name: str) -> float:
    low, high = PLAUSIBLE_MPP
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not low <= float(value) <= high:
        raise ValueError(
            f"{source} of slide {name!r} is {value!r}; an H&E image has between {low:g} and {high:g} um per pixel (a "
            "20x scan about 0.5). Pass microns_per_pixel=<number>."
        )
    return float(value)


def _measured(obs: pd.DataFrame, name: str, shapes: Any, centres: Float64) -> tuple[float, str] | None:
    """The scale that the format proves, and by what; `None` where it proves none."""
    bins = _BINS.search(name)
    if bins:
        size = float(bins[1])
        return size / side_of(shapes), f"the bins of {size:g} um"
    pitch = visium_pitch(obs, centres)
    if pitch is not None:
        found = VISIUM_PITCH_UM / pitch
        if "radius" in shapes:
            other = VISIUM_SPOT_UM / (2 * float(np.median(shapes["radius"])))
            if abs(other / found - 1) > DIFFERS:
                logger.warning(
                    "Slide %r: Visium's pitch of %g um gives %.4g um per pixel, spots of %g um give %.4g. The pitch is "
                    "taken. Are positions and spot diameter those of the same image?",
                    name, VISIUM_PITCH_UM, found, VISIUM_SPOT_UM, other,
                )  # fmt: skip
        return found, f"Visium's spots {VISIUM_PITCH_UM:g} um apart"
    if all(column in obs for column in _XENIUM_COLUMNS):
        # Xenium's table has the area of each cell in um^2. Outlines are simplified, so the match is not exact.
        area = shape_areas(shapes)
        ratio = float(np.sqrt(np.nanmedian(obs["cell_area"].to_numpy(dtype=np.float64) / area)))
        if abs(ratio - 1) <= DIFFERS / 2:
            return 1.0, "Xenium's cell areas in um"
    return None
