"""Where a prediction goes: into the slots of the table, or into a store, and only what is small into the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import _disk
from .. import _keys as keys
from .._run import SpotBar
from .._slides import UNITS, Float32, blocks
from .._tables._cohorts import TargetSlide
from ..get import without_values
from ..methods.base import Output
from ._explain import drop_evidence
from ._model import Model
from ._trust_slots import drop_columns, write_columns

if TYPE_CHECKING:
    from anndata import AnnData

Record = dict[str, Any]


class _Placed:
    """The rows of a table's array that belong to a slide, in the order of its spots."""

    def __init__(self, values: Float32, index: NDArray[np.intp]) -> None:
        self._values, self._index = values, index

    def __getitem__(self, rows: slice) -> Float32:
        return self._values[self._index[rows]]

    def __setitem__(self, rows: slice, values: NDArray[Any]) -> None:
        self._values[self._index[rows]] = values


class _From:
    """What comes from some row on."""

    def __init__(self, values: Output, start: int) -> None:
        self._values, self._start = values, start

    def __getitem__(self, rows: slice) -> Float32:
        return self._values[self._moved(rows)]

    def __setitem__(self, rows: slice, values: NDArray[Any]) -> None:
        self._values[self._moved(rows)] = values

    def _moved(self, rows: slice) -> slice:
        return slice(self._start + rows.start, self._start + rows.stop)


def make_record(model: Model, params: Record, trust: Record | None) -> Record:
    """``uns[key]``: how a prediction was made, and what is to be expected of its genes."""
    record = {
        keys.PARAMS: params,
        "genes": list(model.genes),
        "units": UNITS[model.recipe.normalize],
        "encoder": dict(model.recipe.encoder or {}),
        "model": model.fingerprint,
        "training": {name: list(curve) for name, curve in model.history.items()},
        "versions": {package: version(package) for package in ("spahgc", "torch", "torch-geometric", "anndata")},
    }
    return record if trust is None else {**record, "trust": trust}


def predict_into_table(
    adata: AnnData, model: Model, targets: Sequence[TargetSlide], *, key: str, record: Record, bar: SpotBar
) -> None:
    """Predict, and write all slots of the table."""
    import pandas as pd

    values = np.empty((adata.n_obs, len(model.genes)), np.float32)
    support = _predict(model, targets, [_Placed(values, target.rows) for target in targets], bar)
    # All is made before anything is written, so that a failure leaves the table as it was.
    table = pd.DataFrame(values, index=adata.obs_names, columns=list(model.genes), copy=False)
    columns = adata.var_names.get_indexer(list(model.genes))
    here = columns >= 0
    layer = None
    if here.any():
        layer = np.full(adata.shape, np.nan, dtype=np.float32)
        for rows in blocks(adata.n_obs):
            layer[rows, columns[here]] = values[rows, here]
    adata.obsm[key] = table
    adata.layers.pop(key, None)
    if layer is not None:
        adata.layers[key] = layer
    _write_small(adata, key, record, support)


def predict_into_store(
    adata: AnnData,
    model: Model,
    targets: Sequence[TargetSlide],
    *,
    key: str,
    record: Record,
    bar: SpotBar,
    path: Path,
    overwrite: bool,
) -> None:
    """Predict into a store, and write to the table what is small.

    Values are made slide by slide, in the order of a slide's spots, several times over for some methods. So they are
    kept in a temporary file in that order, and read from there in the order of the table when all are made: in memory
    is a block at a time.
    """
    shape = adata.n_obs, len(model.genes)
    _disk.check_room(path, 4 * shape[0] * shape[1])
    whole = _without_values(adata, key, record, np.zeros(adata.n_obs, np.float32))
    # What cannot be written is found before the work.
    _disk.check_writable(whole)
    starts = np.cumsum([0, *(len(target.rows) for target in targets)])
    place = np.empty(adata.n_obs, np.intp)
    for start, target in zip(starts, targets, strict=False):
        place[target.rows] = start + np.arange(len(target.rows))
    with _disk.Scratch(path.parent, shape) as scratch:
        outputs = [_From(scratch, int(start)) for start in starts[:-1]]
        support = _predict(model, targets, outputs, bar)
        bar.describe(f"Writing {path.name}")
        whole = _without_values(adata, key, record, support)
        made = scratch.mapped()
        _disk.write_store(
            path, whole, lambda rows: made[place[rows]], key=key, model=record["model"], overwrite=overwrite
        )
    adata.obsm.pop(key, None)
    adata.layers.pop(key, None)
    _write_small(adata, key, {**record, keys.STORE: str(path)}, support)


def _predict(model: Model, targets: Sequence[TargetSlide], outputs: Sequence[Output], bar: SpotBar) -> Float32:
    """Predict each slide into its output; support in the order of the table, (n_obs,)."""
    support = np.empty(sum(len(target.rows) for target in targets), np.float32)
    bad = 0
    for target, out in zip(targets, outputs, strict=True):
        n = len(target.slide)
        bar.describe("Predicting" if len(targets) == 1 else f"Predicting {target.slide.name}")
        support[target.rows] = model.predict_slide_into(target.slide, out, progress=bar.over(n))
        bad += sum(int((~np.isfinite(out[rows]).all(axis=1)).sum()) for rows in blocks(n))
    if bad:
        raise FloatingPointError(f"The prediction has NaN or infinite values in {bad} spots; nothing was written.")
    return support


def _without_values(adata: AnnData, key: str, record: Record, support: Float32) -> AnnData:
    """What goes into a store, but for the values."""
    import anndata

    kept = {name: adata.uns[name] for name in (keys.SPATIAL, keys.SPATIALDATA_ATTRS) if name in adata.uns}
    obsm = {keys.SPATIAL: adata.obsm[keys.SPATIAL]}
    obs = adata.obs.assign(**{keys.support(key): support})
    return without_values(anndata.AnnData(obs=obs, uns={**kept, key: record}, obsm=obsm), key, record["genes"])


def _write_small(adata: AnnData, key: str, record: Record, support: Float32) -> None:
    """Write what a prediction has beside its values, and take off what belonged to the one before it."""
    adata.obs[keys.support(key)] = support
    adata.uns[key] = record
    if keys.trust(key) not in adata.uns:
        drop_columns(adata, key)
    if "trust" in record:
        write_columns(adata, record["trust"], key)
    # Scores and evidence belong to the prediction they were computed on.
    drop_evidence(adata, key)
    adata.uns.pop(keys.scores(key), None)
    adata.var.drop(columns=[keys.gene(key, metric) for metric in keys.METRICS], errors="ignore", inplace=True)


def check_key(adata: AnnData, key: str) -> None:
    """The key is a plain name, and free or one of our own predictions."""
    if not key or not all(c.isalnum() or c in "_-." for c in key):
        raise ValueError(f"key_added is made of letters, digits, '_', '-' and '.', not {key!r}.")
    if key.startswith(keys.IMAGE_PREFIX):
        raise ValueError(f"key_added={key!r} would pass for an embedding ('{keys.IMAGE_PREFIX}*'). Choose another one.")
    if isinstance(adata.uns.get(key), Mapping) and "model" in adata.uns[key]:
        return
    places: list[tuple[str, Any, str]] = [
        ("obsm", adata.obsm, key),
        ("layers", adata.layers, key),
        ("uns", adata.uns, key),
        ("uns", adata.uns, keys.scores(key)),
        ("obs", adata.obs, keys.support(key)),
        *(("var", adata.var, keys.gene(key, metric)) for metric in keys.METRICS),
        # Trust that a cross-validation put there is our own.
        *(("var", adata.var, keys.gene(key, name)) for name in keys.TRUST.values() if keys.trust(key) not in adata.uns),
    ]
    taken = [f"{place}[{name!r}]" for place, slots, name in places if name in slots]
    if taken:
        raise ValueError(
            f"The target holds something else in {', '.join(taken)}, where key_added={key!r} writes; it is never "
            f"overwritten. Choose another key_added."
        )
