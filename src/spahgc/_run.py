"""Processes and progress of a run: dask, torchrun, and one progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ._slides import BLOCK, blocks

if TYPE_CHECKING:
    import torch
    from lightning.fabric import Fabric
    from tqdm import tqdm


Progress = Callable[[float], None]
"""Told the share of a piece of work that was done, each time some was; the shares sum to 1."""


DELAY = 2.0
"""Seconds after which a bar appears: work that takes less shows none."""


def no_progress(share: float) -> None:
    """Progress callback that does nothing."""


def weighted(progress: Progress, weight: float) -> Progress:
    """For a part that is `weight` of the whole work: hands its shares on to that of the whole."""
    return lambda share: progress(weight * share)


def with_progress(n: int, progress: Progress, size: int = BLOCK) -> Iterator[slice]:
    """The rows of n spots, block by block; each is told when it is done."""
    for rows in blocks(n, size):
        yield rows
        progress((rows.stop - rows.start) / n)


class SpotBar:
    """A bar over spots, for work on several slides that is itself made of parts; see :func:`spot_bar`."""

    def __init__(self, bar: tqdm) -> None:
        self._bar, self._done = bar, 0.0

    def say(self, text: str) -> None:
        """Show what is done now."""
        shown = not self._bar.disable and self._bar.last_print_t > self._bar.start_t
        self._bar.set_description(text, refresh=shown)

    def over(self, n_spots: int) -> Progress:
        """Progress of the work on this many of the spots."""

        def advance(share: float) -> None:
            self._done += share * n_spots
            self._bar.update(round(self._done) - self._bar.n)

        return advance


@contextmanager
def spot_bar(n_spots: int, *, show: bool) -> Iterator[SpotBar]:
    """One bar for all the work on some spots, from the time on that it has taken two seconds."""
    from tqdm.auto import tqdm

    with tqdm(total=n_spots, unit="spot", delay=DELAY, disable=not show) as bar:
        yield SpotBar(bar)


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
