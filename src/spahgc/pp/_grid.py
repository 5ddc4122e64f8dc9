"""Virtual spots on slides with H&E only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import format_names
from .._geometry import VISIUM_PITCH_UM, visium_pitch
from .._slides import Float64
from .._tables._cohorts import slide_rows
from .._tables._slots import check_table, coordinates, library_column
from ..io._assemble import check_slide_name, link_spots, no_genes
from ..io._image import thumbnail
from ..io._lattice import LAYOUTS
from ._scans import Scan, scans_of
from ._tissue import tissue_level, tissue_mask

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("spahgc")

SPOT_SHARE = 0.55
"""Diameter of a spot over the pitch where nothing says it: Visium's 55 of 100 um."""
NEIGHBOURS = 4
"""Nearest spots whose distances make the pitch: the nearest alone is too near where positions scatter."""
_AT_ONCE = 2**17  # spots whose tissue is looked up together


def tissue_grid(
    sdata: SpatialData,
    *,
    reference: AnnData | None = None,
    pitch_um: float | None = None,
    spot_um: float | None = None,
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

    The spots lie as far apart as those of the reference, so that their tiles overlap and neighbour each other as those
    that a model was trained on. Each image is a slide of its own; of the scan of one slide at several resolutions the
    finest is taken. Tissue is found at about 8 um per pixel: Otsu's threshold on the green channel, closing, filling of
    small holes and removal of small objects (scikit-image); black borders and green, blue and black pens are left out.

    Parameters
    ----------
    sdata
        Slides with H&E images, as from :func:`spahgc.io.read_wsi`.
    reference
        Table of the reference slides: its pitch and its spots' diameter are taken. The pitch is the median over spots
        of the distance to the four nearest, in micrometres, and over slides.
    pitch_um
        Distance of neighbouring spots, centre to centre, in micrometres, instead of `reference`.
    spot_um
        Diameter of a spot in micrometres; `None` takes the reference's, or 55 % of the pitch.
    layout
        ``"hex"``: rows that are shifted by half a pitch against each other, as on Visium; ``"grid"``: rows and columns,
        as on legacy arrays.
    min_tissue
        Share of a spot's area that is tissue, at least, from 0 (excluded) to 1.
    image_key
        Name or names of images; `None` takes all that are RGB, a slide each.
    slide
        Name of the slide, with one image; `None` takes the image's name without ``_image``, and ``{that}_grid`` where
        there are shapes of that name.
    microns_per_pixel
        Micrometres per pixel of the images at full resolution; a number or a dict by image. `None` takes
        ``sdata.attrs["microns_per_pixel"]``.
    library_key
        Column of ``reference.obs`` with the slides; `None` takes that of its link to shapes.
    table_key
        Name of the table.
    copy
        Return a new SpatialData that shares the images, and leave `sdata` as it is.

    Returns
    -------
    `None`, or the new SpatialData. Written, for each slide:

    shapes ``{slide}``
        Circles with the diameter of the spots, in full-resolution pixels and all coordinate systems of the image.
    table ``table_key``
        One row a spot, no genes: ``obs["region"]`` and ``obs["spot_id"]`` (link), ``obs["array_row"]``,
        ``obs["array_col"]``, ``obs["tissue_fraction"]`` (share of the spot that is tissue), ``obsm["spatial"]`` (x, y)
        in full-resolution pixels, ``uns["spatial"]`` (thumbnail and scale factors), and
        ``uns["spahgc_grid"]["params"]``. A table of that name that was made here is replaced.
    ``attrs["microns_per_pixel"]``
        By name of image.

    Raises
    ------
    KeyError
        If there is no image, or none of that name.
    TypeError
        If `sdata` is not a SpatialData.
    ValueError
        If no tissue is found, the pitch or the micrometres per pixel are not known or not plausible, several images may
        be of one slide, a table or shapes of other origin have the name, or an argument is not usable. In all cases
        nothing is written.

    See Also
    --------
    image_embedding : embeds the tiles of the spots.

    Examples
    --------
    >>> sdata = spahgc.io.read_wsi("biopsy.svs")
    >>> spahgc.pp.tissue_grid(sdata, reference=adata_ref)
    >>> spahgc.pp.image_embedding(sdata)
    >>> spahgc.tl.predict(adata_ref, sdata["table"])
    """
    from spatialdata import SpatialData

    if not isinstance(sdata, SpatialData):
        raise TypeError(
            f"sdata is a SpatialData, not {type(sdata).__name__}. A slide file becomes one with "
            "spahgc.io.read_wsi(path)."
        )
    if layout not in LAYOUTS:
        raise ValueError(f"layout is one of {format_names(LAYOUTS)}, not {layout!r}.")
    if not 0 < min_tissue <= 1:
        raise ValueError(f"min_tissue is a share above 0 and at most 1, not {min_tissue!r}.")
    pitch, spot = _spacing(reference, pitch_um, spot_um, library_key)
    replaced = _replaced(sdata, table_key)
    scans = scans_of(sdata, image_key, microns_per_pixel)
    names = _names(sdata, [scan.key for scan in scans], slide, replaced)
    made = [_grid(scan, name, pitch, spot, layout, min_tissue) for scan, name in zip(scans, names, strict=True)]
    table = _joined([part for part, _ in made], names)
    table.uns[keys.GRID] = {
        keys.PARAMS: {
            "pitch_um": pitch,
            "spot_um": spot,
            "layout": layout,
            "min_tissue": float(min_tissue),
            keys.MPP: {name: scan.levels[0].microns_per_pixel for scan, name in zip(scans, names, strict=True)},
            "image": {name: scan.key for scan, name in zip(scans, names, strict=True)},
            "version": version("spahgc"),
        }
    }
    target = _shared(sdata) if copy else sdata
    for name in replaced:
        del target.shapes[name]
    if table_key in target.tables:
        del target.tables[table_key]
    for name, (_, circles) in zip(names, made, strict=True):
        target.shapes[name] = circles
    target.tables[table_key] = table
    target.attrs[keys.MPP] = {
        **target.attrs.get(keys.MPP, {}),
        **{scan.key: scan.levels[0].microns_per_pixel for scan in scans},
    }
    return target if copy else None


def _spacing(
    reference: AnnData | None, pitch_um: float | None, spot_um: float | None, library_key: str | None
) -> tuple[float, float]:
    """Pitch and spot diameter in micrometres."""
    if (reference is None) == (pitch_um is None):
        raise ValueError(
            "Pass reference=<table of the reference slides>, whose pitch is taken, or pitch_um=<micrometres>"
            + (": one of them is missing." if reference is None else ", not both.")
        )
    for name, value in (("pitch_um", pitch_um), ("spot_um", spot_um)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} is a length in micrometres above 0, not {value!r}.")
    spots: list[float] = []
    if reference is not None:
        pitch, spots = _measured(reference, library_key)
    else:
        pitch = float(pitch_um or 0)
    if spot_um is not None:
        return pitch, float(spot_um)
    return pitch, float(np.median(spots)) if spots else SPOT_SHARE * pitch


def _measured(reference: AnnData, library_key: str | None) -> tuple[float, list[float]]:
    """The pitch of a reference in micrometres, and the diameters of its slides' spots where they are known."""
    from scipy.spatial import KDTree

    what = "reference"
    check_table(reference, what=what)
    xy = coordinates(reference, what=what)
    pitches, spots = {}, []
    for name, rows in slide_rows(reference, library_column(reference, library_key, what=what)).items():
        factors = reference.uns.get(keys.SPATIAL, {}).get(name, {}).get("scalefactors", {})
        visium = visium_pitch(reference.obs.iloc[rows], xy[rows])
        mpp = factors.get(keys.MPP)
        if visium is not None:
            pitches[name], mpp = VISIUM_PITCH_UM, VISIUM_PITCH_UM / visium
        elif mpp is None or len(rows) <= NEIGHBOURS:
            problem = "fewer than 5 spots" if mpp is not None else f"no '{keys.MPP}' in uns['{keys.SPATIAL}']"
            raise ValueError(f"The pitch of reference slide {name!r} cannot be measured ({problem}). Pass pitch_um.")
        else:
            distances, _ = KDTree(xy[rows]).query(xy[rows], k=NEIGHBOURS + 1)
            pitches[name] = float(np.median(np.asarray(distances)[:, 1:])) * float(mpp)
        if keys.SPOT_DIAMETER in factors:
            spots.append(float(factors[keys.SPOT_DIAMETER]) * float(mpp))
    low, high = min(pitches.values()), max(pitches.values())
    if high > 1.25 * low:
        told = ", ".join(f"{name!r} {value:.0f} um" for name, value in pitches.items())
        raise ValueError(f"The reference slides have different pitches ({told}). Pass pitch_um.")
    return float(np.median(list(pitches.values()))), spots


def _replaced(sdata: SpatialData, table_key: str) -> list[str]:
    """Shapes of the grid that is replaced; an error where the table is another one."""
    if table_key not in sdata.tables:
        return []
    table = sdata.tables[table_key]
    if keys.GRID not in table.uns:
        raise ValueError(
            f"sdata has a table {table_key!r} that is no grid of spahgc's: it is not overwritten. Pass "
            f"table_key=<another name>, e.g. 'grid', here and to spahgc.pp.image_embedding."
        )
    region = table.uns.get(keys.SPATIALDATA_ATTRS, {}).get("region", [])
    return [name for name in ([region] if isinstance(region, str) else region) if name in sdata.shapes]


def _names(sdata: SpatialData, images: list[str], slide: str | None, replaced: Sequence[str]) -> list[str]:
    """Names of the slides."""
    if slide is not None and len(images) > 1:
        raise ValueError(
            f"slide={slide!r} names one slide, and there are the images {format_names(images)}. Pass image_key."
        )
    taken = [name for name in (*sdata.shapes, *sdata.labels, *sdata.points, *sdata.images) if name not in replaced]
    names = []
    for image in images:
        name = image.removesuffix("_image").removesuffix("_full") if slide is None else slide
        check_slide_name(name)
        if name in taken and slide is None:
            name += "_grid"
        if name in taken or name in names:
            raise ValueError(f"sdata has an element {name!r} already. Pass slide=<another name>.")
        names.append(name)
    return names


def _grid(scan: Scan, name: str, pitch: float, spot: float, layout: str, min_tissue: float) -> tuple[AnnData, Any]:
    """Table and circles of one slide."""
    from anndata import AnnData
    from spatialdata.transformations import get_transformation

    full = scan.levels[0]
    level = tissue_level(scan.levels)
    mask, mask_mpp = tissue_mask(level.array, level.microns_per_pixel)
    row, column, centres = _lattice(full.array.shape[1:], pitch / full.microns_per_pixel, layout)
    factor = mask_mpp / level.microns_per_pixel
    in_mask = (centres @ level.affine[:2, :2].T + level.affine[:2, 2]) / factor
    fraction = _fractions(mask, in_mask, spot / 2 / mask_mpp)
    kept = fraction >= min_tissue
    logger.info(
        "%s: %d spots on the tissue of %r (%.0f %% of the image), %.4g um apart.",
        name, int(kept.sum()), scan.key, 100 * mask.mean(), pitch,
    )  # fmt: skip
    if not kept.any():
        found = f"{100 * mask.mean():.2g} % of it is" if mask.any() else "none of it is"
        raise ValueError(
            f"No spot lies on tissue of image {scan.key!r}: {found} taken for tissue. Is it an H&E image, are "
            f"{full.microns_per_pixel:.4g} um per pixel right, is min_tissue={min_tissue:g} or the pitch of "
            f"{pitch:.4g} um too large?"
        )
    index = pd.Index([f"{name}_{x}x{y}" for x, y in zip(column[kept], row[kept], strict=True)], dtype=object)
    obs = {"array_row": row[kept], "array_col": column[kept], keys.TISSUE: fraction[kept].astype(np.float32)}
    table = AnnData(X=no_genes(int(kept.sum())), obs=pd.DataFrame(obs, index=index), obsm={keys.SPATIAL: centres[kept]})
    picture, scale = thumbnail(scan.element)
    circles = link_spots(
        table,
        name,
        picture,
        scale,
        diameter=spot / full.microns_per_pixel,
        microns_per_pixel=full.microns_per_pixel,
        transformations=get_transformation(scan.element, get_all=True),
    )
    return table, circles


def _lattice(size: tuple[int, int], pitch: float, layout: str) -> tuple[NDArray[np.int64], NDArray[np.int64], Float64]:
    """Rows, columns and centres (x, y) of the spots that an image of `size` (rows, columns) holds.

    Columns are counted on, not by twos as on Visium: another step may take that for a proof of Visium's 100 um.
    """
    hexagonal = layout == "hex"
    height = pitch * (np.sqrt(3) / 2 if hexagonal else 1)
    row, column = (
        part.ravel().astype(np.int64)
        for part in np.meshgrid(
            np.arange(int(np.ceil(size[0] / height)) + 1), np.arange(int(np.ceil(size[1] / pitch)) + 1), indexing="ij"
        )
    )
    x = pitch / 2 + (column + (row % 2) / 2 * hexagonal) * pitch
    y = pitch / 2 + row * height
    inside = (x < size[1]) & (y < size[0])
    return row[inside], column[inside], np.column_stack([x, y])[inside]


def _fractions(mask: NDArray[np.bool_], centres: Float64, radius: float) -> Float64:
    """Share of each disc that is set in a mask; beyond its border nothing is. Centres and radius in its pixels."""
    reach = int(np.ceil(radius))
    dy, dx = (part.ravel() for part in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    disc = (dx**2 + dy**2 <= radius**2) | ((dx == 0) & (dy == 0))
    dy, dx = dy[disc], dx[disc]
    padded = np.pad(mask, reach + 1)
    out = np.empty(len(centres))
    for at in range(0, len(centres), _AT_ONCE):
        x, y = np.floor(centres[at : at + _AT_ONCE]).astype(np.int64).T
        x, y = (np.clip(part, 0, size - 1) + reach + 1 for part, size in zip((x, y), mask.shape[::-1], strict=True))
        out[at : at + _AT_ONCE] = padded[y[:, None] + dy, x[:, None] + dx].mean(axis=1)
    return out


def _joined(tables: list[AnnData], names: list[str]) -> AnnData:
    """One table of all slides."""
    import anndata as ad
    from spatialdata.models import TableModel

    if len(tables) == 1:
        return tables[0]
    table = ad.concat(tables)
    table.obs[keys.REGION] = table.obs[keys.REGION].astype("category")
    table.uns[keys.SPATIAL] = {name: part.uns[keys.SPATIAL][name] for name, part in zip(names, tables, strict=True)}
    return TableModel.parse(table, region=names, region_key=keys.REGION, instance_key=keys.INSTANCE)


def _shared(sdata: SpatialData) -> SpatialData:
    """A SpatialData with the same elements."""
    from spatialdata import SpatialData

    kinds = ("images", "labels", "points", "shapes", "tables")
    return SpatialData(**{kind: dict(getattr(sdata, kind)) for kind in kinds}, attrs=dict(sdata.attrs))
