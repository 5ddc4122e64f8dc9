"""What the units of a cross-validation share changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import spahgc
from spahgc.methods import SpaHGC, _references
from spahgc.tl import _cross_validate, cross_validate

from .conftest import SMALL


def small(view: str) -> dict[str, Any]:
    """SpaHGC with one small network, and nothing beside it."""
    changes = {"kernel": 0.0, "linear_for_new": False, "views": [view]}
    return {"method": "spahgc", "method_params": {"network": SMALL, "n_seeds": 1, "changes": changes}}


METHODS = {
    "context": small("context"),
    "the same": small("context"),
    "spot": small("spot"),
    "egn": {"method": "egn", "method_params": {"epochs": 2, "hidden": 16}},
}


@pytest.fixture(scope="module")
def _cohort(planted: Callable[..., ad.AnnData]) -> ad.AnnData:
    table = planted({"A1": "A", "B1": "B", "C1": "C"}, n_side=5)
    # Tiles of the background: the same on all slides.
    table.obsm["image_toy"][::4] = table.obsm["image_toy"][0]
    return table


@pytest.fixture
def cohort(_cohort: ad.AnnData) -> ad.AnnData:
    return _cohort.copy()


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """All predictions of SpaHGC, as they happen."""
    made: list[np.ndarray] = []
    predict = SpaHGC.predict

    def kept(self: SpaHGC, slide: Any) -> np.ndarray:
        made.append(predict(self, slide))
        return made[-1]

    monkeypatch.setattr(SpaHGC, "predict", kept)
    return made


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Searches that were computed."""
    made: list[str] = []
    search = _references.cosine_topk

    def counted(*arrays: Any, exclude_self: bool = False, **options: Any) -> Any:
        made.append("close" if exclude_self else "references")
        return search(*arrays, exclude_self=exclude_self, **options)

    monkeypatch.setattr(_references, "cosine_topk", counted)
    return made


def run(table: ad.AnnData, **options: Any) -> pd.DataFrame:
    cross_validate(table, **{"methods": METHODS, "panel": 12, "n_seeds": 1, "n_jobs": 1, **options})
    return spahgc.get.cross_validation(table, key=options.get("key_added", "spahgc"))


def test_folds_are_the_same_with_and_without(
    cohort: ad.AnnData,
    tmp_path: Path,
    predictions: list[np.ndarray],
    searches: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = run(cohort, resume=tmp_path)
    with_cache, predictions[:] = list(predictions), []
    # Of both views, in each fold, the searches of its three slides and the edges within their graphs, once.
    assert searches.count("references") == searches.count("close") == 3 * 2 * 3
    assert not (tmp_path / ".spahgc_cache").exists()
    monkeypatch.setattr(_cross_validate, "shared_folder", lambda parent: nullcontext())
    searches.clear()
    pd.testing.assert_frame_equal(run(cohort), table, check_exact=True)
    assert searches.count("references") == searches.count("close") == 3 * 3 * 3
    assert len(predictions) == len(with_cache) == 3 * 3
    for one, other in zip(predictions, with_cache, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_a_killed_run_left_is_used_unless_it_is_damaged(
    cohort: ad.AnnData, tmp_path: Path, searches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr("spahgc._disk.shutil.rmtree", lambda *_, **__: None)
        first = run(cohort, methods={"spot": small("spot")}, resume=tmp_path)
    left = sorted((tmp_path / ".spahgc_cache").iterdir())
    assert len(left) == len(searches)
    left[0].write_bytes(left[0].read_bytes()[:-1])
    for unit in tmp_path.glob("*.npz"):
        unit.unlink()
    searches.clear()
    pd.testing.assert_frame_equal(
        run(cohort, methods={"spot": small("spot")}, resume=tmp_path), first, check_exact=True
    )
    assert len(searches) == 1
    assert not (tmp_path / ".spahgc_cache").exists()


def test_a_temporary_folder_goes_away(cohort: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(cohort, methods={"spot": small("spot")})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(SpaHGC, "predict", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        run(cohort, methods={"spot": small("spot")})
    assert list(tmp_path.iterdir()) == []
