"""Embed the tile of every spot."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _keys as keys
from .._checks import format_names
from .._links import pick_table
from .._run import dask_client
from .._settings import settings
from .._tables._slots import check_table
from ..encoders._base import Encode, Encoder, Precision, check_key
from ..encoders._table import resolve
from ._alignment_quick import check_spots
from ._engine import Job, Tiling
from ._jobs import Result, Run, run_here, run_jobs
from ._locate import LocatedSlide, locate
from ._picture import add_pictures
from ._tiles import CACHE_BYTES

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")

MANY_PADDED = 0.2
"""Share of tiles that leave the image from which on a warning says so."""
OTHER_SCALE = 1.25
"""Ratio of the micrometres per pixel of the tiles to those of the encoder's training from which on it is said."""
UPSAMPLED = 2.0
"""Ratio of the micrometres per pixel of the image to those of the tiles from which on it is said."""


def image_embedding(
    sdata: SpatialData | Sequence[SpatialData],
    encoder: str | Encode | Encoder = "texture",
    *,
    table_key: str | None = None,
    tile_um: float = 112.0,
    tile_px: int | None = None,
    fields_of_view: Sequence[float] | None = None,
    microns_per_pixel: float | Mapping[str, float] | None = None,
    image_key: str | Mapping[str, str] | None = None,
    key_added: str | None = None,
    device: str | None = None,
    precision: Precision | None = None,
    resume: bool = True,
    n_jobs: int | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | list[AnnData] | None:
    """Embed the H&E tile of every spot.

    Tiles are centred on the spots, have the same size in micrometres on every slide, and are read from the image as
    stored, block by block: the image is never loaded as a whole. For each spot the shapes that the table annotates give
    the place; the image is the one in the same coordinate system that has three 8-bit channels, holds the spots, and
    has the most pixels per micrometre. Embeddings are written as the encoder gives them; they are standardised per
    slide where they are used.

    While the encoder works, threads read the next tiles. What takes longer than some seconds is kept on disk as it
    goes; if it is stopped, the same call goes on from there (`resume`).

    If a ``dask.distributed`` client is running and `n_jobs` is `None`, ranges of tiles of all slides are tasks of its
    workers; those of a worker that is lost go to another. Each worker loads the encoder once. Slides on disk are
    read by the workers, at the same path; images in memory are sent to them.

    Parameters
    ----------
    sdata
        Slides with images, shapes and a table that annotates the shapes, as from :func:`spahgc.io.read_st` or
        spatialdata-io; or a list of such objects.
    encoder
        ``"texture"`` (:func:`spahgc.encoders.texture`: 126 colour and texture statistics a field of view, no weights),
        another name of :func:`spahgc.encoders.table`, what :func:`spahgc.encoders.load` returned (as from a file of
        weights), a `torch.nn.Module`, or a callable from tiles, uint8 (n, 3, tile_px, tile_px), to floats (n, d); it
        is called from one thread, with `batch_size` tiles at a time.
    table_key
        Name of the table; `None` takes the only one, else ``"table"``, else the only one that is linked to shapes.
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
        `None` takes ``uns["spatial"][slide]["scalefactors"]["microns_per_pixel"]`` of the table, else the image's own
        (``sdata.attrs``, from :func:`spahgc.io.read_wsi`), else what the lattice of Visium, the bins of Visium HD or
        the cells of Xenium prove.
    image_key
        Name of the image, or a dict by slide; needed only where several images fit a slide at the same resolution.
    key_added
        Where to write; `None` is ``"image_"`` and the encoder's name.
    device
        Torch device of a named encoder or a module; `None` takes :data:`spahgc.settings`.
    precision
        What its network computes in: ``"float32"``, ``"bfloat16"`` or ``"float16"``; `None` takes the device's
        default, as in :func:`spahgc.encoders.load`. It does not decide whether embeddings are comparable.
    resume
        Keep what is finished in ``spahgc.settings.cache_dir`` until all is, and go on from what a run of the same call
        left there that was stopped. The same are the encoder and its recipe, the tiles, the spots and the images; of
        what is found, a batch is embedded again, and if it differs nothing of that run is used.
    n_jobs
        Threads that read tiles, and that run ``"texture"``; `None` takes the workers of a running
        ``dask.distributed`` client, else :data:`spahgc.settings`. -1 is all cores.
    batch_size
        Tiles that the encoder gets at a time (``"texture"`` goes tile by tile); `None` takes :data:`spahgc.settings`.
    progress
        Show a progress bar; `None` takes :data:`spahgc.settings`.
    copy
        Write into a copy of each table and return that; `sdata` stays as it is.

    Returns
    -------
    `None`, or the copy of the table (a list of them for a list). Written into a table, once all its tiles are embedded:

    ``obsm[key_added]``
        Embeddings, float32 (n_obs, d).
    ``uns[key_added]["params"]``
        ``encoder`` (its name), ``recipe`` (what decides whether embeddings are comparable: of a network the weights,
        transform and pooling), ``precision``, ``tile_um``, ``tile_px``, ``fields_of_view`` (multiples), by slide
        ``microns_per_pixel``, ``microns_per_pixel_from`` and ``image``, ``n_padded`` (tiles that leave the image and
        were continued with its mirror image), version of spahgc.
    ``uns["spatial"][slide]``
        What plots need and readers left out: a small picture, micrometres per pixel, spot diameter.
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
        If no image or several fit, spots lie outside it or all on glass, micrometres per pixel are not known or not
        plausible, a tile is larger than the image, the encoder is not known or returns a wrong shape or values that are
        not finite, another argument is not usable, or the table has an ``obs["cellularity"]`` or
        ``uns["cellularity"]`` of other origin.
    OSError
        If a part of an image cannot be read; the message names the image and the place.
        In all cases nothing is written; of a list, nothing into the tables that are not complete.

    Notes
    -----
    An image whose file is not stored in blocks is decoded as a whole for each block that is asked of it; that is so for
    ``spatialdata_io.visium`` before it is written. Write it first, with ``sdata.write(path)``, and take
    ``spatialdata.read_zarr(path)``. Memory grows with the blocks of the image, not with the image.

    Examples
    --------
    >>> spahgc.pp.image_embedding(sdata)
    >>> sdata["table"].obsm["image_texture"].shape
    (n_spots, 378)

    Several objects on a cluster:

    >>> client = distributed.Client("scheduler:8786")
    >>> spahgc.pp.image_embedding([sdata_a, sdata_b], encoder="uni2")
    """
    several = isinstance(sdata, list | tuple)
    objects: list[Any] = list(sdata) if isinstance(sdata, list | tuple) else [sdata]
    if not objects:
        raise ValueError("sdata is an empty list; it takes at least one SpatialData.")
    located = []
    for number, item in enumerate(objects):
        with _saying(f"In sdata[{number}]." if several else ""):
            name = _table_key(item, table_key)
            table = check_table(item.tables[name], what=f"sdata[{name!r}]")
            _check_cellularity(table, name)
            slides = tuple(locate(item, table, microns_per_pixel=microns_per_pixel, image_key=image_key))
            located.append((table, slides))
    found = resolve(encoder, device=device, precision=precision)
    key = check_key(keys.image(found.name) if key_added is None else key_added)
    pixels = found.tile_px if tile_px is None else tile_px
    fields = tuple(found.fields_of_view if fields_of_view is None else fields_of_view)
    _check_tiles(tile_um, pixels, fields)
    batch = _positive(settings.batch_size if batch_size is None else batch_size, "batch_size")
    tiling = Tiling(tuple(float(tile_um * field) for field in fields), int(pixels))
    workers = settings.workers(n_jobs)
    jobs = [Job(slides, found, tiling, batch) for _, slides in located]
    for number, (table, slides) in enumerate(located):
        with _saying(f"In sdata[{number}]." if several else ""):
            _check_images(slides, tiling)
            _ = jobs[number].probes  # an image that is not there any more is found now
            for slide in slides:
                check_spots(table, slide)
    _check_scale(jobs, tile_um)
    tables = [table.copy() if copy else table for table, _ in located]

    params = {
        "encoder": found.name,
        "recipe": dict(found.recipe),
        "precision": found.precision,
        "tile_um": float(tile_um),
        "tile_px": int(pixels),
        "fields_of_view": [float(field) for field in fields],
        "version": version("spahgc"),
    }
    run: Run = partial(run_here, workers=workers)
    client = dask_client() if n_jobs is None else None
    if client is not None:
        from ._distributed import EncoderSpec, run_on

        spec = EncoderSpec(uuid.uuid4().hex, encoder, device, precision, settings.device, dict(found.recipe))
        run = partial(run_on, client, spec)
    shown = settings.progress if progress is None else progress
    for number, result in run_jobs(jobs, run, resume=resume, progress=shown):
        _write(tables[number], key, jobs[number], result, params)
    if not copy:
        return None
    return tables if several else tables[0]


def _write(table: AnnData, key: str, job: Job, result: Result, params: Mapping[str, Any]) -> None:
    n_tiles = job.n_spots * len(job.tiling.widths)
    if result.n_padded > MANY_PADDED * n_tiles:
        logger.warning(
            "%d of %d tiles leave the image and were continued with its mirror image. Are the coordinates and "
            "microns_per_pixel right?",
            result.n_padded,
            n_tiles,
        )
    if result.n_black:
        logger.warning(
            "The tiles of %d of %d spots are black throughout: parts of the image were masked, or their files are "
            "missing, which zarr fills with zeros. Look at the image before these spots are used.",
            result.n_black,
            job.n_spots,
        )
    table.obsm[key] = result.embedding
    table.uns[key] = {
        keys.PARAMS: {
            **params,
            keys.MPP: {slide.name: slide.microns_per_pixel for slide in job.slides},
            "image": {slide.name: slide.image for slide in job.slides},
            keys.MPP_SOURCE: {slide.name: slide.mpp_source for slide in job.slides},
            "n_padded": result.n_padded,
        }
    }
    add_pictures(table, job.slides)
    table.obs[keys.CELLULARITY] = result.cellularity
    table.uns[keys.CELLULARITY] = {
        keys.PARAMS: {
            "tile_um": job.tiling.widths[0],
            "tile_px": job.tiling.pixels,
            "version": params["version"],
        }
    }


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


def _table_key(sdata: Any, table_key: str | None) -> str:
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
    return pick_table(sdata, table_key)


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


def _check_images(slides: Sequence[LocatedSlide], tiling: Tiling) -> None:
    """A tile fits its image, and what cannot be read in pieces is said."""
    for slide in slides:
        finest = slide.levels[0]
        height, width = finest.array.shape[1:]
        side = min(tiling.widths) / finest.microns_per_pixel
        if side > min(height, width):
            raise ValueError(
                f"A tile of {min(tiling.widths):g} um is {side:.0f} pixels wide, and image {slide.image!r} of slide "
                f"{slide.name!r} has {width} x {height} pixels, {width * finest.microns_per_pixel:.0f} x "
                f"{height * finest.microns_per_pixel:.0f} um at {finest.microns_per_pixel:.3g} um per pixel. Is "
                "microns_per_pixel right? Otherwise pass a smaller tile_um."
            )
        block = [min(side, of) for side, of in zip(finest.block, (height, width), strict=True)]
        size = 3 * block[0] * block[1]
        if hasattr(finest.array, "chunks") and size > CACHE_BYTES:
            logger.warning(
                "Image %r of slide %r is stored in blocks of %d x %d pixels, and each is decoded as a whole: it takes "
                "%.1f GB of memory. Write it in smaller ones first: chunks of about 512 pixels, and sdata.write(path).",
                slide.image,
                slide.name,
                block[1],
                block[0],
                size / 1e9,
            )


def _check_scale(jobs: Sequence[Job], tile_um: float) -> None:
    """Say where tiles have another resolution than the encoder was trained at, or than the image can give."""
    encoder, tiling = jobs[0].encoder, jobs[0].tiling
    ours, trained = tile_um / tiling.pixels, encoder.microns_per_pixel
    if trained is not None and max(ours / trained, trained / ours) > OTHER_SCALE:
        logger.warning(
            "Encoder %r was trained at %.3g um per pixel; tiles of %g um on %d pixels have %.3g. Pass tile_um=%g, or "
            "tile_px=%d if the encoder takes it.",
            encoder.name,
            trained,
            tile_um,
            tiling.pixels,
            ours,
            round(trained * tiling.pixels, 6),
            round(tile_um / trained),
        )
    finest = min(tiling.widths) / tiling.pixels
    coarse = [slide for job in jobs for slide in job.slides if slide.levels[0].microns_per_pixel > UPSAMPLED * finest]
    if coarse:
        logger.warning(
            "The images of %d of %d slides are coarser than the tiles: %s um per pixel, and the tiles have %.3g. They "
            "are enlarged, which adds no detail; embeddings are less like those of finer images. Take a finer image "
            "(image_key), or pass a larger tile_um or a smaller tile_px for all slides.",
            len(coarse),
            sum(len(job.slides) for job in jobs),
            format_names((f"{slide.name}: {slide.levels[0].microns_per_pixel:.3g}" for slide in coarse), most=5),
            finest,
        )


@contextmanager
def _saying(note: str) -> Iterator[None]:
    """Add a note to an error."""
    try:
        yield
    except Exception as error:
        if note:
            error.add_note(note)
        raise
