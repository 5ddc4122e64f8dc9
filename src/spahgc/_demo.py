"""The demonstration behind ``spahgc demo``: the main job from slides to a report, on real slides or on drawn ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from . import _keys as keys
from ._demo_slides import Example, Result, drawn_slides, find_data, he_only, real_slides, with_measurement
from ._disk import replacing

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

Say = Callable[[str], None]

METHODS = ("spahgc", "context_ridge", "ridge", "knn", "gene_mean")
"""The method, and the controls beside it."""
ORACLE = "depth only (oracle)"
PANEL = 300
GOOD = 0.3
"""Correlation above which a gene counts as predicted."""
RECORD = "demo.json"
FILES = ("predictions.h5ad", "scores.csv", "report.html", "figures", "model", RECORD)


class Clock:
    """Says what begins, with the seconds since the start, and keeps how long each stage took."""

    def __init__(self, say: Say) -> None:
        self._say, self._start = say, time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, message: str) -> Iterator[None]:
        """A stage of the run."""
        start = time.perf_counter()
        self._say(f"{start - self._start:6.1f} s  {message}")
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start


def run(
    out: Path,
    *,
    data: Path | None = None,
    synthetic: bool = False,
    seed: int = 0,
    say: Say,
    cohort: Mapping[str, Any] | None = None,
    method_params: Mapping[str, Any] | None = None,
) -> Result:
    """Read slides, train, predict the target from its H&E, score it, and write everything into a folder.

    Parameters
    ----------
    out
        The folder. Files of an earlier demonstration are replaced; where files of the same names come from elsewhere,
        nothing is done.
    data
        Folder that holds ``her2st``; `None` looks in ``SPAHGC_DATA_DIR``, then in ``../shared/data``.
    synthetic
        Use the drawn cohort even where real slides are.
    seed
        Seed of everything random.
    say
        Takes the lines that tell how it goes.
    cohort
        Parameters of the drawn cohort.
    method_params
        Parameters of the method ``spahgc``.

    Raises
    ------
    FileNotFoundError
        If `data` holds no such slides.
    FileExistsError
        If the folder holds files of these names that no earlier demonstration wrote.
    """
    out = prepared(out)
    clock = Clock(say)
    found, looked = (None, []) if synthetic else find_data(data)
    if found is None and not synthetic:
        say(f"No her2st/ in {' or '.join(map(str, looked))}; --data names another folder.")
    if found is None:
        say("Slides are DRAWN, not real: the scores show that the parts work together, and nothing about tissue.")
    with clock.stage("reading", "reading the slides" if found else "drawing the slides"):
        example = drawn_slides(seed, **(cohort or {})) if found is None else real_slides(found)
    return show(example, out, seed=seed, say=say, clock=clock, method_params=method_params)


def show(
    example: Example,
    out: Path,
    *,
    seed: int = 0,
    say: Say,
    clock: Clock | None = None,
    method_params: Mapping[str, Any] | None = None,
) -> Result:
    """The main job on an example, see :func:`run`."""
    clock = clock or Clock(say)
    # From here to the scores, the target is a slide without genes: no step can read what was measured on it.
    reference, blind = example.reference, he_only(example.target)
    adata_ref, adata_blind = reference.tables[keys.TABLE], blind.tables[keys.TABLE]
    with clock.stage("importing", "loading torch"):
        import torch  # noqa: F401

        from . import tl
        from .pp import image_embedding

    n_tiles = adata_ref.n_obs + adata_blind.n_obs
    with clock.stage("embedding", f"embedding {n_tiles} tiles (texture, no pretrained weights)"):
        image_embedding(reference)
        image_embedding(blind)

    shared = set(adata_blind.obs[keys.PATIENT]) <= set(adata_ref.obs[keys.PATIENT])
    models = {}
    for method in METHODS:
        with clock.stage(f"training {method}", f"training {method} on {', '.join(_slides(adata_ref))}"):
            models[method] = tl.train(
                adata_ref,
                panel=PANEL,
                method=method,
                method_params=method_params if method == "spahgc" else None,
                split_by="slide" if shared else "patient",
                rng=seed,
            )
    with clock.stage("predicting", f"predicting {', '.join(_slides(adata_blind))} from its H&E"):
        tables = {method: tl.predict(model, adata_blind, copy=True) for method, model in models.items()}

    with clock.stage("scoring", "scoring against what was measured"):
        measured = example.target.tables[keys.TABLE]
        scored = {method: with_measurement(table, measured) for method, table in tables.items()}
        for table in scored.values():
            tl.evaluate(table)
        scores = _joined_scores(scored)
        summary = summarize(scores)

    from . import _demo_report

    with clock.stage("writing", f"writing {out}"):
        models["spahgc"].save(out / "model", overwrite=True)
        with replacing(out / "scores.csv") as temporary:
            scores.to_csv(temporary, index=False)
        with replacing(out / "predictions.h5ad") as temporary:
            predictions(scored).write_h5ad(temporary)
        result = Result(example, scored["spahgc"], scores, summary, models["spahgc"].history, clock.seconds, seed)
        figures = _demo_report.draw(result, out / "figures")
    _demo_report.write(result, figures, out / "report.html")
    _write_record(out, {"seed": seed, "drawn": example.drawn, "seconds": clock.seconds, "scores": _plain(summary)})

    say("")
    for line in _demo_report.headline(result):
        say(line)
    say("")
    say(_demo_report.text_table(summary))
    say("")
    say(f"{clock.elapsed:6.1f} s  done. Look at {out / 'report.html'}")
    return result


def predictions(scored: Mapping[str, AnnData]) -> AnnData:
    """The table for scanpy: X of spahgc, layers of the controls and of what was measured, scores in ``var``."""
    import numpy as np

    from . import get
    from ._tables._cohorts import measured_expression

    main = scored["spahgc"]
    table = get.predicted(main)
    for method, other in scored.items():
        if method != "spahgc":
            table.layers[method] = other.obsm[keys.PREDICTION][table.var_names].to_numpy(dtype=np.float32)
    here = [gene for gene in table.var_names if gene in main.var_names]
    layer = np.full(table.shape, np.nan, dtype=np.float32)
    unit = main.uns[keys.PREDICTION][keys.PARAMS]["normalize"]
    layer[:, table.var_names.get_indexer(here)] = measured_expression(main, here, unit, layer=None)[0]
    table.layers[keys.MEASURED] = layer
    return table


def summarize(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over genes of each score, a row per method and one for the oracle that knows depth alone.

    A score that is not defined is NaN: the correlation of a constant, of the gene mean.
    """
    import pandas as pd

    rows = {method: scores[scores["method"] == method] for method in METHODS}
    columns = {metric: [_mean(part, metric) for part in rows.values()] for metric in keys.METRICS}
    ridge = columns["pearson"][METHODS.index("ridge")]
    share = [_share_above(part, "pearson") for part in rows.values()]
    oracle, nothing = _mean(rows["ridge"], "depth_only"), float("nan")
    pearson = [*columns["pearson"], oracle]
    return pd.DataFrame(
        {
            "Pearson": pearson,
            "to ridge": [value - ridge for value in pearson],
            "Spearman": [*columns["spearman"], nothing],
            "RMSE": [*columns["rmse"], nothing],
            "Pearson, depth removed": [*columns["pearson_depth_removed"], nothing],
            f"genes above {GOOD}": [*share, _share_above(rows["ridge"], "depth_only")],
        },
        index=[*METHODS, ORACLE],
    )


def _mean(scores: pd.DataFrame, metric: str) -> float:
    return float(scores.loc[scores["metric"] == metric, "value"].mean())


def _share_above(scores: pd.DataFrame, metric: str) -> float:
    """Share of the genes that have a score which is above :data:`GOOD`; NaN if none has."""
    from .metrics import share_above

    return share_above(scores.loc[scores["metric"] == metric, "value"], GOOD)


def _joined_scores(scored: Mapping[str, AnnData]) -> pd.DataFrame:
    import pandas as pd

    from . import get

    joined = pd.concat([get.scores(table) for table in scored.values()], ignore_index=True)
    shared = next(iter(scored.values())).uns[keys.PREDICTION][keys.PARAMS]["shared_patients"]
    joined.insert(2, "same_patient", joined["patient"].isin(shared))
    return joined


def prepared(out: Path) -> Path:
    """The folder, made if it is not there, marked as a demonstration's; nothing in it is anyone else's."""
    from .tl._model import check_free

    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file. Choose another folder: --out.")
    taken = [name for name in FILES if (out / name).exists()]
    if taken and not _is_ours(out / RECORD):
        raise FileExistsError(
            f"{out} holds {', '.join(taken)}, and not from a demonstration; nothing was touched. Choose another "
            f"folder: --out."
        )
    check_free(out / "model", overwrite=True)
    _write_record(out, {})
    return out


def _is_ours(record: Path) -> bool:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("written_by") == "spahgc demo"


def _write_record(out: Path, content: dict[str, Any]) -> None:
    with replacing(out / RECORD) as temporary:
        record = {"written_by": "spahgc demo", "version": __version__, **content}
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _plain(summary: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """For JSON, which has no NaN."""
    return {
        str(method): {str(name): None if value != value else float(value) for name, value in row.items()}
        for method, row in summary.iterrows()
    }


def _slides(adata: AnnData) -> list[str]:
    return [str(name) for name in adata.obs[keys.REGION].unique()]
