"""Scores of a prediction against measured expression, on arrays (n_obs, n_vars) -> (n_vars,), and their summaries.

Per gene: `pearson`, `spearman`, `rmse`, `mae`, `pearson_depth_removed`, `depth_only`, `morans_i`, `structure` and
`noise_ceiling`. Per slide: `morans_i_agreement`, `structure_agreement`, `share_above`. Over slides and patients:
`bootstrap`, `paired_difference`, `summarize`.
"""

from __future__ import annotations

from .._geometry import spatial_knn
from ._comparison import Interval, bootstrap, paired_difference, summarize
from ._scores import (
    GOOD,
    depth_only,
    mae,
    morans_i,
    morans_i_agreement,
    noise_ceiling,
    pearson,
    pearson_depth_removed,
    rmse,
    share_above,
    spearman,
    structure,
    structure_agreement,
)

__all__ = [
    "GOOD",
    "Interval",
    "bootstrap",
    "depth_only",
    "mae",
    "morans_i",
    "morans_i_agreement",
    "noise_ceiling",
    "paired_difference",
    "pearson",
    "pearson_depth_removed",
    "rmse",
    "share_above",
    "spatial_knn",
    "spearman",
    "structure",
    "structure_agreement",
    "summarize",
]
