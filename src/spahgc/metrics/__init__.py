"""Scores of a prediction against measured expression, on arrays (n_obs, n_vars) -> (n_vars,)."""

from __future__ import annotations

from ._agreement import depth_only, mae, pearson, pearson_depth_removed, rmse, share_above, spearman
from ._comparison import paired_difference, summarize
from ._intervals import Interval, bootstrap

__all__ = [
    "Interval",
    "bootstrap",
    "depth_only",
    "mae",
    "paired_difference",
    "pearson",
    "pearson_depth_removed",
    "rmse",
    "share_above",
    "spearman",
    "summarize",
]
