"""Reading slides into SpatialData."""

from __future__ import annotations

from ._assemble import concat
from ._st import read_st

__all__ = ["concat", "read_st"]
