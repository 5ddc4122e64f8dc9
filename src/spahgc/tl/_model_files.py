"""The folder of a model: its files, and whether they are those that were saved."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ._tensor_file import header_sha256

FORMAT = 2
"""Version of the folder; a folder of a newer one is refused. In 1 the whole reference was read and prepared anew."""
CONFIG, WEIGHTS, REFERENCE = "config.json", "weights.safetensors", "reference.safetensors"
CHECKED_WHOLE = 2**26
"""Bytes up to which a file is read and checked whole when it is opened; a larger one is mapped."""


def is_model(path: Path) -> bool:
    """Whether a folder holds a model and nothing else, so that replacing it loses nothing else."""
    return (path / CONFIG).is_file() and {entry.name for entry in path.iterdir()} <= {CONFIG, WEIGHTS, REFERENCE}


def checksum(config: dict[str, Any]) -> str:
    """SHA-256 of what ``config.json`` says."""
    content = {key: value for key, value in config.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """What :func:`check_file` holds a file against."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path), "header_sha256": header_sha256(path)}


def check_file(path: Path, expected: dict[str, Any], *, whole: bool) -> None:
    """A file is the one that was described: as a whole, or by its size and header."""
    same = path.stat().st_size == expected["bytes"] and (
        _sha256(path) == expected["sha256"] if whole else header_sha256(path) == expected["header_sha256"]
    )
    if not same:
        raise ValueError(
            f"{path} is not the file that was saved (truncated, edited or damaged). Copy the folder again, or train "
            f"again."
        )


def read_config(path: Path) -> dict[str, Any]:
    """What ``config.json`` of a folder says, which holds all files of a model.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is not there.
    ValueError
        If ``config.json`` is truncated or was edited, or is of a newer version of spahgc.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"There is no model folder {path}. Model.save makes one.")
    missing = [name for name in (CONFIG, WEIGHTS, REFERENCE) if not (path / name).is_file()]
    if missing:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing"
        raise FileNotFoundError(f"{path} is not a whole model: {', '.join(missing)} missing (there: {there}).")
    try:
        config: dict[str, Any] = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        found = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path / CONFIG} cannot be read ({error}): it is truncated or was edited. Copy it again, or train again."
        ) from error
    if not isinstance(found, int) or found > FORMAT:
        raise ValueError(
            f"{path} has model format {found}; this spahgc reads up to {FORMAT}. It was written by spahgc "
            f"{config.get('versions', {}).get('spahgc', 'of a newer version')}: update spahgc (pip install -U spahgc)."
        )
    if config.get("checksum") != checksum(config):
        raise ValueError(f"{path / CONFIG} was edited after it was saved. Copy it again, or train again.")
    if found == 1:
        # It has no sizes: files are checked whole, whatever their size.
        config["files"] = {
            name: {"bytes": (path / name).stat().st_size, "sha256": digest} for name, digest in config["sha256"].items()
        }
    return config


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
