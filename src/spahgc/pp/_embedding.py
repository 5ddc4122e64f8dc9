"""Embed the tile of every spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from spatialdata import SpatialData

from .. import _keys as keys
from .._checks import above, at_least, between, checked, format_names
from .._geometry import PLAUSIBLE_MPP, scale_of, transformed
from .._links import check_slides, pick_table, shallow_copy
from .._run import dask_client
from .._settings import logger, settings
from .._tables._slots import check_table
from ..encoders._base import Encode, Encoder, Precision
from ..encoders._table import resolve
from ..io._image import THUMBNAIL, resolutions, thumbnail
from ._engine import Embedded, EncoderSpec, Job, Run, Tiling, embed, embed_on, embed_slides
from ._images import LARGE, LocatedSlide, locate, warn_left_behind
from ._tissue import check_scale, check_spots

MANY_PADDED = 0.2  # share of padded tiles that is worth a warning
OTHER_SCALE = 1.25  # ratio of micrometers per pixel between tiles and the encoder's training that is worth a warning
UPSAMPLED = 2.0  # ratio of micrometers per pixel between image and tiles that is worth a warning


@checked(
    tile_um=between(2, 5000),
    tile_px=at_least(1),
    fields_of_view=above(0),
    microns_per_pixel=between(*PLAUSIBLE_MPP),
    batch_size=at_least(1),
)
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
) -> SpatialData | list[SpatialData] | None:
    """Embed the H&E tile of every spot.

    Tiles are centered on the spots, cover the same area on every slide, and are read block by block. The image of a
    slide is the 8-bit RGB image in the coordinate system of its shapes that holds the spots and has the most pixels per
    micrometer. The workers of a running ``dask.distributed`` client read slides on disk at the same path; images in
    memory are sent to them.

    Parameters
    ----------
    sdata
        Slides with images, shapes and a table that annotates the shapes, or a list of such objects.
    encoder
        ``"texture"`` (:func:`spahgc.encoders.texture`: 126 color and texture statistics per field of view, no weights),
        another name of :func:`spahgc.encoders.table`, the result of :func:`spahgc.encoders.load`, a `torch.nn.Module`,
        or a callable from tiles, uint8 (n, 3, tile_px, tile_px), to floats (n, d), which is called from one thread.
    table_key
        Name of the table; `None` takes the only one, ``"table"``, or the only one that is linked to shapes.
    tile_um
        Side of a tile in micrometers.
    tile_px
        Side in pixels that tiles are resampled to (area averaging); `None` takes the encoder's, 112 for
        ``"texture"``, 224 for a callable.
    fields_of_view
        Sides of the fields of view as multiples of `tile_um`; the embeddings of all are joined in this order. `None`
        takes the encoder's, (1, 2, 4) for ``"texture"``, (1,) for a callable.
    microns_per_pixel
        Micrometers per unit of the spots' coordinates, that is per full-resolution pixel; a number or a dict by slide.
        `None` takes ``uns["spatial"][slide]["scalefactors"]["microns_per_pixel"]`` of the table, else the image's own
        (``sdata.attrs``, from :func:`spahgc.io.read_wsi`), else what the lattice of Visium, the bins of Visium HD or
        the cells of Xenium prove.
    image_key
        Name of the image, or a dict by slide; needed only if several images fit a slide at the same resolution.
    key_added
        Where to write; `None` is ``"image_"`` and the encoder's name.
    device
        Torch device of a named encoder or a module; `None` takes :data:`spahgc.settings`.
    precision
        Precision in which a network computes, see :func:`spahgc.encoders.load`.
    resume
        Keep finished parts in ``spahgc.settings.cache_dir`` until all are finished, and resume from those that a
        stopped run of the same call left there.
    n_jobs
        Threads that read tiles, and that run ``"texture"``; -1 is all cores. `None` takes the workers of a running
        ``dask.distributed`` client, else :data:`spahgc.settings`.
    batch_size
        Tiles per call of the encoder (``"texture"`` goes tile by tile); `None` takes :data:`spahgc.settings`.
    progress
        Show a progress bar; `None` takes :data:`spahgc.settings`.
    copy
        Return a SpatialData (or a list) with a copy of the table, and leave `sdata` unchanged.

    Returns
    -------
    `None`, or with `copy` the SpatialData with the new table. Written into a table once all its tiles are embedded:

    ``obsm[key_added]``, ``uns[key_added]["params"]``
        Embeddings, float32 (n_obs, d); encoder, its ``recipe`` (which decides whether embeddings are comparable),
        precision, tiles, and by slide the image, the micrometers per pixel and their source; ``n_padded`` (tiles that
        leave the image and were continued with its mirror image).
    ``obs["cellularity"]``, ``uns["cellularity"]["params"]``
        Stain density, float32 (n_obs,): mean hematoxylin of each spot's tile (first field of view), in the unit of
        `skimage.color.rgb2hed`.
    ``uns["spatial"][slide]``
        What plots need, if missing: a thumbnail, micrometers per pixel, spot diameter.

    Raises
    ------
    KeyError
        If the table, its link to shapes, or the shapes of some spots are missing.
    TypeError
        If the encoder does not return an array of floats.
    ValueError
        If a slide has no image or several, spots lie outside it or all on glass, its scale is unknown or implausible,
        a tile is larger than the image, the encoder is unknown or fails, or the table has a ``cellularity`` that spahgc
        did not write. Nothing is written into tables that are not complete.
    OSError
        If a part of an image cannot be read.

    Examples
    --------
    >>> import spahgc
    >>> sdata = spahgc.datasets.synthetic_cohort(n_slides=2, n_spots=9)
    >>> spahgc.pp.image_embedding(sdata, progress=False)
    >>> sdata["table"].obsm["image_texture"].shape
    (18, 378)
    """
    several = not hasattr(sdata, "tables")
    objects: list[Any] = list(sdata) if several else [sdata]
    if not objects:
        raise ValueError("`sdata` is an empty list; it needs at least one SpatialData.")
    slides: list[LocatedSlide] = []
    owners: list[tuple[Any, str, range]] = []  # objects, the names of their tables and the numbers of their slides
    for item in objects:
        try:
            name = pick_table(item, table_key)
            table = check_table(item.tables[name], what=f"sdata[{name!r}]")
            _check_cellularity(table, name)
            found = locate(item, table, microns_per_pixel=microns_per_pixel, image_key=image_key)
        except Exception as error:
            if several:
                error.add_note(f"In sdata[{len(owners)}].")
            raise
        owners.append((item, name, range(len(slides), len(slides) + len(found))))
        slides += found
    check_slides([slide.name for slide in slides], microns_per_pixel=microns_per_pixel, image_key=image_key)
    # Loading weights may take minutes, so it comes after what is likely to fail.
    loaded = resolve(encoder, device=device, precision=precision)
    key = keys.check_key(keys.image(loaded.name) if key_added is None else key_added)
    for item, name, _ in owners:
        entry = item.tables[name].uns.get(key)
        if key in item.tables[name].obsm and not (isinstance(entry, Mapping) and keys.PARAMS in entry):
            raise ValueError(
                f"obsm[{key!r}] of sdata[{name!r}] exists already and was not written by spahgc, so it is not "
                "overwritten. Pass another key_added, or rename it."
            )
    pixels = loaded.tile_px if tile_px is None else tile_px
    fields = [float(field) for field in (loaded.fields_of_view if fields_of_view is None else fields_of_view)]
    if not fields:
        raise ValueError("`fields_of_view` is empty; it needs at least one multiple of tile_um.")
    batch = settings.batch_size if batch_size is None else batch_size
    run: Run = partial(embed, workers=settings.workers(n_jobs))
    job = Job(tuple(slides), loaded, Tiling(tuple(tile_um * field for field in fields), pixels, batch))
    _check_tiles(job, tile_um)
    for item, name, own in owners:
        for number in own:
            check_spots(item.tables[name], slides[number])
            if slides[number].mpp_source.startswith("sdata.attrs"):
                check_scale(slides[number].levels, slides[number].centers, slides[number].image)
        warn_left_behind(item, item.tables[name])
    _ = job.probes  # raises if the files of an image are gone
    if copy:
        owners = [(shallow_copy(item, name), name, own) for item, name, own in owners]
    params = {
        "encoder": loaded.name,
        "recipe": dict(loaded.recipe),
        "precision": loaded.precision,
        "tile_um": float(tile_um),
        "tile_px": pixels,
        "fields_of_view": fields,
        "version": version("spahgc"),
    }
    client = dask_client() if n_jobs is None else None
    if client is not None:
        run = partial(embed_on, client, EncoderSpec(encoder, device, precision, settings.device, dict(loaded.recipe)))
    done: dict[int, Embedded] = {}
    shown = settings.progress if progress is None else progress
    for finished, embedded in embed_slides(job, run, resume=resume, progress=shown):
        done[finished] = embedded
        for item, name, own in owners:
            if finished in own and all(number in done for number in own):
                _write(item, name, key, [(slides[number], done.pop(number)) for number in own], params)
    if not copy:
        return None
    return [item for item, *_ in owners] if several else owners[0][0]


def _write(
    sdata: Any, name: str, key: str, slides: Sequence[tuple[LocatedSlide, Embedded]], params: Mapping[str, Any]
) -> None:
    """Write the embeddings of a table, with warnings of tiles that show no image."""
    table = sdata.tables[name]
    n_padded = sum(int(embedded.padded.sum()) for _, embedded in slides)
    n_black = sum(int(embedded.black.sum()) for _, embedded in slides)
    n_tiles = table.n_obs * len(params["fields_of_view"])
    if n_padded > MANY_PADDED * n_tiles:
        logger.warning(
            "%d of %d tiles leave the image and were continued with its mirror image. Are the coordinates and "
            "microns_per_pixel right?", n_padded, n_tiles,
        )  # fmt: skip
    if n_black:
        logger.warning(
            "The tiles of %d of %d spots are black throughout: parts of the image were masked, or their files are "
            "missing, which zarr reads as zeros. Look at the image before you use these spots.", n_black, table.n_obs,
        )  # fmt: skip
    values = np.empty((table.n_obs, slides[0][1].values.shape[1]), np.float32)
    density = np.empty(table.n_obs, np.float32)
    for slide, embedded in slides:
        values[slide.rows], density[slide.rows] = embedded.values, embedded.density
    table.obsm[key], table.obs[keys.CELLULARITY] = values, density
    by_slide = {
        keys.MPP: {slide.name: slide.microns_per_pixel for slide, _ in slides},
        "image": {slide.name: slide.image for slide, _ in slides},
        keys.MPP_SOURCE: {slide.name: slide.mpp_source for slide, _ in slides},
    }
    table.uns[key] = {keys.PARAMS: {**params, **by_slide, "n_padded": n_padded}}
    tiles = {"tile_um": params["tile_um"] * params["fields_of_view"][0]}
    table.uns[keys.CELLULARITY] = {keys.PARAMS: tiles | {part: params[part] for part in ("tile_px", "version")}}
    add_pictures(sdata, table, [slide for slide, _ in slides])


def add_pictures(sdata: SpatialData, table: AnnData, slides: Sequence[LocatedSlide]) -> None:
    """Add what plots need to ``uns["spatial"][slide]``, in squidpy's layout; what is there stays."""
    spatial = dict(table.uns.get(keys.SPATIAL, {}))
    for slide in slides:
        entry = dict(spatial.get(slide.name, {}))
        images = dict(entry.get("images", {}))
        known = {keys.MPP: float(slide.microns_per_pixel), keys.SPOT_DIAMETER: float(slide.spot_diameter)}
        factors = known | dict(keys.part(entry, "scalefactors"))
        if not any(f"tissue_{name}_scalef" in factors and name in images for name in ("hires", "lowres")):
            made = picture(sdata.images[slide.image], slide)
            if made is not None:
                images["hires"], factors["tissue_hires_scalef"] = made
            else:
                factors.setdefault("tissue_hires_scalef", 1.0)
        spatial[slide.name] = {**entry, "images": images, "scalefactors": factors}
    table.uns[keys.SPATIAL] = spatial


def picture(element: Any, slide: LocatedSlide, longest: int = THUMBNAIL) -> tuple[NDArray[np.uint8], float] | None:
    """Thumbnail of a slide's image along x and y of the spots' coordinates, uint8 (h, w, 3), and its pixels per unit.

    An image that is rotated or shifted against the spots is turned back, on white. `None` if the image has no
    resolution that is small enough to read.
    """
    height, width = slide.levels[0].array.shape[1:]
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=np.float64)
    ends = transformed(np.linalg.inv(slide.levels[0].affine), corners).max(axis=0)
    if not (ends > 0).all():
        return None
    fine = [array for array in resolutions(element) if max(array.shape) >= THUMBNAIL]
    if fine and fine[-1].sizes["x"] * fine[-1].sizes["y"] > LARGE:
        logger.info(
            "%s: image %r has no resolution that is small enough for a thumbnail; plots show the spots without tissue. "
            "Parse the image with scale_factors.",
            slide.name, slide.image,
        )  # fmt: skip
        return None
    small, small_scale = thumbnail(element)
    to_small = np.diag([small_scale, small_scale, 1]) @ slide.levels[0].affine
    scale = min(longest / float(ends.max()), scale_of(to_small))
    shape = tuple(max(1, round(float(end) * scale)) for end in ends[::-1])
    # From rows and columns of the picture to those of the thumbnail, between the centers of pixels.
    to_small = to_small @ np.diag([1 / scale, 1 / scale, 1])
    turned = to_small[:2, :2][::-1, ::-1]
    shift = to_small[:2, 2][::-1] + turned @ [0.5, 0.5] - 0.5
    channels = [
        affine_transform(channel, turned, shift, output_shape=shape, order=1, mode="constant", cval=255)
        for channel in np.moveaxis(small, -1, 0)
    ]
    return np.stack(channels, axis=-1), scale


def _check_cellularity(table: AnnData, table_key: str) -> None:
    """Raise if the slots of the stain density hold something that spahgc did not write."""
    key = keys.CELLULARITY
    entry = table.uns.get(key)
    taken = [f"{name}[{key!r}]" for name, slots in (("obs", table.obs), ("uns", table.uns)) if key in slots]
    if taken and not (isinstance(entry, Mapping) and keys.PARAMS in entry):
        raise ValueError(
            f"sdata[{table_key!r}] has {' and '.join(taken)}, where the stain density of the tiles is written, but no "
            f"uns[{key!r}]['{keys.PARAMS}'], so spahgc did not write it. It is not overwritten: rename it, or delete "
            "it if it is an old one of spahgc's that lost its uns."
        )


def _check_tiles(job: Job, tile_um: float) -> None:
    """Raise if a tile is larger than an image; warn of another resolution than the encoder's or the images'."""
    encoder, pixels, smallest = job.encoder, job.tiling.pixels, min(job.tiling.widths)
    coarse = []
    for slide in job.slides:
        level = slide.levels[0]
        height, width = level.array.shape[1:]
        if smallest / level.microns_per_pixel > min(height, width):
            raise ValueError(
                f"A tile of {smallest:g} um is {smallest / level.microns_per_pixel:.0f} pixels wide, but image "
                f"{slide.image!r} of slide {slide.name!r} has {width} x {height} pixels, "
                f"{width * level.microns_per_pixel:.0f} x {height * level.microns_per_pixel:.0f} um at "
                f"{level.microns_per_pixel:.3g} um per pixel. Is microns_per_pixel right? Otherwise pass a smaller "
                "tile_um."
            )
        if level.microns_per_pixel > UPSAMPLED * smallest / pixels:
            coarse.append(f"{slide.name}: {level.microns_per_pixel:.3g}")
    mpp, trained = tile_um / pixels, encoder.microns_per_pixel
    if trained is not None and max(mpp / trained, trained / mpp) > OTHER_SCALE:
        logger.warning(
            "Encoder %r was trained at %.3g um per pixel; tiles of %g um on %d pixels have %.3g. Pass tile_um=%g, or "
            "tile_px=%d if the encoder supports it.",
            encoder.name, trained, tile_um, pixels, mpp, round(trained * pixels, 6), round(tile_um / trained),
        )  # fmt: skip
    if coarse:
        logger.warning(
            "%d of %d slides have coarser images than the tiles (%s um per pixel; tiles have %.3g). Upsampling adds no "
            "detail, so their embeddings may not be comparable with those of higher-resolution slides. Use a "
            "higher-resolution image (`image_key`), or increase `tile_um` or decrease `tile_px` for all slides.",
            len(coarse), len(job.slides), format_names(coarse, most=5), smallest / pixels,
        )  # fmt: skip
