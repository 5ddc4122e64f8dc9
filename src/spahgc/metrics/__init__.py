"""Scores of a prediction against measured expression, on arrays (n_obs, n_vars) -> (n_vars,), and what is made of them.

Per gene: `pearson`, `spearman`, `rmse`, `mae`, `pearson_depth_removed`, `depth_only`, `morans_i`, `structure` and
`noise_ceiling`. Per slide: `morans_i_agreement`, `structure_agreement`, `share_above`. Over slides and patients:
`bootstrap`, `paired_difference`, `summarize`.
"""

from __future__ import annotations

from ._agreement import depth_only, mae, pearson, pearson_depth_removed, rmse, share_above, spearman
from ._comparison import paired_difference, summarize
from ._intervals import Interval, bootstrap
from ._noise import noise_ceiling
from ._spatial import morans_i, morans_i_agreement, nearest_spots
from ._structure import structure, structure_agreement

__all__ = [
    "Interval",
    "bootstrap",
    "depth_only",
    "mae",
    "morans_i",
    "morans_i_agreement",
    "nearest_spots",
    "noise_ceiling",
    "paired_difference",
    "pearson",
    "pearson_depth_removed",
    "rmse",
    "share_above",
    "spearman",
    "structure",
    "structure_agreement",
    "summarize",
]
