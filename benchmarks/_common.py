"""What the benchmark scripts share: where the data is, what the machine is, and safe writing of results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def data_dir() -> Path:
    """The folder with the real slides: SPAHGC_DATA_DIR, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("SPAHGC_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "her2st").is_dir():
        raise SystemExit(f"No her2st folder in {folder}. Set SPAHGC_DATA_DIR to the folder with the real slides.")
    return folder


def machine() -> dict[str, Any]:
    """Processor, cores and versions, for the record."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    packages = ("spahgc", "torch", "torch-geometric", "numpy", "scipy", "scikit-learn", "anndata")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the package's code; results that are being written do not make it another one."""
    source = str(Path(__file__).parents[1] / "src")
    commit = _git("describe", "--always") or "unknown"
    return f"{commit}-dirty" if _git("status", "--porcelain", "--", source) else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip()


def write_json(path: Path, content: Any) -> None:
    """Write under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
