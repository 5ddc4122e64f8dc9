"""Preprocessing: from slides to embeddings."""

from __future__ import annotations

from ._embedding import image_embedding

__all__ = ["image_embedding"]
