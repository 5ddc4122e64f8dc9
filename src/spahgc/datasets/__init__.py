"""Slides to try the package on: drawn ones and published ones."""

from __future__ import annotations

from ._hest import hest
from ._st import cscc, her2st
from ._synthetic import synthetic_cohort
from ._visium import alex, visium_bc

__all__ = ["alex", "cscc", "her2st", "hest", "synthetic_cohort", "visium_bc"]
