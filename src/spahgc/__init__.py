"""Predict spatial gene expression from H&E slides, and say which genes and spots to believe.

The subpackages are loaded when they are first used, so that ``import spahgc`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ._settings import settings

if TYPE_CHECKING:
    from . import datasets, encoders, get, io, methods, metrics, nn, pl, pp, tl

__all__ = ["datasets", "encoders", "get", "io", "methods", "metrics", "nn", "pl", "pp", "settings", "tl"]
__version__ = version("spahgc")

_LAZY = frozenset(__all__) - {"settings"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}. Available: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
