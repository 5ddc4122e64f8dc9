"""Drawing spots on tissue, on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .._slides import Float64
from ._style import GREY, MISSING

_MARGIN = 0.02
"""Margin around the spots, as a share of the longer side."""
_STRIP = 0.1
"""Height of the white strip for scale bar and name below the tissue, as a share of the longer side."""
# The H&E picture is drawn paler and greyer than it is: pink and purple between the spots change how their colours look.
_STRENGTH = 0.5
_SATURATION = 0.6
_LONGEST_NAME = 16
# Usual width of a panel.
_PANEL_POINTS = 137


@dataclass(frozen=True, eq=False)
class Tissue:
    """One slide as it is drawn; lengths are in pixels of the full-resolution image.

    Parameters
    ----------
    name
        Name of the slide; empty if it has none.
    coordinates
        Spot centres (x, y), float64 (n_spots, 2).
    diameter
        Spot diameter.
    image
        H&E thumbnail (height, width, 3 or 4), or `None`.
    image_scale
        Thumbnail pixels per full-resolution pixel.
    microns_per_pixel
        Micrometres per full-resolution pixel, or `None` where that is not known.
    """

    name: str
    coordinates: Float64
    diameter: float
    image: NDArray[Any] | None = None
    image_scale: float = 1.0
    microns_per_pixel: float | None = None

    def box(self, size: float = 1.0) -> tuple[float, float, float, float]:
        """Left, right, top and bottom of what is drawn: all spots and a margin."""
        low, high = self.coordinates.min(axis=0), self.coordinates.max(axis=0)
        margin = 0.6 * self.diameter * max(size, 1.0) + _MARGIN * float((high - low).max())
        return float(low[0] - margin), float(high[0] + margin), float(low[1] - margin), float(high[1] + margin)

    def strip(self, size: float = 1.0) -> float:
        """Height of the strip below the tissue."""
        left, right, top, bottom = self.box(size)
        return _STRIP * max(right - left, bottom - top)

    def aspect(self, size: float = 1.0) -> float:
        """Height over width of a panel."""
        left, right, top, bottom = self.box(size)
        return (bottom - top + self.strip(size)) / (right - left)


def draw_tissue(ax: Axes, tissue: Tissue, *, img: bool, size: float = 1.0) -> None:
    """Set the axes up for a slide, y pointing down as in the image, and draw its H&E picture, cropped to the spots."""
    left, right, top, bottom = tissue.box(size)
    if img and tissue.image is not None:
        height, width = tissue.image.shape[:2]
        scale = tissue.image_scale
        x0, x1 = max(0, int(np.floor(left * scale))), min(width, int(np.ceil(right * scale)))
        y0, y1 = max(0, int(np.floor(top * scale))), min(height, int(np.ceil(bottom * scale)))
        if x0 < x1 and y0 < y1:
            ax.imshow(
                faded(tissue.image[y0:y1, x0:x1]),
                extent=(x0 / scale, x1 / scale, y1 / scale, y0 / scale),
                interpolation="antialiased",
                zorder=0,
            )
    ax.set_aspect("equal")
    ax.set_xlim(left, right)
    ax.set_ylim(bottom + tissue.strip(size), top)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def faded(image: NDArray[Any]) -> NDArray[np.float64]:
    """An image (uint8, or float in 0..1) mixed with grey and white, float64 in 0..1, without its alpha channel."""
    rgb = np.asarray(image[..., :3], dtype=np.float64)
    if np.issubdtype(image.dtype, np.integer):
        rgb = rgb / np.iinfo(image.dtype).max
    grey = rgb.mean(axis=2, keepdims=True)
    return np.clip(1.0 - _STRENGTH * (1.0 - grey - _SATURATION * (rgb - grey)), 0.0, 1.0)


def draw_spots(
    ax: Axes,
    tissue: Tissue,
    values: Float64,
    *,
    cmap: Any,
    norm: Normalize,
    size: float = 1.0,
    alpha: float = 1.0,
    outline: bool = False,
) -> EllipseCollection:
    """Draw every spot as a circle of its true size (times `size`), coloured by its value; a missing value is grey.

    One collection in data units, so a slide of many thousand spots is one artist. With `outline` the circles have a
    thin grey rim, so that those in the white middle of a diverging map are seen.
    """
    n = len(tissue.coordinates)
    left, right, _, _ = tissue.box(size)
    points = _PANEL_POINTS * tissue.diameter * size / (right - left)
    # On dense arrays a rim would be all one sees of a spot, and the spots show each other up anyway.
    outline = outline and points > 2.5
    widths = np.full(n, tissue.diameter * size)
    spots = EllipseCollection(
        widths,
        widths,
        np.zeros(n),
        units="xy",
        offsets=tissue.coordinates,
        offset_transform=ax.transData,
        cmap=cmap.with_extremes(bad=MISSING),
        norm=norm,
        alpha=alpha,
        edgecolors="0.55" if outline else "none",
        linewidths=0.07 * points if outline else 0.0,
    )
    spots.set_array(np.ma.masked_invalid(values))
    # Thousands of circles as vector paths make a PDF of many megabytes; text and axes stay vectors.
    spots.set_rasterized(n > 2000)
    ax.add_collection(spots, autolim=False)
    return spots


def draw_scale_bar(ax: Axes, tissue: Tissue, *, size: float = 1.0) -> None:
    """Draw the slide's name and a scale bar of a round length into the strip below the tissue."""
    left, right, _, bottom = tissue.box(size)
    strip = tissue.strip(size)
    if tissue.name:
        ax.text(left, bottom + 0.3 * strip, shortened(tissue.name), ha="left", va="top", color=GREY)
    if tissue.microns_per_pixel is None:
        return
    microns = bar_length(0.3 * (right - left) * tissue.microns_per_pixel)
    x = right - microns / tissue.microns_per_pixel
    ax.plot([x, right], [bottom + 0.25 * strip] * 2, color="black", linewidth=1.6, solid_capstyle="butt", clip_on=False)
    ax.text((x + right) / 2, bottom + 0.4 * strip, length_label(microns), ha="center", va="top")


def shortened(name: str) -> str:
    """A name that fits beside the scale bar: of a long one, beginning and end, where names of slides differ."""
    if len(name) <= _LONGEST_NAME:
        return name
    kept = _LONGEST_NAME - 1
    return f"{name[: kept - kept // 2]}\N{HORIZONTAL ELLIPSIS}{name[-(kept // 2) :]}"


def bar_length(longest: float) -> float:
    """The longest of 1, 2 or 5 times a power of ten that is at most `longest`."""
    power = 10.0 ** np.floor(np.log10(longest))
    return float(power * max(step for step in (1.0, 2.0, 5.0) if step * power <= longest * (1 + 1e-9)))


def length_label(microns: float) -> str:
    """A length in micrometres, or in millimetres from 1000 micrometres on."""
    return f"{microns / 1000:g} mm" if microns >= 1000 else f"{microns:g} \N{MICRO SIGN}m"


def colour_bar(ax: Axes, spots: EllipseCollection, label: str) -> Axes:
    """A colour bar at the right of a tissue panel, with an arrow at each end that values go beyond."""
    values: Float64 = np.ma.masked_invalid(np.ma.asarray(spots.get_array())).compressed()
    low, high = spots.get_clim()
    below = bool(values.size and values.min() < low - 1e-9)
    above = bool(values.size and values.max() > high + 1e-9)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    # An inset follows the panel's height, which a colour bar beside a picture of fixed aspect does not.
    cax = ax.inset_axes((1.03, 0.2, 0.05, 0.68))
    bar = ax.figure.colorbar(spots, cax=cax, extend=extend, label=label)
    # The bar shows the colours of the scale, not those of half-transparent spots.
    if bar.solids is not None:
        bar.solids.set_alpha(1.0)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4, steps=[1, 2, 5, 10])
    bar.update_ticks()
    return cax
