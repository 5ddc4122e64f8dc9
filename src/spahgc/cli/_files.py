"""Tables from and to disk for the commands."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _keys as keys
from .._checks import format_names
from .._disk import replacing

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


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
            raise KeyError(f"{path} has no table {table_key!r}. Available: {format_names(sdata.tables)}.")
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


def _zarr_kind(path: Path) -> str:
    """``"anndata"``, ``"spatialdata"``, or ``""`` for what is neither."""
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        return ""
    import zarr

    attributes = zarr.open_group(path, mode="r").attrs
    if attributes.get("encoding-type") == "anndata":
        return "anndata"
    return "spatialdata" if keys.SPATIALDATA_ATTRS in attributes or (path / "tables").is_dir() else ""
