"""Package-wide settings."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

_VERBOSITY = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}


def _default_data_dir() -> Path:
    # An empty variable is one that is not set, and not the current folder.
    return Path(os.environ.get("SPAHGC_DATA_DIR") or Path.home() / ".cache" / "spahgc")


def _default_cache_dir() -> Path:
    return Path(os.environ.get("SPAHGC_CACHE_DIR") or Path.home() / ".cache" / "spahgc" / "embeddings")


@dataclass
class Settings:
    """Settings of the package; the one instance is :data:`spahgc.settings`.

    A parameter of the same name that is `None` in a call takes its value from here.
    """

    device: str = "auto"
    """Torch device; ``"auto"`` takes CUDA, then Apple's MPS, then the CPU."""
    batch_size: int = 256
    """Tiles per call of an encoder."""
    progress: bool = True
    """Show progress bars on work that takes longer than about two seconds."""
    verbosity: str = "warning"
    """Level of the ``spahgc`` logger, one of ``"error"``, ``"warning"``, ``"info"`` or ``"debug"``."""
    data_dir: Path = field(default_factory=_default_data_dir)
    """Folder where datasets are looked for and downloaded to; from ``SPAHGC_DATA_DIR`` if that is set."""
    cache_dir: Path = field(default_factory=_default_cache_dir)
    """Folder where :func:`spahgc.pp.image_embedding` keeps what is finished until all is; from ``SPAHGC_CACHE_DIR`` if
    that is set."""
    max_nodes: int = 20_000
    """Spots of a reference slide from which on SpaHGC trains it in spatial blocks of at most as many."""
    approximate_from: int | None = 100_000
    """Reference spots from which on SpaHGC looks for similar ones with an approximate index, if faiss is installed
    (``pip install 'spahgc[ann]'``) and the device is the CPU; `None`: it always looks at all of them."""
    n_jobs: int = -1
    """Processes or threads for work on the CPU that is split over cores; -1 takes all cores."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {f.name for f in fields(self)}:
            available = ", ".join(f.name for f in fields(self))
            raise AttributeError(f"spahgc.settings has no setting {name!r}. Available: {available}.")
        if name == "verbosity":
            if value not in _VERBOSITY:
                raise ValueError(f"settings.verbosity is one of {', '.join(_VERBOSITY)}, not {value!r}.")
            logging.getLogger("spahgc").setLevel(_VERBOSITY[value])
        if name in {"data_dir", "cache_dir"}:
            value = Path(value)
        super().__setattr__(name, value)

    def torch_device(self, device: str | None = None) -> Any:
        """The torch device that `device` (or, if `None`, this setting) names.

        Raises
        ------
        ValueError
            If there is no such device on this machine.
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
            raise ValueError(f"No device {name!r}: 'auto', 'cpu', 'cuda', 'cuda:1', 'mps'.") from error
        missing = (found.type == "cuda" and not torch.cuda.is_available()) or (
            found.type == "mps" and not torch.backends.mps.is_available()
        )
        if missing:
            raise ValueError(
                f"Device {name!r} is not available on this machine. Set spahgc.settings.device = 'auto' or 'cpu'."
            )
        return found

    def workers(self, n_jobs: int | None = None) -> int:
        """Number of workers that `n_jobs` (or, if `None`, this setting) stands for."""
        n = self.n_jobs if n_jobs is None else n_jobs
        if n == 0:
            raise ValueError("n_jobs is a positive number of workers, or -1 for all cores, not 0.")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
        return n if n > 0 else max(1, cores + 1 + n)


settings = Settings()
