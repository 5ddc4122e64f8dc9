"""Time, memory, and what the machine can do."""

from __future__ import annotations

import ctypes
import gc
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def timed(action: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of some calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return seconds


def rss() -> float:
    """Memory of this process now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak() -> float:
    """Most memory of this process since :func:`reset_peak`, MB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def trim() -> None:
    """Give memory that is free back to the system, so that it is counted when it is used again."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Start anew with the peak of memory."""
    trim()
    Path("/proc/self/clear_refs").write_text("5")


def matmul_rate(device: str = "cpu", repeats: int = 5) -> float:
    """GFLOP/s of float32 matrix products (bfloat16 on a GPU), the best of some."""
    import torch

    n = 2048 if device == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)

    def product() -> None:
        a @ a
        if device != "cpu":
            torch.cuda.synchronize()

    product()
    return 2 * n**3 / min(timed(product, repeats)) / 1e9


def bandwidth(device: str = "cpu", repeats: int = 5) -> float:
    """GB/s of copying an array that no cache holds, bytes read and written."""
    import torch

    source = torch.ones(2**27 if device == "cpu" else 2**30, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if device != "cpu":
            torch.cuda.synchronize()

    copy()
    return 2 * source.nbytes / min(timed(copy, repeats)) / 1e9


class Anonymous:
    """Most memory of this process beside that of mapped files, above what it is at the start, MB."""

    def __enter__(self) -> Anonymous:
        self._stop, self.most, start = threading.Event(), 0.0, self._now()

        def watch() -> None:
            while not self._stop.wait(0.02):
                self.most = max(self.most, self._now() - start)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @staticmethod
    def _now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024 / 1e6
