"""Slide files made for tests: tissue on glass, as pyramids and plain images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GLASS = (240, 236, 242)


def scene(height: int, width: int, seed: int = 0, radius: float = 0.35) -> np.ndarray:
    """A disc of purple tissue of coarse texture in the middle of glass, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), GLASS, np.uint8) - rng.integers(0, 4, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    tissue = np.hypot(y - height / 2, x - width / 2) < radius * min(height, width)
    squares = rng.integers(0, 80, (height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    texture = squares.repeat(16, 0).repeat(16, 1)[:height, :width]
    for channel, base in enumerate((140, 70, 130)):
        picture[..., channel][tissue] = (base + texture)[tissue]
    return picture


def reduced(picture: np.ndarray, factor: int) -> np.ndarray:
    """Box means, the last ones over what is left."""
    return np.asarray(Image.fromarray(picture).reduce(factor))


def pyramid_tiff(
    path: Path,
    picture: np.ndarray,
    *,
    mpp: float | None = 0.5,
    factors: Sequence[int] = (1, 4),
    compression: str | None = "jpeg",
    tile: int = 256,
) -> Path:
    """A tiled TIFF with levels as pages of their own, as scanners and libvips write them."""
    import tifffile

    resolution: dict[str, Any] = {}
    if mpp is not None:
        resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for number, factor in enumerate(factors):
            file.write(
                picture if factor == 1 else reduced(picture, factor),
                tile=(tile, tile),
                compression=compression,
                photometric="rgb",
                subfiletype=int(number > 0),
                **resolution,
            )
    return path


def ome_tiff(
    path: Path, picture: np.ndarray, *, size: float = 0.5, unit: str = "µm", factors: Sequence[int] = (1, 4)
) -> Path:
    """An OME-TIFF with the levels in its sub-directories, where OpenSlide does not look."""
    import tifffile

    metadata = {f"PhysicalSize{axis}{what}": value for axis in "XY" for what, value in (("", size), ("Unit", unit))}
    options: dict[str, Any] = {"tile": (256, 256), "compression": "jpeg", "photometric": "rgb"}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(picture, subifds=len(factors) - 1, metadata={"axes": "YXS", **metadata}, **options)
        for factor in factors[1:]:
            file.write(reduced(picture, factor), subfiletype=1, **options)
    return path
