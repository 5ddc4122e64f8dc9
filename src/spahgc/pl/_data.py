"""What the tissue plots read from a table."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _keys as keys
from .._checks import format_names
from .._slides import Float64
from .._tables._predictions import panel, stored_at
from .._tables._slots import check_table, coordinates, library_column
from ..get import trust_frame
from ._tissue import Tissue

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

log = logging.getLogger("spahgc")


def table_of(data: AnnData | SpatialData) -> AnnData:
    """The table of a SpatialData, or the AnnData itself."""
    tables = getattr(data, "tables", None)
    if tables is None:
        return check_table(data, what="data")
    if keys.TABLE not in tables:
        raise KeyError(
            f"data has no table '{keys.TABLE}'. Available: {format_names(tables)}. Pass one of them: sdata[<name>]."
        )
    return check_table(tables[keys.TABLE], what=f"data['{keys.TABLE}']")


def slide_of(adata: AnnData, slide: str | None, library_key: str | None) -> tuple[AnnData, Tissue]:
    """The rows of one slide (a view), and the slide as it is drawn.

    A table that does not say which slide its spots are on is taken as one slide.
    """
    pictures: Mapping[str, Any] = adata.uns.get(keys.SPATIAL, {})
    if library_key is None and "region_key" not in adata.uns.get(keys.SPATIALDATA_ATTRS, {}):
        name = next(iter(pictures)) if len(pictures) == 1 else ""
        if slide is not None and slide != name:
            raise KeyError(
                f"No slide {slide!r}: the table does not say which slide each spot is on. "
                f"Pass library_key=<column of obs>; available: {format_names(adata.obs.columns)}."
            )
        return adata, tissue_of(adata, name)
    libraries = adata.obs[library_column(adata, library_key, what="data")].astype(str)
    names = list(dict.fromkeys(libraries))
    if slide is None and len(names) > 1:
        raise ValueError(
            f"The table holds {len(names)} slides. Pass slide=<one of them>; available: {format_names(names)}."
        )
    if slide is not None and slide not in names:
        raise KeyError(f"No slide {slide!r}. Available: {format_names(names)}.")
    name = names[0] if slide is None else slide
    rows = adata if len(names) == 1 else adata[(libraries == name).to_numpy()]
    return rows, tissue_of(rows, name)


def tissue_of(rows: AnnData, name: str) -> Tissue:
    """The slide `name`, whose spots are `rows`, as it is drawn."""
    positions = coordinates(rows, what="data")
    entry: Mapping[str, Any] = rows.uns.get(keys.SPATIAL, {}).get(name, {})
    factors: Mapping[str, Any] = entry.get("scalefactors", {})
    image, scale = None, 1.0
    for resolution in ("hires", "lowres"):
        if resolution in entry.get("images", {}) and f"tissue_{resolution}_scalef" in factors:
            image, scale = np.asarray(entry["images"][resolution]), float(factors[f"tissue_{resolution}_scalef"])
            break
    where = f"uns['{keys.SPATIAL}'][{name!r}]"
    if image is None:
        log.info("%s has no image with its scale factor: the spots are drawn without tissue.", where)
    if keys.MPP not in factors:
        log.info("%s['scalefactors'] has no '%s': no scale bar is drawn.", where, keys.MPP)
    if keys.SPOT_DIAMETER in factors:
        diameter = float(factors[keys.SPOT_DIAMETER])
    else:
        diameter = 0.5 * pitch(positions)
        log.info("%s['scalefactors'] has no '%s': spots are drawn at half their pitch.", where, keys.SPOT_DIAMETER)
    mpp = float(factors[keys.MPP]) if keys.MPP in factors else None
    return Tissue(name, positions, diameter, image, scale, mpp)


def pitch(positions: Float64) -> float:
    """Median distance of a spot to its nearest neighbour; 1 where there is none."""
    from scipy.spatial import KDTree

    if len(positions) < 2:
        return 1.0
    distances = np.asarray(KDTree(positions).query(positions, k=2)[0])
    distance = float(np.median(distances[:, 1]))
    return distance if distance > 0 else 1.0


def panel_of(adata: AnnData, key: str) -> list[str]:
    """The predicted genes."""
    import pandas as pd

    if key not in adata.obsm and stored_at(adata, key) is None:
        raise KeyError(
            f"data.obsm has no prediction {key!r}. Available in obsm: {format_names(adata.obsm)}. "
            "Run spahgc.tl.predict first, or pass key=<its key_added>."
        )
    if key in adata.obsm and not isinstance(adata.obsm[key], pd.DataFrame):
        raise TypeError(
            f"data.obsm[{key!r}] is a {type(adata.obsm[key]).__name__}; a prediction is a DataFrame with a column per "
            "gene. Run spahgc.tl.predict, or pass key=<its key_added>."
        )
    return panel(adata, key)


def verdicts_of(adata: AnnData, key: str) -> dict[str, str]:
    """Verdict on each gene of a prediction, best gene first; empty where it has no trust."""
    entry = adata.uns.get(key)
    if not isinstance(entry, Mapping) or "trust" not in entry:
        return {}
    return {str(gene): str(verdict) for gene, verdict in trust_frame(entry["trust"])["verdict"].items()}


def check_panel(genes: Sequence[str], panel: Sequence[str], measured: Any) -> None:
    """All genes are in the panel."""
    for gene in genes:
        if gene in panel:
            continue
        close = difflib.get_close_matches(gene, panel, n=3) or difflib.get_close_matches(gene.upper(), panel, n=3)
        closest = f" Closest: {format_names(close)}." if close else ""
        here = " It was measured, not predicted: pass panel=[...] to spahgc.tl.predict." if gene in measured else ""
        raise KeyError(f"Gene {gene!r} is not in the panel of {len(panel)} predicted genes.{closest}{here}")
