"""Embed the tile of every spot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _keys as keys
from .._settings import settings
from .._slides import Float32
from .._validate import check_table, listed
from ..encoders._base import Encode, Encoder, check_key, checked, resolve
from ._locate import LocatedSlide, locate
from ._tiles import TileReader, reading_order

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")

MANY_PADDED = 0.2
"""Share of tiles that leave the image from which on a warning says so."""
_THREAD_BATCH = 16  # spots a thread takes at once: enough to reuse blocks, few enough to share the work


def image_embedding(
    sdata: SpatialData,
    encoder: str | Encode = "texture",
    *,
    table_key: str = keys.TABLE,
    tile_um: float = 112.0,
    tile_px: int | None = None,
    fields_of_view: Sequence[float] | None = None,
    microns_per_pixel: float | Mapping[str, float] | None = None,
    image_key: str | Mapping[str, str] | None = None,
    key_added: str | None = None,
    n_jobs: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Embed the H&E tile of every spot.

    Tiles are centred on the spots, have the same size in micrometres on every slide, and are read from the image as
    stored, block by block: the image is never loaded as a whole. For each spot the shapes that the table annotates give
    the place; the image is the one in the same coordinate system that has three 8-bit channels, holds the spots, and
    has the most pixels per micrometre. Embeddings are written as the encoder gives them; they are standardised per
    slide where they are used.

    Parameters
    ----------
    sdata
        Slides with images, shapes and a table that annotates the shapes, as from :func:`spahgc.io.read_st` or
        spatialdata-io.
    encoder
        ``"texture"`` (:func:`spahgc.encoders.texture`: 126 colour and texture statistics a field of view, no weights),
        or a callable from tiles, uint8 (n, 3, tile_px, tile_px), to floats (n, d); it is called from one thread, with
        `batch_size` tiles at a time.
    table_key
        Name of the table.
    tile_um
        Side of a tile in micrometres.
    tile_px
        Side in pixels that tiles are resampled to (area averaging); `None` takes the encoder's, 112 for
        ``"texture"``, 224 for a callable.
    fields_of_view
        Sides of the fields of view as multiples of `tile_um`; each is resampled to `tile_px` pixels and encoded, and
        the embeddings are joined in this order. `None` takes the encoder's, (1, 2, 4) for ``"texture"``, (1,) for a
        callable.
    microns_per_pixel
        Micrometres per unit of the spots' coordinates, that is per full-resolution pixel; a number or a dict by slide.
        `None` takes ``uns["spatial"][slide]["scalefactors"]["microns_per_pixel"]`` of the table.
    image_key
        Name of the image, or a dict by slide; needed only where several images fit a slide at the same resolution.
    key_added
        Where to write; `None` is ``"image_texture"``, or ``"image_"`` and the callable's name.
    n_jobs
        Threads that read tiles, and that run ``"texture"``; `None` takes :data:`spahgc.settings`, -1 all cores.
    batch_size
        Tiles a call of a callable encoder gets; `None` takes :data:`spahgc.settings`.
    progress
        Show a progress bar; `None` takes :data:`spahgc.settings`.
    copy
        Write into a copy of the table and return that; `sdata` stays as it is.

    Returns
    -------
    `None`, or the copy of the table. Written into the table, once all tiles are embedded:

    ``obsm[key_added]``
        Embeddings, float32 (n_obs, d).
    ``uns[key_added]["params"]``
        Encoder, ``tile_um``, ``tile_px``, ``fields_of_view`` (multiples), ``microns_per_pixel`` and ``image`` by slide,
        ``n_padded`` (tiles that leave the image and were continued with its mirror image), version of spahgc.
    ``obs["cellularity"]``
        Stain density, float32 (n_obs,): the mean haematoxylin of each spot's tile (first field of view), in the unit of
        `skimage.color.rgb2hed`, whatever the encoder. The control ``method="cellularity"`` predicts from it alone. It
        is written anew with every embedding. A column of that name that spahgc did not write is an error.
    ``uns["cellularity"]["params"]``
        ``tile_um`` (the tile's side, field of view included), ``tile_px``, version of spahgc.

    Raises
    ------
    KeyError
        If the table, the link to its shapes, the shapes or some of its spots' shapes are missing.
    TypeError
        If `sdata` is not a SpatialData, or the encoder is no encoder or returns no array of floats.
    ValueError
        If no image or several fit, spots lie outside it, micrometres per pixel are not known or not plausible, the
        encoder is not known or returns a wrong shape or values that are not finite, another argument is not usable, or
        the table has an ``obs["cellularity"]`` or ``uns["cellularity"]`` of other origin.
        In all cases nothing is written.

    Examples
    --------
    >>> spahgc.pp.image_embedding(sdata)
    >>> sdata["table"].obsm["image_texture"].shape
    (n_spots, 378)
    """
    table = _table(sdata, table_key)
    found = resolve(encoder)
    key = check_key(keys.image(found.name) if key_added is None else key_added)
    pixels = found.tile_px if tile_px is None else tile_px
    fields = tuple(found.fields_of_view if fields_of_view is None else fields_of_view)
    _check_tiles(tile_um, pixels, fields)
    batch = _positive(settings.batch_size if batch_size is None else batch_size, "batch_size")
    workers = settings.workers(n_jobs)
    _check_cellularity(table, table_key)
    slides = locate(sdata, table, microns_per_pixel=microns_per_pixel, image_key=image_key)

    embedding, cellularity, n_padded = _embed(
        slides,
        found,
        n_obs=table.n_obs,
        widths=[tile_um * field for field in fields],
        pixels=pixels,
        batch=batch,
        workers=workers,
        progress=settings.progress if progress is None else progress,
    )
    if n_padded > MANY_PADDED * table.n_obs * len(fields):
        logger.warning(
            "%d of %d tiles leave the image and were continued with its mirror image. Are the coordinates and "
            "microns_per_pixel right?",
            n_padded,
            table.n_obs * len(fields),
        )
    target = table.copy() if copy else table
    target.obsm[key] = embedding
    target.uns[key] = {
        keys.PARAMS: {
            "encoder": found.name,
            "tile_um": float(tile_um),
            "tile_px": int(pixels),
            "fields_of_view": [float(field) for field in fields],
            keys.MPP: {slide.name: slide.microns_per_pixel for slide in slides},
            "image": {slide.name: slide.image for slide in slides},
            "n_padded": n_padded,
            "version": version("spahgc"),
        }
    }
    target.obs[keys.CELLULARITY] = cellularity
    target.uns[keys.CELLULARITY] = {
        keys.PARAMS: {
            "tile_um": float(tile_um * fields[0]),
            "tile_px": int(pixels),
            "version": version("spahgc"),
        }
    }
    return target if copy else None


def _check_cellularity(table: AnnData, table_key: str) -> None:
    """The place of the stain density is free, or holds one that was written here: ``uns`` says so."""
    key = keys.CELLULARITY
    entry = table.uns.get(key)
    taken = [f"{name}[{key!r}]" for name, slots in (("obs", table.obs), ("uns", table.uns)) if key in slots]
    if taken and not (isinstance(entry, Mapping) and keys.PARAMS in entry):
        raise ValueError(
            f"sdata[{table_key!r}] has {' and '.join(taken)}, where the stain density of the tiles is written, and "
            f"uns[{key!r}]['{keys.PARAMS}'], which would say that it comes from spahgc, is missing. It is not "
            f"overwritten: rename it, or delete it if it is an old one of spahgc's that lost its uns."
        )


def _table(sdata: Any, table_key: str) -> AnnData:
    from anndata import AnnData
    from spatialdata import SpatialData

    if not isinstance(sdata, SpatialData):
        hint = (
            " An AnnData has no full-resolution image: pass the SpatialData that holds it. Embeddings that you have "
            "already go into adata.obsm['image_<name>']."
            if isinstance(sdata, AnnData)
            else ""
        )
        raise TypeError(f"sdata is a SpatialData, not {type(sdata).__name__}.{hint}")
    if table_key not in sdata.tables:
        raise KeyError(f"sdata has no table {table_key!r} (table_key). Available: {listed(sdata.tables)}.")
    return check_table(sdata.tables[table_key], what=f"sdata[{table_key!r}]")


def _positive(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is a whole number of at least 1, not {value!r}.")
    return int(value)


def _check_tiles(tile_um: float, tile_px: int, fields: Sequence[float]) -> None:
    _positive(tile_px, "tile_px")
    if not np.isfinite(tile_um) or tile_um <= 0:
        raise ValueError(f"tile_um is a side in micrometres above 0, not {tile_um!r}.")
    if not fields or not all(np.isfinite(field) and field > 0 for field in fields):
        raise ValueError(f"fields_of_view is one or more multiples of tile_um above 0, not {list(fields)}.")


def _embed(
    slides: Sequence[LocatedSlide],
    encoder: Encoder,
    *,
    n_obs: int,
    widths: Sequence[float],
    pixels: int,
    batch: int,
    workers: int,
    progress: bool,
) -> tuple[Float32, Float32, int]:
    """Embeddings of all spots (n_obs, d), the haematoxylin of their tiles (n_obs,), and how many tiles were padded."""
    from tqdm.auto import tqdm

    rows_done: list[NDArray[np.intp]] = []
    parts: list[Float32] = []
    densities: list[Float32] = []
    n_padded = 0
    pool = ThreadPoolExecutor(workers)
    try:
        with tqdm(total=n_obs, desc=f"embed ({encoder.name})", unit="spot", disable=not progress) as bar:
            for slide in slides:
                reader = TileReader(slide.levels, slide.centres, pixels)
                finest = slide.levels[0]
                order = reading_order(slide.centres @ finest.affine[:2, :2].T + finest.affine[:2, 2])
                size = _THREAD_BATCH if encoder.threads else batch
                batches = [order[at : at + size] for at in range(0, len(order), size)]
                for spots, (values, density, padded) in zip(
                    batches, _encoded(reader, batches, widths, encoder, pool), strict=True
                ):
                    if parts and values.shape[1] != parts[0].shape[1]:
                        raise ValueError(
                            f"encoder {encoder.name!r} returned embeddings of width {values.shape[1]} after ones of "
                            f"width {parts[0].shape[1]}."
                        )
                    rows_done.append(slide.rows[spots])
                    parts.append(values)
                    densities.append(density)
                    n_padded += padded
                    bar.update(len(spots))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    out = np.empty((n_obs, parts[0].shape[1]), np.float32)
    out[np.concatenate(rows_done)] = np.concatenate(parts)
    cellularity = np.empty(n_obs, np.float32)
    cellularity[np.concatenate(rows_done)] = np.concatenate(densities)
    return out, cellularity, n_padded


def _encoded(
    reader: TileReader,
    batches: Sequence[NDArray[np.intp]],
    widths: Sequence[float],
    encoder: Encoder,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Float32, Float32, int]]:
    """For each batch, in order: embeddings (n, d), haematoxylin at the first width (n,), number of tiles padded."""
    from ..encoders._colour import haematoxylin

    def embed(spots: NDArray[np.intp], each: Callable[..., Iterable[Any]]) -> tuple[Float32, Float32, int]:
        fields: list[Float32] = []
        densities: list[Float32] = []
        n_padded = 0
        for width in widths:
            tiles, padded = zip(*each(reader.read, spots, [width] * len(spots)), strict=True)
            stacked = np.stack(tiles)
            if not densities:  # before the encoder gets its hands on the tiles
                densities.append(haematoxylin(stacked))
            fields.append(checked(encoder.encode(stacked), len(spots), name=encoder.name))
            n_padded += sum(padded)
        return np.concatenate(fields, axis=1), densities[0], n_padded

    if encoder.threads:
        # A thread takes a batch from the image to its embedding.
        yield from pool.map(lambda spots: embed(spots, map), batches)
    else:
        # Threads read tiles; the encoder (often a GPU's) is called from here.
        for spots in batches:
            yield embed(spots, pool.map)
