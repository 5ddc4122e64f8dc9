"""The command ``spahgc``: the functions of the package for scripts and clusters.

A module for each command, or for several that belong together. What takes long to import is imported by the handlers,
so that ``spahgc --help`` answers at once.
"""

from __future__ import annotations

from ._main import main

__all__ = ["main"]
