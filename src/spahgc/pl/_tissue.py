"""Slides as they are drawn: H&E thumbnail, spots, scale bar and color bar."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import format_names
from .._geometry import spatial_knn
from .._links import pick_table
from .._slides import Float64
from .._tables._slots import check_table, coordinates, library_column
from ._style import GRAY

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger("spahgc")

_MARGIN = 0.02  # around the spots, as a fraction of the longer side
_STRIP = 0.1  # height of the white strip below the tissue, as a fraction of the longer side
# H&E is drawn paler and grayer than it is, because pink and purple between spots change how their colors look.
_STRENGTH = 0.5
_SATURATION = 0.6
_LONGEST_NAME = 16
_PANEL_POINTS = 137  # usual width of a panel


@dataclass(frozen=True, eq=False)
class DrawnSlide:
    """A slide to draw; lengths are in pixels of the full-resolution image."""

    rows: AnnData  # its spots, a view
    name: str  # empty if unknown
    coordinates: Float64  # spot centers (x, y), (n_spots, 2)
    diameter: float  # of the spots as they are drawn
    image: NDArray[Any] | None  # H&E thumbnail (height, width, 3 or 4)
    image_scale: float  # thumbnail pixels per full-resolution pixel
    microns_per_pixel: float | None
    box: tuple[float, float, float, float]  # left, right, top and bottom of the spots with a margin
    strip: float  # height of the strip below them
    aspect: float  # height over width of a panel


def table_of(adata: AnnData | SpatialData) -> AnnData:
    """Table of a SpatialData, or the AnnData itself."""
    tables = getattr(adata, "tables", None)
    return check_table(adata if tables is None else tables[pick_table(adata)], what="adata")


def pick_slide(names: Iterable[str], slide: str | None) -> str:
    """Name of the slide, which may be left out if there is only one."""
    names = list(names)
    if slide is None and len(names) > 1:
        raise ValueError(f"There are {len(names)} slides. Pass slide=<one of them>; available: {format_names(names)}.")
    if slide is not None and slide not in names:
        raise KeyError(f"No slide {slide!r}. Available: {format_names(names)}.")
    return names[0] if slide is None else slide


def slide_of(adata: AnnData, slide: str | None, library_key: str | None, size: float) -> DrawnSlide:
    """One slide of a table; a table without a column of slides is one slide."""
    if library_key is not None or "region_key" in adata.uns.get(keys.SPATIALDATA_ATTRS, {}):
        libraries = adata.obs[library_column(adata, library_key, what="adata")].astype(str)
        name = pick_slide(libraries.unique(), slide)
        return _drawn(adata[(libraries == name).to_numpy()], name, size)
    pictures = list(adata.uns.get(keys.SPATIAL, {}))
    name = pictures[0] if len(pictures) == 1 else ""
    if slide is not None and slide != name:
        raise KeyError(
            f"No slide {slide!r}: the table does not say which slide each spot is on. "
            f"Pass library_key=<column of obs>; available: {format_names(adata.obs.columns)}."
        )
    return _drawn(adata, name, size)


def _drawn(rows: AnnData, name: str, size: float) -> DrawnSlide:
    positions = coordinates(rows, what="adata")
    entry: Mapping[str, Any] = rows.uns.get(keys.SPATIAL, {}).get(name, {})
    factors, images = entry.get("scalefactors", {}), entry.get("images", {})
    diameter, mpp = factors.get(keys.SPOT_DIAMETER), factors.get(keys.MPP)
    found = [part for part in ("hires", "lowres") if part in images and f"tissue_{part}_scalef" in factors]
    where = f"uns['{keys.SPATIAL}'][{name!r}]"
    if not found:
        log.info("%s has no image with a scale factor: the spots are drawn without tissue.", where)
    if mpp is None:
        log.info("%s['scalefactors'] has no '%s': no scale bar is drawn.", where, keys.MPP)
    if diameter is None:
        nearest = positions[spatial_knn(positions, 1)[:, 0]] if len(positions) > 1 else positions + 1
        diameter = 0.5 * float(np.median(np.linalg.norm(positions - nearest, axis=1))) or 0.5
        log.info("%s['scalefactors'] has no '%s': spots are drawn at half their pitch.", where, keys.SPOT_DIAMETER)
    low, high = positions.min(axis=0), positions.max(axis=0)
    margin = 0.6 * size * float(diameter) + _MARGIN * float((high - low).max())
    (left, top), (right, bottom) = (low - margin).tolist(), (high + margin).tolist()
    strip = _STRIP * max(right - left, bottom - top)
    return DrawnSlide(
        rows=rows,
        name=name,
        coordinates=positions,
        diameter=size * float(diameter),
        image=np.asarray(images[found[0]]) if found else None,
        image_scale=float(factors[f"tissue_{found[0]}_scalef"]) if found else 1.0,
        microns_per_pixel=None if mpp is None else float(mpp),
        box=(left, right, top, bottom),
        strip=strip,
        aspect=(bottom - top + strip) / (right - left),
    )


def draw_tissue(ax: Axes, slide: DrawnSlide, *, img: bool, name: str, scale_bar: bool = True) -> None:
    """Draw the thumbnail, cropped to the spots, and below it a name and a scale bar; y points down as in the image."""
    left, right, top, bottom = slide.box
    if img and slide.image is not None:
        height, width = slide.image.shape[:2]
        scale = slide.image_scale
        x0, x1 = max(0, int(np.floor(left * scale))), min(width, int(np.ceil(right * scale)))
        y0, y1 = max(0, int(np.floor(top * scale))), min(height, int(np.ceil(bottom * scale)))
        if x0 < x1 and y0 < y1:
            ax.imshow(
                desaturate(slide.image[y0:y1, x0:x1]),
                extent=(x0 / scale, x1 / scale, y1 / scale, y0 / scale),
                interpolation="antialiased",
                zorder=0,
            )
    ax.set(aspect="equal", xlim=(left, right), ylim=(bottom + slide.strip, top), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if name:
        ax.text(left, bottom + 0.3 * slide.strip, shorten(name), ha="left", va="top", color=GRAY)
    if scale_bar and slide.microns_per_pixel is not None:
        y, y_label = bottom + 0.25 * slide.strip, bottom + 0.4 * slide.strip
        draw_scale_bar(ax, (right, y), y_label, 0.3 * (right - left), slide.microns_per_pixel, va="top")


def draw_scale_bar(
    ax: Axes, end: tuple[float, float], y_label: float, longest: float, microns_per_unit: float, **text: Any
) -> None:
    """Draw a bar of a round length, at most `longest`, that ends at a point, and its label."""
    microns = bar_length(longest * microns_per_unit)
    right, y = end
    left = right - microns / microns_per_unit
    label = f"{microns / 1000:g} mm" if microns >= 1000 else f"{microns:g} \N{MICRO SIGN}m"
    ax.plot([left, right], [y, y], color="black", linewidth=1.6, solid_capstyle="butt", clip_on=False)
    ax.text((left + right) / 2, y_label, label, ha="center", **text)


def desaturate(image: NDArray[Any]) -> NDArray[np.float64]:
    """An image (uint8, or float in 0..1) mixed with gray and white, without its alpha channel."""
    rgb = np.asarray(image[..., :3], dtype=np.float64)
    if np.issubdtype(image.dtype, np.integer):
        rgb = rgb / np.iinfo(image.dtype).max
    gray = rgb.mean(axis=2, keepdims=True)
    return np.clip(1.0 - _STRENGTH * (1.0 - gray - _SATURATION * (rgb - gray)), 0.0, 1.0)


def draw_spots(
    ax: Axes,
    slide: DrawnSlide,
    values: Float64,
    *,
    cmap: str,
    norm: Normalize,
    alpha: float = 1.0,
    outline: bool = False,
    label: str | None = None,
) -> None:
    """Draw spots as circles colored by value, gray if it is missing, and a color bar if there is a label for it.

    With `outline` the circles have a thin gray rim, which shows those in the white middle of a diverging map.
    """
    n, (left, right, _, _) = len(slide.coordinates), slide.box
    points = _PANEL_POINTS * slide.diameter / (right - left)
    outline = outline and points > 2.5  # on dense arrays only the rim would be seen
    widths = np.full(n, slide.diameter)
    # One collection in data units, so a slide of many thousand spots is one artist.
    spots = EllipseCollection(
        widths,
        widths,
        np.zeros(n),
        units="xy",
        offsets=slide.coordinates,
        offset_transform=ax.transData,
        cmap=plt.get_cmap(cmap).with_extremes(bad="0.8"),
        norm=norm,
        alpha=alpha,
        edgecolors="0.55" if outline else "none",
        linewidths=0.07 * points if outline else 0.0,
    )
    spots.set_array(np.ma.masked_invalid(values))
    # Thousands of circles as vector paths make a PDF of many megabytes; text and axes stay vectors.
    spots.set_rasterized(n > 2000)
    ax.add_collection(spots, autolim=False)
    if label is not None:
        _color_bar(ax, spots, values[np.isfinite(values)], label)


def _color_bar(ax: Axes, spots: EllipseCollection, values: Float64, label: str) -> None:
    """Color bar at the right of a panel, with an arrow at each end that values exceed."""
    low, high = spots.get_clim()
    below, above = bool((values < low - 1e-9).any()), bool((values > high + 1e-9).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    # An inset follows the height of the panel; a color bar beside a picture of fixed aspect does not.
    bar = ax.figure.colorbar(spots, cax=ax.inset_axes((1.03, 0.2, 0.05, 0.68)), extend=extend, label=label)
    if bar.solids is not None:
        bar.solids.set_alpha(1.0)  # colors of the scale, not of half-transparent spots
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4, steps=[1, 2, 5, 10])
    bar.update_ticks()


def shorten(name: str) -> str:
    """Beginning and end of a long name, where names of slides differ."""
    kept = _LONGEST_NAME - 1
    return (
        name
        if len(name) <= _LONGEST_NAME
        else f"{name[: kept - kept // 2]}\N{HORIZONTAL ELLIPSIS}{name[-(kept // 2) :]}"
    )


def bar_length(longest: float) -> float:
    """Longest of 1, 2 or 5 times a power of ten that is at most `longest`."""
    power = 10.0 ** np.floor(np.log10(longest))
    return float(power * max(step for step in (1.0, 2.0, 5.0) if step * power <= longest * (1 + 1e-9)))
