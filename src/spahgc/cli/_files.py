"""Tables from and to disk for the commands."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _keys as keys
from .._checks import format_names
from .._disk import replacing

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def read_table(path: Path, *, table_key: str = keys.TABLE) -> AnnData:
    """Read the table of an ``.h5ad`` file, an AnnData zarr, or a SpatialData zarr (without its images)."""
    import anndata

    kind = _kind(path)
    if kind == "h5ad":
        return anndata.read_h5ad(path)
    if kind == "anndata":
        return anndata.read_zarr(path)
    if kind != "spatialdata":
        raise ValueError(f"{path} is neither an .h5ad file nor a zarr folder of AnnData or SpatialData.")
    import spatialdata

    with warnings.catch_warnings():
        # The shapes that the table annotates are not read.
        warnings.filterwarnings("ignore", "The table is annotating", UserWarning)
        tables = spatialdata.read_zarr(path, selection=("tables",)).tables
    if table_key not in tables:
        raise KeyError(f"{path} has no table {table_key!r}. Available: {format_names(tables)}.")
    return tables[table_key]


def read_slides(path: Path) -> SpatialData:
    """Open a SpatialData zarr."""
    import spatialdata

    if _kind(path) != "spatialdata":
        raise ValueError(
            f"{path} is not a SpatialData zarr, which holds the images to embed. Write one with "
            "spahgc.io.read_st(...).write(path), or with spatialdata-io."
        )
    return spatialdata.read_zarr(path)


def write_table(adata: AnnData, path: Path) -> None:
    """Write an ``.h5ad`` file."""
    with replacing(path) as temporary:
        adata.write_h5ad(temporary)


def check_free(path: Path, suffix: str, *, overwrite: bool) -> None:
    """Raise unless the file name has the suffix and is free or may be overwritten."""
    if path.suffix != suffix:
        raise ValueError(f"{path} must end in {suffix}, the format that is written.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists already. Pass --overwrite to replace it, or choose another name.")


def _kind(path: Path) -> str:
    """``"h5ad"``, ``"anndata"`` or ``"spatialdata"`` (both zarr), or ``""``."""
    import zarr

    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    if path.suffix == ".h5ad":
        return "h5ad"
    if not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        return ""
    attributes = zarr.open_group(path, mode="r").attrs
    if attributes.get("encoding-type") == "anndata":
        return "anndata"
    return "spatialdata" if keys.SPATIALDATA_ATTRS in attributes or (path / "tables").is_dir() else ""
