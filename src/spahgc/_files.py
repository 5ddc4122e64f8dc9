"""Tables from and to disk: what is written appears whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _keys as keys
from ._validate import listed

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` when the block ends, and goes away if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: some writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to write to; it takes the place of `path`, or goes away if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    workshop = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    new, old = workshop / "new", workshop / "old"
    try:
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


def read_table(path: str | os.PathLike[str], *, table_key: str = keys.TABLE) -> AnnData:
    """The table of an ``.h5ad`` file, of an AnnData zarr, or of a SpatialData zarr (its images are not read)."""
    import anndata

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    if path.suffix == ".h5ad":
        return anndata.read_h5ad(path)
    kind = _zarr_kind(path)
    if kind == "anndata":
        return anndata.read_zarr(path)
    if kind == "spatialdata":
        import spatialdata

        with warnings.catch_warnings():
            # Of shapes that a table annotates and that were left out.
            warnings.filterwarnings("ignore", "The table is annotating", UserWarning)
            sdata = spatialdata.read_zarr(path, selection=("tables",))
        if table_key not in sdata.tables:
            raise KeyError(f"{path} has no table {table_key!r}. Available: {listed(sdata.tables)}.")
        return sdata.tables[table_key]
    raise ValueError(f"{path} is neither an .h5ad file nor a zarr folder of AnnData or SpatialData.")


def read_slides(path: str | os.PathLike[str]) -> SpatialData:
    """A SpatialData zarr; images are read when they are needed."""
    import spatialdata

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    if not path.is_dir() or _zarr_kind(path) != "spatialdata":
        raise ValueError(
            f"{path} is not a SpatialData zarr, which holds the images that are embedded. Write one with "
            "spahgc.io.read_st(...).write(path), or with spatialdata-io."
        )
    return spatialdata.read_zarr(path)


def write_table(adata: AnnData, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an ``.h5ad`` file; an existing file is replaced only with `overwrite`."""
    path = Path(path)
    check_free(path, overwrite=overwrite)
    with replacing(path) as temporary:
        adata.write_h5ad(temporary)


def check_free(path: Path, *, overwrite: bool) -> None:
    """The name ends in ``.h5ad``, and is free or may be overwritten."""
    if path.suffix != ".h5ad":
        raise ValueError(f"{path}: the table is written as .h5ad; give it that suffix.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists already. Pass --overwrite to replace it, or choose another name.")


def add_to_zarr(path: str | os.PathLike[str], adata: AnnData, key: str, *, table_key: str = keys.TABLE) -> None:
    """Put an embedding, and what goes with it, into the table of a SpatialData zarr; nothing else is touched.

    These are ``obsm[key]`` and ``uns[key]``, and the cellularity of the tiles, in ``obs`` and ``uns``, where the table
    has it. All are written into a folder beside the zarr first and then renamed into it: a run that fails or is stopped
    while it writes leaves the zarr as it was. Slots of the same name are replaced.
    """
    import anndata
    import zarr

    path = Path(path)
    table = path / "tables" / table_key
    version = zarr.open_group(table, mode="r", use_consolidated=False).metadata.zarr_format
    workshop = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        new = zarr.open_group(workshop / "new", mode="w", zarr_format=version)
        slots: dict[str, Any] = {"obsm": {key: adata.obsm[key]}, "uns": {key: adata.uns[key]}}
        if keys.CELLULARITY in adata.obs:
            slots["obs"] = adata.obs[[keys.CELLULARITY]]
            slots["uns"][keys.CELLULARITY] = adata.uns[keys.CELLULARITY]
        for slot, content in slots.items():
            anndata.io.write_elem(new, slot, content)
        _swap(workshop / "new", table, [f"{slot}/{name}" for slot in slots for name in slots[slot]], workshop / "old")
        if "obs" in slots:
            # A column that is there and not listed is not read, so this comes last.
            obs = zarr.open_group(table / "obs", mode="r+", use_consolidated=False)
            columns: Any = obs.attrs["column-order"]
            if keys.CELLULARITY not in columns:
                obs.attrs["column-order"] = [*columns, keys.CELLULARITY]
        if zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None:
            with warnings.catch_warnings():
                # The tables of shapes are parquet, which zarr does not know.
                warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
                zarr.consolidate_metadata(path)
    finally:
        shutil.rmtree(workshop)


def _swap(new: Path, place: Path, names: list[str], aside: Path) -> None:
    """Rename folders from `new` into `place`, what was there into `aside`; if one cannot be, all are as they were."""
    done: list[str] = []
    try:
        for name in names:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            done.append(name)
            if (place / name).exists():
                (place / name).rename(aside / name)
            (new / name).rename(place / name)
    except OSError:
        for name in reversed(done):
            if (place / name).exists() and not (new / name).exists():
                (place / name).rename(new / name)
            if (aside / name).exists():
                (aside / name).rename(place / name)
        raise


def _zarr_kind(path: Path) -> str:
    """``"anndata"``, ``"spatialdata"``, or ``""`` for what is neither."""
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        return ""
    import zarr

    attributes = zarr.open_group(path, mode="r").attrs
    if attributes.get("encoding-type") == "anndata":
        return "anndata"
    return "spatialdata" if keys.SPATIALDATA_ATTRS in attributes or (path / "tables").is_dir() else ""
