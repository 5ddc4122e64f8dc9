"""Scores of a prediction against measured expression, on arrays (n_obs, n_vars) -> (n_vars,), and their summaries.

Per gene: `pearson`, `spearman`, `rmse`, `mae`, `pearson_depth_removed`, `depth_only`, `structure` and `noise_ceiling`.
Per slide: `share_above`. Over slides and patients: `bootstrap`, `summarize`.
"""

from __future__ import annotations

from ._comparison import Interval, bootstrap, summarize
from ._scores import (
    GOOD,
    depth_only,
    mae,
    noise_ceiling,
    pearson,
    pearson_depth_removed,
    rmse,
    share_above,
    spearman,
    structure,
)

__all__ = [
    "GOOD",
    "Interval",
    "bootstrap",
    "depth_only",
    "mae",
    "noise_ceiling",
    "pearson",
    "pearson_depth_removed",
    "rmse",
    "share_above",
    "spearman",
    "structure",
    "summarize",
]
