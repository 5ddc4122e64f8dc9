"""Processes beside this one: the running dask cluster, if there is one, and those that torchrun started."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from lightning.fabric import Fabric


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


def n_processes() -> int:
    """Processes that ``torchrun`` started this one among; 1 without it. Nothing is imported."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def launched_fabric(device: torch.device) -> Fabric:
    """Join the processes that ``torchrun`` started, one device each, to train together.

    Parameters
    ----------
    device
        CPU, or CUDA: then each process takes the GPU of its local rank.

    Raises
    ------
    ImportError
        If ``lightning`` is not installed.
    RuntimeError
        If ``torchrun`` did not start this process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or "LT_CLI_USED" in os.environ:
        raise RuntimeError(
            "distributed=True trains in processes that torchrun started, and it did not start this one. Write a script "
            "and run, with the number of GPUs: torchrun --nproc-per-node=2 script.py"
        )
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.strategies import DDPStrategy
    except ImportError as error:
        raise ImportError(
            f"Training in several processes needs Lightning ({error}). Run: pip install 'spahgc[distributed]'"
        ) from error
    n_local = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=device.type,
        devices=n_local,
        num_nodes=n_processes() // n_local,
        # The same in every step; in ablations some weights take no part in it.
        strategy=DDPStrategy(static_graph=True),
    )
    fabric.launch()
    return fabric
