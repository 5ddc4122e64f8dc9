"""The running dask cluster, if there is one."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
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


def connect(address: str | None) -> AbstractContextManager[Any]:
    """A client of a scheduler, for as long as the context lasts; none without an address.

    Raises
    ------
    ImportError
        If ``dask.distributed`` is not installed.
    OSError
        If there is no scheduler at that address.
    """
    if address is None:
        return nullcontext()
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            f"A dask scheduler needs dask.distributed ({error}). Run: pip install 'spahgc[distributed]'"
        ) from error
    client: AbstractContextManager[Any] = Client(address)
    return client
