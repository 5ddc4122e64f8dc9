"""Predictors of expression: interface and registry, SpaHGC, compact forms of published methods, and controls.

Classes of methods are imported on first use, so that linear methods and KNN never load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .._slides import Cohort, Slide
from .base import BUILT_IN, METHODS, Evidence, Method, Run, check_needs, get_method, parameters, register

if TYPE_CHECKING:
    from .bleep import BLEEP
    from .egn import EGN
    from .hist2st import Hist2ST
    from .histogene import HisToGene
    from .kernel import ContextKernel
    from .knn import KNN
    from .linear import Cellularity, ContextRidge, Coordinates, Fast, GeneMean, LowRankRidge, Ridge, SmoothedRidge
    from .m2ost import M2OST
    from .mclstexp import MclSTExp
    from .network import NetworkMethod
    from .spahgc import SpaHGC
    from .stnet import STNet
    from .thitogene import THItoGene
    from .triplex import TRIPLEX

_MODULES = {cls: module for module, _, cls in (place.partition(":") for place in BUILT_IN.values())}
_MODULES["NetworkMethod"] = "network"

__all__ = [
    "BLEEP",
    "EGN",
    "KNN",
    "M2OST",
    "METHODS",
    "TRIPLEX",
    "Cellularity",
    "Cohort",
    "ContextKernel",
    "ContextRidge",
    "Coordinates",
    "Evidence",
    "Fast",
    "GeneMean",
    "HisToGene",
    "Hist2ST",
    "LowRankRidge",
    "MclSTExp",
    "Method",
    "NetworkMethod",
    "Ridge",
    "Run",
    "STNet",
    "Slide",
    "SmoothedRidge",
    "SpaHGC",
    "THItoGene",
    "check_needs",
    "get_method",
    "parameters",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Available: {', '.join(__all__)}.")
