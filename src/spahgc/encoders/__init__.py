"""Encoders: from the tile of a spot to its embedding."""

from __future__ import annotations

from ._base import Encoder
from ._table import load, table
from ._texture import texture, texture_names

__all__ = ["Encoder", "load", "table", "texture", "texture_names"]
