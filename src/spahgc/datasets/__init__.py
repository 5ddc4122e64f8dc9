"""Slides to try the package on: drawn ones and published ones."""

from __future__ import annotations

from ._cscc import cscc
from ._her2st import her2st
from ._synthetic import synthetic_cohort

__all__ = ["cscc", "her2st", "synthetic_cohort"]
