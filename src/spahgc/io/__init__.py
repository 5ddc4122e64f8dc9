"""Reading slides into SpatialData."""

from __future__ import annotations

from ._assemble import concat
from ._bins import bin_to_spots
from ._st import read_st
from ._wsi import read_wsi

__all__ = ["bin_to_spots", "concat", "read_st", "read_wsi"]
