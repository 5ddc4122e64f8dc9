"""The command ``spahgc``; its modules import late what takes long to import, so that the help answers at once."""

from __future__ import annotations

from ._main import main

__all__ = ["main"]
