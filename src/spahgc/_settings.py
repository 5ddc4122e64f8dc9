"""Package-wide settings."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

from ._checks import Range, at_least, check_argument

logger = logging.getLogger("spahgc")
"""Logger of the package; silent at import, with the level of ``settings.verbosity``."""
Verbosity = Literal["error", "warning", "info", "debug"]

_DEVICES = re.compile(r"auto|cpu|mps|(cuda|xpu)(:\d+)?")
_RANGES = {
    "batch_size": at_least(1),
    "max_nodes": at_least(1),
    "n_jobs": Range("other than 0 (-1 uses all cores)", lambda n: n != 0),
}


def _folder(variable: str, *parts: str) -> Path:
    # An empty variable counts as unset, not as the current folder.
    return Path(os.environ.get(variable) or Path.home().joinpath(".cache", "spahgc", *parts))


@dataclass
class Settings:
    """Package-wide settings, available as :data:`spahgc.settings`.

    A parameter of the same name that is `None` in a call takes its value from here. Assigning an invalid value raises.

    Examples
    --------
    >>> import spahgc
    >>> spahgc.settings.device = "cpu"
    """

    device: str = "auto"
    """Torch device; ``"auto"`` selects CUDA, then Apple's MPS, then the CPU."""
    batch_size: int = 256
    """Tiles per encoder call."""
    progress: bool = True
    """Show progress bars on work that takes longer than about two seconds."""
    verbosity: Verbosity = "warning"
    """Level of the ``spahgc`` logger."""
    data_dir: Path = field(default_factory=lambda: _folder("SPAHGC_DATA_DIR"))
    """Folder of the datasets; defaults to the environment variable ``SPAHGC_DATA_DIR``."""
    cache_dir: Path = field(default_factory=lambda: _folder("SPAHGC_CACHE_DIR", "embeddings"))
    """Folder of unfinished embeddings (:func:`spahgc.pp.image_embedding`); defaults to ``SPAHGC_CACHE_DIR``."""
    max_nodes: int = 20_000
    """Reference slides with more spots than this are trained in spatial blocks of at most this size."""
    n_jobs: int = -1
    """Number of processes or threads for CPU work; -1 uses all cores."""

    def __setattr__(self, name: str, value: Any) -> None:
        hints = get_type_hints(Settings)
        if name not in hints:
            raise AttributeError(f"spahgc.settings has no setting {name!r}. Available: {', '.join(hints)}.")
        if hints[name] is Path:
            check_argument(name, value, str | os.PathLike)
            value = Path(value)
        check_argument(name, value, hints[name], _RANGES.get(name))
        if name == "device" and not _DEVICES.fullmatch(value):
            raise ValueError(f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:<number>', 'mps' or 'xpu', got {value!r}.")
        if name == "verbosity":
            logger.setLevel(value.upper())
        super().__setattr__(name, value)

    def torch_device(self, device: str | None = None) -> Any:
        """Return the torch device named by `device`, or by this setting if it is `None`.

        Raises
        ------
        ValueError
            If the device does not exist on this machine.
        """
        import torch

        name = self.device if device is None else device
        if name == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        try:
            found = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"`device` must be 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps', got {name!r}.") from error
        missing = (found.type == "cuda" and not torch.cuda.is_available()) or (
            found.type == "mps" and not torch.backends.mps.is_available()
        )
        if missing:
            raise ValueError(
                f"Device {name!r} is not available on this machine. Set spahgc.settings.device = 'auto' or 'cpu'."
            )
        return found

    def workers(self, n_jobs: int | None = None) -> int:
        """Return the number of workers for `n_jobs`, or for this setting if it is `None`."""
        n = self.n_jobs if n_jobs is None else n_jobs
        check_argument("n_jobs", n, int, _RANGES["n_jobs"])
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        # More than a few workers per core would only take memory.
        return min(n, 4 * cores) if n > 0 else max(1, cores + 1 + n)


@cache
def _warn_no_cache() -> None:
    logger.warning(
        "numba cannot keep compiled code, because neither the package nor the home folder can be written: it is "
        "compiled in every session. Set NUMBA_CACHE_DIR to a folder that can be written."
    )


def compiled(**options: Any) -> Callable[[Any], Any]:
    """Compile a kernel with numba, kept on disk where a folder can be written."""
    import numba

    def decorate(function: Any) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator" not in str(error):
                raise
            _warn_no_cache()
            return numba.njit(nogil=True, **options)(function)

    return decorate


settings = Settings()
