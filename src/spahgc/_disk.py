"""Bytes and arrays on disk: what is written appears whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from . import _keys as keys
from ._slides import Float32, Rows, blocks

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from zarr.storage import MemoryStore


@contextmanager
def _told_if_full(path: Path) -> Iterator[None]:
    """Say of a full disk what could not be written; other errors pass."""
    try:
        yield
    except OSError as error:
        # HDF5 has the error number in its message only.
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} and "No space left" not in str(error):
            raise
        free = shutil.disk_usage(path.parent).free / 1e6
        message = f"No space left ({free:.0f} MB are free), so it was not written. Make room and run the same again"
        raise OSError(errno.ENOSPC, message, str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name that is renamed to `path` if the block succeeds and removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays because some writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{get_ident()}.part{path.suffix}")
    try:
        with _told_if_full(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_h5ad(path: Path, adata: AnnData) -> None:
    """Write a table whole or not at all. On a full disk HDF5 kills the process, so the room is looked at before."""
    check_room(path, adata.__sizeof__())
    with replacing(path) as temporary:
        adata.write_h5ad(temporary)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` if the block succeeds and is removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    new, old = workshop / "new", workshop / "old"
    try:
        with _told_if_full(path):
            new.mkdir()
            yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def add_to_zarr(path: str | os.PathLike[str], adata: AnnData, key: str, *, table_key: str = keys.TABLE) -> None:
    """Add an embedding (``obsm``, ``uns``, cellularity) to the table of a SpatialData zarr.

    Slots of the same name are replaced. Everything is written into a copy of the table that takes its place, so an
    interrupted run leaves the zarr unchanged.
    """
    import anndata
    import zarr

    table = Path(path) / "tables" / table_key
    with replacing_folder(table) as folder:
        shutil.copytree(table, folder, dirs_exist_ok=True)
        group: Any = zarr.open_group(folder, mode="r+", use_consolidated=False)
        anndata.io.write_elem(group, f"obsm/{key}", adata.obsm[key])
        anndata.io.write_elem(group, f"uns/{key}", adata.uns[key])
        if keys.CELLULARITY in adata.obs:
            anndata.io.write_elem(group, f"obs/{keys.CELLULARITY}", adata.obs[keys.CELLULARITY].to_numpy())
            anndata.io.write_elem(group, f"uns/{keys.CELLULARITY}", adata.uns[keys.CELLULARITY])
            columns = group["obs"].attrs["column-order"]
            group["obs"].attrs["column-order"] = list(dict.fromkeys([*columns, keys.CELLULARITY]))
    if zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None:
        with warnings.catch_warnings():
            # Shapes are stored as parquet, which zarr does not know.
            warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
            zarr.consolidate_metadata(path)


Arrays = Mapping[str, NDArray]


logger = logging.getLogger("spahgc")

MAX_BYTES = 2**31
"""Size limit of a cache folder in bytes; nothing is added beyond it."""
_FOLDER = ".spahgc_cache"


def digest(*parts: NDArray | Rows | str | int) -> str:
    """SHA-256 of arrays (shape, dtype and values), numbers and strings."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str | int):
            found.update(f"\0{part!r}".encode())
            continue
        found.update(f"\0{part.dtype}{part.shape}".encode())
        for rows in blocks(len(part)):
            found.update(np.ascontiguousarray(part[rows]).data)
    return found.hexdigest()


_ACTIVE: ContextVar[Path | None] = ContextVar("spahgc_cache", default=None)


def cached(name: Callable[[], str], make: Callable[[], Arrays]) -> Arrays:
    """Return the arrays computed by `make`, from the active cache folder if it has them.

    `name` returns the `digest` of everything that `make` depends on, so an entry is never out of date; it is called
    only if a cache is active. Damaged files are computed again: the zip format of ``.npz`` has checksums. A failure to
    write costs nothing but time.
    """
    folder = _ACTIVE.get()
    if folder is None:
        return make()
    path = folder / f"{name()}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        logger.debug("%s is damaged (%s); its content is computed again.", path, error)
    arrays = make()
    try:
        used = sum(file.stat().st_size for file in folder.glob("*.npz"))
        if folder.is_dir() and used + sum(array.nbytes for array in arrays.values()) <= MAX_BYTES:
            with replacing(path) as temporary:
                np.savez(temporary, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        logger.debug("%s is not cached: %s", path, error)
    return arrays


@contextmanager
def keeping(folder: Path | None) -> Iterator[None]:
    """Cache results of the block in a folder; do nothing if it is `None` or missing, as on another machine."""
    token = _ACTIVE.set(folder if folder is not None and folder.is_dir() else None)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


@contextmanager
def shared_folder(parent: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield a cache folder that is removed after the block.

    It lies in `parent`, where results of a killed run are reused, or in a temporary folder if `parent` is `None`.
    """
    folder = Path(tempfile.mkdtemp(prefix="spahgc-")) if parent is None else Path(parent).absolute() / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


MARK = "spahgc_prediction"
"""Attribute of a store with the key and model of the prediction; folders without it are never overwritten."""
CHUNK_BYTES = 2**23
"""Approximate chunk size; a chunk holds all genes of some rows."""


class Store(NamedTuple):
    """Prediction on disk: model fingerprint, spot names (n_obs,), and a dask array, float32 (n_obs, panel)."""

    model: str
    names: pd.Index
    values: Any


def local_path(store: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a store."""
    name = os.fspath(store)
    if "://" in name:
        raise ValueError(
            f"Only local paths can be written, got {name!r}. Write to a local path, and copy it from there."
        )
    return Path(os.path.abspath(os.path.expanduser(name)))


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise if `path` exists, unless it is a prediction and may be overwritten."""
    if not os.path.lexists(path) or (overwrite and is_store(path)):
        return
    advice = (
        "Pass overwrite=True to replace it"
        if is_store(path)
        else "It is not a prediction that spahgc.tl.predict wrote there, and is never replaced. Remove it yourself"
    )
    raise FileExistsError(f"{path} exists already. {advice}, or choose another store.")


def check_room(path: Path, n_bytes: int) -> None:
    """Raise if the disk has no room for the values twice, in a temporary file and in the store."""
    folder = next(parent for parent in path.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < 2 * n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{folder} has {free / 1e6:.1f} MB free, and {path.name} takes {2 * n_bytes / 1e6:.1f} MB, half of it for "
            f"a temporary file. Choose another disk, or predict fewer genes or slides",
        )


def is_store(path: Path) -> bool:
    """Whether `path` holds a prediction."""
    return path.is_dir() and not path.is_symlink() and _mark(path) is not None


def _mark(path: Path) -> dict[str, str] | None:
    import zarr

    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        return None
    mark: Any = zarr.open_group(path, mode="r").attrs.get(MARK)
    return mark if isinstance(mark, dict) else None


class Scratch:
    """Matrix float32 (n, n_genes) in an unnamed temporary file in `folder`, read and written by row slices.

    Plain reads and writes turn a full disk into an `OSError`; writing to a memory-mapped file would kill the process.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self.shape, self._row = shape, 4 * shape[1]
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, prefix=".spahgc-")  # noqa: SIM115
        self._file.truncate(shape[0] * self._row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getitem__(self, rows: slice) -> Float32:
        values = np.empty((rows.stop - rows.start, self.shape[1]), np.float32)
        self._file.seek(rows.start * self._row)
        self._file.readinto(values.data)
        return values

    def __setitem__(self, rows: slice, values: NDArray[Any]) -> None:
        block = np.broadcast_to(values, (rows.stop - rows.start, self.shape[1]))  # raises if it does not fit
        self._file.seek(rows.start * self._row)
        self._file.write(np.ascontiguousarray(block, np.float32).data)

    def mapped(self) -> Float32:
        """Return all values as a read-only memory map, valid while the file is open."""
        self._file.flush()
        return np.memmap(self._file, np.float32, "r", shape=self.shape)


def write_store(
    path: Path, table: AnnData, values: Callable[[slice], Float32], *, key: str, model: str, overwrite: bool
) -> None:
    """Write a prediction atomically: `table` holds everything except ``X``, `values` returns rows of it."""
    import zarr

    n, n_genes = table.shape
    n_rows = min(n, max(1, CHUNK_BYTES // (4 * n_genes)))
    with replacing_folder(path) as folder:
        _write_zarr(table, folder)
        group = zarr.open_group(folder, mode="r+", use_consolidated=False)
        # AnnData's encoding of an array.
        layout: dict[str, Any] = {"shape": table.shape, "chunks": (n_rows, n_genes), "dtype": np.float32}
        array = group.create_array("X", overwrite=True, fill_value=np.nan, **layout)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for rows in blocks(n, n_rows):
            array[rows] = values(rows)
        group.attrs[MARK] = {"key": key, "model": model}
        with _silent_consolidation():
            zarr.consolidate_metadata(folder)
        check_free(path, overwrite=overwrite)  # again, because prediction may have taken hours


def check_writable(table: AnnData) -> None:
    """Raise if a table without values cannot be written to a store."""
    from zarr.storage import MemoryStore

    _write_zarr(table, MemoryStore())


def _write_zarr(table: AnnData, place: Path | MemoryStore) -> None:
    with _silent_consolidation():
        # The user's anndata settings choose the format, and all formats can be read.
        warnings.filterwarnings("ignore", "Writing zarr v2|zarr v3 autosharding", UserWarning)
        table.write_zarr(place)


@contextmanager
def _silent_consolidation() -> Iterator[None]:
    """Silence zarr's warning that consolidated metadata is not part of format 3."""
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata", zarr.errors.ZarrUserWarning)
        yield


def read_store(path: Path) -> Store:
    """Open a prediction written by `write_store`."""
    import anndata
    import dask.array as da
    import pandas as pd
    import zarr

    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    mark = _mark(path)
    if mark is None:
        raise ValueError(f"{path} is not a prediction that spahgc.tl.predict wrote.")
    group: Any = zarr.open_group(path, mode="r")
    obs, missing = group["obs"], group["X"].nchunks - group["X"].nchunks_initialized
    if missing:
        raise ValueError(f"{path} is damaged: {missing} of its {group['X'].nchunks} blocks are missing. Predict again.")
    names = anndata.io.read_elem(obs[obs.attrs["_index"]])
    return Store(mark["model"], pd.Index(np.asarray(names, dtype=object)), da.from_zarr(group["X"]))
