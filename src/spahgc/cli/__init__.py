"""The command ``spahgc``: the package's functions for scripts and clusters, one module per command.

Handlers import what takes long to import, so that ``spahgc --help`` answers at once.
"""

from __future__ import annotations

from ._main import main

__all__ = ["main"]
