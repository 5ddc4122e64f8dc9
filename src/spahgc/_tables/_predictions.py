"""Predictions, scores, evidence and trust to the slots of a table, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import dask
import numpy as np
import pandas as pd
from anndata import AnnData

from .. import _keys as keys
from .._checks import format_names
from .._disk import read_store, write_store
from .._settings import logger
from .._slides import Float32, blocks
from ._cohorts import plain

# Verdicts on a gene, from best to worst; "not assessed" has no cross-validated score.
VERDICTS = ("trusted", "weak", "not predictable", "not assessed")
_TRUST_COLUMNS: dict[str, type] = {
    **dict.fromkeys(("expected_pearson", "low", "high", "expected_depth_removed"), float),
    **dict.fromkeys(("difference_to_ridge", "difference_to_depth", "share_of_ceiling"), float),
    "n_slides": int,
    "verdict": object,
}
_WORKERS = 4  # chunks of a store that are read at once
LARGE_LAYER = 2**28  # bytes of a layer worth a log line
CV_COLUMNS = ("method", "slide", "patient", "gene", "metric", "value", "seed", "fold", "shared_patient")
SCORE_COLUMNS = ("slide", "patient", "method", "gene", "metric", "value")


@dataclass(frozen=True, eq=False)
class Trust:
    """Expected score of each gene on a further slide: a row per gene, and how it was estimated."""

    frame: pd.DataFrame
    params: dict[str, Any]

    def __post_init__(self) -> None:
        self.frame.attrs = dict(self.params.items())

    def to_slots(self) -> dict[str, Any]:
        """Parameters, genes and columns as arrays, which AnnData can write."""
        columns = {str(name): np.array(column) for name, column in self.frame.items()}
        return {keys.PARAMS: dict(self.params), "genes": np.array(self.frame.index, dtype=object), **columns}

    def to_json(self) -> dict[str, Any]:
        """:meth:`to_slots` as JSON types, `None` for NaN."""
        return {
            name: [None if value != value else value for value in part] if isinstance(part, list) else part
            for name, part in plain(self.to_slots()).items()
        }

    @classmethod
    def from_slots(cls, entry: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_slots`; missing values may be NaN or `None`."""
        columns: dict[str, Any] = {name: np.asarray(entry[name], dtype=dtype) for name, dtype in _TRUST_COLUMNS.items()}
        frame = pd.DataFrame(columns, index=pd.Index(np.asarray(entry["genes"], dtype=object), name="gene"))
        return cls(frame, plain(dict(entry[keys.PARAMS])))


@contextmanager
def reading(slot: str, remedy: str) -> Iterator[None]:
    """Say of a slot that its form is not the one that is written; for blocks that only take it apart."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        problem = f"{slot} does not have the form in which spahgc writes it ({type(error).__name__}: {error})"
        raise ValueError(f"{problem}. {remedy}") from error


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted expression of the spots of a table, with support (n_obs,) and its ``uns`` record."""

    values: Any  # (n_obs, n_genes): array or Rows when made, DataFrame or dask array when read from a table or store
    genes: tuple[str, ...]
    support: Float32 | None
    record: dict[str, Any]

    @property
    def trust(self) -> Trust | None:
        """Trust per gene, if the model had any."""
        with reading("The trust in the record of the prediction", "Predict again."):
            return Trust.from_slots(self.record["trust"]) if "trust" in self.record else None

    def expression(self, genes: Sequence[str]) -> Float32:
        """Predicted expression of some genes of a prediction that was read, float32 (n_obs, n_genes), in memory."""
        if isinstance(self.values, pd.DataFrame):
            return self.values[list(genes)].to_numpy(dtype=np.float32)
        with dask.config.set(num_workers=_WORKERS):
            wanted = self.values[:, pd.Index(self.genes).get_indexer(pd.Index(genes))]
            return np.asarray(wanted.compute(scheduler="threads"))


def read_prediction(adata: AnnData, key: str) -> Prediction:
    """Prediction of a table; values are read later."""
    table, entry, support = _in_table(adata, key), adata.uns.get(key), adata.obs.get(keys.slot(key, "support"))
    return Prediction(
        _in_store(adata, key) if table is None else table,
        tuple(str(gene) for gene in (adata.uns[key]["genes"] if table is None else table.columns)),
        None if support is None else support.to_numpy(),
        dict(entry) if isinstance(entry, Mapping) else {},
    )


def _in_table(adata: AnnData, key: str) -> pd.DataFrame | None:
    if isinstance(adata.obsm.get(key), pd.DataFrame):
        return adata.obsm[key]
    stored = [name for name, entry in adata.uns.items() if isinstance(entry, Mapping) and keys.STORE in entry]
    if key in stored:
        return None
    known = {*stored, *(name for name, table in adata.obsm.items() if isinstance(table, pd.DataFrame))}
    raise KeyError(
        f"obsm has no prediction {key!r}. Run spahgc.tl.predict(adata_ref, adata) first. "
        f"Available predictions: {format_names(sorted(known))}."
    )


def _in_store(adata: AnnData, key: str) -> Any:
    """Values of a stored prediction for the spots of the table, dask array (n_obs, n_genes)."""
    path = Path(str(adata.uns[key][keys.STORE]))
    try:
        store = read_store(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{error} It should hold prediction {key!r} of the table. If the store was moved, set "
            f"adata.uns[{key!r}][{keys.STORE!r}] = <new path>. If it is lost, run spahgc.tl.predict again."
        ) from error
    again = "Run spahgc.tl.predict on this table, with a store of its own."
    if store.model != str(adata.uns[key]["model"]):
        raise ValueError(
            f"{path} was overwritten: its prediction {key!r} is of another model than the table's. {again}"
        )
    if store.names.equals(adata.obs_names):
        return store.values
    rows = store.names.get_indexer(adata.obs_names)
    if (rows < 0).any():
        raise ValueError(
            f"{path} has no prediction of {int((rows < 0).sum())} of the table's {adata.n_obs} spots, e.g. "
            f"{format_names(adata.obs_names[rows < 0], most=3)}. {again}"
        )
    return store.values[rows]


def write_prediction(
    adata: AnnData,
    key: str,
    prediction: Prediction,
    *,
    write_layer: bool = True,
    store: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write a prediction to the slots of a table, or its values to a store, and remove results of an older one."""
    record = prediction.record
    parts: dict[str, Any] = {}
    # Compute everything before writing so that a failure leaves the table unchanged.
    if store is not None:
        whole = prediction_table(adata, key, prediction)
        write_store(store, whole, prediction.values.__getitem__, key=key, model=record["model"], overwrite=overwrite)
        record = {**record, keys.STORE: str(store)}
    else:
        genes = list(prediction.genes)
        parts["obsm"] = pd.DataFrame(prediction.values, index=adata.obs_names, columns=genes, copy=False)
        parts["layers"] = _layer(adata, prediction) if write_layer else None
    for place in ("obsm", "layers"):
        getattr(adata, place).pop(key, None)
        if parts.get(place) is not None:
            getattr(adata, place)[key] = parts[place]
    adata.obs[keys.slot(key, "support")] = prediction.support
    adata.uns[key] = record
    if prediction.trust is not None or keys.slot(key, "trust") not in adata.uns:
        _write_trust_columns(adata, key, prediction.trust)
    if adata.uns.pop(keys.slot(key, "evidence"), None) is not None:
        for place, name in evidence_slots(key):
            if name in getattr(adata, place):
                del getattr(adata, place)[name]
    adata.uns.pop(keys.slot(key, "scores"), None)
    adata.var.drop(columns=[keys.slot(key, metric) for metric in keys.METRICS], errors="ignore", inplace=True)


def _layer(adata: AnnData, prediction: Prediction) -> Float32 | None:
    """Prediction as a layer; NaN for genes outside the panel, `None` if all are."""
    columns = adata.var_names.get_indexer(list(prediction.genes))
    here = columns >= 0
    if not here.any():
        return None
    layer = np.full(adata.shape, np.nan, dtype=np.float32)
    if layer.nbytes > LARGE_LAYER:
        logger.info("The layer takes %.0f MB; write_layer=False leaves it out.", layer.nbytes / 2**20)
    for rows in blocks(adata.n_obs):
        layer[rows, columns[here]] = prediction.values[rows, here]
    return layer


def prediction_table(adata: AnnData, key: str, prediction: Prediction) -> AnnData:
    """Prediction as a table of its own, without ``X``."""
    # Images and SpatialData link only of slides that have spots in the table; squidpy refuses others.
    images, link = (keys.part(adata.uns, name) for name in (keys.SPATIAL, keys.SPATIALDATA_ATTRS))
    column = link.get("region_key")
    if column in adata.obs:
        slides = set(adata.obs[column].dropna().astype(str))
        images = {name: part for name, part in images.items() if name in slides}
        regions = link.get("region")
        if not isinstance(regions, str) and regions is not None:
            link = {**link, "region": [region for region in regions if str(region) in slides]}
    slots = {key: prediction.record, keys.SPATIAL: images, keys.SPATIALDATA_ATTRS: link}
    uns = {name: deepcopy(part) for name, part in slots.items() if part}
    obsm = {keys.SPATIAL: np.array(adata.obsm[keys.SPATIAL])} if keys.SPATIAL in adata.obsm else {}
    var = pd.DataFrame(index=pd.Index(list(prediction.genes)))
    out = AnnData(obs=adata.obs.copy(), var=var, uns=uns, obsm=obsm)
    if prediction.support is not None:
        out.obs[keys.slot(key, "support")] = prediction.support
    if prediction.trust is not None:
        _write_trust_columns(out, key, prediction.trust)
    return out


def check_prediction_key(key: str) -> None:
    """Raise unless `key_added` is a name for a slot that no embedding has."""
    if keys.check_key(key).startswith(keys.IMAGE_PREFIX):
        raise ValueError(
            f"key_added={key!r} would be taken for an embedding ('{keys.IMAGE_PREFIX}*'). Choose another name."
        )


def check_unused(adata: AnnData, key: str, places: Iterable[tuple[str, str]]) -> None:
    """Raise if places of results under `key` hold something else."""
    taken = [f"{place}[{name!r}]" for place, name in places if name in getattr(adata, place)]
    if taken:
        raise ValueError(
            f"{', '.join(taken)} exists already and was not written by spahgc, so results of key_added={key!r} cannot "
            f"overwrite it. Choose another key_added, or rename it."
        )


def check_prediction_slots(adata: AnnData, key: str) -> None:
    """Raise if slots of a prediction hold something else."""
    if isinstance(adata.uns.get(key), Mapping) and "model" in adata.uns[key]:
        return
    places = [("obsm", key), ("layers", key), ("uns", key)]
    places += [("uns", keys.slot(key, "scores")), ("obs", keys.slot(key, "support"))]
    columns = list(keys.METRICS)
    if keys.slot(key, "trust") not in adata.uns:  # trust of a cross-validation on this table may be overwritten
        columns += keys.TRUST.values()
    check_unused(adata, key, [*places, *(("var", keys.slot(key, name)) for name in columns)])


def evidence_slots(key: str) -> list[tuple[str, str]]:
    """Places of the evidence behind a prediction, beside its entry in ``uns``."""
    places = {"agreement": "obs", "references": "obsm", "weights": "obsm", "slides": "obsm"}
    return [(place, keys.slot(key, what)) for what, place in places.items()]


def write_scores(adata: AnnData, key: str, scores: pd.DataFrame) -> None:
    """Write the scores of a prediction, and the mean of each metric over slides by gene."""
    adata.uns[keys.slot(key, "scores")] = {str(name): column.to_numpy() for name, column in scores.items()}
    write_mean_scores(adata, key, read_scores(adata, key))


def write_mean_scores(adata: AnnData, key: str, scores: pd.DataFrame) -> None:
    """Mean of each metric over slides, by gene, into ``var``; NaN for genes without a score."""
    means = scores.groupby(["metric", "gene"])["value"].mean()
    for metric in keys.METRICS:
        if metric in means:
            adata.var[keys.slot(key, metric)] = means[metric].reindex(adata.var_names).to_numpy()


def read_scores(adata: AnnData, key: str) -> pd.DataFrame:
    """Scores of a prediction as a long table."""
    advice = (
        f"Prediction {key!r} was not scored. Run spahgc.tl.evaluate(adata, key={key!r}) on a table with measured "
        "expression; spahgc.get.trust says what to expect without it."
    )
    entry = _entry(adata, key, "scores", advice)
    with reading(f"uns['{keys.slot(key, 'scores')}']", advice):
        return _long_table(entry, SCORE_COLUMNS)


def _entry(adata: AnnData, key: str, what: str, advice: str) -> Any:
    name = keys.slot(key, what)
    if name not in adata.uns:
        known = [other.removesuffix(f"_{what}") for other in adata.uns if other.endswith(f"_{what}")]
        raise KeyError(f"uns has no {name!r}. {advice} Available keys: {format_names(known)}.")
    return adata.uns[name]


def _long_table(entry: Mapping[str, Any], names: Sequence[str]) -> pd.DataFrame:
    """Long table of columns as arrays, or as codes of few names."""
    columns = {}
    for name in names:
        values = entry[name]
        if isinstance(values, Mapping):
            values = np.asarray(values["names"], dtype=object)[np.asarray(values["codes"])]
        columns[name] = np.asarray(values)
    return pd.DataFrame(columns)


def write_cross_validation(
    adata_ref: AnnData, key: str, table: pd.DataFrame, params: dict[str, Any], trusts: Mapping[str, Trust], shown: str
) -> None:
    """Write cross-validated scores, and trust by label of the method; ``var`` holds the trust of the one `shown`."""
    columns: dict[str, Any] = {}
    for name in table.columns:
        columns[name] = table[name].to_numpy()
        if table[name].dtype == object:  # long columns of few names: store each name once
            codes, names = pd.factorize(table[name])
            columns[name] = {"codes": codes.astype(np.int32), "names": np.array(names, dtype=object)}
    adata_ref.uns[keys.slot(key, "cv")] = {keys.PARAMS: params, "scores": columns}
    adata_ref.uns.pop(keys.slot(key, "trust"), None)
    if trusts:
        methods = {label: trust.to_slots() for label, trust in trusts.items()}
        adata_ref.uns[keys.slot(key, "trust")] = {keys.PARAMS: {"shown": shown}, "methods": methods}
    _write_trust_columns(adata_ref, key, trusts.get(shown))


def read_cross_validation(adata_ref: AnnData, key: str) -> pd.DataFrame:
    """Cross-validated scores as a long table."""
    advice = f"Run spahgc.tl.cross_validate(adata_ref, key_added={key!r}) first."
    entry = _entry(adata_ref, key, "cv", advice)
    with reading(f"uns['{keys.slot(key, 'cv')}']", advice):
        table = _long_table(entry["scores"], CV_COLUMNS)
        table.attrs = {name: str(entry[keys.PARAMS][name]) for name in ("protocol", "label")}
    return table


def reference_trusts(adata_ref: AnnData, key: str) -> tuple[dict[str, Trust], str]:
    """Trust of each cross-validated method by label (perhaps none), and the label whose trust is in ``var``."""
    entry = adata_ref.uns.get(keys.slot(key, "trust"))
    if not isinstance(entry, Mapping) or "methods" not in entry:
        return {}, ""
    with reading(f"uns['{keys.slot(key, 'trust')}']", "Run spahgc.tl.cross_validate again."):
        shown = str(entry[keys.PARAMS]["shown"])
        return {label: Trust.from_slots(of) for label, of in entry["methods"].items()}, shown


def _write_trust_columns(adata: AnnData, key: str, trust: Trust | None) -> None:
    """Main columns of the trust into ``var``, NaN for other genes; older ones are removed."""
    names = {column: keys.slot(key, name) for column, name in keys.TRUST.items()}
    adata.var.drop(columns=list(names.values()), errors="ignore", inplace=True)
    if trust is not None:
        frame = trust.frame.reindex(adata.var_names)
        verdicts = pd.Categorical(frame["verdict"], categories=list(VERDICTS))
        for column, name in names.items():
            adata.var[name] = verdicts if column == "verdict" else frame[column].to_numpy()
