"""Reading slides into SpatialData."""

from __future__ import annotations

from ._bins import bin_to_spots
from ._concat import concat
from ._from_anndata import from_anndata
from ._hest import read_hest
from ._st import read_st
from ._wsi import read_wsi
from ._wsidata import from_wsidata

__all__ = ["bin_to_spots", "concat", "from_anndata", "from_wsidata", "read_hest", "read_st", "read_wsi"]
