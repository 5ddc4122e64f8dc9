"""Spots on their image as given, and where the alignment check would put them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import format_names
from .._links import affine_between, centres_of, pick_table, regions, shapes_of, systems_of
from .._slides import Float64
from ..pp._alignment_slide import thumbnail
from ._style import GREY, finish, given_axes, palette, style
from ._tissue import faded

if TYPE_CHECKING:
    from spatialdata import SpatialData

_LINE = 44
"""Characters in a line of the text below a panel."""
_LIMIT = 0.25
"""How far beyond the image spots are shown, as a share of its longer side; of those further away the number is told."""


def alignment(
    sdata: SpatialData,
    *,
    slide: str | None = None,
    table_key: str | None = None,
    axes: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
) -> list[Axes]:
    """Draw the spots of a slide on its image: as given, and as the best other candidate puts them.

    Below each panel is the evidence of :func:`spahgc.pp.check_alignment`, which has to be run first; the title of the
    first is the verdict. After ``check_alignment(sdata, fix=True)`` the first panel shows the spots as they were, and
    the second as they are.

    Parameters
    ----------
    sdata
        Slides, after :func:`spahgc.pp.check_alignment`.
    slide
        Name of the slide; needed where there are several.
    table_key
        Name of the table; `None` as in :func:`spahgc.pp.check_alignment`.
    axes
        Two axes to draw into; `None` makes a figure.
    show
        Show the figure; `None` does so in an interactive session where no `axes` were given.

    Returns
    -------
    The two axes.

    Raises
    ------
    KeyError
        If the check was not run, or there is no such slide.
    ValueError
        If there are several slides and none is named, or `axes` are not two.
    """
    table = sdata.tables[pick_table(sdata, table_key)]
    slides = table.uns.get(keys.ALIGNMENT, {}).get("slides", {})
    if not slides:
        raise KeyError(f"uns['{keys.ALIGNMENT}'] is missing. Run spahgc.pp.check_alignment(sdata) first.")
    if slide is None and len(slides) > 1:
        raise ValueError(
            f"{len(slides)} slides were checked. Pass slide=<one of them>; available: {format_names(slides)}."
        )
    name = next(iter(slides)) if slide is None else slide
    if name not in slides:
        raise KeyError(f"No slide {name!r} among those that were checked. Available: {format_names(slides)}.")
    found = slides[name]
    rows, instances = next((rows, ids) for region, rows, ids in regions(table) if region == name)
    shapes = shapes_of(sdata, table, name, rows, instances)
    picture, image_scale, array = thumbnail(sdata.images[str(found["image"])])
    system = name if name in systems_of(shapes) & systems_of(array) else min(systems_of(shapes) & systems_of(array))
    to_pixels = affine_between(shapes, array, system)
    now = centres_of(shapes, name)
    affine = np.asarray(found["affine"], dtype=np.float64)
    given, other = (now @ part[:2, :2].T + part[:2, 2] for part in _before_and_after(affine, bool(found["fixed"])))
    with style():
        own = axes is None
        drawn = (
            list(plt.subplots(1, 2, figsize=(6.4, 4.2), layout="constrained")[1])
            if axes is None
            else given_axes(axes, 2, why="as given, and the candidate")
        )
        parts = (("given", given, f"{name}: {found['verdict']}"), ("candidate", other, _title(found)))
        for ax, (which, centres, title) in zip(drawn, parts, strict=True):
            pixels = centres @ to_pixels[:2, :2].T + to_pixels[:2, 2]
            _draw(ax, picture, pixels * image_scale, good=_good(found, which))
            ax.set_title(fill(title, _LINE))
            ax.set_xlabel(_evidence(found, which), color=GREY)
        finish(drawn, own=own, show=show)
    return drawn


def _before_and_after(affine: Float64, fixed: bool) -> tuple[Float64, Float64]:
    """Maps from the present coordinates to those as they were given, and to the candidate's."""
    return (np.asarray(np.linalg.inv(affine)), np.eye(3)) if fixed else (np.eye(3), affine)


def _title(found: Mapping[str, Any]) -> str:
    if found["fixed"]:
        return f"as it is now: {found['fix']}"
    undone = found["verdict"] not in ("ok", "unclear")
    return f"{'undone' if undone else 'next best, undone'}: {found['candidate']}"


def _good(found: Mapping[str, Any], which: str) -> bool:
    return (found["verdict"] == "ok") == (which == "given")


def _evidence(found: Mapping[str, Any], which: str) -> str:
    inside, on, outline, expression, score = (
        float(found[f"{which}_{name}"]) for name in ("inside", "on_tissue", "outline", "expression", "score")
    )
    return f"inside {inside:.0%}, on tissue {on:.0%}\noutline {outline:.2f} + expression {expression:.2f} = {score:.2f}"


def _draw(ax: Axes, picture: NDArray[np.uint8], points: Float64, *, good: bool) -> None:
    """The image, and the spots as rings; those far outside are told, not shown."""
    height, width = picture.shape[:2]
    ax.imshow(faded(picture), interpolation="antialiased")
    blue, orange = palette(2)
    reach = _LIMIT * max(height, width)
    near = ((points >= -reach) & (points <= np.array([width, height]) + reach)).all(axis=1)
    size = float(np.clip(60000 / max(len(points), 1) / 20, 1.0, 9.0))
    ax.scatter(
        points[near, 0],
        points[near, 1],
        s=size,
        facecolors="none",
        edgecolors=[blue if good else orange],
        linewidths=0.8,
        rasterized=len(points) > 2000,
    )
    low = np.minimum(points[near].min(axis=0), 0) if near.any() else np.zeros(2)
    high = np.maximum(points[near].max(axis=0), [width, height]) if near.any() else np.array([width, height])
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(high[1], low[1])
    if not near.all():
        ax.text(
            0.5, 0.02, f"{int((~near).sum())} of {len(near)} spots are further out",
            transform=ax.transAxes, ha="center", va="bottom",
        )  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
