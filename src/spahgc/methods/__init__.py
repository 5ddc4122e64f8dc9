"""Predictors of expression: the interface, the registry, SpaHGC and the controls."""

from __future__ import annotations

from .base import METHODS, Method, Run, get_method, register
from .context_ridge import ContextRidge
from .gene_mean import GeneMean
from .knn import KNN
from .ridge import Ridge
from .spahgc import SpaHGC

__all__ = ["KNN", "METHODS", "ContextRidge", "GeneMean", "Method", "Ridge", "Run", "SpaHGC", "get_method", "register"]
