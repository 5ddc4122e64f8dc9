"""Distance of neighbouring spots in reference and target: what a neighbourhood is has to be alike."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _keys as keys
from .._tables import _slots as check
from .._tables._cohorts import slide_rows

if TYPE_CHECKING:
    from anndata import AnnData

RATIO = 2.0
"""How much further or nearer the target's spots may be, before a warning."""


def pitches(adata: AnnData, use_rep: str, library_key: str | None, *, what: str) -> dict[str, float]:
    """Median distance of neighbouring spots of each slide, micrometres.

    Slides whose scale the embedding does not record (``uns[use_rep]["params"]["microns_per_pixel"]``) are left out, and
    those with a single spot.
    """
    from scipy.spatial import KDTree

    entry: Any = adata.uns.get(use_rep)
    params = entry.get(keys.PARAMS, {}) if isinstance(entry, Mapping) else {}
    scale = params.get(keys.MPP)
    if not isinstance(scale, Mapping):
        return {}
    positions = check.coordinates(adata, what=what)
    out = {}
    for name, rows in slide_rows(adata, check.library_column(adata, library_key, what=what)).items():
        if name in scale and len(rows) > 1:
            nearest = np.asarray(KDTree(positions[rows]).query(positions[rows], k=2)[0])[:, 1]
            out[name] = float(np.median(nearest)) * float(scale[name])
    return out


def warn_of_pitch(reference: Mapping[str, float], target: Mapping[str, float], *, stacklevel: int) -> None:
    """Warn of target slides whose spots are more than twice as far apart as the reference's, or less than half.

    Methods that look at the neighbours of a spot were trained on neighbours at the reference's distance.
    """
    if not reference:
        return
    usual = float(np.median(list(reference.values())))
    off = {name: pitch for name, pitch in target.items() if not usual / RATIO <= pitch <= usual * RATIO}
    if off:
        told = ", ".join(f"{name!r} {pitch:.3g}" for name, pitch in off.items())
        warnings.warn(
            f"Neighbouring spots are {usual:.3g} um apart in the reference, and in the target {told} um: what is "
            f"learnt from the neighbours of a spot does not carry over. Give the target spots at the reference's "
            f"distance (H&E only: spahgc.pp.tissue_grid; bins and cells: spahgc.io.bin_to_spots), or check "
            f"microns_per_pixel of both.",
            UserWarning,
            stacklevel=stacklevel,
        )
