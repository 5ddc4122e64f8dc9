"""Links of a SpatialData: from table to shapes to images, and the scale of the spots' coordinates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from . import _keys as keys
from ._checks import format_names
from ._geometry import DIFFERS, PLAUSIBLE_MPP, VISIUM_PITCH_UM, VISIUM_SPOT_UM, side_of, visium_pitch
from ._settings import logger
from ._slides import Float64

AXES = ("x", "y")


def pick_table(sdata: SpatialData, table_key: str | None = None) -> str:
    """Name of the table: the one given, the only one, ``"table"``, or the only one that is linked to shapes."""
    tables = sdata.tables
    if table_key is not None:
        if table_key not in tables:
            raise KeyError(f"sdata has no table {table_key!r} (table_key). Available: {format_names(tables)}.")
        return table_key
    if not tables:
        raise KeyError("sdata has no table. For a slide with H&E only, spahgc.pp.tissue_grid makes one.")
    linked = [name for name in tables if tables[name].uns.get(keys.SPATIALDATA_ATTRS)]
    for candidates in (list(tables), [keys.TABLE] if keys.TABLE in tables else [], linked):
        if len(candidates) == 1:
            return str(candidates[0])
    described = []
    for name, table in tables.items():
        region = keys.part(table.uns, keys.SPATIALDATA_ATTRS).get("region", "no shapes")
        shapes = format_names([region] if isinstance(region, str) else region, most=3)
        described.append(f"{name!r}: {table.n_obs} rows on {shapes}")
    raise KeyError(f"sdata has {len(tables)} tables ({'; '.join(described)}). Pass table_key=<one of them>.")


class RegionSpots(NamedTuple):
    """Spots of one slide: rows of the table, shapes in the order of the rows, centers (n, 2) in their coordinates."""

    name: str
    rows: NDArray[np.intp]
    shapes: Any
    centers: Float64


def check_slides(known: Iterable[str], **given: Any) -> None:
    """Raise if a parameter that maps slides to values names a slide that there is not."""
    known = list(known)
    for parameter, values in given.items():
        unknown = [name for name in values if name not in known] if isinstance(values, Mapping) else []
        if unknown:
            raise KeyError(f"`{parameter}` names no slide: {format_names(unknown)}. Available: {format_names(known)}.")


def regions(sdata: SpatialData, table: AnnData) -> list[RegionSpots]:
    """Slides of a table and their spots; raises if a spot has no shape or no coordinates."""
    attrs = keys.part(table.uns, keys.SPATIALDATA_ATTRS)
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
    found = []
    for name in names:
        rows = np.flatnonzero(of_spot == name)
        if len(rows):
            shapes = _shapes_of(sdata, table, name, rows, instances[rows])
            points = shapes.geometry.centroid
            centers = np.column_stack([points.x, points.y]).astype(np.float64)
            bad = ~np.isfinite(centers).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"{int(bad.sum())} spots of slide {name!r} have no coordinates, e.g. "
                    f"{format_names(shapes.index[bad], most=3)}."
                )
            found.append(RegionSpots(name, rows, shapes, centers))
    return found


def _shapes_of(sdata: SpatialData, table: AnnData, name: str, rows: NDArray[np.intp], instances: Any) -> Any:
    """Shapes of the rows of a region, in their order."""
    if name in sdata.shapes:
        shapes = sdata.shapes[name]
    else:
        shapes, instances = _shapes_with_ids(sdata, table, name, rows)
    if not shapes.index.is_unique:
        raise ValueError(f"The index of shapes {name!r} has duplicates: spots cannot be told apart.")
    at = shapes.index.get_indexer(instances)
    if (at < 0).any():
        raise KeyError(
            f"{int((at < 0).sum())} of {len(at)} spots of slide {name!r} are not in the index of their shapes, e.g. "
            f"{format_names(instances[at < 0], most=3)}. That index begins with {format_names(shapes.index[:3])} "
            f"({shapes.index.dtype}); make the ids of the table match it, including their type."
        )
    ordered = shapes.iloc[at]
    ordered.attrs = shapes.attrs  # the transformations, which not every version of pandas carries over
    return ordered


def _shapes_with_ids(sdata: SpatialData, table: AnnData, name: str, rows: NDArray[np.intp]) -> tuple[Any, Any]:
    """The only shapes with the ids of a text column of a table on labels (as Xenium's reader makes), and these ids."""
    candidates = []
    for column in table.obs:
        ids = table.obs[column].to_numpy()[rows]
        if isinstance(ids[0], str):  # numbers would fit by chance: every element may count from 1
            matching = [key for key, shapes in sdata.shapes.items() if pd.Index(ids).isin(shapes.index).all()]
            candidates += [(key, column, ids) for key in matching]
    are_labels = name in sdata.labels
    if are_labels and len(candidates) == 1:
        key, column, ids = candidates[0]
        logger.info("%r is a labels element: taking the shapes %r, which have the ids in obs[%r].", name, key, column)
        return sdata.shapes[key], ids
    message = (
        f"The table annotates {name!r}, which is not among the shapes. Available shapes: {format_names(sdata.shapes)}."
    )
    region_key = table.uns[keys.SPATIALDATA_ATTRS]["region_key"]
    for key, column, _ in candidates:
        message += (
            f" {key!r} has the ids in obs[{column!r}]: to take it, table.obs[{region_key!r}] = "
            f"pandas.Categorical([{key!r}] * table.n_obs); sdata.set_table_annotates_spatialelement(<table>, "
            f"region={key!r}, region_key={region_key!r}, instance_key={column!r})."
        )
    if are_labels and not candidates:
        message += (
            " It is a labels element, and no shapes have its ids: make some with spatialdata.to_polygons("
            f"sdata[{name!r}]) and link the table to them, sdata.set_table_annotates_spatialelement. Xenium: "
            "spatialdata_io.xenium(..., cells_as_circles=True)."
        )
    raise KeyError(message)


def systems_of(element: Any) -> set[str]:
    """Names of the coordinate systems of an element."""
    return set(get_transformation(element, get_all=True))


def affine_between(shapes: Any, raster: Any, system: str) -> Float64:
    """Map from coordinates of shapes (x, y, 1) to pixels of one resolution of an image, through a common system."""
    to_system = get_transformation(shapes, system).to_affine_matrix(AXES, AXES)
    return np.asarray(np.linalg.inv(get_transformation(raster, system).to_affine_matrix(AXES, AXES)) @ to_system)


_BINS = re.compile(r"(?:^|_)square_(\d{3})um(?:$|[_-])")
_XENIUM_COLUMNS = ("cell_area", "nucleus_area", "transcript_counts")


def microns_per_unit(
    table: AnnData,
    name: str,
    rows: NDArray[np.intp],
    shapes: Any,
    centers: Float64,
    *,
    given: float | Mapping[str, float] | None,
    recorded: Sequence[tuple[str, Any, float]] = (),
) -> tuple[float, str]:
    """Micrometers per unit of a slide's spot coordinates, and their source.

    In this order: `given` by the user, for all slides or by slide; ``uns["spatial"]``; `recorded` of images (source,
    micrometers per pixel, pixels per unit); what the format proves.
    """
    entry = keys.part(table.uns, keys.SPATIAL, name, "scalefactors").get(keys.MPP)
    slot = f"uns['{keys.SPATIAL}'][{name!r}]['scalefactors']['{keys.MPP}']"
    by_user = given.get(name) if isinstance(given, Mapping) else given
    proven, proof = _proven(table.obs.iloc[rows], name, shapes, centers)
    sources = [(keys.MPP, by_user, 1.0), (slot, entry, 1.0), *recorded]
    for number, (source, value, unit) in enumerate(sources):
        if value is None:
            continue
        mpp = plausible_mpp(value, f"{source} of slide {name!r}") * unit
        for other, says, per in [*sources[number + 1 :], (proof, proven, 1.0)]:
            if isinstance(says, float | int | np.number) and abs(mpp / (says * per or np.nan) - 1) > DIFFERS:
                logger.warning(
                    "%s of slide %r says %.4g um per unit of the spots' coordinates, but %s says %.4g. The former is "
                    "used. Which is right? If the image was rescaled or cropped, the positions must be, too.",
                    source, name, mpp, other, says * per,
                )  # fmt: skip
                break
        return mpp, source
    if proven is not None:
        return plausible_mpp(proven, f"{proof} of slide {name!r}"), proof
    raise ValueError(
        f"The micrometers per full-resolution pixel of slide {name!r} are not known: {slot} is missing. Pass "
        f"microns_per_pixel=<number>, or a dict by slide: {{{name!r}: <number>}}. On Visium it is {VISIUM_SPOT_UM:g} / "
        "spot_diameter_fullres, on other arrays the distance of neighboring spots in um over the same in pixels. If "
        "the spots' coordinates are in micrometers, as on Xenium, it is 1."
    )


def plausible_mpp(value: Any, source: str) -> float:
    """Micrometers per pixel; raises if they are not those of an H&E image."""
    low, high = PLAUSIBLE_MPP
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not low <= float(value) <= high:
        raise ValueError(
            f"{source} is {value!r}; an H&E image has between {low:g} and {high:g} um per pixel (a 20x scan about "
            "0.5). Pass microns_per_pixel=<number>."
        )
    return float(value)


def _proven(obs: pd.DataFrame, name: str, shapes: Any, centers: Float64) -> tuple[float | None, str]:
    """Micrometers per unit that the platform itself gives (Visium, Visium HD, Xenium) and its source, if any."""
    bins = _BINS.search(name)
    if bins and len(shapes):
        size = float(bins[1])
        return size / side_of(shapes), f"the bins of {size:g} um"
    pitch = visium_pitch(obs, centers)
    if pitch is not None:
        mpp = VISIUM_PITCH_UM / pitch
        by_diameter = VISIUM_SPOT_UM / side_of(shapes) if "radius" in shapes else mpp
        if abs(by_diameter / mpp - 1) > DIFFERS:
            logger.warning(
                "Slide %r: Visium's pitch of %g um gives %.4g um per pixel, spots of %g um give %.4g. The pitch is "
                "used. Are positions and spot diameter those of the same image?",
                name, VISIUM_PITCH_UM, mpp, VISIUM_SPOT_UM, by_diameter,
            )  # fmt: skip
        return mpp, f"Visium's spots {VISIUM_PITCH_UM:g} um apart"
    if all(column in obs for column in _XENIUM_COLUMNS):
        # Xenium's table has the area of each cell in um^2. Outlines are simplified, so the match is not exact.
        areas = np.pi * shapes["radius"] ** 2 if "radius" in shapes else shapes.geometry.area
        ratio = obs["cell_area"].to_numpy(dtype=np.float64) / areas.to_numpy(dtype=np.float64)
        if abs(float(np.sqrt(np.nanmedian(ratio))) - 1) <= DIFFERS / 2:
            return 1.0, "Xenium's cell areas in um"
    return None, ""


def shallow_copy(sdata: SpatialData, table_key: str) -> SpatialData:
    """A SpatialData with the same elements and a copy of one table."""
    kinds = ("images", "labels", "points", "shapes", "tables")
    copied = SpatialData(**{kind: dict(getattr(sdata, kind)) for kind in kinds}, attrs=dict(sdata.attrs))
    if table_key in sdata.tables:
        copied.tables[table_key] = sdata.tables[table_key].copy()
    return copied
