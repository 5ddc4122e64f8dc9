"""Preprocessing: from slides to embeddings."""

from __future__ import annotations

from ._check_alignment import check_alignment
from ._embedding import image_embedding
from ._genes import harmonize_genes
from ._grid import tissue_grid
from ._quality import tile_quality

__all__ = ["check_alignment", "harmonize_genes", "image_embedding", "tile_quality", "tissue_grid"]
