"""A unit of a cross-validation: one method, one fold, one seed; fitted, predicted blind, scored."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .._disk import keeping
from .._slides import Cohort, Float32, Float64, Normalize, Slide, check_no_shared_patients, standardize
from .._tables._cohorts import measured_expression, reference_cohort, slide_rows, target_slides
from ..methods import Method, Run, check_needs
from ..metrics import noise_ceiling
from ._evaluate import score_slide
from ._folds import Fold
from ._protocols import Protocol, rescaled, rescaled_cohort
from ._trust import CEILING_METRIC

if TYPE_CHECKING:
    from anndata import AnnData

# Torch's random state and number of threads are the process's: units in threads of one process take turns.
_TURN = threading.Lock()


@dataclass(frozen=True)
class Unit:
    """What a result belongs to."""

    fold: str
    method: str
    """Label of the method."""
    seed: int

    def __str__(self) -> str:
        return f"Fold {self.fold!r}, method {self.method!r}, seed {self.seed}"


@dataclass(frozen=True, eq=False)
class Result:
    """Scores of a unit, float64 (n_slides, n_metrics, n_genes)."""

    slides: tuple[str, ...]
    metrics: tuple[str, ...]
    genes: tuple[str, ...]
    values: Float64


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A slide to predict and score.

    Parameters
    ----------
    slide
        The slide without expression, embedding standardised.
    measured
        What the prediction is scored against, (n_spots, n_genes).
    depth
        Total counts of each spot, (n_spots,).
    """

    slide: Slide
    measured: Float32
    depth: Float64


@dataclass(frozen=True, eq=False)
class FoldData:
    """Training and held-out slides of a fold, with what was chosen in the training slides."""

    fold: Fold
    cohort: Cohort
    """Training slides, embeddings standardised."""
    held_out: tuple[HeldOut, ...]


def fold_data(
    adata: AnnData,
    fold: Fold,
    protocol: Protocol,
    *,
    panel: int | Sequence[str],
    use_rep: str,
    library_key: str,
    patient_key: str,
    layer: str | None,
) -> tuple[FoldData, dict[str, Any]]:
    """Read a fold from the table: the panel is that of the training slides, held-out slides come without expression.

    A number for `panel` takes that many genes of the training slides.

    Returns
    -------
    The fold, and the expression matrix of each held-out slide over all genes, rows in canonical order.
    """
    rows = slide_rows(adata, library_key)
    training = adata[np.sort(np.concatenate([rows[name] for name in fold.training]))]
    cohort, recipe = reference_cohort(
        training,
        panel=panel,
        normalize_as=protocol.normalize,
        use_rep=use_rep,
        library_key=library_key,
        patient_key=patient_key,
        layer=layer,
    )
    held = adata[np.sort(np.concatenate([rows[name] for name in fold.held_out]))]
    measured, depth, _ = measured_expression(held, recipe.genes, protocol.normalize, layer=layer)
    targets = target_slides(held, recipe, library_key=library_key, patient_key=patient_key)
    check_no_shared_patients(cohort, [t.slide for t in targets], allow_shared_patients=bool(fold.shared_patients))
    matrix = sp.csr_array(held.X if layer is None else held.layers[layer])
    data = FoldData(
        fold,
        rescaled_cohort(cohort.standardized(), protocol.rescale),
        tuple(
            HeldOut(standardize(t.slide.read()), rescaled(measured[t.rows], protocol.rescale), depth[t.rows])
            for t in targets
        ),
    )
    return data, {t.slide.name: matrix[t.rows] for t in targets}


def run_unit(
    data: FoldData, unit: Unit, method: Method, *, device: str | None, peek: bool, cache: Path | None = None
) -> Result:
    """Fit a method on the training slides of a fold, predict the held-out ones from their H&E, score.

    Parameters
    ----------
    data
        The fold.
    unit
        Names the result; its seed is the fit's.
    method
        The method; it is made anew from its parameters, and left alone.
    device
        Torch device.
    peek
        Show the method the scored slide (:class:`~spahgc.methods.Run`); never set by the honest protocol.
    cache
        Folder of what units compute alike; the results are the same without it.
    """
    try:
        with _TURN, _one_thread(), keeping(cache):
            scores = _scores(data, type(method)(**method.params()), unit.seed, device, peek)
    except Exception as error:
        # A user's error stays one: the command prints it without a traceback.
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{unit} failed: {type(error).__name__}: {error}") from error
    return Result(
        tuple(held.slide.name for held in data.held_out),
        tuple(scores[0]),
        data.cohort.genes,
        np.array([list(of_slide.values()) for of_slide in scores], dtype=np.float64),
    )


def _scores(data: FoldData, method: Method, seed: int, device: str | None, peek: bool) -> list[dict[str, np.ndarray]]:
    held_out = data.held_out
    for slide in (*data.cohort, *(held.slide for held in held_out)):
        check_needs(method, slide)
    seen = replace(held_out[0].slide, expression=held_out[0].measured) if peek else None
    method.fit(data.cohort, Run(seed=seed, device=device, split_by=data.fold.split_by, checkpoint_slide=seen))
    scores = []
    for held in held_out:
        predicted = method.predict(held.slide.without_expression())
        if not np.isfinite(predicted).all():
            raise FloatingPointError(f"The prediction of slide {held.slide.name!r} has NaN or infinite values.")
        scores.append(score_slide(held.measured, predicted, held.depth))
    return scores


def run_ceiling(counts: Mapping[str, Any], unit: Unit, genes: tuple[str, ...], columns: Any, how: Normalize) -> Result:
    """Noise ceiling of the held-out slides, beside the methods' scores.

    Parameters
    ----------
    counts
        Raw counts of each slide, over all genes.
    unit
        Names the result; its seed is that of the splits.
    genes, columns
        The panel, and where it is in `counts`.
    how
        Unit of the expression.
    """
    with _TURN, _one_thread():
        ceilings = [noise_ceiling(slide, genes=columns, normalize=how, rng=unit.seed) for slide in counts.values()]
    return Result(tuple(counts), (CEILING_METRIC,), genes, np.array(ceilings)[:, None, :])


@contextmanager
def _one_thread() -> Iterator[Any]:
    """One thread for linear algebra: units run side by side, and sums come out the same wherever one runs."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
