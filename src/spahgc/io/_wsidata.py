"""Slides that LazySlide tiled and embedded: stores of wsidata."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData, read_zarr

from .. import _keys
from .._checks import between, checked, format_names, matrix
from .._geometry import PLAUSIBLE_MPP
from .._settings import logger
from .._tables._slots import check_table
from ._concat import check_slide_name, link_spots
from ._image import resolutions
from ._wsi import load, slide_name

_TILE_SPEC, _PROPERTIES = "tile_spec", "slide_properties"  # names that wsidata gives entries of `attrs`
_TILE_ID = "tile_id"
_UNKNOWN = "not recorded"  # value in ``params`` for the parts of a recipe that LazySlide does not write down


@checked(microns_per_pixel=between(*PLAUSIBLE_MPP))
def from_wsidata(
    wsi: str | PathLike[str] | SpatialData,
    *,
    features: str | None = None,
    tile_key: str = "tiles",
    expression: AnnData | None = None,
    slide: str | None = None,
    patient: str | None = None,
    image: str | PathLike[str] | None = None,
    microns_per_pixel: float | None = None,
) -> SpatialData:
    """Convert a slide that LazySlide tiled and embedded: tiles become spots, and their features the embedding.

    Features of two stores are comparable if model, weights, transform, pooling and tile size agree, of which LazySlide
    records model and tile size. They are not comparable with embeddings of :func:`spahgc.pp.image_embedding`.

    Parameters
    ----------
    wsi
        A `wsidata.WSIData`, or the path of its store (``<slide>.zarr``).
    features
        Table of features (``"uni_tiles"``) or model (``"uni"``). Not needed if there is only one for these tiles.
    tile_key
        Name of the tiles.
    expression
        Measured counts per tile, for a reference, whose ``obs["tile_id"]`` (or ``obs_names``) are ids of tiles. Tiles
        without counts are left out.
    slide
        Name of the slide. Defaults to the file name without its ending.
    patient
        Patient (donor) of the slide, written to ``obs["patient"]``.
    image
        Slide file. Defaults to that of the WSIData, or the one beside the store with its name. Without an image, slides
        can still be predicted from the features.
    microns_per_pixel
        Micrometers per full-resolution pixel. Defaults to the value in the store.

    Returns
    -------
    SpatialData in the layout of :func:`from_anndata`, with a lazy image and the tiles as shapes. The table has the
    features, ``obsm["image_{model}"]``, float32 (n_obs, d), with ``uns["image_{model}"]["params"]``, and the columns of
    tiles and features in ``obs``.

    Raises
    ------
    FileNotFoundError, KeyError, ValueError
        If the store, the slide file, tiles, features or expression do not exist, do not match, or are ambiguous.

    Examples
    --------
    >>> sdata = spahgc.io.from_wsidata("biopsy.zarr", features="uni")  # doctest: +SKIP
    >>> spahgc.tl.predict(adata_ref, sdata["table"], use_rep="image_uni")  # doctest: +SKIP
    """
    sdata, source = _open_store(wsi)
    if slide is None:
        slide = "slide" if source is None else slide_name(source)
    check_slide_name(slide)
    if tile_key not in sdata.shapes:
        raise KeyError(
            f"The store has no tiles {tile_key!r} (tile_key). Available shapes: {format_names(sdata.shapes)}. Make "
            "tiles with lazyslide.pp.tile_tissues(wsi, ...)."
        )
    tiles = sdata.shapes[tile_key]
    tiles = tiles.set_index(_TILE_ID) if _TILE_ID in tiles else tiles
    key = _features(sdata, features, tile_key)
    attrs = sdata.tables[key].uns[_keys.SPATIALDATA_ATTRS]
    ids = sdata.tables[key].obs[attrs["instance_key"]].to_numpy()
    if len(set(ids)) < len(ids) or not tiles.index.is_unique:
        raise ValueError(f"The tiles {tile_key!r} or their features {key!r} have duplicate ids.")
    columns = sdata.tables[key].obs.drop(columns=[attrs["instance_key"], attrs["region_key"]])
    embedding = matrix(sdata.tables[key].to_df(), f"features {key!r}")
    mpp = microns_per_pixel or sdata.attrs.get(_PROPERTIES, {}).get("mpp")
    loaded = _load_image(sdata, source, image, slide, mpp)
    images = {} if loaded is None else dict(loaded.images)
    if mpp is None and loaded is not None:
        mpp = loaded.attrs.get(_keys.MPP, {}).get(f"{slide}_image")

    rows, counts = np.arange(len(ids)), sparse.csr_matrix((len(ids), 0), dtype=np.float32)
    var = pd.DataFrame(index=pd.Index([], dtype=object))
    if expression is not None:
        rows, counts, var = _measured(expression, ids)
    at = tiles.index.get_indexer(ids[rows])
    if (at < 0).any():
        raise ValueError(
            f"{int((at < 0).sum())} of {len(at)} rows of {key!r} belong to no tile of {tile_key!r}, for instance "
            f"{format_names(ids[rows][at < 0], most=3)}. Were the tiles made again after the features?"
        )
    tiles = tiles.iloc[at]
    obs = pd.DataFrame(tiles.drop(columns=["geometry", "x", "y"], errors="ignore")).assign(**{_TILE_ID: tiles.index})
    obs = pd.concat([obs, columns.iloc[rows].set_axis(obs.index)], axis=1)
    obs = obs.loc[:, ~obs.columns.duplicated()].set_axis([f"{slide}_{tile}" for tile in tiles.index])
    if patient is not None:
        obs[_keys.PATIENT] = pd.Categorical([patient] * len(obs))
    centers = tiles.geometry.centroid
    table = AnnData(X=counts, obs=obs, var=var, obsm={_keys.SPATIAL: np.column_stack([centers.x, centers.y])})
    model = key.removesuffix(f"_{tile_key}")
    table.obsm[_keys.image(model)] = embedding[rows]
    side = float(np.sqrt(tiles.geometry.area.median()))
    spec = sdata.attrs.get(_TILE_SPEC, {}).get(tile_key, {"width": side, "mpp": mpp})
    tile_um = float(spec["width"]) * float(spec.get("mpp") or mpp or 0)
    unknown = dict.fromkeys(("weights", "transform", "pooling", "versions"), _UNKNOWN)
    table.uns[_keys.image(model)] = {
        _keys.PARAMS: {
            "encoder": model,
            "recipe": {"source": "lazyslide", "model": model, **unknown},
            # Scanners state micrometers per pixel with three or four digits.
            "tile_um": float(f"{tile_um:.4g}") if tile_um else _UNKNOWN,
            "tile_px": round(spec["width"]),
            "fields_of_view": [1.0],
            _keys.MPP: {slide: _UNKNOWN if mpp is None else float(mpp)},
            "image": {slide: f"{slide}_image"},
        }
    }
    tree, outlines = images.get(f"{slide}_image"), tiles.geometry.to_numpy()
    shapes = link_spots(table, slide, tree, diameter=side, microns_per_pixel=mpp, outlines=outlines)
    attrs = {_keys.MPP: {name: float(mpp) for name in images}} if images and mpp is not None else {}
    return SpatialData(images=images, shapes={slide: shapes}, tables={_keys.TABLE: table}, attrs=attrs)


def _open_store(wsi: Any) -> tuple[SpatialData, Path | None]:
    """The store, and its path or that of its slide file."""
    if isinstance(wsi, SpatialData):
        path = getattr(getattr(wsi, "reader", None), "file", None)
        return wsi, None if path is None else Path(path)
    path = Path(wsi)
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise FileNotFoundError(f"{str(path)!r} is no zarr store. Pass <slide>.zarr, which WSIData.write() makes.")
    return read_zarr(path), path


def _features(sdata: SpatialData, wanted: str | None, tile_key: str) -> str:
    """Name of the table of features."""
    names = [
        name
        for name, table in sdata.tables.items()
        if _keys.part(table.uns, _keys.SPATIALDATA_ATTRS).get("region") in (tile_key, [tile_key]) and table.n_vars
    ]
    fits = names if wanted is None else [name for name in (wanted, f"{wanted}_{tile_key}") if name in names][:1]
    if len(fits) != 1:
        named = "" if wanted is None else f"{wanted!r} "
        problem = f"{'several' if fits else 'no'} features {named}of {tile_key!r}"
        raise KeyError(
            f"The store has {problem}. Available: {format_names(names)}. Pass `features`, or run "
            f"lazyslide.tl.feature_extraction(wsi, <model>, tile_key={tile_key!r})."
        )
    return fits[0]


def _measured(expression: AnnData, ids: Any) -> tuple[Any, Any, pd.DataFrame]:
    """Rows of the features with measured expression, their expression, and its genes."""
    check_table(expression, what="expression")
    if expression.X is None or expression.n_vars == 0:
        raise ValueError("`expression` has no genes or no X.")
    named = expression.obs.get(_TILE_ID, expression.obs_names)
    rows = pd.Index(named.astype(str)).get_indexer(pd.Index(ids).astype(str))
    kept = np.flatnonzero(rows >= 0)
    if not len(kept):
        raise ValueError(
            f"No row of `expression` belongs to a tile: obs['{_TILE_ID}'] or obs_names are like "
            f"{format_names(named[:3])}, the ids of the tiles like {format_names(ids[:3])}."
        )
    if len(kept) < len(ids):
        logger.info("%d of %d tiles have no expression and are left out.", len(ids) - len(kept), len(ids))
    return kept, expression.X[rows[kept]], expression.var.copy()


def _load_image(
    sdata: SpatialData, source: Path | None, image: Any, slide: str, mpp: float | None
) -> SpatialData | None:
    """The slide file, or `None` if there is none."""
    properties = sdata.attrs.get(_PROPERTIES, {})
    path = None if image is None else Path(image)
    if path is None and source is not None and not properties.get("scene", 0):
        candidates = [source] if source.is_file() else source.parent.glob(f"{source.stem}.*")
        files = [file for file in candidates if file.is_file()]
        path = files[0] if len(files) == 1 else None
    if path is not None:
        loaded = load(path, slide=slide, microns_per_pixel=mpp)
        found = resolutions(loaded.images[f"{slide}_image"])[0].shape[1:]
        expected = tuple(int(side) for side in properties.get("shape", found))
        if expected != found:
            raise ValueError(
                f"{path.name} has {found[1]} x {found[0]} pixels, but the slide of the tiles {expected[1]} x "
                f"{expected[0]}: it is another image. Pass image=<path of the slide file>."
            )
        return loaded
    logger.warning(
        "No slide file belongs to the tiles: the result has features and no image. Pass image=<path> to plot on it or "
        "to embed it again."
    )
    return None
