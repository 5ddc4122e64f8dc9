"""Predictors of expression: interface and registry, SpaHGC, the published baselines in compact form, the controls."""

from __future__ import annotations

from .base import METHODS, Method, Run, check_needs, get_method, register
from .bleep import BLEEP
from .cellularity import Cellularity
from .context_kernel import ContextKernel
from .context_ridge import ContextRidge
from .coordinates import Coordinates
from .egn import EGN
from .gene_mean import GeneMean
from .hist2st import Hist2ST
from .histogene import HisToGene
from .knn import KNN
from .m2ost import M2OST
from .mclstexp import MclSTExp
from .ridge import Ridge
from .smoothed_ridge import SmoothedRidge
from .spahgc import SpaHGC
from .stnet import STNet
from .thitogene import THItoGene
from .triplex import TRIPLEX

__all__ = [
    "BLEEP",
    "EGN",
    "KNN",
    "M2OST",
    "METHODS",
    "TRIPLEX",
    "Cellularity",
    "ContextKernel",
    "ContextRidge",
    "Coordinates",
    "GeneMean",
    "HisToGene",
    "Hist2ST",
    "MclSTExp",
    "Method",
    "Ridge",
    "Run",
    "STNet",
    "SmoothedRidge",
    "SpaHGC",
    "THItoGene",
    "check_needs",
    "get_method",
    "register",
]
