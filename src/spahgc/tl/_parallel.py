"""Run calls side by side: in this process, in worker processes of joblib, or on a running dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any, TypeVar

from .._run import dask_client
from .._settings import settings

Key = TypeVar("Key")
Call = tuple[Key, Callable[..., Any], Any, dict[str, Any]]
"""A name, a function, its first argument (large, shared by several calls) and its keyword arguments."""


def run_all(calls: Iterable[Call[Key]], *, n_jobs: int | None, device: str | None) -> Iterator[tuple[Key, Any]]:
    """Results of calls, as they are finished.

    `calls` is read as workers become free. The first call that fails ends it.

    Parameters
    ----------
    calls
        What to call.
    n_jobs
        Worker processes. `None`: the workers of the running ``dask.distributed`` client, if there is one; else
        :data:`spahgc.settings`, or one where `device` is not the CPU.
    device
        Torch device of the calls.
    """
    client = dask_client() if n_jobs is None else None
    if client is not None:
        n_workers = max(1, sum(client.nthreads().values()))
        yield from _run(calls, client.get_executor(pure=False), n_workers, share=client.scatter)
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
        yield from _run(calls, executor, n_workers)
    except BaseException:
        # What runs on would take cores from whatever comes next.
        executor.shutdown(wait=False, kill_workers=True)
        raise


def _run(
    calls: Iterable[Call[Key]], executor: Executor, n_workers: int, share: Callable[[Any], Any] = lambda value: value
) -> Iterator[tuple[Key, Any]]:
    """One call more than there are workers is under way, so that none waits and no more than needed is in memory."""
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
