"""Slides to try the package on: drawn ones and published ones."""

from __future__ import annotations

from ._alex import alex
from ._cscc import cscc
from ._her2st import her2st
from ._hest import hest
from ._synthetic import synthetic_cohort
from ._visium_bc import visium_bc

__all__ = ["alex", "cscc", "her2st", "hest", "synthetic_cohort", "visium_bc"]
