"""The running dask cluster, if there is one."""

from __future__ import annotations

import sys
from typing import Any


def dask_client() -> Any | None:
    """The running client of ``dask.distributed``; none is started, and nothing imported."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None
