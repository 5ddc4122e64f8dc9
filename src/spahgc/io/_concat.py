"""SpatialData in the layout of spahgc: one slide from its parts, and several slides joined into one object."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from geopandas import GeoDataFrame
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity, get_transformation, set_transformation

from .. import _keys
from .._checks import checked, format_names
from .._geometry import Float64
from .._links import pick_table
from .._links import regions as linked_spots
from .._settings import logger
from .._tables._cohorts import encoder_params
from .._tables._slots import check_table, in_memory, libraries
from ._image import thumbnail


def check_slide_name(slide: str) -> None:
    """Raise if SpatialData could not write a slide under this name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", slide):
        raise ValueError(
            f"slide={slide!r} is not a valid name: use letters, digits, '_', '-' and '.', and start with a letter or "
            "digit."
        )


def check_inside(
    xy: Float64, names: pd.Index, size: tuple[int, int], what: str, *, factors: Mapping[str, float] | None = None
) -> None:
    """Raise if positions (x, y) are missing or lie outside an image of `size` (width, height)."""
    unknown = names[np.flatnonzero(~np.isfinite(xy).all(axis=1))]
    if len(unknown):
        raise ValueError(
            f"{what} is missing or infinite for {len(unknown)} spots, for instance {format_names(unknown, most=3)}."
        )
    outside = np.flatnonzero(((xy < -1) | (xy > np.array(size))).any(axis=1))  # crops round by up to a pixel
    if not len(outside):
        return
    (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
    fits = [(key, by) for key, by in (factors or {}).items() if key.startswith("tissue_") and xy.min() >= 0]
    reduced = [(key, by) for key, by in fits if 0.3 < float((xy.max(axis=0) * by / size).max()) <= 1]
    advice = "Are the positions those of this image at its full resolution, or x and y swapped?"
    if reduced:
        key, by = max(reduced, key=lambda pair: pair[1])
        advice = (
            f"The positions times {key}={by:.6g} lie inside: this is the reduced picture. Pass the image at full "
            f"resolution, or adata.obsm['{_keys.SPATIAL}'] * {by:.6g}, with microns_per_pixel and spot_diameter_um."
        )
    raise ValueError(
        f"{len(outside)} of {len(xy)} spots lie outside the image of {size[0]} x {size[1]} pixels (width x "
        f"height), for instance {format_names(names[outside], most=3)}. In {what}, x ranges from {x0:.0f} to {x1:.0f} "
        f"and y from {y0:.0f} to {y1:.0f}. {advice}"
    )


def link_spots(
    table: AnnData,
    slide: str,
    image: Any,
    *,
    diameter: float,
    microns_per_pixel: float | None,
    transformations: Mapping[str, Any] | None = None,
    outlines: Any = None,
) -> GeoDataFrame:
    """Shapes of a slide's spots (circles, or given polygons), to which the table is linked in place.

    The transformations default to those of the image element (or `None`), whose thumbnail the table gets.
    """
    names = table.obs_names.to_numpy(dtype=object)
    link = pd.DataFrame({_keys.REGION: pd.Categorical([slide] * len(names)), _keys.INSTANCE: names}, table.obs_names)
    rest = table.obs.drop(columns=[_keys.REGION, _keys.INSTANCE], errors="ignore")
    table.obs = pd.concat([link, rest], axis=1)
    images, scale, to = {}, 1.0, dict(transformations or {slide: Identity()})
    if image is not None:
        images["hires"], scale = thumbnail(image)
        to = get_transformation(image, get_all=True)
    factors = {"tissue_hires_scalef": float(scale), _keys.SPOT_DIAMETER: float(diameter)}
    if microns_per_pixel is not None:
        factors[_keys.MPP] = float(microns_per_pixel)
    table.uns[_keys.SPATIAL] = {slide: {"images": images, "scalefactors": factors}}
    TableModel.parse(table, region=slide, region_key=_keys.REGION, instance_key=_keys.INSTANCE, overwrite_metadata=True)
    if outlines is not None:
        return ShapesModel.parse(GeoDataFrame({"geometry": outlines}, index=pd.Index(names)), transformations=to)
    return ShapesModel.parse(
        table.obsm[_keys.SPATIAL], geometry=0, radius=diameter / 2, index=pd.Index(names), transformations=to
    )


@checked()
def concat(slides: Sequence[SpatialData], *, join: Literal["outer", "inner"] = "outer") -> SpatialData:
    """Join slides into one SpatialData with one table.

    Parameters
    ----------
    slides
        Slides with different names, as from :func:`read_st`, :func:`from_anndata` or `spatialdata_io`, with one table
        (``table``, the only one, or the only one that is linked) that annotates shapes. They are not changed; images
        are shared, not copied.
    join
        ``"outer"`` keeps the genes of any slide and fills in zeros where a slide lacks a gene, because tables of legacy
        arrays leave out genes without counts. ``"inner"`` keeps the genes that all slides measured, for panels.

    Returns
    -------
    All images and shapes under their names, each in the coordinate system of its slide, and one ``table``. Genes keep
    their order if all slides have the same ones, else they are sorted (``"outer"``) or in the order of the first slide
    (``"inner"``). Where zeros were filled in, ``varm["measured_on"]`` says by slide whether its table had the gene, and
    training refuses a gene by name whose zeros come from joining. Coordinate systems that slides share (``global``) get
    the slide's name in front. ``obsm`` and columns of ``var`` are kept where all slides agree; ``uns["spatial"]``,
    ``attrs["microns_per_pixel"]`` and the parameters of embeddings are merged, other entries of ``uns`` are dropped. If
    names of spots (barcodes) repeat, the slide's name is put in front of all.

    Raises
    ------
    KeyError, ValueError
        If a table does not annotate shapes, names repeat, embeddings were made differently, or some slides have
        genes and others none.

    Examples
    --------
    >>> import spahgc
    >>> cohort = spahgc.datasets.synthetic_cohort(n_slides=2, n_spots=9, n_genes=16)
    >>> slides = [cohort.filter_by_coordinate_system(name) for name in ("S1", "S2")]
    >>> spahgc.io.concat(slides)["table"].shape
    (18, 16)
    """
    if not slides:
        raise ValueError("`slides` is empty: pass at least one slide.")
    slides = [_in_layout(sdata, f"slides[{position}]") for position, sdata in enumerate(slides)]
    tables = [sdata.tables[_keys.TABLE] for sdata in slides]
    regions = [table.obs[_keys.REGION].astype("category").cat.remove_unused_categories() for table in tables]
    names = [str(name) for region in regions for name in region.cat.categories]
    pictures = [name for sdata in slides for name in sdata.images]
    for what, given in (("Slides", names), ("Images", pictures)):
        duplicates = sorted({name for name in given if given.count(name) > 1})
        if duplicates:
            raise ValueError(
                f"{what} have the same name: {format_names(duplicates)}. Read them with different names (slide=...), "
                "or rename all elements: spahgc.io.concat([spatialdata.concatenate({<name>: sdata}) for each slide])."
            )
    empty = [str(table.obs[_keys.REGION].iloc[0]) for table in tables if table.n_vars == 0]
    if empty and len(empty) < len(tables):
        raise ValueError(
            f"Slides without expression ({format_names(empty)}) cannot join a table with genes, because their counts "
            "would become zeros. Keep them separate."
        )
    recipes = _recipes(tables)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Observation names are not unique", UserWarning)
        joined = ad.concat(tables, join=join, fill_value=0, merge="same")
    for key in list(joined.obsm):  # where a slide lacks columns, they would be filled with zeros
        widths = {table.obsm[key].shape[1] if key in table.obsm else 0 for table in tables}
        if len(widths) > 1:
            logger.warning("obsm[%r] is left out, because its width differs between slides: %s.", key, sorted(widths))
            del joined.obsm[key]
    if not joined.obs_names.is_unique:
        joined.obs_names = joined.obs[_keys.REGION].astype(str) + "_" + joined.obs_names
    genes = tables[0].var_names[tables[0].var_names.isin(joined.var_names)]
    if any(table.n_vars < joined.n_vars for table in tables):
        genes = sorted(joined.var_names)
    joined = joined[:, genes].copy()
    n_most = max(table.n_vars for table in tables)
    if joined.n_vars == 0 and n_most:
        raise ValueError(
            f"The slides have no gene in common; the first one has {format_names(tables[0].var_names, most=3)}."
        )
    if joined.n_vars < n_most:
        logger.log(
            logging.WARNING if joined.n_vars < 0.5 * n_most else logging.INFO,
            "%d genes of up to %d are measured on all %d slides. The others are left out.",
            joined.n_vars, n_most, len(tables),
        )  # fmt: skip
    joined.X = sparse.csr_matrix(joined.X)
    joined.varm.pop(_keys.MEASURED_ON, None)
    had = [_measured_on(table, joined.var_names) for table in tables]
    if not all(frame.to_numpy().all() for frame in had):
        joined.varm[_keys.MEASURED_ON] = pd.concat(had, axis=1)
    for column in (_keys.REGION, _keys.PATIENT):
        if column in joined.obs:
            joined.obs[column] = joined.obs[column].astype("category")
    joined.uns.update(recipes)
    joined.uns[_keys.SPATIAL] = {name: entry for table in tables for name, entry in libraries(table).items()}
    table = TableModel.parse(joined, region=names, region_key=_keys.REGION, instance_key=_keys.INSTANCE)
    images: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for sdata, region in zip(slides, regions, strict=True):
        others = {system for other in slides if other is not sdata for system in other.coordinate_systems}
        renamed = {system: f"{region.cat.categories[0]}_{system}" for system in others & set(sdata.coordinate_systems)}
        images |= {name: _with_systems(image, renamed) for name, image in sdata.images.items()}
        shapes |= {name: _with_systems(shape, renamed) for name, shape in sdata.shapes.items()}
    scales = {name: mpp for sdata in slides for name, mpp in sdata.attrs.get(_keys.MPP, {}).items()}
    attrs = {_keys.MPP: scales} if scales else {}
    return SpatialData(images=images, shapes=shapes, tables={_keys.TABLE: table}, attrs=attrs)


def _in_layout(sdata: SpatialData, what: str) -> SpatialData:
    """Slide as `spahgc.io` lays it out: ``table``, with ``region`` and ``spot_id``, on shapes."""
    try:
        key = pick_table(sdata)
        table = check_table(sdata.tables[key], what=f"{what}[{key!r}]")
        attrs = _keys.part(table.uns, _keys.SPATIALDATA_ATTRS)
        if (key, attrs.get("region_key"), attrs.get("instance_key")) == (_keys.TABLE, _keys.REGION, _keys.INSTANCE):
            return sdata
        spots = linked_spots(sdata, table)
    except (KeyError, ValueError) as error:
        raise type(error)(
            f"{what} cannot be joined: {error.args[0]} A table without shapes is converted with "
            "spahgc.io.from_anndata(sdata[<table>], <image>, slide=<name>)."
        ) from error
    rows = np.concatenate([region.rows for region in spots])
    table = table[rows].copy()
    if attrs["region_key"] != _keys.REGION and _keys.REGION in table.obs:
        table.obs = table.obs.rename(columns={_keys.REGION: f"{_keys.REGION}_of_reader"})
    table.obs = table.obs.drop(columns=[attrs["region_key"], attrs["instance_key"], _keys.INSTANCE], errors="ignore")
    table.obs[_keys.REGION] = pd.Categorical(np.repeat([region.name for region in spots], [len(r.rows) for r in spots]))
    table.obs[_keys.INSTANCE] = np.concatenate([region.shapes.index for region in spots])
    table.X = None if table.X is None else in_memory(table.X, f"{what}[{key!r}].X")
    link = {"region": [region.name for region in spots], "region_key": _keys.REGION, "instance_key": _keys.INSTANCE}
    table = TableModel.parse(table, overwrite_metadata=True, **link)
    shapes = {region.name: region.shapes for region in spots}
    return SpatialData(images=dict(sdata.images), shapes=shapes, tables={_keys.TABLE: table}, attrs=dict(sdata.attrs))


def _measured_on(table: AnnData, genes: pd.Index) -> pd.DataFrame:
    """Whether the table of each slide had each gene before any joining."""
    if _keys.MEASURED_ON in table.varm:
        return table.varm[_keys.MEASURED_ON].reindex(genes, fill_value=False)
    slides = table.obs[_keys.REGION].astype(str).unique()
    return pd.DataFrame({name: genes.isin(table.var_names) for name in slides}, index=genes)


def _with_systems(element: Any, renamed: Mapping[str, str]) -> Any:
    """Element in coordinate systems of other names; its data are shared."""
    if not renamed:
        return element
    systems = {renamed.get(name, name): to for name, to in get_transformation(element, get_all=True).items()}
    element = element.copy(deep=False)
    set_transformation(element, systems, set_all=True)
    return element


def _recipes(tables: Sequence[AnnData]) -> dict[str, Any]:
    """Parameters of the embeddings that all tables have; values by slide are merged."""
    recipes = {}
    for key in [*(key for key in tables[0].obsm if key.startswith(_keys.IMAGE_PREFIX)), _keys.CELLULARITY]:
        made = [encoder_params(table, key) for table in tables]
        if any(params is None for params in made):
            continue
        if any(params != made[0] for params in made):
            raise ValueError(
                f"{key!r} was made differently on the slides, so it cannot be joined: {format_names(made)}. Embed the "
                "slides in the same way, or delete it first."
            )
        merged: dict[str, Any] = {}
        for table in tables:
            for name, value in table.uns[key][_keys.PARAMS].items():
                old = merged.get(name)
                merged[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        recipes[key] = {_keys.PARAMS: merged}
    return recipes
