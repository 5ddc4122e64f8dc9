"""Fixtures and settings for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before a test loads matplotlib, OpenMP or torch: no display, and no more threads than its share of the cores.
os.environ.setdefault("MPLBACKEND", "Agg")
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_THREADS = max(1, (os.cpu_count() or 1) // _WORKERS)
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, str(_THREADS))

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts from the same settings: the CPU, no progress bars; changes to them are undone."""
    from spahgc import settings

    for name, value in {"device": "cpu", "progress": False, "n_jobs": _THREADS}.items():
        monkeypatch.setattr(settings, name, value)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real slides: ``SPAHGC_DATA_DIR``, or ``../shared/data`` beside the repository.

    On a developer's machine without it the test is skipped; in CI a missing folder is a failure.
    """
    folder = Path(os.environ.get("SPAHGC_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        message = f"The folder of real slides, {folder}, is missing. Set SPAHGC_DATA_DIR to where it is."
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
