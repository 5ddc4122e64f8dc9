"""Processes with little memory: a test starts one, and a script beside it says what runs there."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_limited(script: str, folder: Path, most: int) -> dict[str, Any]:
    """Run a module of these tests in a process of its own, with a folder and a number of bytes; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.tl.{script}", str(folder), str(most)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def limit_memory(most: int) -> None:
    """From now on this process gets so many bytes more, those of mapped files not counted."""
    limit = status("VmData") + most
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def status(name: str) -> int:
    """A line of the status of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])
