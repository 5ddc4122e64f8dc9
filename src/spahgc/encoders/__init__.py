"""Encoders: from the tile of a spot to its embedding."""

from __future__ import annotations

from ._texture import texture, texture_names

__all__ = ["texture", "texture_names"]
