"""Predictions, scores, evidence and trust to the slots of a table, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import _keys as keys
from .._checks import format_names
from .._disk import read_store, write_store
from .._slides import Float32, blocks
from ._cohorts import plain

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("spahgc")

VERDICTS = ("trusted", "weak", "not predictable", "not assessed")
"""Verdicts on a gene, from best to worst; "not assessed" has no cross-validated score."""
_TRUST = "trust"  # entry of a prediction's record
_LARGE_LAYER = 2**28  # bytes from which on the size of a layer is logged
_WORKERS = 4  # chunks of a store that are read at once
_CV_COLUMNS = ("method", "slide", "patient", "gene", "metric", "value", "seed", "fold", "shared_patient")
_SCORE_COLUMNS = ("slide", "patient", "method", "gene", "metric", "value")


@dataclass(frozen=True, eq=False)
class Trust:
    """Expected score of each gene on a further slide: a row per gene, and how it was estimated."""

    frame: pd.DataFrame
    params: dict[str, Any]

    def __post_init__(self) -> None:
        self.frame.attrs = dict(self.params.items())

    def to_slots(self) -> dict[str, Any]:
        """Parameters, genes and columns as arrays, which AnnData can write."""
        columns = {
            str(name): np.array(column, dtype=object if column.dtype == object else None)
            for name, column in self.frame.items()
        }
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
        import pandas as pd

        params = plain(entry[keys.PARAMS])
        numbers = ["expected_pearson", "low", "high", "expected_depth_removed", f"difference_to_{params['baseline']}"]
        numbers += ["difference_to_depth", "share_of_ceiling"]
        columns: dict[str, Any] = {name: np.asarray(entry[name], dtype=np.float64) for name in numbers}
        columns["n_slides"] = np.asarray(entry["n_slides"], dtype=np.int64)
        columns["verdict"] = np.asarray(entry["verdict"], dtype=object)
        frame = pd.DataFrame(columns, index=pd.Index(np.asarray(entry["genes"], dtype=object), name="gene"))
        return cls(frame, params)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted expression of the spots of a table, (n_obs, n_genes), with support (n_obs,) and its ``uns`` record.

    Values may be anything with rows: an array or :class:`~spahgc._slides.Rows` when made, a DataFrame or a dask array
    when read from a table or its store.
    """

    values: Any
    genes: tuple[str, ...]
    support: Float32 | None
    record: dict[str, Any]

    @property
    def trust(self) -> Trust | None:
        """Trust per gene, if the model had any."""
        return Trust.from_slots(self.record[_TRUST]) if _TRUST in self.record else None

    def expression(self, genes: Sequence[str]) -> Float32:
        """Predicted expression of some genes of a prediction that was read, float32 (n_obs, n_genes), in memory."""
        import dask
        import pandas as pd

        if isinstance(self.values, pd.DataFrame):
            return self.values[list(genes)].to_numpy(dtype=np.float32)
        with dask.config.set(num_workers=_WORKERS):
            wanted = self.values[:, pd.Index(self.genes).get_indexer(pd.Index(genes))]
            return np.asarray(wanted.compute(scheduler="threads"))


def panel(adata: AnnData, key: str) -> list[str]:
    """Predicted genes; the store of the prediction is not opened."""
    table = _in_table(adata, key)
    return [str(gene) for gene in (adata.uns[key]["genes"] if table is None else table.columns)]


def stored_at(adata: AnnData, key: str) -> str | None:
    """Path of the store of a prediction; `None` if it has none."""
    entry = adata.uns.get(key)
    return str(entry[keys.STORE]) if isinstance(entry, Mapping) and keys.STORE in entry else None


def read_prediction(adata: AnnData, key: str) -> Prediction:
    """Prediction of a table; values are read later."""
    table = _in_table(adata, key)
    values = _in_store(adata, key) if table is None else table
    entry = adata.uns.get(key)
    support = adata.obs.get(keys.support(key))
    return Prediction(
        values,
        tuple(panel(adata, key)),
        None if support is None else support.to_numpy(),
        dict(entry) if isinstance(entry, Mapping) else {},
    )


def _in_table(adata: AnnData, key: str) -> pd.DataFrame | None:
    import pandas as pd

    table = adata.obsm.get(key)
    if isinstance(table, pd.DataFrame):
        return table
    if stored_at(adata, key) is not None:
        return None
    known = {name for name in adata.obsm if isinstance(adata.obsm[name], pd.DataFrame)}
    known |= {name for name in adata.uns if stored_at(adata, name) is not None}
    raise KeyError(
        f"obsm has no prediction {key!r}. Run spahgc.tl.predict(adata_ref, adata) first. "
        f"Available predictions: {format_names(sorted(known))}."
    )


def _in_store(adata: AnnData, key: str) -> Any:
    """Values of a stored prediction for the spots of the table, dask array (n_obs, n_genes)."""
    path = Path(str(stored_at(adata, key)))
    try:
        store = read_store(path)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{error} Prediction {key!r} of the table was written there. If the store was moved, set "
            f"adata.uns[{key!r}][{keys.STORE!r}] = <new path>; if it is lost, run spahgc.tl.predict again."
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
    import pandas as pd

    record, table, layer = prediction.record, None, None
    # Compute everything before writing so that a failure leaves the table unchanged.
    if store is not None:
        whole = prediction_table(adata, key, prediction)
        write_store(store, whole, prediction.values.__getitem__, key=key, model=record["model"], overwrite=overwrite)
        record = {**record, keys.STORE: str(store)}
    else:
        genes = list(prediction.genes)
        table = pd.DataFrame(prediction.values, index=adata.obs_names, columns=genes, copy=False)
        layer = _layer(adata, prediction, key) if write_layer else None
    for slots, content in ((adata.obsm, table), (adata.layers, layer)):
        slots.pop(key, None)
        if content is not None:
            slots[key] = content
    adata.obs[keys.support(key)] = prediction.support
    adata.uns[key] = record
    if prediction.trust is not None or keys.trust(key) not in adata.uns:
        _write_trust_columns(adata, key, prediction.trust)
    if adata.uns.pop(keys.evidence(key), None) is not None:
        for _, slots, name in evidence_slots(adata, key):
            if name in slots:
                del slots[name]
    adata.uns.pop(keys.scores(key), None)
    adata.var.drop(columns=[keys.gene(key, metric) for metric in keys.METRICS], errors="ignore", inplace=True)


def _layer(adata: AnnData, prediction: Prediction, key: str) -> Float32 | None:
    """Prediction as a layer; NaN for genes outside the panel, `None` if all are."""
    columns = adata.var_names.get_indexer(list(prediction.genes))
    here = columns >= 0
    if not here.any():
        return None
    n_bytes = 4 * adata.n_obs * adata.n_vars
    if n_bytes > _LARGE_LAYER:
        logger.info(
            "layers[%r] takes %.0f MB, NaN outside the panel. Pass write_layer=False to leave it out.",
            key,
            n_bytes / 1e6,
        )
    layer = np.full(adata.shape, np.nan, dtype=np.float32)
    for rows in blocks(adata.n_obs):
        layer[rows, columns[here]] = prediction.values[rows, here]
    return layer


def prediction_table(adata: AnnData, key: str, prediction: Prediction) -> AnnData:
    """Prediction as a table of its own, without ``X``."""
    import anndata
    import pandas as pd

    var = pd.DataFrame(index=pd.Index(list(prediction.genes)))
    slots = {key: prediction.record, **_slide_slots(adata)}
    obsm = {keys.SPATIAL: np.array(adata.obsm[keys.SPATIAL])} if keys.SPATIAL in adata.obsm else {}
    kept = {name: deepcopy(part) for name, part in slots.items() if part}
    out = anndata.AnnData(obs=adata.obs.copy(), var=var, uns=kept, obsm=obsm)
    if prediction.support is not None:
        out.obs[keys.support(key)] = prediction.support
    if prediction.trust is not None:
        _write_trust_columns(out, key, prediction.trust)
    return out


def _slide_slots(adata: AnnData) -> dict[str, Any]:
    """Images and SpatialData link of the slides that have spots in the table; squidpy refuses others."""
    images, link = adata.uns.get(keys.SPATIAL, {}), adata.uns.get(keys.SPATIALDATA_ATTRS, {})
    column = link.get("region_key")
    if column in adata.obs:
        slides = set(adata.obs[column].dropna().astype(str))
        images = {name: part for name, part in images.items() if name in slides}
        regions = link.get("region")
        if not isinstance(regions, str) and regions is not None:
            link = {**link, "region": [region for region in regions if str(region) in slides]}
    return {keys.SPATIAL: images, keys.SPATIALDATA_ATTRS: link}


def taken_by_others(adata: AnnData, key: str) -> list[str]:
    """Slots where a prediction would be written that hold something else."""
    if isinstance(adata.uns.get(key), Mapping) and "model" in adata.uns[key]:
        return []
    places: list[tuple[str, Any, str]] = [
        ("obsm", adata.obsm, key),
        ("layers", adata.layers, key),
        ("uns", adata.uns, key),
        ("uns", adata.uns, keys.scores(key)),
        ("obs", adata.obs, keys.support(key)),
        *(("var", adata.var, keys.gene(key, metric)) for metric in keys.METRICS),
        # Trust of a cross-validation on this table may be overwritten.
        *(("var", adata.var, keys.gene(key, name)) for name in keys.TRUST.values() if keys.trust(key) not in adata.uns),
    ]
    return [f"{place}[{name!r}]" for place, slots, name in places if name in slots]


def evidence_slots(adata: AnnData, key: str) -> list[tuple[str, Any, str]]:
    """Places of the evidence behind a prediction, beside its entry in ``uns``."""
    in_obsm = (keys.references(key), keys.weights(key), keys.slides(key))
    return [("obs", adata.obs, keys.agreement(key)), *(("obsm", adata.obsm, name) for name in in_obsm)]


def write_evidence(
    adata: AnnData,
    key: str,
    record: dict[str, Any],
    *,
    references: np.ndarray,
    weights: Float32,
    shares: pd.DataFrame,
    agreement: Float32,
) -> None:
    """Write the reference spots behind a prediction, and whether they agree with it."""
    for (_, slots, name), content in zip(
        evidence_slots(adata, key), (agreement, references, weights, shares), strict=True
    ):
        slots[name] = content
    adata.uns[keys.evidence(key)] = record


def write_scores(adata: AnnData, key: str, scores: pd.DataFrame) -> None:
    """Write the scores of a prediction, and the mean of each metric over slides by gene."""
    adata.uns[keys.scores(key)] = {str(name): column.to_numpy() for name, column in scores.items()}
    for metric, means in mean_scores(adata, key).items():
        adata.var[keys.gene(key, metric)] = means.reindex(adata.var_names).to_numpy()


def read_scores(adata: AnnData, key: str) -> pd.DataFrame:
    """Scores of a prediction as a long table."""
    import pandas as pd

    name = keys.scores(key)
    if name not in adata.uns:
        raise KeyError(
            f"uns has no {name!r}: prediction {key!r} was not scored. Run spahgc.tl.evaluate(adata, key={key!r}) on a "
            f"table with measured expression; spahgc.get.trust says what to expect without it. "
            f"Scored: {format_names(k.removesuffix('_scores') for k in adata.uns if k.endswith('_scores'))}."
        )
    table = pd.DataFrame({column: np.asarray(values) for column, values in adata.uns[name].items()})
    # Files return the keys of a dictionary in another order.
    return table[sorted(table, key=lambda column: _SCORE_COLUMNS.index(column) if column in _SCORE_COLUMNS else 99)]


def mean_scores(adata: AnnData, key: str) -> dict[str, pd.Series]:
    """Mean of each metric over slides, by gene; NaN for genes without a score."""
    means = read_scores(adata, key).groupby(["metric", "gene"])["value"].mean()
    return {metric: means[metric] for metric in keys.METRICS if metric in means}


def write_cross_validation(
    adata_ref: AnnData, key: str, table: pd.DataFrame, params: dict[str, Any], trusts: Mapping[str, Trust], shown: str
) -> None:
    """Write cross-validated scores, and trust by label of the method; ``var`` holds the trust of the one `shown`."""
    import pandas as pd

    columns: dict[str, Any] = {}
    for name in table.columns:
        columns[name] = table[name].to_numpy()
        if table[name].dtype == object:  # long columns of few names: store each name once
            codes, names = pd.factorize(table[name])
            columns[name] = {"codes": codes.astype(np.int32), "names": np.array(names, dtype=object)}
    adata_ref.uns[keys.cross_validation(key)] = {keys.PARAMS: params, "scores": columns}
    adata_ref.uns.pop(keys.trust(key), None)
    if trusts:
        methods = {label: trust.to_slots() for label, trust in trusts.items()}
        adata_ref.uns[keys.trust(key)] = {keys.PARAMS: {"shown": shown}, "methods": methods}
    _write_trust_columns(adata_ref, key, trusts.get(shown))


def read_cross_validation(adata_ref: AnnData, key: str) -> pd.DataFrame:
    """Cross-validated scores as a long table."""
    import pandas as pd

    name = keys.cross_validation(key)
    if name not in adata_ref.uns:
        raise KeyError(
            f"uns has no {name!r}. Run spahgc.tl.cross_validate(adata_ref, key_added={key!r}) first. Available "
            f"cross-validations: {format_names(k.removesuffix('_cv') for k in adata_ref.uns if k.endswith('_cv'))}."
        )
    entry = adata_ref.uns[name]
    columns = {}
    for column in _CV_COLUMNS:
        values = entry["scores"][column]
        if isinstance(values, Mapping):
            values = np.asarray(values["names"], dtype=object)[np.asarray(values["codes"])]
        columns[column] = values
    table = pd.DataFrame(columns)
    table.attrs = {name: str(entry[keys.PARAMS][name]) for name in ("protocol", "label")}
    return table


def reference_trusts(adata_ref: AnnData, key: str) -> tuple[dict[str, Trust], str]:
    """Trust by label of the cross-validated method, empty if there is none, and the label shown in ``var``."""
    entry = adata_ref.uns.get(keys.trust(key))
    if not isinstance(entry, Mapping) or "methods" not in entry:
        return {}, ""
    return {label: Trust.from_slots(of) for label, of in entry["methods"].items()}, str(entry[keys.PARAMS]["shown"])


def as_verdicts(values: Any) -> Any:
    """Verdicts as a categorical, from best to worst."""
    import pandas as pd

    return pd.Categorical(values, categories=list(VERDICTS))


def _write_trust_columns(adata: AnnData, key: str, trust: Trust | None) -> None:
    """Main columns of the trust into ``var``, NaN for other genes; older ones are removed."""
    names = {column: keys.gene(key, name) for column, name in keys.TRUST.items()}
    adata.var.drop(columns=list(names.values()), errors="ignore", inplace=True)
    if trust is not None:
        frame = trust.frame.reindex(adata.var_names)
        for column, name in names.items():
            adata.var[name] = as_verdicts(frame[column]) if column == "verdict" else frame[column].to_numpy()
