"""What figures share: look, axes and legends; slides as they are drawn, with thumbnail, spots, scale and color bar."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from spatialdata import SpatialData

from .. import _keys as keys
from .._checks import format_names
from .._geometry import spatial_knn
from .._links import pick_table
from .._slides import Float64
from .._tables._slots import check_table, coordinates, libraries, library_column
from ..pp._images import warn_left_behind

log = logging.getLogger("spahgc")

GRAY = "0.35"
MINUS = "\N{MINUS SIGN}"
_FONT_SIZE = 8.5
_RC: dict[Any, Any] = {
    "axes.labelpad": 3,
    "axes.labelsize": _FONT_SIZE,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlepad": 4,
    "axes.titlesize": _FONT_SIZE,
    "figure.dpi": 150,
    "font.size": _FONT_SIZE,
    "legend.fontsize": _FONT_SIZE,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 8),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    **dict.fromkeys(("xtick.major.width", "ytick.major.width"), 0.6),
}
_MARGIN = 0.02  # around the spots, as a fraction of the longer side
_STRIP = 0.1  # height of the white strip below the tissue, as a fraction of the longer side
# H&E is drawn paler and grayer than it is, because pink and purple between spots change how their colors look.
_STRENGTH = 0.5
_SATURATION = 0.6
_LONGEST_NAME = 16
_PANEL_POINTS = 137  # usual width of a panel


@contextmanager
def panels(
    ax: Any, n: int, size: tuple[float, float], *, show: bool | None, n_columns: int = 0, layout: Any = "constrained"
) -> Iterator[list[Axes]]:
    """Yield the user's `n` axes, or those of a new figure of `size` inches, and show the figure at the end."""
    with mpl.rc_context(_RC):
        if ax is None:
            n_columns = n_columns or n
            grid = plt.subplots(-(-n // n_columns), n_columns, figsize=size, layout=layout, squeeze=False)[1]
            axes = list(grid.flat)[:n]
            for spare in grid.flat[n:]:
                spare.remove()
        else:
            axes = list(np.ravel(np.asarray(ax, dtype=object)))
            if len(axes) != n or not all(isinstance(one, Axes) for one in axes):
                kinds = {type(one).__name__ for one in axes}
                raise ValueError(f"`ax` must hold {n} Axes, one per panel, got {len(axes)} ({', '.join(kinds)}).")
        yield axes
        if show or (show is None and ax is None and mpl.is_interactive()):
            plt.show()


def palette(n: int) -> list[Any]:
    """`n` colors (up to ten) that color-blind readers can tell apart."""
    import seaborn as sns

    return list(sns.color_palette("colorblind", n))


def legend_above(ax: Axes, **options: Any) -> None:
    """Add a legend above the axes, where it covers nothing."""
    legend = ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2, **options)
    legend.set_alignment("left")


def count(n: int, noun: str) -> str:
    """Number and noun, in the plural unless `n` is 1."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def shorten(name: str) -> str:
    """Beginning and end of a long name, where names of slides differ."""
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 2]}\N{HORIZONTAL ELLIPSIS}{name[1 - _LONGEST_NAME // 2 :]}"


def table_of(adata: AnnData | SpatialData, *, drawn: bool = False) -> AnnData:
    """Table of a SpatialData, or the AnnData itself; where spots are drawn, with a warning of stale positions."""
    tables = getattr(adata, "tables", None)
    table = check_table(adata if tables is None else tables[pick_table(adata)], what="adata")
    if drawn and tables is not None:
        with suppress(KeyError, ValueError):  # tables without shapes can be drawn, too
            warn_left_behind(adata, table)
    return table


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
    if library_key is not None or "region_key" in keys.part(adata.uns, keys.SPATIALDATA_ATTRS):
        of_spot = adata.obs[library_column(adata, library_key, what="adata")].astype(str)
        name = pick_slide(of_spot.unique(), slide)
        return DrawnSlide(adata[(of_spot == name).to_numpy()], name, size, alone=of_spot.nunique() == 1)
    pictures = list(libraries(adata))
    name = pictures[0] if len(pictures) == 1 else ""
    if slide is not None and slide != name:
        raise KeyError(
            f"No slide {slide!r}: the table does not say which slide each spot is on. "
            f"Pass library_key=<column of obs>; available: {format_names(adata.obs.columns)}."
        )
    return DrawnSlide(adata, name, size)


class DrawnSlide:
    """A slide to draw, with lengths in pixels of the full-resolution image; `size` multiplies the spot diameter.

    A slide that is `alone` in its table takes the only picture, whatever its name (HEST calls it ``ST``).
    """

    def __init__(self, rows: AnnData, name: str, size: float, *, alone: bool = False) -> None:
        self.rows, self.name = rows, name
        self.coordinates = coordinates(rows, what="adata")
        found = libraries(rows)
        entry: Mapping[str, Any] = found.get(name) or (next(iter(found.values())) if alone and len(found) == 1 else {})
        factors, images = keys.part(entry, "scalefactors"), keys.part(entry, "images")
        self.microns_per_pixel, diameter = factors.get(keys.MPP), factors.get(keys.SPOT_DIAMETER)
        self.image, self.image_scale = None, 1.0
        scales: dict[str, Any] = {
            part: factors.get(f"tissue_{part}_scalef", factors.get(part)) for part in images
        }  # Seurat: "hires"
        usable = [part for part, scale in scales.items() if scale and np.ndim(images[part]) == 3]
        if usable:
            finest = max(usable, key=lambda part: float(scales[part]))
            self.image, self.image_scale = np.asarray(images[finest]), float(scales[finest])
        if diameter is None:
            xy = self.coordinates
            nearest = xy[spatial_knn(xy, 1)[:, 0]] if len(xy) > 1 else xy + 1
            diameter = 0.5 * float(np.median(np.linalg.norm(xy - nearest, axis=1))) or 0.5
            log.info("Slide %r has no '%s': its spots are drawn at half their pitch.", name, keys.SPOT_DIAMETER)
        self.diameter = size * float(diameter)
        low, high = self.coordinates.min(axis=0), self.coordinates.max(axis=0)
        margin = 0.6 * self.diameter + _MARGIN * float((high - low).max())
        (left, top), (right, bottom) = (low - margin).tolist(), (high + margin).tolist()
        self.box = (left, right, top, bottom)
        self.strip = _STRIP * max(right - left, bottom - top)
        self.aspect = (bottom - top + self.strip) / (right - left)


def draw_tissue(ax: Axes, slide: DrawnSlide, *, img: bool, name: str, scale_bar: bool = True) -> None:
    """Draw the thumbnail, cropped to the spots, and below it a name and a scale bar; y points down as in the image."""
    left, right, top, bottom = slide.box
    if img and slide.image is not None:
        height, width = slide.image.shape[:2]
        scale = slide.image_scale
        x0, x1 = max(0, int(np.floor(left * scale))), min(width, int(np.ceil(right * scale)))
        y0, y1 = max(0, int(np.floor(top * scale))), min(height, int(np.ceil(bottom * scale)))
        if x0 < x1 and y0 < y1:
            extent = (x0 / scale, x1 / scale, y1 / scale, y0 / scale)
            ax.imshow(desaturate(slide.image[y0:y1, x0:x1]), extent=extent, interpolation="antialiased", zorder=0)
    ax.set(aspect="equal", xlim=(left, right), ylim=(bottom + slide.strip, top), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if name:
        ax.text(left, bottom + 0.3 * slide.strip, name, ha="left", va="top", color=GRAY)
    if scale_bar and slide.microns_per_pixel is not None:
        y, y_label = bottom + 0.25 * slide.strip, bottom + 0.4 * slide.strip
        draw_scale_bar(ax, (right, y), y_label, 0.3 * (right - left), float(slide.microns_per_pixel), va="top")


def draw_scale_bar(
    ax: Axes, end: tuple[float, float], y_label: float, longest: float, microns_per_unit: float, **text: Any
) -> None:
    """Draw a bar that ends at a point, and its label: 1, 2 or 5 times a power of ten micrometers, at most `longest`."""
    most = longest * microns_per_unit
    power = 10.0 ** np.floor(np.log10(most))
    microns = float(power * max(step for step in (1.0, 2.0, 5.0) if step * power <= most * (1 + 1e-9)))
    right, y = end
    left = right - microns / microns_per_unit
    label = f"{microns / 1000:g} mm" if microns >= 1000 else f"{microns:g} \N{MICRO SIGN}m"
    ax.plot([left, right], [y, y], color="black", linewidth=1.6, solid_capstyle="butt", clip_on=False)
    ax.text((left + right) / 2, y_label, label, ha="center", **text)


def desaturate(image: NDArray[Any]) -> Float64:
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
    cmap: str | Colormap,
    norm: Normalize,
    outline: bool = False,
    label: str | None = None,
) -> None:
    """Draw spots as circles colored by value, gray if it is missing, and a color bar if there is a label for it."""
    n, (left, right, _, _) = len(slide.coordinates), slide.box
    points = _PANEL_POINTS * slide.diameter / (right - left)
    # A rim shows spots in the white middle of a diverging map; on dense arrays nothing else would be seen.
    outline = outline and points > 2.5
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
        edgecolors="0.55" if outline else "none",
        linewidths=0.07 * points if outline else 0.0,
    )
    spots.set_array(np.ma.masked_invalid(values))
    # Thousands of circles as vector paths make a PDF of many megabytes; text and axes stay vectors.
    spots.set_rasterized(n > 2000)
    ax.add_collection(spots, autolim=False)
    if label is None:
        return
    (low, high), finite = spots.get_clim(), values[np.isfinite(values)]
    below, above = bool((finite < low - 1e-9).any()), bool((finite > high + 1e-9).any())
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    # An inset follows the height of the panel; a color bar beside a picture of fixed aspect does not.
    bar = ax.figure.colorbar(spots, cax=ax.inset_axes((1.03, 0.2, 0.05, 0.68)), extend=extend, label=label)
    bar.outline.set_visible(False)
    bar.locator = MaxNLocator(4, steps=[1, 2, 5, 10])
    bar.update_ticks()
