"""Unit of a cross-validation: one method, one fold, one seed; arrays in, scores out."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from .._disk import keeping
from .._slides import Cohort, Float64, Normalize, Slide, check_no_shared_patients, expression_of, standardize
from .._tables._cohorts import measured_expression, reference_cohort, slide_rows, target_slides
from ..methods import Method, Run, check_needs
from ..metrics import noise_ceiling
from ._evaluate import long_table, score_slide
from ._protocols import Fold, Protocol, rescaled
from ._trust import CEILING_METRIC

# Torch's random state and number of threads belong to the process, so units in threads of one process take turns.
_TURN = threading.Lock()


@dataclass(frozen=True)
class Unit:
    """Fold, label of the method and seed of a result."""

    fold: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"Fold {self.fold!r}, method {self.method!r}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class FoldData:
    """Standardized slides of a fold, with expression of the panel of the training slides, and depth where held out."""

    fold: Fold
    cohort: Cohort
    held_out: tuple[Slide, ...]
    depths: tuple[Float64, ...]


def fold_data(
    adata: AnnData, fold: Fold, protocol: Protocol, *, panel: int | Sequence[str], **columns: Any
) -> tuple[FoldData, dict[str, Any]]:
    """Fold of a table, and the expression matrix of each held-out slide over all genes, rows in canonical order."""
    rows, layer = slide_rows(adata, columns["library_key"]), columns["layer"]
    train, held = (
        adata[np.sort(np.concatenate([rows[name] for name in names]))] for names in (fold.training, fold.held_out)
    )
    cohort, recipe = reference_cohort(train, panel=panel, normalize=protocol.normalize, **columns)
    measured, depth, _ = measured_expression(held, recipe.genes, protocol.normalize, layer=layer)
    library = {name: columns[name] for name in ("library_key", "patient_key")}
    targets = target_slides(held, recipe, **library)
    check_no_shared_patients(cohort, [t.slide for t in targets], allow_shared_patients=bool(fold.shared_patients))
    slides = [replace(slide, expression=rescaled(expression_of(slide), protocol.rescale)) for slide in cohort]
    held_out = [
        replace(standardize(t.slide.read()), expression=rescaled(measured[t.rows], protocol.rescale)) for t in targets
    ]
    cohort = replace(cohort, slides=tuple(slides)).standardized()
    matrix = sp.csr_array(held.X if layer is None else held.layers[layer])
    data = FoldData(fold, cohort, tuple(held_out), tuple(depth[t.rows] for t in targets))
    return data, {t.slide.name: matrix[t.rows] for t in targets}


def run_unit(
    data: FoldData, unit: Unit, method: Method, *, device: str | None, peek: bool, cache: Path | None = None
) -> pd.DataFrame:
    """Fit a new copy of a method on the training slides, predict the held-out ones from their H&E, score.

    Returns a long table with the columns slide, metric, gene and value. `peek` shows the method the scored slide; the
    honest protocol never sets it. `cache` is a folder for what several units compute; it does not change results.
    """
    scores = {}
    try:
        with _one_thread(), keeping(cache):
            fitted = type(method)(**method.params())
            for slide in (*data.cohort, *data.held_out):
                check_needs(fitted, slide)
            seen = data.held_out[0] if peek else None
            run = Run(seed=unit.seed, device=device, split_by=data.fold.split_by, checkpoint_slide=seen)
            fitted.fit(data.cohort, run)
            for slide, depth in zip(data.held_out, data.depths, strict=True):
                predicted = fitted.predict(slide.without_expression())
                if not np.isfinite(predicted).all():
                    raise FloatingPointError(f"The prediction of slide {slide.name!r} has NaN or infinite values.")
                scores[slide.name] = score_slide(expression_of(slide), predicted, depth)
    except Exception as error:
        # The command line prints a ValueError, which the user can fix, without a traceback.
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{unit} failed: {type(error).__name__}: {error}") from error
    return long_table(scores, data.cohort.genes)


def run_ceiling(
    counts: Mapping[str, Any], unit: Unit, genes: tuple[str, ...], columns: Any, normalize: Normalize
) -> pd.DataFrame:
    """Noise ceiling of held-out slides from their counts over all genes; `columns` are those of the panel."""
    with _one_thread():
        ceilings = {
            name: {CEILING_METRIC: noise_ceiling(slide, genes=columns, normalize=normalize, rng=unit.seed)}
            for name, slide in counts.items()
        }
    return long_table(ceilings, genes)


@contextmanager
def _one_thread() -> Iterator[Any]:
    """Use one thread for linear algebra: units run side by side, and sums are the same wherever one runs."""
    from threadpoolctl import threadpool_limits

    from ..nn.training import threads

    with _TURN, threadpool_limits(1), threads(1):
        yield
