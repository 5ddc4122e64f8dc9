"""Arrays kept by what they were computed from, in a folder that the processes of a run share.

What is kept is named by the SHA-256 of all that it depends on, so it is never out of date. A file appears whole, under
its final name, or not at all, and its own SHA-256 stands at its head: processes may race, and may be killed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ._slides import Rows, blocks

logger = logging.getLogger("spahgc")

Arrays = Mapping[str, NDArray]
MAX_BYTES = 2**31
"""Bytes that a folder holds at most; what was not used for longest goes first."""
_FOLDER = ".spahgc_cache"
_DIGEST = hashlib.sha256().digest_size


def digest(*parts: NDArray | Rows | str | int) -> str:
    """SHA-256 over arrays (shape, dtype and values, in rows), numbers and strings."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str | int):
            found.update(f"\0{part!r}".encode())
            continue
        found.update(f"\0{part.dtype}{part.shape}".encode())
        for rows in blocks(len(part)):
            found.update(np.ascontiguousarray(part[rows]).data)
    return found.hexdigest()


class Cache:
    """Arrays in files of a folder, by name.

    Parameters
    ----------
    folder
        The folder; one that is not there (any more) keeps nothing.
    max_bytes
        Bytes of all files together, at most.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def get(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of a name; made, and kept, where they are not there or their file is damaged."""
        path = self._folder / f"{name}.npz"
        found = _read(path)
        if found is None:
            found = make()
            try:
                self._write(path, found)
            except OSError as error:  # a full disk, or a folder that went away: the arrays are there all the same
                logger.debug("%s is not kept: %s", path, error)
        return found

    def _write(self, path: Path, arrays: Arrays) -> None:
        body = io.BytesIO()
        np.savez(body, **arrays)  # type: ignore[arg-type]
        content = body.getbuffer()
        if len(content) > self._max_bytes // 2:
            return
        self._make_room(len(content))
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)

    def _make_room(self, n_bytes: int) -> None:
        there = []
        for path in self._folder.glob("*.npz"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process made room
                continue
            there.append((status.st_mtime_ns, status.st_size, path))
        total = n_bytes + sum(size for _, size, _ in there)
        for _, size, path in sorted(there):
            if total <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size


def _read(path: Path) -> Arrays | None:
    try:
        content = memoryview(path.read_bytes())
        os.utime(path)
    except OSError:
        return None
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        logger.debug("%s is damaged; what it held is computed again.", path)
        return None
    with np.load(io.BytesIO(content[_DIGEST:]), allow_pickle=False) as arrays:
        return dict(arrays)


_ACTIVE: ContextVar[Cache | None] = ContextVar("spahgc_cache", default=None)


def active() -> bool:
    """Whether :func:`kept` keeps anything here."""
    return _ACTIVE.get() is not None


def kept(name: Callable[[], str], make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, from the cache where there is one.

    Parameters
    ----------
    name
        Gives the :func:`digest` of all that `make` depends on; not called without a cache.
    make
        Computes the arrays, the same ones for the same name.
    """
    cache = _ACTIVE.get()
    return make() if cache is None else cache.get(name(), make)


@contextmanager
def keeping(folder: Path | None) -> Iterator[None]:
    """Keep in a folder what is computed in the block; nothing where it is `None`, or not there.

    A worker on another machine does not see the folder of the process that started it.
    """
    token = _ACTIVE.set(Cache(folder) if folder is not None and folder.is_dir() else None)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


@contextmanager
def shared_folder(parent: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A folder for :func:`keeping` that goes away with the block.

    Parameters
    ----------
    parent
        Folder of the run: what a run that was killed left there is used. `None`: a temporary one.
    """
    folder = Path(tempfile.mkdtemp(prefix="spahgc-")) if parent is None else Path(parent).absolute() / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
