"""SpatialData in the layout of the package: one slide from arrays, and several slides into one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .. import _keys
from .._checks import format_names
from .._tables._cohorts import encoder_params
from ._image import pyramid
from ._spots import Spots

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from PIL.Image import Image
    from spatialdata import SpatialData


def check_slide_name(slide: str) -> None:
    """Refuse names that SpatialData cannot write."""
    if not isinstance(slide, str):
        raise TypeError(f"slide is a name (str), not {type(slide).__name__}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", slide):
        raise ValueError(
            f"slide={slide!r}: names of slides have letters, digits, '_', '-' and '.', and start with a letter or "
            "digit."
        )


def assemble(
    slide: str,
    spots: Spots,
    image: Image,
    *,
    counts: sparse.csr_matrix | None,
    var: pd.DataFrame,
    microns_per_pixel: float,
    spot_diameter_um: float,
    patient: str | None,
    scale_factors: Sequence[int] | None = None,
) -> SpatialData:
    """One slide as SpatialData: image ``{slide}_image``, circles ``{slide}``, and a table that annotates them."""
    from anndata import AnnData
    from spatialdata import SpatialData

    n_spots = len(spots.array)
    names = pd.Index([f"{slide}_{x}x{y}" for x, y in spots.array], dtype=object)
    obs = pd.DataFrame({"array_row": spots.array[:, 1], "array_col": spots.array[:, 0]}, index=names)
    if patient is not None:
        obs[_keys.PATIENT] = pd.Categorical([str(patient)] * n_spots)
    tree, picture, picture_scale = pyramid(image, slide, scale_factors)
    matrix = no_genes(n_spots) if counts is None else counts
    table = AnnData(X=matrix, obs=obs, var=var, obsm={_keys.SPATIAL: spots.pixel})
    diameter = spot_diameter_um / microns_per_pixel
    circles = link_spots(table, slide, picture, picture_scale, diameter=diameter, microns_per_pixel=microns_per_pixel)
    return SpatialData(images={image_name(slide): tree}, shapes={slide: circles}, tables={_keys.TABLE: table})


def image_name(slide: str) -> str:
    """Name of the image of a slide."""
    return f"{slide}_image"


def no_genes(n_spots: int) -> sparse.csr_matrix:
    """``X`` of a slide with H&E only."""
    return sparse.csr_matrix(np.zeros((n_spots, 0), dtype=np.float32))


def link_spots(
    table: AnnData,
    slide: str,
    picture: NDArray[np.uint8],
    picture_scale: float,
    *,
    diameter: float,
    microns_per_pixel: float,
    transformations: Mapping[str, Any] | None = None,
) -> GeoDataFrame:
    """Circles for the spots of a table of one slide; the table is linked to them, in place, by :func:`link_table`.

    Parameters
    ----------
    table
        One slide with the positions of its spots in ``obsm["spatial"]``, full-resolution pixels.
    slide, picture, picture_scale, diameter, microns_per_pixel
        As in :func:`link_table`.
    transformations
        From full-resolution pixels to coordinate systems; `None` takes these pixels for those of the system `slide`.
    """
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    link_table(table, slide, picture, picture_scale, diameter=diameter, microns_per_pixel=microns_per_pixel)
    return ShapesModel.parse(
        table.obsm[_keys.SPATIAL],
        geometry=0,
        radius=diameter / 2,
        index=pd.Index(table.obs[_keys.INSTANCE].to_numpy()),
        transformations=dict(transformations or {slide: Identity()}),
    )


def link_table(
    table: AnnData,
    slide: str,
    picture: NDArray[np.uint8] | None,
    picture_scale: float,
    *,
    diameter: float,
    microns_per_pixel: float | None,
) -> None:
    """Link a table of one slide to the shapes of its name, in place.

    Written: ``obs["region"]`` and ``obs["spot_id"]`` (the rows' names) in front, the link, and ``uns["spatial"]``.

    Parameters
    ----------
    table
        Spots of one slide.
    slide
        Name of the slide and of the shapes.
    picture, picture_scale
        Thumbnail of the image, and its pixels per full-resolution pixel; `None` where there is no image.
    diameter
        Of the spots, in full-resolution pixels.
    microns_per_pixel
        Micrometres per full-resolution pixel; `None` where they are not known.
    """
    from spatialdata.models import TableModel

    rest = table.obs.drop(columns=[_keys.REGION, _keys.INSTANCE], errors="ignore")
    link = {
        _keys.REGION: pd.Categorical([slide] * table.n_obs),
        _keys.INSTANCE: table.obs_names.to_numpy(dtype=object),
    }
    table.obs = pd.concat([pd.DataFrame(link, index=table.obs_names), rest], axis=1)
    factors = {"tissue_hires_scalef": float(picture_scale), _keys.SPOT_DIAMETER: float(diameter)}
    if microns_per_pixel is not None:
        factors[_keys.MPP] = float(microns_per_pixel)
    images = {} if picture is None else {"hires": picture}
    table.uns[_keys.SPATIAL] = {slide: {"images": images, "scalefactors": factors}}
    TableModel.parse(table, region=slide, region_key=_keys.REGION, instance_key=_keys.INSTANCE, overwrite_metadata=True)


def concat(slides: Sequence[SpatialData]) -> SpatialData:
    """Join slides into one SpatialData with one table.

    Parameters
    ----------
    slides
        SpatialData as :func:`read_st` gives them, with different slide names. They are not changed; images are shared,
        not copied.

    Returns
    -------
    All images and shapes under their names, each in its slide's coordinate system, and one ``table``. Its genes are
    those of any slide: in the given order if all slides have the same ones, else sorted, with zeros where a slide lacks
    a gene (legacy tables leave out genes without counts). ``obsm`` and ``var`` columns are kept where all slides have
    them (columns of ``var``: with the same values); ``uns["spatial"]``, ``attrs["microns_per_pixel"]`` and the
    parameters of embeddings are joined, other entries of ``uns`` are left out. Where slides share names of spots
    (barcodes), the slide's name comes in front of all.

    Raises
    ------
    KeyError
        If an object has no ``table``.
    ValueError
        If there are no slides, two have the same name, embeddings of one name were made differently, or some slides
        have genes and others none (zeros would be made up for those).
    """
    import anndata as ad
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    slides = list(slides)
    if not slides:
        raise ValueError("concat needs at least one slide.")
    for position, sdata in enumerate(slides):
        if _keys.TABLE not in sdata.tables:
            raise KeyError(
                f"slides[{position}] has no table {_keys.TABLE!r}; its tables are {list(sdata.tables)}. Read it with "
                "io.read_st."
            )
    tables = [sdata.tables[_keys.TABLE] for sdata in slides]
    names = [str(name) for table in tables for name in table.obs[_keys.REGION].cat.categories]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Slides have the same name: {', '.join(twice)}. Read them with different names (slide=...).")
    empty = [names[position] for position, table in enumerate(tables) if table.n_vars == 0]
    if empty and len(empty) < len(tables):
        raise ValueError(
            f"Slides without expression ({', '.join(empty)}) cannot join a table with genes: their counts would "
            "become zeros. Keep them apart."
        )
    recipes = _recipes(tables)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Observation names are not unique", UserWarning)
        joined = ad.concat(tables, join="outer", fill_value=0, merge="same")
    if not joined.obs_names.is_unique:
        joined.obs_names = joined.obs[_keys.REGION].astype(str) + "_" + joined.obs_names
    first = tables[0].var_names
    same = all(len(table.var_names) == len(first) and table.var_names.isin(first).all() for table in tables)
    joined = joined[:, first if same else sorted(joined.var_names)].copy()
    joined.X = sparse.csr_matrix(joined.X)
    for column in (_keys.REGION, _keys.PATIENT):
        if column in joined.obs:
            joined.obs[column] = joined.obs[column].astype("category")
    joined.uns.update(recipes)
    joined.uns[_keys.SPATIAL] = {name: entry for table in tables for name, entry in table.uns[_keys.SPATIAL].items()}
    table = TableModel.parse(joined, region=names, region_key=_keys.REGION, instance_key=_keys.INSTANCE)
    images = {name: image for sdata in slides for name, image in sdata.images.items()}
    shapes = {name: shape for sdata in slides for name, shape in sdata.shapes.items()}
    scales = {name: mpp for sdata in slides for name, mpp in sdata.attrs.get(_keys.MPP, {}).items()}
    attrs = {_keys.MPP: scales} if scales else {}
    return SpatialData(images=images, shapes=shapes, tables={_keys.TABLE: table}, attrs=attrs)


def _recipes(tables: Sequence[AnnData]) -> dict[str, Any]:
    """Entries of ``uns`` that say how what all tables have was made; what differs by slide is joined by slide."""
    found = {}
    for key in [*(key for key in tables[0].obsm if key.startswith(_keys.IMAGE_PREFIX)), _keys.CELLULARITY]:
        made = [encoder_params(table, key) for table in tables]
        if any(params is None for params in made):
            continue
        if any(params != made[0] for params in made):
            raise ValueError(
                f"{key!r} was made differently on the slides, and cannot stand in one table: {format_names(made)}. Embed "
                "them alike, or delete it first."
            )
        joined: dict[str, Any] = {}
        for table in tables:
            for name, value in table.uns[key][_keys.PARAMS].items():
                old = joined.get(name)
                joined[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        found[key] = {_keys.PARAMS: joined}
    return found
