"""Where the tissue is on an image, and whether spots lie on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from .._settings import logger
from .._slides import Float32, Float64
from .._tables._slots import on_tissue
from ._images import COARSE_MPP, LocatedSlide
from ._tiles import Level, TileReader

MASK_MPP = 8.0  # micrometers per pixel of a mask: about a nucleus, and 10 million pixels for a slide of 25 mm
CLOSE_UM = 20.0  # radius of the closing: gaps between fibers
HOLE_UM2 = 3e4  # smaller holes are fat cells and small vessels, and count as tissue
OBJECT_UM2 = 1e5  # smaller objects are debris and the fiducial marks of arrays
GLASS_CHROMA = 13.0  # largest CIELAB chroma of glass: 1 to 10 on ten scans, the palest tissue has 15 and more
CONTRAST = 0.1  # least share of the green light through glass that tissue absorbs (0.18 on a pale scan)
REACH = 0.25  # how far towards glass the threshold moves beside tissue, for pale rims and fat

# The quick check before an embedding.
N_SPOTS = 48  # if half of all spots lie on tissue, 48 random ones on glass have a chance of 1e-14
WIDTH_UM, PIXELS = 112.0, 14  # 8 um a pixel: glass is even there, whatever the camera's noise, and tissue is not
EVEN = 2.5  # largest standard deviation (CIELAB lightness) of glass: 0.1 to 1.5 on ten scans, tissue 3 to 20
BRIGHT = 65.0  # least lightness of glass (75 and more on ten scans)
# Eleven scans of H&E have a lightness of 50 and more, a range of 30 and more, green darkest in 77 % of pixels or more,
# and nuclei that are bluer by 6 or more (with blue first, yellower than -1).
DARK, GRAY, GREEN, BLUER, FEW = 25.0, 5, 0.3, -3.0, 16  # CIELAB L*; range of channels; share; CIELAB b*; least tiles
LARGEST_BLOCK = 32 * 2**20  # bytes of a block above which decoding costs more than the check is worth

NUCLEI_UM = (3.5, 50.0)  # 6 to 19 on ten scans of 0.7 to 4 um per pixel; drawn tissue without nuclei has up to 41
LONGEST_UM = 1e5  # of an image; slides are 75 mm long
NUCLEI_TILES, NUCLEI_PX = 12, 256
SIGMAS = np.geomspace(1, 40, 14)  # of Laplacians of Gaussians, in pixels; nuclei respond most to one of their size


def tissue_level(levels: Sequence[Level]) -> Level:
    """Resolution to find tissue on: the coarsest with at most 8 um per pixel, or the finest."""
    fits = [level for level in levels if level.microns_per_pixel <= MASK_MPP * (1 + 1e-6)]
    return max(fits, key=lambda level: level.microns_per_pixel) if fits else levels[0]


def mask_factor(microns_per_pixel: float) -> int:
    """Pixels along a side that become one pixel of a tissue mask."""
    return max(1, int(MASK_MPP / microns_per_pixel + 1e-6))


def tissue_mask(image: Any, microns_per_pixel: float) -> tuple[NDArray[np.bool_], float]:
    """Tissue of an H&E image, uint8 (3, y, x), NumPy or dask: a mask at about 8 um per pixel, and its scale.

    Otsu's threshold on the green channel, which both stains absorb and smeared eosin hardly does; then closing, filling
    of small holes and removal of small objects. Pixels that are black, dark gray, or saturated green to blue (borders,
    dust, pens) are not tissue and do not influence the threshold. An image without glass is all tissue. Pixel i of the
    mask covers the pixels ``i * factor`` to ``(i + 1) * factor`` of the image, see :func:`mask_factor`.
    """
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import reconstruction

    factor = mask_factor(microns_per_pixel)
    mpp = microns_per_pixel * factor
    rgb = gaussian(block_means(image, factor), sigma=MASK_MPP / mpp, channel_axis=-1)
    green, valid = rgb[..., 1], ~is_ink(rgb)
    if not valid.any() or np.ptp(green[valid]) == 0:
        return valid & (not _is_glass(rgb[valid])), mpp
    threshold = threshold_otsu(green[valid])
    dark = (green <= threshold) & valid
    bright = valid & ~dark
    if not _is_glass(rgb[bright]):
        return valid, mpp
    glass = float(np.median(green[bright]))
    if glass - float(np.median(green[dark])) < CONTRAST:
        return np.zeros_like(valid), mpp
    sure = _clean(dark, mpp) & valid
    pale = (green < threshold + REACH * (glass - threshold)) & valid
    return _clean(reconstruction(sure, sure | pale).astype(bool), mpp) & valid, mpp


def is_ink(rgb: Float32 | Float64) -> NDArray[np.bool_]:
    """Whether colors (..., 3), from 0 to 1, are black, dark gray, or saturated green to blue: dust, pens, borders."""
    from skimage.color import rgb2hsv

    hue, saturation, value = np.moveaxis(rgb2hsv(rgb), -1, 0)
    ink = (value < 0.4) & (saturation < 0.2)
    ink |= (hue > 0.12) & (hue < 0.6) & (saturation > 0.2)
    ink |= (hue >= 0.6) & (hue < 0.68) & (saturation > 0.6)
    return np.asarray(ink)


def block_means(image: Any, factor: int) -> Float32:
    """Mean color of each square of an image (3, y, x), NumPy or dask: float32 (rows, columns, 3), from 0 to 1."""
    if hasattr(image, "rechunk"):
        side = factor * max(1, 1024 // factor)
        image = image.rechunk((-1, side, side))
        chunks = (image.chunks[0], *(tuple(-(-size // factor) for size in sizes) for sizes in image.chunks[1:]))
        means = image.map_blocks(_means, factor, dtype=np.float32, chunks=chunks).compute()
    else:
        means = _means(np.asarray(image), factor)
    return np.asarray(np.moveaxis(means, 0, -1))


def _means(block: NDArray[np.uint8], factor: int) -> Float32:
    from skimage.measure import block_reduce

    rest = [(0, -size % factor) for size in block.shape[1:]]
    padded = np.pad(block, [(0, 0), *rest], mode="edge")
    return np.asarray(block_reduce(padded, (1, factor, factor), np.mean) / 255, dtype=np.float32)


def _is_glass(colors: Float32) -> bool:
    """Whether the median of colors (n, 3) has as little chroma as glass."""
    from skimage.color import rgb2lab

    if not len(colors):
        return False
    _, a, b = rgb2lab(np.median(colors, axis=0)[None, None])[0, 0]
    return bool(np.hypot(a, b) <= GLASS_CHROMA)


def _clean(mask: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    from skimage.morphology import isotropic_closing, remove_small_holes, remove_small_objects

    closed = isotropic_closing(mask, CLOSE_UM / mpp)
    filled = remove_small_holes(closed, max_size=int(HOLE_UM2 / mpp**2))
    return np.asarray(remove_small_objects(filled, max_size=int(OBJECT_UM2 / mpp**2)), dtype=bool)


def check_spots(table: AnnData, slide: LocatedSlide) -> None:
    """Raise if all spots of a slide lie on glass, and warn if most do, judged from a random sample."""
    covered = np.flatnonzero(under_tissue(table, slide.rows))
    chosen = np.random.default_rng(0).choice(covered, min(N_SPOTS, len(covered)), replace=False)
    reader = TileReader(slide.levels, slide.centers[chosen], PIXELS, image=slide.image)
    level = slide.levels[reader.level_for(WIDTH_UM)]
    if hasattr(level.array, "chunks") and 3 * level.block[0] * level.block[1] > LARGEST_BLOCK:
        logger.info("Slide %r: did not check whether spots lie on tissue, because blocks are large.", slide.name)
        return
    tiles = np.stack([reader.read(int(spot), WIDTH_UM)[0] for spot in reader.order([WIDTH_UM])])
    glass = on_glass(tiles)
    finding = f"{glass.sum()} of {len(glass)} sampled spots of slide {slide.name!r} lie on glass in image "
    finding += repr(slide.image)
    advice = (
        "spahgc.pp.check_alignment(sdata) finds out whether x and y are swapped, an axis is flipped or the coordinates "
        f"are those of another resolution. Or is microns_per_pixel ({slide.microns_per_pixel:.4g}) wrong?"
    )
    if glass.all():
        raise ValueError(f"All {finding}: none is on tissue. {advice}")
    if glass.mean() > 0.5:
        logger.warning("%s. If they should be on tissue: %s", finding, advice)
    if sign := unlike_he(tiles[~glass]):
        logger.warning("Slide %r: image %r does not have the colors of H&E. It is %s.", slide.name, slide.image, sign)


def check_scale(levels: Sequence[Level], centers: Float64, image: str) -> None:
    """Raise if the recorded scale of an image makes the image too long, or its nuclei too large or too small."""
    from scipy.ndimage import gaussian_laplace
    from skimage.color import rgb2hed

    level, mpp = levels[0], levels[0].microns_per_pixel
    recorded = f"sdata.attrs records {mpp:.4g} um per pixel for image {image!r}"
    way_out = "Pass microns_per_pixel=<number>; it is not compared with the image."
    longest = max(level.array.shape[1:]) * mpp
    if longest > LONGEST_UM:
        raise ValueError(f"{recorded}, which would then be {longest / 1e3:.0f} mm long; slides have 75. {way_out}")
    if hasattr(level.array, "chunks") and 3 * level.block[0] * level.block[1] > LARGEST_BLOCK:
        logger.info("%s: not verified, because blocks are large.", recorded)
        return
    chosen = np.random.default_rng(0).choice(len(centers), min(NUCLEI_TILES, len(centers)), replace=False)
    reader, width = TileReader(levels, centers[chosen], NUCLEI_PX, image=image), NUCLEI_PX * mpp
    order = reader.order([width])
    stains = [rgb2hed(reader.read(int(spot), width)[0], channel_axis=0)[0] for spot in order]
    found = [np.mean([np.percentile(-(s**2) * gaussian_laplace(stain, s), 98) for stain in stains]) for s in SIGMAS]
    best = int(np.argmax(found))
    size = 2 * np.sqrt(2) * SIGMAS[best] * mpp
    if not 0 < best < len(SIGMAS) - 1 or mpp >= COARSE_MPP:
        logger.info("%s: not verified, because nuclei are not resolved.", recorded)
    elif not NUCLEI_UM[0] <= size <= NUCLEI_UM[1]:
        raise ValueError(
            f"{recorded}; nuclei would then measure about {size:.2g} um, but have 5 to 20: about {10 / size * mpp:.2g} "
            f"um per pixel is more likely. {way_out}"
        )


def unlike_he(tiles: NDArray[np.uint8]) -> str:
    """What tells colors of tissue, uint8 (n, 3, h, w) at about 8 um per pixel, from H&E; empty if nothing does."""
    from skimage.color import rgb2lab

    colors = np.moveaxis(tiles, 1, -1).reshape(-1, 3)
    lightness, _, yellow = rgb2lab(colors / 255).T
    bluer = np.median(yellow[lightness <= np.quantile(lightness, 0.1)]) - np.median(yellow)
    is_green, is_least_green = (at(colors, axis=1) == 1 for at in (np.argmax, np.argmin))
    signs = {
        "dark, as fluorescence is": np.median(lightness) < DARK,
        "gray": np.median(np.ptp(colors, axis=1)) < GRAY,
        "green, as inverted H&E is": is_green.mean() > 0.5,
        "of another stain, or its channels are swapped: green is not the darkest": is_least_green.mean() < GREEN,
        "blue first (BGR), or of another stain: nuclei are no bluer than the rest": bluer > BLUER and len(tiles) >= FEW,
    }
    return next((sign for sign, found in signs.items() if found), "")


def on_glass(tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether tiles at about 8 um per pixel, uint8 (n, 3, h, w), show glass only."""
    from skimage.color import rgb2lab

    lightness = rgb2lab(tiles, channel_axis=1)[:, 0]
    return np.asarray((lightness.std(axis=(1, 2)) <= EVEN) & (lightness.mean(axis=(1, 2)) >= BRIGHT))


def under_tissue(table: AnnData, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Spots of a slide that are under tissue by ``obs["in_tissue"]``; all if it is missing or 0 throughout."""
    under = on_tissue(table, what="table")[rows]
    return under if under.any() else np.ones(len(rows), dtype=bool)
