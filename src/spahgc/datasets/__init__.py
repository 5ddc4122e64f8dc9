"""Slides to try the package on: drawn ones and published ones."""

from __future__ import annotations

from ._hest import hest
from ._published import alex, cscc, her2st, visium_bc
from ._synthetic import synthetic_cohort, synthetic_tables

__all__ = ["alex", "cscc", "her2st", "hest", "synthetic_cohort", "synthetic_tables", "visium_bc"]
