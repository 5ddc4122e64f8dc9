"""Predictors of expression: the interface, the registry, SpaHGC and the controls."""

from __future__ import annotations

from .base import METHODS, Method, Run, check_needs, get_method, register
from .bleep import BLEEP
from .cellularity import Cellularity
from .context_ridge import ContextRidge
from .coordinates import Coordinates
from .gene_mean import GeneMean
from .knn import KNN
from .ridge import Ridge
from .smoothed_ridge import SmoothedRidge
from .spahgc import SpaHGC
from .stnet import STNet

__all__ = [
    "BLEEP",
    "KNN",
    "METHODS",
    "Cellularity",
    "ContextRidge",
    "Coordinates",
    "GeneMean",
    "Method",
    "Ridge",
    "Run",
    "STNet",
    "SmoothedRidge",
    "SpaHGC",
    "check_needs",
    "get_method",
    "register",
]
