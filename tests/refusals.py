"""One line for a call that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def refused(error: type[Exception], match: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """The call raises `error` with a message that matches."""
    with pytest.raises(error, match=match):
        call(*args, **kwargs)
