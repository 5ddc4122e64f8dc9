"""Processes and progress of a run: dask, torchrun, and one progress bar."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from ._settings import settings
from ._slides import BLOCK, blocks

if TYPE_CHECKING:
    import torch
    from lightning.fabric import Fabric
    from tqdm import tqdm


Progress = Callable[[float], None]
"""Callback that receives the fraction of the work completed since the last call; the fractions sum to 1."""
DELAY = 2.0
"""Seconds before a progress bar appears."""


def no_progress(share: float) -> None:
    """Progress callback that does nothing."""


def weighted(progress: Progress, weight: float) -> Progress:
    """Progress callback for a part that makes up the fraction `weight` of the whole work."""
    return lambda share: progress(weight * share)


def with_progress(n: int, progress: Progress, size: int = BLOCK) -> Iterator[slice]:
    """Yield row slices that cover n spots and report each one as it is completed."""
    for rows in blocks(n, size):
        yield rows
        progress((rows.stop - rows.start) / n)


class SpotBar:
    """Progress bar over the spots of several slides."""

    def __init__(self, bar: tqdm) -> None:
        self._bar, self._done = bar, 0.0

    def describe(self, text: str) -> None:
        """Show the current step beside the bar."""
        shown = not self._bar.disable and time.time() - self._bar.start_t >= DELAY
        self._bar.set_description(text, refresh=shown)

    def over(self, n_spots: int) -> Progress:
        """Progress callback for the work on `n_spots` of the spots."""

        def advance(share: float) -> None:
            self._done += share * n_spots
            self._bar.update(round(self._done) - self._bar.n)

        return advance


@contextmanager
def spot_bar(n_spots: int, *, show: bool) -> Iterator[SpotBar]:
    """Show one progress bar for all work on some spots, once it has taken two seconds."""
    from tqdm.auto import tqdm

    with tqdm(total=n_spots, unit="spot", delay=DELAY, disable=not show) as bar:
        yield SpotBar(bar)


def dask_client() -> Any | None:
    """Return the running ``dask.distributed`` client, if any, without importing or starting one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        return distributed.default_client()
    except ValueError:
        return None


def connect(address: str | None) -> AbstractContextManager[Any]:
    """Connect to a dask scheduler for the duration of the context; do nothing without an address."""
    if address is None:
        return nullcontext()
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(
            f"A dask scheduler requires dask.distributed ({error}). Run: pip install 'spahgc[distributed]'"
        ) from error
    client: AbstractContextManager[Any] = Client(address)
    return client


def n_processes() -> int:
    """Number of processes started by ``torchrun``; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def launched_fabric(device: torch.device) -> Fabric:
    """Join the processes started by ``torchrun`` for distributed training, one CPU or GPU each.

    Raises
    ------
    ImportError
        If ``lightning`` is not installed.
    RuntimeError
        If ``torchrun`` did not start this process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or "LT_CLI_USED" in os.environ:
        raise RuntimeError(
            "distributed=True requires processes started by torchrun. Write a script and run it with the number of "
            "GPUs: torchrun --nproc-per-node=2 script.py"
        )
    try:
        from lightning.fabric import Fabric
        from lightning.fabric.strategies import DDPStrategy
    except ImportError as error:
        raise ImportError(
            f"Distributed training requires Lightning ({error}). Run: pip install 'spahgc[distributed]'"
        ) from error
    n_local = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=device.type,
        devices=n_local,
        num_nodes=n_processes() // n_local,
        # The graph is static: in ablations, some weights never receive gradients.
        strategy=DDPStrategy(static_graph=True),
    )
    fabric.launch()
    return fabric


Key = TypeVar("Key")
Call = tuple[Key, Callable[..., Any], Any, dict[str, Any]]
"""A name, a function, its first argument (large, shared by several calls) and its keyword arguments."""


def run_all(calls: Iterable[Call[Key]], *, n_jobs: int | None, device: str | None) -> Iterator[tuple[Key, Any]]:
    """Results of calls as they finish: in this process, in worker processes of joblib, or on a running dask cluster.

    `calls` is read as workers become free, and the first call that fails ends the run. With `n_jobs` `None` a running
    ``dask.distributed`` client is used, or :data:`spahgc.settings`, or one process if `device` is a GPU.
    """
    client = dask_client() if n_jobs is None else None
    if client is not None:
        n_workers = max(1, sum(client.nthreads().values()))
        yield from _submit(calls, client.get_executor(pure=False), n_workers, share=client.scatter)
        return
    alone = n_jobs is None and settings.torch_device(device).type != "cpu"
    n_workers = 1 if alone else settings.workers(n_jobs)
    if n_workers == 1:
        for key, function, shared, arguments in calls:
            yield key, function(shared, **arguments)
        return
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=n_workers)
    try:
        yield from _submit(calls, executor, n_workers)
    except BaseException:
        # Calls that go on would take cores from the next task.
        executor.shutdown(wait=False, kill_workers=True)
        raise


def _submit(
    calls: Iterable[Call[Key]], executor: Executor, n_workers: int, share: Callable[[Any], Any] = lambda value: value
) -> Iterator[tuple[Key, Any]]:
    """Keep one call more than there are workers under way, so that none waits and few are in memory."""
    running: dict[Future[Any], Key] = {}
    source, shared, place = iter(calls), None, None
    try:
        while True:
            while len(running) <= n_workers and (call := next(source, None)) is not None:
                key, function, value, arguments = call
                if value is not shared:
                    shared, place = value, share(value)
                running[executor.submit(function, place, **arguments)] = key
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        for future in running:
            future.cancel()
