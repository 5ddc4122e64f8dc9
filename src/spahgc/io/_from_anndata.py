"""A table of spots and its image to SpatialData."""

from __future__ import annotations

from os import PathLike

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from spatialdata import SpatialData

from .. import _keys
from .._checks import above, between, checked, format_names
from .._geometry import PLAUSIBLE_MPP
from .._links import microns_per_unit
from .._tables._slots import check_table, coordinates, libraries
from ._concat import check_inside, check_slide_name, link_spots
from ._image import pyramid, read_image, resolutions
from ._wsi import load


@checked(microns_per_pixel=between(*PLAUSIBLE_MPP), spot_diameter_um=above(0))
def from_anndata(
    adata: AnnData,
    image: str | PathLike[str] | NDArray[np.uint8] | SpatialData,
    *,
    slide: str | None = None,
    microns_per_pixel: float | None = None,
    spot_diameter_um: float | None = None,
) -> SpatialData:
    """Combine a table of spots, as squidpy and scanpy read it, with its H&E image.

    Parameters
    ----------
    adata
        Spots of one slide, with or without genes, with ``obsm["spatial"]``: (x, y) in full-resolution pixels of
        `image`. It is copied.
    image
        H&E image at full resolution: a file (read lazily, see :func:`read_wsi`), an array (height, width, 3) of uint8,
        or the result of :func:`read_wsi`.
    slide
        Name of the slide. Defaults to that of a `read_wsi` image, the only key of ``uns["spatial"]``, or the file name,
        in this order.
    microns_per_pixel
        Micrometers per full-resolution pixel. Defaults to the value in ``uns["spatial"]``, that of the image, or, for a
        Visium array (``obs["array_row"]``, ``obs["array_col"]``), the one that follows from its pitch.
    spot_diameter_um
        Spot diameter in micrometers. Defaults to ``spot_diameter_fullres`` of ``uns["spatial"]``.

    Returns
    -------
    SpatialData in the layout of :func:`read_st`: ``table`` is `adata`, linked to the shapes, with a new
    ``uns["spatial"]``. ``attrs["microns_per_pixel"]`` holds the scale by name of image.

    Raises
    ------
    FileNotFoundError, KeyError, ValueError
        If image or coordinates are missing, spots lie outside the image, scale or diameter are unknown, or the table
        holds several slides.

    Examples
    --------
    >>> import spahgc
    >>> cohort = spahgc.datasets.synthetic_cohort(n_slides=1, n_patients=1, n_spots=9, n_genes=16)
    >>> image = cohort["S1_image"]["scale0"]["image"].transpose("y", "x", "c").to_numpy()
    >>> spahgc.io.from_anndata(cohort["table"], image, spot_diameter_um=55).attrs
    {'microns_per_pixel': {'S1_image': 1.0}}
    """
    check_table(adata, what="adata")
    xy = coordinates(adata, what="adata")
    attrs = _keys.part(adata.uns, _keys.SPATIALDATA_ATTRS)
    for column, link in ((_keys.REGION, "region_key"), (_keys.INSTANCE, "instance_key")):
        if column in adata.obs and attrs.get(link) != column:
            raise ValueError(
                f"adata.obs has an unrelated column {column!r}, where the link to the shapes is written. Rename it: "
                f"adata.obs = adata.obs.rename(columns={{{column!r}: <name>}})."
            )
    entries, library, factors = libraries(adata), None, {}
    if entries:
        if slide not in entries and len(entries) > 1:
            raise ValueError(
                f"adata.uns['{_keys.SPATIAL}'] holds several slides: {format_names(entries)}. Select the spots of one, "
                "adata[adata.obs[<library_key>] == <slide>], pass slide=<its name>, and join the slides with "
                "spahgc.io.concat."
            )
        library = slide if slide in entries else str(next(iter(entries)))
        factors = dict(_keys.part(entries, library, "scalefactors"))
    if isinstance(image, str | PathLike):
        known = microns_per_pixel or factors.get(_keys.MPP)
        image, slide = load(image, slide=slide or library, microns_per_pixel=known), None
    elif not isinstance(image, SpatialData):
        if slide is None and library is None:
            raise ValueError("Pass slide=<name>: neither the array nor adata.uns['spatial'] names the slide.")
        name = slide or library or ""
        check_slide_name(name)
        image = SpatialData(images={f"{name}_image": pyramid(read_image(image), name)})
    if len(image.images) != 1:
        raise ValueError(
            f"`image` must have one image, got {format_names(image.images)}. Select one with sdata.subset([<name>]), "
            "or read the file with spahgc.io.read_wsi."
        )
    name, element = next(iter(image.images.items()))
    own = name.removesuffix("_image")
    if slide not in {None, own}:
        raise ValueError(f"slide={slide!r}, but the image was read as {own!r}. Read it with slide={slide!r}.")
    check_slide_name(own)
    sizes = resolutions(element)[0].sizes
    check_inside(xy, adata.obs_names, (sizes["x"], sizes["y"]), f"adata.obsm['{_keys.SPATIAL}']", factors=factors)

    table = adata[:, []].copy() if adata.X is None else adata.copy()
    if table.X is None:
        table.X = csr_matrix((table.n_obs, 0), dtype=np.float32)
    table.obsm[_keys.SPATIAL] = xy
    table.uns[_keys.SPATIAL] = {own: {"scalefactors": factors}}
    source = (f"the image {name!r}", image.attrs.get(_keys.MPP, {}).get(name), 1.0)
    mpp, _ = microns_per_unit(table, own, np.arange(table.n_obs), {}, xy, given=microns_per_pixel, recorded=[source])
    if spot_diameter_um is None and _keys.SPOT_DIAMETER not in factors:
        raise ValueError(
            f"The spot diameter is unknown: adata.uns['{_keys.SPATIAL}'] has no '{_keys.SPOT_DIAMETER}'. Pass "
            "`spot_diameter_um` (55 on Visium, 100 on legacy arrays)."
        )
    diameter = factors[_keys.SPOT_DIAMETER] if spot_diameter_um is None else spot_diameter_um / mpp
    shapes = link_spots(table, own, element, diameter=diameter, microns_per_pixel=mpp)
    return SpatialData(
        images={name: element}, shapes={own: shapes}, tables={_keys.TABLE: table}, attrs={_keys.MPP: {name: mpp}}
    )
