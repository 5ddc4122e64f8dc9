"""The cheap part of the alignment check, before an embedding: do the spots lie on glass?"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import _keys as keys
from ._locate import LocatedSlide
from ._tiles import TileReader

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("spahgc")

N_SPOTS = 48
"""Spots that are looked at, drawn at random: if half of all lie on tissue, 48 on glass has a chance of 1e-14."""
WIDTH_UM = 112.0
PIXELS = 14
"""8 um a pixel: glass is even there, whatever the camera's noise, and tissue is not."""
EVEN = 2.5
"""Standard deviation (CIELAB lightness) of a tile up to which it may be glass: 0.1 to 1.5 on ten scans, tissue 3 to
20."""
BRIGHT = 65.0
"""Lightness of glass, at least (75 and more on ten scans)."""
MOSTLY = 0.5
LARGEST_BLOCK = 32 * 2**20
"""Bytes of a block; where a tile costs the decoding of a larger one, the check would cost more than it is worth."""


def check_spots(table: AnnData, slide: LocatedSlide) -> None:
    """Stop where all spots of a slide lie on glass, warn where most do.

    Raises
    ------
    ValueError
        If none of the spots looked at lies on tissue.
    """
    covered = np.flatnonzero(under_tissue(table, slide.rows))
    chosen = np.random.default_rng(0).choice(covered, min(N_SPOTS, len(covered)), replace=False)
    reader = TileReader(slide.levels, slide.centres[chosen], PIXELS, image=slide.image)
    level = slide.levels[reader.level_for(WIDTH_UM)]
    if hasattr(level.array, "chunks") and 3 * level.block[0] * level.block[1] > LARGEST_BLOCK:
        logger.info("Slide %r: whether spots lie on tissue is not looked at, as blocks are large.", slide.name)
        return
    order = reader.order([WIDTH_UM])
    glass = on_glass(np.stack([reader.read(int(spot), WIDTH_UM)[0] for spot in order]))
    share = float(glass.mean())
    what = (
        f"{int(glass.sum())} of {len(glass)} spots of slide {slide.name!r} that were looked at lie on glass in image "
        f"{slide.image!r}"
    )
    advice = (
        f"spahgc.pp.check_alignment(sdata) says whether x and y are swapped, an axis is flipped or the coordinates are "
        f"those of another resolution. Or is microns_per_pixel ({slide.microns_per_pixel:.4g}) wrong?"
    )
    if share == 1:
        raise ValueError(f"All {what}: none is on tissue. {advice}")
    if share > MOSTLY:
        logger.warning("%s. If they should be on tissue: %s", what, advice)


def on_glass(tiles: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether tiles at about 8 um per pixel show glass only, uint8 (n, 3, h, w) -> (n,)."""
    from skimage.color import rgb2lab

    lightness = rgb2lab(tiles, channel_axis=1)[:, 0]
    return np.asarray((lightness.std(axis=(1, 2)) <= EVEN) & (lightness.mean(axis=(1, 2)) >= BRIGHT))


def under_tissue(table: AnnData, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which spots of a slide are under tissue as ``obs["in_tissue"]`` says; all if it does not say."""
    if keys.IN_TISSUE not in table.obs:
        return np.ones(len(rows), dtype=bool)
    under = np.asarray(table.obs[keys.IN_TISSUE].iloc[rows].astype(float) > 0)
    return under if under.any() else np.ones(len(rows), dtype=bool)
