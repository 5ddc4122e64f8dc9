"""Virtual spots on slides with H&E only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from spatialdata import SpatialData

from .. import _keys as keys
from .._checks import Range, above, between, checked, format_names
from .._geometry import PLAUSIBLE_MPP, VISIUM_PITCH_UM, neighbor_distance, transformed, visium_pitch
from .._links import shallow_copy
from .._settings import logger
from .._slides import Float64
from .._tables._cohorts import slide_rows
from .._tables._slots import check_table, coordinates, library_column
from ..io._concat import check_slide_name, concat, link_spots
from ._images import scans_of
from ._tiles import Level
from ._tissue import check_scale, tissue_level, tissue_mask

SPOT_SHARE = 0.55  # diameter of a spot over the pitch where it is not known: Visium's 55 of 100 um
NEIGHBORS = 4  # whose distances make the pitch


@checked(
    pitch_um=above(0),
    spot_diameter_um=above(0),
    min_tissue=Range("greater than 0 and at most 1", lambda share: 0 < share <= 1),
    microns_per_pixel=between(*PLAUSIBLE_MPP),
)
def tissue_grid(
    sdata: SpatialData,
    *,
    adata_ref: AnnData | None = None,
    pitch_um: float | None = None,
    spot_diameter_um: float | None = None,
    layout: Literal["grid", "hex"] = "hex",
    min_tissue: float = 0.5,
    image_key: str | Sequence[str] | None = None,
    slide: str | None = None,
    microns_per_pixel: float | Mapping[str, float] | None = None,
    library_key: str | None = None,
    table_key: str = keys.TABLE,
    copy: bool = False,
) -> SpatialData | None:
    """Lay virtual spots over the tissue of slides with H&E only.

    Spots are as far apart as those of the reference, so that their tiles overlap as those that a model was trained on.
    Tissue is segmented at about 8 um per pixel by Otsu's threshold; black borders and pen marks are left out.

    Parameters
    ----------
    sdata
        Slides with H&E images, as from :func:`spahgc.io.read_wsi`.
    adata_ref
        Table of the reference slides, from which pitch and spot diameter are taken. The pitch is the median distance
        to the four nearest spots in micrometers, and the median over slides.
    pitch_um
        Distance of neighboring spots, center to center, in micrometers, instead of `adata_ref`.
    spot_diameter_um
        Diameter of a spot in micrometers; `None` takes the reference's, or 55 % of the pitch.
    layout
        ``"hex"``: rows shifted by half a pitch, as on Visium; ``"grid"``: rows and columns, as on legacy arrays.
    min_tissue
        Least share of a spot's area that is tissue.
    image_key
        Name or names of images, a slide each; `None` takes all that are RGB, of several resolutions of a slide the
        finest.
    slide
        Name of the slide, with one image; `None` takes the image's name without ``_image``, and ``{that}_grid`` if
        there are shapes of that name.
    microns_per_pixel
        Micrometers per pixel of the images at full resolution; a number or a dict by image. `None` takes
        ``sdata.attrs["microns_per_pixel"]``.
    library_key
        Column of ``adata_ref.obs`` with the slides; `None` takes that of its link to shapes.
    table_key
        Name of the table.
    copy
        Return a new SpatialData that shares the images, and leave `sdata` unchanged.

    Returns
    -------
    `None`, or the new SpatialData. Written, for each slide:

    shapes ``{slide}``
        Circles with the diameter of the spots, in full-resolution pixels and all coordinate systems of the image.
    table ``table_key``
        One row per spot, no genes: link to the shapes, ``array_row``, ``array_col`` and ``tissue_fraction`` (share of
        the spot that is tissue) in ``obs``, ``obsm["spatial"]``, ``uns["spatial"]`` (thumbnail and scale factors),
        ``uns["spahgc_grid"]["params"]``. A table of that name from an earlier call is replaced.

    Raises
    ------
    KeyError
        If there is no image, or none of that name.
    ValueError
        If no tissue is found, the pitch or the micrometers per pixel are unknown or implausible, several images may be
        of one slide, or a table or shapes of other origin have the name. In all cases nothing is written.

    Examples
    --------
    >>> import spahgc
    >>> sdata = spahgc.datasets.synthetic_cohort(n_slides=1, n_patients=1)
    >>> spahgc.pp.tissue_grid(sdata, pitch_um=80, microns_per_pixel=1.0, table_key="grid")
    >>> sdata["grid"].n_obs > 0
    True
    """
    pitch, diameter = _spacing(adata_ref, pitch_um, spot_diameter_um, library_key)
    replaced: list[str] = []
    if table_key in sdata.tables:
        uns = sdata.tables[table_key].uns
        if keys.GRID not in uns:
            raise ValueError(
                f"sdata has a table {table_key!r} that is not a grid made by spahgc: it is not overwritten. Pass "
                f"table_key=<another name>, e.g. 'grid', here and to spahgc.pp.image_embedding."
            )
        region = keys.part(uns, keys.SPATIALDATA_ATTRS).get("region", [])
        replaced = [name for name in ([region] if isinstance(region, str) else region) if name in sdata.shapes]
    scans = scans_of(sdata, image_key, microns_per_pixel)
    names = _names(sdata, list(scans), slide, replaced)
    made = []
    for name, (image, levels) in zip(names, scans.items(), strict=True):
        mpp = levels[0].microns_per_pixel
        table = _grid(image, levels, name, pitch, diameter, layout, min_tissue)
        if microns_per_pixel is None:
            check_scale(levels, table.obsm[keys.SPATIAL], image)
        circles = link_spots(table, name, sdata.images[image], diameter=diameter / mpp, microns_per_pixel=mpp)
        made.append(SpatialData(shapes={name: circles}, tables={keys.TABLE: table}))
    whole = made[0] if len(made) == 1 else concat(made)
    scales = {image: levels[0].microns_per_pixel for image, levels in scans.items()}
    whole[keys.TABLE].uns[keys.GRID] = {
        keys.PARAMS: {
            "pitch_um": pitch,
            "spot_diameter_um": diameter,
            "layout": layout,
            "min_tissue": float(min_tissue),
            keys.MPP: dict(zip(names, scales.values(), strict=True)),
            "image": dict(zip(names, scales, strict=True)),
            "version": version("spahgc"),
        }
    }
    target = shallow_copy(sdata, table_key) if copy else sdata
    for name in replaced:
        del target.shapes[name]
    if table_key in target.tables:
        del target.tables[table_key]
    for name in names:
        target.shapes[name] = whole.shapes[name]
    target.tables[table_key] = whole[keys.TABLE]
    target.attrs[keys.MPP] = {**target.attrs.get(keys.MPP, {}), **scales}
    return target if copy else None


def _spacing(
    adata_ref: AnnData | None, pitch_um: float | None, spot_diameter_um: float | None, library_key: str | None
) -> tuple[float, float]:
    """Pitch and spot diameter in micrometers, given or measured on the reference."""
    if pitch_um is not None and adata_ref is None:
        return float(pitch_um), float(spot_diameter_um or SPOT_SHARE * pitch_um)
    if adata_ref is None or pitch_um is not None:
        raise ValueError("Pass either adata_ref=<table of the reference slides>, whose pitch is taken, or pitch_um.")
    check_table(adata_ref, what="adata_ref")
    xy = coordinates(adata_ref, what="adata_ref")
    pitches, diameters = {}, []
    for name, rows in slide_rows(adata_ref, library_column(adata_ref, library_key, what="adata_ref")).items():
        factors = keys.part(adata_ref.uns, keys.SPATIAL, name, "scalefactors")
        visium = visium_pitch(adata_ref.obs.iloc[rows], xy[rows])
        mpp = factors.get(keys.MPP) if visium is None else VISIUM_PITCH_UM / visium
        if mpp is None or (visium is None and len(rows) <= NEIGHBORS):
            problem = f"no '{keys.MPP}' in uns['{keys.SPATIAL}']" if mpp is None else "fewer than 5 spots"
            raise ValueError(f"The pitch of reference slide {name!r} cannot be measured ({problem}). Pass pitch_um.")
        pitches[name] = VISIUM_PITCH_UM if visium else neighbor_distance(xy[rows], NEIGHBORS) * float(mpp)
        if keys.SPOT_DIAMETER in factors:
            diameters.append(float(factors[keys.SPOT_DIAMETER]) * float(mpp))
    if max(pitches.values()) > 1.25 * min(pitches.values()):
        by_slide = ", ".join(f"{name!r} {value:.0f} um" for name, value in pitches.items())
        raise ValueError(f"The reference slides have different pitches ({by_slide}). Pass pitch_um.")
    pitch = float(np.median(list(pitches.values())))
    measured = float(np.median(diameters)) if diameters else SPOT_SHARE * pitch
    return pitch, float(spot_diameter_um or measured)


def _names(sdata: SpatialData, images: list[str], slide: str | None, replaced: Sequence[str]) -> list[str]:
    """Names of the slides."""
    if slide is not None and len(images) > 1:
        raise ValueError(
            f"slide={slide!r} names one slide, and there are the images {format_names(images)}. Pass image_key."
        )
    taken = {*sdata.shapes, *sdata.labels, *sdata.points, *sdata.images}.difference(replaced)
    names = []
    for image in images:
        name = image.removesuffix("_image").removesuffix("_full") if slide is None else slide
        check_slide_name(name)
        if name in taken and slide is None:
            name += "_grid"
        if name in taken:
            raise ValueError(f"sdata has an element {name!r} already. Pass slide=<another name>.")
        names.append(name)
        taken.add(name)
    return names


def _grid(
    image: str, levels: Sequence[Level], name: str, pitch: float, diameter: float, layout: str, least: float
) -> AnnData:
    """Table of the spots on the tissue of one slide."""
    mpp = levels[0].microns_per_pixel
    level = tissue_level(levels)
    mask, mask_mpp = tissue_mask(level.array, level.microns_per_pixel)
    row, column, centers = _lattice(levels[0].array.shape[1:], pitch / mpp, layout)
    in_mask = transformed(level.affine, centers) / (mask_mpp / level.microns_per_pixel)
    fraction = covered_fractions(mask, in_mask, diameter / 2 / mask_mpp)
    kept = fraction >= least
    logger.info(
        "%s: %d spots on the tissue of %r (%.0f %% of the image), %.4g um apart.",
        name, int(kept.sum()), image, 100 * mask.mean(), pitch,
    )  # fmt: skip
    if not kept.any():
        raise ValueError(
            f"No spot lies on tissue of image {image!r}: {100 * mask.mean():.2g} % of it is taken for tissue. Is it an "
            f"H&E image, are {mpp:.4g} um per pixel right, is min_tissue={least:g} or the pitch of {pitch:.4g} um too "
            "large?"
        )
    index = pd.Index([f"{name}_{x}x{y}" for x, y in zip(column[kept], row[kept], strict=True)], dtype=object)
    obs = {"array_row": row[kept], "array_col": column[kept], keys.TISSUE: fraction[kept].astype(np.float32)}
    genes = csr_matrix((len(index), 0), dtype=np.float32)
    return AnnData(X=genes, obs=pd.DataFrame(obs, index=index), obsm={keys.SPATIAL: centers[kept]})


def _lattice(size: tuple[int, int], pitch: float, layout: str) -> tuple[NDArray[np.int64], NDArray[np.int64], Float64]:
    """Rows, columns and centers (x, y) of the spots that an image of `size` (rows, columns) holds.

    Columns are numbered 0, 1, 2, not by twos as on Visium, which would be taken for a proof of Visium's 100 um.
    """
    hexagonal = layout == "hex"
    height = pitch * (np.sqrt(3) / 2 if hexagonal else 1)
    n_rows, n_columns = int(np.ceil(size[0] / height)) + 1, int(np.ceil(size[1] / pitch)) + 1
    row, column = (part.ravel().astype(np.int64) for part in np.mgrid[:n_rows, :n_columns])
    x = pitch / 2 + (column + (row % 2) / 2 * hexagonal) * pitch
    y = pitch / 2 + row * height
    inside = (x < size[1]) & (y < size[0])
    return row[inside], column[inside], np.column_stack([x, y])[inside]


def covered_fractions(mask: NDArray[np.bool_], centers: Float64, radius: float) -> Float64:
    """Share of each disk that is set in a mask, in whose pixels centers and radius are; 0 beyond its border."""
    reach = int(np.ceil(radius))
    dy, dx = (part.ravel() for part in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    disk = (dx**2 + dy**2 <= radius**2) | ((dx == 0) & (dy == 0))
    padded = np.pad(mask, reach)
    x, y = np.clip(np.floor(centers).astype(np.int64), 0, np.array(mask.shape[::-1]) - 1).T + reach
    place, total = y * padded.shape[1] + x, np.zeros(len(centers))
    for offset in dy[disk] * padded.shape[1] + dx[disk]:
        total += padded.ravel()[place + offset]
    return total / disk.sum()
