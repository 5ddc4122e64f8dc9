"""A table and its image to SpatialData."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _keys
from .._checks import format_names
from .._links import microns_per_unit
from .._tables._slots import check_table, coordinates
from ._assemble import check_slide_name, image_name, link_spots, no_genes
from ._image import pyramid, read_image, resolutions, thumbnail
from ._wsi import load

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def from_anndata(
    adata: AnnData,
    image: str | PathLike[str] | NDArray[np.uint8] | SpatialData,
    *,
    slide: str | None = None,
    microns_per_pixel: float | None = None,
    spot_diameter_um: float | None = None,
) -> SpatialData:
    """Put a table of spots and its image together.

    For tables as squidpy and scanpy have them: spots with pixel coordinates, with or without genes, and the image
    apart. Several slides are joined with :func:`concat`.

    Parameters
    ----------
    adata
        Spots of one slide, with ``obsm["spatial"]``: (x, y) in pixels of `image` at full resolution. It is copied.
    image
        H&E image at full resolution: a file, read lazily as :func:`read_wsi` does, an array (height, width, 3) of
        uint8, or what :func:`read_wsi` returned.
    slide
        Name of the slide; `None` takes the image's if that was read with :func:`read_wsi`, the only key of
        ``uns["spatial"]``, or the file's name, in this order.
    microns_per_pixel
        Micrometres per pixel at full resolution; `None` takes that of ``uns["spatial"]``, the image's, or, where the
        spots lie on a Visium array (``obs["array_row"]``, ``obs["array_col"]``), the one that follows from its pitch.
    spot_diameter_um
        Diameter of a spot in micrometres; `None` takes ``spot_diameter_fullres`` of ``uns["spatial"]``.

    Returns
    -------
    SpatialData with, in the coordinate system ``{slide}`` (full-resolution pixels):

    - image ``{slide}_image``: multiscale, (c, y, x) uint8, channels r, g, b;
    - shapes ``{slide}``: one circle a spot, with the true radius;
    - table ``table``: `adata`, linked to the shapes by ``obs["region"]`` and ``obs["spot_id"]``, and
      ``uns["spatial"][slide]`` anew, with a thumbnail and the scale factors that squidpy reads;
    - ``attrs["microns_per_pixel"]``, by name of image.

    Raises
    ------
    FileNotFoundError
        If there is no such image.
    KeyError
        If there are no coordinates.
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If spots lie outside the image, scale or diameter are not known or absurd, the table holds several slides, or
        ``obs`` has a column ``region`` or ``spot_id`` that is something else.

    Examples
    --------
    >>> adata = sc.read_h5ad("section1.h5ad")
    >>> sdata = spahgc.io.from_anndata(adata, "section1.jpg", microns_per_pixel=0.97, spot_diameter_um=55)
    """
    from spatialdata import SpatialData
    from spatialdata.transformations import get_transformation

    check_table(adata, what="adata")
    xy = coordinates(adata, what="adata")
    if spot_diameter_um is not None and not spot_diameter_um > 0:
        raise ValueError(f"spot_diameter_um={spot_diameter_um!r} is a diameter in micrometres, above 0.")
    _check_columns(adata)
    library, factors = _library(adata, slide)
    known = factors.get(_keys.MPP) if microns_per_pixel is None else microns_per_pixel
    slide, name, element, recorded = _image(image, slide, library, known)
    full = resolutions(element)[0]
    _check_inside(xy, adata.obs_names, full.sizes["x"], full.sizes["y"])

    table = adata[:, []].copy() if adata.X is None else adata.copy()
    if table.X is None:
        table.X = no_genes(table.n_obs)
    table.obsm[_keys.SPATIAL] = xy
    table.uns[_keys.SPATIAL] = {slide: {"scalefactors": factors}}
    mpp, _ = microns_per_unit(
        table,
        slide,
        np.arange(table.n_obs),
        {},
        xy,
        given=microns_per_pixel,
        recorded=[(f"the image {name!r}", recorded, 1.0)],
    )
    if spot_diameter_um is not None:
        diameter = spot_diameter_um / mpp
    elif _keys.SPOT_DIAMETER in factors:
        diameter = float(factors[_keys.SPOT_DIAMETER])
    else:
        raise ValueError(
            f"The diameter of the spots is not known: adata.uns['{_keys.SPATIAL}'] has no '{_keys.SPOT_DIAMETER}'. "
            "Pass spot_diameter_um (55 on Visium, 100 on legacy arrays)."
        )
    picture, scale = thumbnail(element)
    circles = link_spots(
        table,
        slide,
        picture,
        scale,
        diameter=diameter,
        microns_per_pixel=mpp,
        transformations=get_transformation(element, get_all=True),
    )
    return SpatialData(
        images={name: element}, shapes={slide: circles}, tables={_keys.TABLE: table}, attrs={_keys.MPP: {name: mpp}}
    )


def _check_columns(adata: AnnData) -> None:
    """The columns of the link are free, or hold one."""
    attrs = adata.uns.get(_keys.SPATIALDATA_ATTRS, {})
    for column, link in ((_keys.REGION, "region_key"), (_keys.INSTANCE, "instance_key")):
        if column in adata.obs and attrs.get(link) != column:
            raise ValueError(
                f"adata.obs has a column {column!r}, which is where the link to the shapes is written. Rename it: "
                f"adata.obs = adata.obs.rename(columns={{{column!r}: <name>}})."
            )


def _library(adata: AnnData, slide: str | None) -> tuple[str | None, dict[str, Any]]:
    """The slide's name in ``uns["spatial"]``, if that has any, and its scale factors."""
    entries = adata.uns.get(_keys.SPATIAL, {})
    if not isinstance(entries, Mapping) or not entries:
        return None, {}
    if slide in entries:
        return slide, dict(entries[slide].get("scalefactors", {}))
    if len(entries) > 1:
        raise ValueError(
            f"adata.uns['{_keys.SPATIAL}'] holds several slides: {format_names(entries)}. Take the spots of one, "
            "adata[adata.obs[<library_key>] == <slide>], and pass slide=<its name>; spahgc.io.concat joins them."
        )
    name, entry = next(iter(entries.items()))
    return str(name), dict(entry.get("scalefactors", {}))


def _image(
    image: Any, slide: str | None, library: str | None, microns_per_pixel: float | None
) -> tuple[str, str, Any, float | None]:
    """Name of the slide, name of the image, its element, and the micrometres per pixel that go with it."""
    from spatialdata import SpatialData

    if isinstance(image, SpatialData):
        if len(image.images) != 1:
            raise ValueError(
                f"image has the images {format_names(image.images)}; one is needed: sdata.subset([<name>]), or read the file "
                "with spahgc.io.read_wsi."
            )
        name, element = next(iter(image.images.items()))
        own = name.removesuffix("_image")
        if slide not in {None, own}:
            raise ValueError(f"slide={slide!r}, but the image was read as {own!r}. Read it with slide={slide!r}.")
        check_slide_name(own)
        return own, name, element, image.attrs.get(_keys.MPP, {}).get(name)
    if isinstance(image, str | PathLike):
        found = load(image, slide=slide or library, microns_per_pixel=microns_per_pixel)
        return found.slide, image_name(found.slide), found.tree, found.microns_per_pixel
    slide = slide or library
    if slide is None:
        raise ValueError("Pass slide=<name>: neither the array nor adata.uns['spatial'] has one.")
    check_slide_name(slide)
    return slide, image_name(slide), pyramid(read_image(image), slide)[0], None


def _check_inside(xy: NDArray[np.float64], names: Any, width: int, height: int) -> None:
    outside = ((xy < 0) | (xy >= (width, height))).any(axis=1)
    if not outside.any():
        return
    (x0, y0), (x1, y1) = xy.min(axis=0), xy.max(axis=0)
    swapped = ((xy[:, ::-1] >= 0) & (xy[:, ::-1] < (width, height))).all()
    advice = (
        f"With x and y swapped all of them lie inside: adata.obsm['{_keys.SPATIAL}'] = "
        f"adata.obsm['{_keys.SPATIAL}'][:, ::-1]."
        if swapped
        else "Are the coordinates those of this image, at its full resolution?"
    )
    raise ValueError(
        f"{int(outside.sum())} of {len(xy)} spots lie outside the image of {width} x {height} pixels (width x height), "
        f"for instance {format_names(names[outside], most=3)}; x runs from {x0:.0f} to {x1:.0f}, y from {y0:.0f} to "
        f"{y1:.0f}. {advice}"
    )
