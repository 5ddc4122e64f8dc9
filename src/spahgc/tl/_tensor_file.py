"""A safetensors file that may be larger than memory: written block by block, and mapped instead of read.

The safetensors package writes and reads whole tensors. The format (https://huggingface.co/docs/safetensors) is eight
bytes with the length of the header, little-endian; the header, JSON, with dtype, shape and place of each tensor; and
the tensors one after another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .._slides import Rows, blocks

Tensors = Mapping[str, NDArray[np.floating] | Rows]

_DTYPES: dict[str, np.dtype[np.floating]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH = 8
"""Bytes that hold the length of the header."""


def write_tensors(path: Path, tensors: Tensors, *, half: Collection[str] = ()) -> None:
    """Write tensors into a file, a few rows at a time.

    Parameters
    ----------
    path
        The file.
    tensors
        Arrays of float16, float32 or float64, or :class:`~spahgc._slides.Rows`.
    half
        Names of those that are rounded to float16.

    Raises
    ------
    ValueError
        If a value is too large for half precision (65504).
    """
    dtypes = {name: np.dtype("<f2") if name in half else values.dtype for name, values in tensors.items()}
    # The widest first, as the package does it, so that all are aligned.
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    with path.open("wb") as file:
        file.write(_header({name: (dtypes[name], tensors[name].shape) for name in names}))
        for name in names:
            for rows in blocks(len(tensors[name])):
                block = tensors[name][rows]
                with np.errstate(over="ignore"):  # it is looked for below
                    stored = np.ascontiguousarray(block, dtype=dtypes[name])
                if name in half and not np.isfinite(stored).all():
                    raise ValueError(
                        f"{name} has values beyond 65504, the largest of half precision. Save without half=True."
                    )
                file.write(stored.data)


def _header(tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> bytes:
    entries, start = {}, 0
    for name, (dtype, shape) in tensors.items():
        stop = start + int(np.prod(shape)) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    content = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(_LENGTH, "little") + content


def map_tensors(path: Path) -> dict[str, NDArray[np.floating]]:
    """Tensors of a file that :func:`write_tensors` wrote, memory-mapped: of them nothing is read yet."""
    length = _header_length(path)
    with path.open("rb") as file:
        entries = json.loads(file.read(length)[_LENGTH:])
    if path.stat().st_size == length:
        content = np.empty(0, np.uint8)  # nothing cannot be mapped
    else:
        content = np.asarray(np.memmap(path, np.uint8, "r", offset=length))
    found = {}
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        found[name] = content[start:stop].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def header_sha256(path: Path) -> str:
    """SHA-256 of the header, its length included."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_header_length(path))).hexdigest()


def _header_length(path: Path) -> int:
    """Bytes up to the first tensor; no more than the file has, whatever it says."""
    with path.open("rb") as file:
        said = int.from_bytes(file.read(_LENGTH), "little")
    return min(_LENGTH + said, path.stat().st_size)
