"""Networks of the published baselines in compact form, on embeddings, and the loop that fits them.

Written from the papers; the methods that use them name them and say what they leave out.
"""

from __future__ import annotations

from ..training import few_threads
from .contrast import BLEEP, MclSTExp
from .exemplars import EGN
from .network import Inputs, Network, Step, Training, fit_network, ready
from .plain import STNet
from .positions import grid_positions
from .tokens import Hist2ST, HisToGene, THItoGene, zinb_loss
from .views import M2OST, TRIPLEX

__all__ = [
    "BLEEP",
    "EGN",
    "M2OST",
    "TRIPLEX",
    "HisToGene",
    "Hist2ST",
    "Inputs",
    "MclSTExp",
    "Network",
    "STNet",
    "Step",
    "THItoGene",
    "Training",
    "few_threads",
    "fit_network",
    "grid_positions",
    "ready",
    "zinb_loss",
]
