"""Slides that were tiled and embedded by LazySlide: stores of wsidata."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from .. import _keys
from .._checks import format_names
from .._slides import Float32
from .._tables._slots import check_table
from ._assemble import check_slide_name, image_name, link_table, no_genes
from ._image import multiscale, resolutions, thumbnail
from ._slide_file import halved
from ._wsi import Loaded, load

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")

TILE_SPEC, PROPERTIES = "tile_spec", "slide_properties"  # wsidata's names in `attrs`
TILE_ID = "tile_id"
UNKNOWN = "not recorded"
"""What stands in ``params`` for the parts of a recipe that LazySlide does not write down."""


def from_wsidata(
    wsi: str | PathLike[str] | SpatialData,
    *,
    features: str | None = None,
    tile_key: str = "tiles",
    expression: AnnData | str | None = None,
    slide: str | None = None,
    patient: str | None = None,
    image: str | PathLike[str] | None = None,
    microns_per_pixel: float | None = None,
) -> SpatialData:
    """Take a slide that LazySlide tiled and embedded as it is.

    The tiles become the spots, and their features the embedding, to be used as a target or, with `expression`, as a
    reference. Features of two stores agree if model and tile size (in micrometres and pixels) do; what LazySlide does
    not record (weights, transform, pooling) cannot be compared, so both have to be made in the same way. They do not
    agree with embeddings of :func:`spahgc.pp.image_embedding`, which does record it.

    Parameters
    ----------
    wsi
        A `wsidata.WSIData`, or the path of its store (``<slide>.zarr``).
    features
        Table of features, ``"uni_tiles"``, or model, ``"uni"``; `None` takes the only one of these tiles.
    tile_key
        Name of the tiles.
    expression
        Measured counts per tile, for a reference: a table of the store, by name, or an AnnData whose ``obs["tile_id"]``
        (or ``obs_names``) are ids of the tiles. Tiles without are left out.
    slide
        Name of the slide; `None` takes the file's without its ending.
    patient
        Patient (donor) of the slide, for ``obs["patient"]``.
    image
        Slide file; `None` takes the WSIData's, the one beside the store with its name, or the whole image that the
        store holds. Without one the result has no image: enough to predict from the features.
    microns_per_pixel
        Micrometres per pixel of the slide at full resolution; `None` takes the store's.

    Returns
    -------
    SpatialData with, in the coordinate system ``{slide}`` (full-resolution pixels):

    - image ``{slide}_image``: lazy, as :func:`read_wsi` reads it;
    - shapes ``{slide}``: the tiles;
    - table ``table``: ``X`` the expression or no genes, ``obsm["image_{model}"]`` the features, float32 (n_obs, d),
      ``uns["image_{model}"]["params"]``, ``obsm["spatial"]`` the centres of the tiles, ``obs["tile_id"]`` and the
      columns of tiles and features, the link to the shapes, and ``uns["spatial"]`` with the tile's side as
      ``spot_diameter_fullres``;
    - ``attrs["microns_per_pixel"]``, by name of image.

    Raises
    ------
    FileNotFoundError
        If there is no such store or slide file.
    KeyError
        If there are no such tiles, features or expression; if there are several features, which ones.
    TypeError
        If `wsi` is neither a path nor a SpatialData.
    ValueError
        If features, tiles and expression do not belong together, the image is another slide's, or the micrometres per
        pixel are absurd.

    Examples
    --------
    >>> sdata = spahgc.io.from_wsidata("biopsy.zarr", features="uni")
    >>> spahgc.tl.predict(adata_ref, sdata["table"], use_rep="image_uni")
    """
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    sdata, source = _store(wsi)
    tiles = _tiles(sdata, tile_key)
    key = _features(sdata, features, tile_key, expression)
    name = key.removesuffix(f"_{tile_key}")
    values, ids, columns = _embedding(sdata, key)
    properties = sdata.attrs.get(PROPERTIES, {})
    found = _slide_file(wsi, sdata, source, image, slide, microns_per_pixel)
    slide = _slide_name(slide, found, source)
    mpp = microns_per_pixel or properties.get("mpp") or (found.microns_per_pixel if found else None)

    rows, matrix, var = np.arange(len(ids)), no_genes(len(ids)), pd.DataFrame(index=pd.Index([], dtype=object))
    if expression is not None:
        rows, matrix, var = _measured(sdata, expression, ids)
    at = tiles.index.get_indexer(ids[rows])
    if (at < 0).any():
        raise ValueError(
            f"{int((at < 0).sum())} of {len(at)} rows of {key!r} belong to no tile of {tile_key!r}, e.g. "
            f"{format_names(ids[rows][at < 0], most=3)}. Were the tiles made anew after the features?"
        )
    tiles = tiles.iloc[at]
    centres = tiles.geometry.centroid
    names = pd.Index([f"{slide}_{tile}" for tile in tiles.index], dtype=object)
    obs = tiles.drop(columns=["geometry", "x", "y"], errors="ignore").assign(**{TILE_ID: tiles.index.to_numpy()})
    obs = pd.concat([pd.DataFrame(obs).set_axis(names), columns.iloc[rows].set_axis(names)], axis=1)
    obs = obs.loc[:, ~obs.columns.duplicated()]
    if patient is not None:
        obs[_keys.PATIENT] = pd.Categorical([str(patient)] * len(obs))
    table = AnnData(X=matrix, obs=obs, var=var)
    table.obsm[_keys.SPATIAL] = np.column_stack([centres.x, centres.y]).astype(np.float64)
    rep = _keys.image(name)
    table.obsm[rep] = values[rows]
    side = float(np.sqrt(tiles.geometry.area.median()))
    table.uns[rep] = {_keys.PARAMS: _params(name, sdata.attrs.get(TILE_SPEC, {}).get(tile_key), side, mpp, slide)}
    picture, scale = (None, 1.0) if found is None else thumbnail(found.tree)
    link_table(table, slide, picture, scale, diameter=side, microns_per_pixel=mpp)
    # a new frame, without the transformations of the store
    frame = GeoDataFrame({"geometry": tiles.geometry.to_numpy()}, index=pd.Index(names))
    shapes = ShapesModel.parse(frame, transformations={slide: Identity()})
    return SpatialData(
        images={} if found is None else {image_name(slide): found.tree},
        shapes={slide: shapes},
        tables={_keys.TABLE: table},
        attrs={} if found is None or mpp is None else {_keys.MPP: {image_name(slide): float(mpp)}},
    )


def _store(wsi: Any) -> tuple[SpatialData, Path | None]:
    """The store, and its path or that of the slide file that it belongs to."""
    from spatialdata import SpatialData, read_zarr

    if isinstance(wsi, SpatialData):
        path = getattr(getattr(wsi, "reader", None), "file", None)
        return wsi, None if path is None else Path(path)
    if not isinstance(wsi, str | PathLike):
        raise TypeError(f"wsi is a wsidata.WSIData or the path of its store, not {type(wsi).__name__}.")
    path = Path(wsi)
    if not path.exists():
        raise FileNotFoundError(f"No store {str(path)!r}.")
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise ValueError(
            f"{str(path)!r} is no zarr store. Pass <slide>.zarr, which WSIData.write() makes beside the slide file."
        )
    return read_zarr(path), path


def _tiles(sdata: SpatialData, tile_key: str) -> Any:
    """The tiles as a frame of polygons, by id."""
    if tile_key not in sdata.shapes:
        raise KeyError(
            f"The store has no tiles {tile_key!r} (tile_key). Available shapes: {format_names(sdata.shapes)}. Make them with "
            "lazyslide.pp.tile_tissues(wsi, ...)."
        )
    tiles = sdata.shapes[tile_key]
    if TILE_ID in tiles:
        tiles = tiles.set_index(TILE_ID)
    if not tiles.index.is_unique:
        raise ValueError(f"The tiles {tile_key!r} have duplicate ids.")
    return tiles


def _features(sdata: SpatialData, wanted: str | None, tile_key: str, expression: Any) -> str:
    """Name of the table of features."""
    of_tiles = [
        name
        for name, table in sdata.tables.items()
        if table.uns.get(_keys.SPATIALDATA_ATTRS, {}).get("region") in (tile_key, [tile_key]) and table.n_vars
    ]
    if wanted is not None:
        fits = [name for name in (wanted, f"{wanted}_{tile_key}") if name in of_tiles]
        if not fits:
            raise KeyError(
                f"The store has no features {wanted!r} of {tile_key!r}. Available: {format_names(of_tiles)}."
            )
        return fits[0]
    found = [name for name in of_tiles if not (isinstance(expression, str) and name == expression)]
    if len(found) != 1:
        problem = (
            f"several features of {tile_key!r}: {format_names(found)}. Pass features=<one of them>"
            if found
            else f"no features of {tile_key!r}; its tables are {format_names(sdata.tables)}. Run "
            f"lazyslide.tl.feature_extraction(wsi, <model>, tile_key={tile_key!r})"
        )
        raise KeyError(f"The store has {problem}.")
    return found[0]


def _embedding(sdata: SpatialData, key: str) -> tuple[Float32, Any, pd.DataFrame]:
    """Features, float32 (n, d), the ids of their tiles, and what else is known of these."""
    table = sdata.tables[key]
    values = table.X.toarray() if sparse.issparse(table.X) else np.asarray(table.X)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(f"The features {key!r} have NaN or infinite values for {int(bad.sum())} of {len(bad)} tiles.")
    attrs = table.uns[_keys.SPATIALDATA_ATTRS]
    ids = table.obs[attrs["instance_key"]]
    if not ids.is_unique:
        raise ValueError(f"The features {key!r} have several rows for the same tile.")
    columns = table.obs.drop(columns=[attrs["instance_key"], attrs["region_key"]])
    return values.astype(np.float32), ids.to_numpy(), columns


def _measured(sdata: SpatialData, expression: Any, ids: Any) -> tuple[Any, Any, pd.DataFrame]:
    """Rows of the features that have measured expression, the expression of these, and its genes."""
    what = "expression"
    if isinstance(expression, str):
        if expression not in sdata.tables:
            raise KeyError(
                f"The store has no table {expression!r} (expression). Available: {format_names(sdata.tables)}."
            )
        expression = sdata.tables[expression]
    check_table(expression, what=what)
    if expression.X is None or expression.n_vars == 0:
        raise ValueError("expression has no genes or no X.")
    named = expression.obs.get(TILE_ID, expression.obs_names)
    rows = pd.Index(named.astype(str)).get_indexer(pd.Index(ids).astype(str))
    kept = np.flatnonzero(rows >= 0)
    if not len(kept):
        raise ValueError(
            f"No row of expression belongs to a tile: obs['{TILE_ID}'] or obs_names are like {format_names(named[:3])}, the "
            f"tiles' ids like {format_names(ids[:3])}."
        )
    if len(kept) < len(ids):
        logger.info("%d of %d tiles have no expression and are left out.", len(ids) - len(kept), len(ids))
    return kept, expression.X[rows[kept]], expression.var.copy()


def _slide_file(
    wsi: Any,
    sdata: SpatialData,
    source: Path | None,
    image: str | PathLike[str] | None,
    slide: str | None,
    microns_per_pixel: float | None,
) -> Loaded | None:
    """The slide file as an image, or the whole image that the store holds, if there is one."""
    properties = sdata.attrs.get(PROPERTIES, {})
    mpp = microns_per_pixel or properties.get("mpp")
    if image is not None:
        path: Path | None = Path(image)
    elif isinstance(wsi, str | PathLike):
        beside = sorted(other for other in Path(wsi).parent.glob(f"{Path(wsi).stem}.*") if other.is_file())
        path = beside[0] if len(beside) == 1 else None
    else:
        path = source if source is not None and source.is_file() else None
    if path is None or (image is None and properties.get("scene", 0)):
        slide = _slide_name(slide, None, source)
        for element in sdata.images.values():
            arrays = [array.transpose("c", "y", "x").data for array in resolutions(element)]
            if arrays[0].shape == (3, *properties.get("shape", ())) and arrays[0].dtype == np.uint8:
                levels = arrays if len(arrays) > 1 else [*arrays, halved(arrays[0])]
                return Loaded(slide, multiscale(levels, slide), None if mpp is None else float(mpp), "")
        logger.warning(
            "There is no slide file to go with the tiles: the result has features and no image. Pass image=<path> to "
            "plot on it or to embed it anew."
        )
        return None
    found = load(path, slide=slide, microns_per_pixel=None if mpp is None else float(mpp))
    size = resolutions(found.tree)[0].shape[1:]
    shape = tuple(int(side) for side in properties.get("shape", size))
    if shape != size:
        raise ValueError(
            f"{path.name} has {size[1]} x {size[0]} pixels, the slide of the tiles {shape[1]} x {shape[0]}: it is "
            "another image. Pass image=<path of the slide file>."
        )
    return found


def _slide_name(slide: str | None, found: Loaded | None, source: Path | None) -> str:
    if found is not None:
        return found.slide
    if slide is None:
        slide = "slide" if source is None else re.sub(r"[^A-Za-z0-9._-]", "_", source.stem)
    check_slide_name(slide)
    return slide


def _params(name: str, spec: Mapping[str, Any] | None, side: float, mpp: float | None, slide: str) -> dict[str, Any]:
    """How the features were made, as far as the store says."""
    if spec is not None and spec.get("mpp"):
        tile_um = float(spec["width"]) * float(spec["mpp"])
    else:
        tile_um = float("nan") if mpp is None else side * float(mpp)
    return {
        "encoder": name,
        "recipe": {
            "source": "lazyslide",
            "model": name,
            **dict.fromkeys(("weights", "transform", "pooling", "versions"), UNKNOWN),
        },
        # a scanner's micrometres per pixel have three digits or four
        "tile_um": float(f"{tile_um:.4g}") if np.isfinite(tile_um) else UNKNOWN,
        "tile_px": int(spec["width"]) if spec is not None else round(side),
        "fields_of_view": [1.0],
        _keys.MPP: {slide: UNKNOWN if mpp is None else float(mpp)},
        "image": {slide: image_name(slide)},
    }
