"""Commands on tables and slides; options that are not given take the library's defaults."""

from __future__ import annotations

import os
import re
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _disk
from .. import _keys as keys
from .._checks import format_names

if TYPE_CHECKING:
    from anndata import AnnData


def demo(**options: Any) -> None:
    """Run the demonstration."""
    import matplotlib

    from . import _demo

    matplotlib.use("Agg")  # no window, no screen
    _demo.run(say=partial(print, flush=True), **options)


def embed(
    *, sdata: Path, encoder: str = "texture", table_key: str = keys.TABLE, scheduler: str | None = None, **options: Any
) -> None:
    """Embed the spots of a SpatialData zarr."""
    import spatialdata

    from .._run import connect
    from ..pp import image_embedding

    if _kind(sdata) != "spatialdata":
        raise ValueError(
            f"{sdata} is not a SpatialData zarr, which holds the images to embed. Write one with "
            "spahgc.io.read_st(...).write(path), or with spatialdata-io."
        )
    slides = spatialdata.read_zarr(sdata)
    # Names of timm's networks may contain characters that a key may not.
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", encoder.removeprefix("timm:"))
    key = options.setdefault("key_added", keys.image(name))
    with connect(scheduler):
        image_embedding(slides, encoder, table_key=table_key, **options)
    table = slides.tables[table_key]
    _disk.add_to_zarr(sdata, table, key, table_key=table_key)
    n_obs, width = table.obsm[key].shape
    print(f"Wrote obsm[{key!r}] ({n_obs} spots x {width}) into the table {table_key!r} of {sdata}")


def train(
    *,
    reference: Path,
    model: Path,
    table_key: str = keys.TABLE,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Train on a reference and save the model."""
    from .. import tl
    from ..tl._model_folder import check_free

    check_free(model, overwrite=overwrite)  # fail before the training
    trained = tl.train(read_table(reference, table_key), **options)
    trained.save(model, overwrite=overwrite)
    slides = ", ".join(slide.name for slide in trained.reference)
    print(f"Wrote {model}: {trained.method.name}, {len(trained.genes)} genes, trained on {slides}")


def predict(
    *,
    model: Path,
    target: Path,
    out: Path,
    table_key: str = keys.TABLE,
    key_added: str = keys.PREDICTION,
    as_x: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Predict target slides with a saved model."""
    from .. import get, tl

    store = out if out.suffix == ".zarr" else None
    # Fail before the prediction.
    if store is None:
        check_free(out, ".h5ad", overwrite=overwrite)
    else:
        _disk.check_free(out, overwrite=overwrite)
    trained = tl.Model.load(model)
    adata = read_table(target, table_key)
    tl.predict(trained, adata, store=store, key_added=key_added, overwrite=overwrite, **options)
    in_x = as_x or store is not None
    if store is None:
        _disk.write_h5ad(out, get.predicted(adata, key=key_added) if in_x else adata)
    slot = "X" if in_x else f"obsm[{key_added!r}]"
    support = adata.obs[keys.slot(key_added, "support")].median()
    print(f"Wrote {out}: {len(trained.genes)} genes of {adata.n_obs} spots in {slot}; median support {support:.2f}")


def cross_validate(
    *,
    reference: Path,
    out: Path,
    table: Path | None = None,
    methods: str = "ridge,low_rank_ridge,context_ridge,spahgc",
    table_key: str = keys.TABLE,
    key_added: str = keys.PREDICTION,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Hold out each patient of a reference in turn and score."""
    from .. import get, tl

    check_free(out, ".csv", overwrite=overwrite)
    if table is not None:
        check_free(table, ".h5ad", overwrite=overwrite)
    adata = read_table(reference, table_key)
    tl.cross_validate(adata, methods=methods.split(","), key_added=key_added, **options)
    scores = get.cross_validation(adata, key=key_added)
    with _disk.replacing(out) as temporary:
        scores.to_csv(temporary, index=False)
    if table is not None:
        _disk.write_h5ad(table, adata)
    print(f"Wrote {out}; {scores.attrs['label']}. Mean Pearson over genes, then slides:")
    of_slides = scores[scores["metric"] == "pearson"].groupby(["method", "slide"], sort=False)["value"].mean()
    for method, value in of_slides.groupby("method", sort=False).mean().items():
        print(f"  {method:16}{value:8.3f}")


def read_table(path: Path, table_key: str) -> AnnData:
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


def check_free(path: Path, suffix: str, *, overwrite: bool) -> None:
    """Raise unless the file name has the suffix and is free or may be overwritten."""
    if path.suffix != suffix:
        raise ValueError(f"{path} must end in {suffix}, the format that is written.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PermissionError(f"{path} cannot be written: {folder} is not a folder that you may write to.")
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists already. Pass --overwrite to replace it, or choose another name.")


def _kind(path: Path) -> str:
    """Kind of file at a path: ``"h5ad"``, ``"anndata"`` or ``"spatialdata"`` (both zarr), or ``""`` for any other."""
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
