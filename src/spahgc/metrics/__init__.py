"""Scores of a prediction against measured expression, on arrays (n_obs, n_vars) -> (n_vars,)."""

from __future__ import annotations

from ._agreement import depth_only, mae, pearson, pearson_depth_removed, rmse, spearman

__all__ = ["depth_only", "mae", "pearson", "pearson_depth_removed", "rmse", "spearman"]
