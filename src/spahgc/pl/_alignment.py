from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from spatialdata import SpatialData

from .. import _keys as keys
from .. import get
from .._checks import checked
from .._links import affine_between, pick_table, regions, systems_of
from .._slides import Float64
from ..io._image import resolutions, thumbnail
from ._drawing import GRAY, desaturate, palette, panels, pick_slide

_LINE = 44  # characters in a line of text
_REACH = 0.25  # how far beyond the image spots are drawn, as a fraction of its longer side; others are counted
_EVIDENCE = ("inside", "on_tissue", "outline", "expression", "score")
_TEXT = "inside {:.0%}, on tissue {:.0%}\noutline {:.2f} + expression {:.2f} = {:.2f}"


@checked()
def alignment(
    sdata: SpatialData,
    *,
    slide: str | None = None,
    table_key: str | None = None,
    ax: Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
) -> list[Axes]:
    """Draw the spots of a slide on its image, as given and as the best other candidate would place them.

    The title of the first panel is the verdict of :func:`spahgc.pp.check_alignment`; the evidence is below each panel.
    After ``check_alignment(sdata, fix=True)`` the first panel shows the spots before the correction, and the second
    their present positions.

    Parameters
    ----------
    sdata
        Slides after :func:`spahgc.pp.check_alignment`.
    slide
        Name of the slide; `None` if there is only one.
    table_key
        Name of the table; `None` takes the only one, or ``table``.
    ax, show
        As in :func:`expression`.

    Returns
    -------
    The two axes.

    Raises
    ------
    KeyError
        If the check was not run, or there is no such slide.
    ValueError
        If there are several slides and none is named.

    Examples
    --------
    >>> spahgc.pl.alignment(sdata, slide="C4")  # doctest: +SKIP
    """
    table = sdata.tables[pick_table(sdata, table_key)]
    name = pick_slide(get.alignment(table).index, slide)
    found = table.uns[keys.ALIGNMENT]["slides"][name]
    _, _, shapes, now = next(spots for spots in regions(sdata, table) if spots.name == name)
    element = sdata.images[str(found["image"])]
    picture, image_scale = thumbnail(element)
    array = resolutions(element)[0]
    shared = systems_of(shapes) & systems_of(array)
    to_pixels = image_scale * affine_between(shapes, array, name if name in shared else min(shared))[:2]
    affine = np.asarray(found["affine"], dtype=np.float64)
    if found["fixed"]:
        maps, title = {"given": np.linalg.inv(affine), "candidate": np.eye(3)}, f"as it is now: {found['fix']}"
    else:
        maps = {"given": np.eye(3), "candidate": affine}
        title = f"{'next best, ' if found['verdict'] in ('ok', 'unclear') else ''}undone: {found['candidate']}"
    titles = (f"{name}: {found['verdict']}", title)
    with panels(ax, 2, (6.4, 4.2), show=show) as axes:
        for one, (which, transform), title in zip(axes, maps.items(), titles, strict=True):
            points = now @ transform[:2, :2].T + transform[:2, 2]
            good = (found["verdict"] == "ok") == (which == "given")
            _draw(one, picture, points @ to_pixels[:, :2].T + to_pixels[:, 2], palette(2)[0 if good else 1])
            one.set_title(fill(title, _LINE))
            numbers = (float(found[f"{which}_{name}"]) for name in _EVIDENCE)
            one.set_xlabel(_TEXT.format(*numbers), color=GRAY)
    return axes


def _draw(ax: Axes, picture: NDArray[np.uint8], points: Float64, color: Any) -> None:
    """Draw the image and the spots as rings; spots far outside are counted, not shown."""
    size = np.array(picture.shape[1::-1])
    reach = _REACH * size.max()
    near = ((points >= -reach) & (points <= size + reach)).all(axis=1)
    ax.imshow(desaturate(picture), interpolation="antialiased")
    ax.scatter(
        points[near, 0],
        points[near, 1],
        s=float(np.clip(3000 / max(len(points), 1), 1.0, 9.0)),
        facecolors="none",
        edgecolors=[color],
        linewidths=0.8,
        rasterized=len(points) > 2000,
    )
    corners = np.vstack([points[near], [0, 0], size])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if not near.all():
        text = f"{int((~near).sum())} of {len(near)} spots are further out"
        ax.text(0.5, 0.02, text, transform=ax.transAxes, ha="center", va="bottom")
