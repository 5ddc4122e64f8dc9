"""Cross-validation: what it scores, what it may not see, where it goes on, and where it runs."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn import linear_model
from sklearn.decomposition import PCA

import spahgc
from spahgc._slides import Slide, standardize
from spahgc.cli import main
from spahgc.methods import KNN, Ridge, Run
from spahgc.tl import _units, cross_validate
from spahgc.tl._protocols import PROTOCOLS, highly_variable, panel_of_all, rescaled

from .conftest import SMALL, reread

PAPER = {"spahgc": {"method": "spahgc", "preset": "paper", "method_params": {"network": SMALL}}}
SLIDES = {"A1": "A", "A2": "A", "B1": "B", "C1": "C"}
COLUMNS = ["method", "slide", "patient", "gene", "metric", "value", "seed", "fold", "shared_patient"]


@pytest.fixture(scope="module")
def _cohort(planted: Callable[..., ad.AnnData]) -> ad.AnnData:
    return planted(SLIDES, n_side=5)


@pytest.fixture
def cohort(_cohort: ad.AnnData) -> ad.AnnData:
    """Four slides of three patients, 25 spots each; genes G00 to G11 follow the embedding, G12 to G23 do not."""
    return _cohort.copy()


def quick(table: ad.AnnData, **options: Any) -> pd.DataFrame:
    """A cross-validation in this process, of methods that take no time, unless `options` say otherwise."""
    cross_validate(table, **{"methods": ["knn", "gene_mean"], "panel": 12, "n_jobs": 1, **options})
    return spahgc.get.cross_validation(table, key=options.get("key_added", "spahgc"))


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a, b, check_exact=True)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs of all fits of kNN, as they happen."""
    seen: list[Run] = []
    fit = KNN.fit
    monkeypatch.setattr(KNN, "fit", lambda self, cohort, run: (seen.append(run), fit(self, cohort, run))[1])
    return seen


def test_equals_train_predict_evaluate(cohort: ad.AnnData) -> None:
    table = quick(cohort, methods=["ridge"])
    assert list(table.columns) == COLUMNS
    assert table.attrs == {"protocol": "honest", "label": "new patients"}
    for patient in "ABC":
        held = cohort.obs["patient"] == patient
        target = cohort[held].copy()
        spahgc.tl.predict(cohort[~held].copy(), target, panel=12, method="ridge", split_by="patient")
        spahgc.tl.evaluate(target)
        by = ["slide", "gene", "metric"]
        expected = spahgc.get.scores(target).set_index(by)["value"]
        found = table[(table["patient"] == patient) & (table["method"] == "ridge")].set_index(by)["value"]
        assert len(found) == len(expected) == 12 * len(spahgc._keys.METRICS) * (2 if patient == "A" else 1)
        pd.testing.assert_series_equal(found, expected.loc[found.index], rtol=1e-5)


def test_planted_genes_score_and_others_do_not(cohort: ad.AnnData) -> None:
    table = quick(cohort, methods=["ridge", "gene_mean"], panel=24)
    scores = table[table["metric"] == "pearson"]
    ridge = scores[scores["method"] == "ridge"].groupby("gene")["value"].mean()
    planted, others = (ridge[[f"G{i:02d}" for i in numbers]] for numbers in (range(12), range(12, 24)))
    # What the others have comes from sharing a total with the planted ones.
    assert planted.mean() > 0.6
    assert planted.min() > others.max()
    assert scores[scores["method"] == "gene_mean"]["value"].isna().all()


def test_noise_ceiling(cohort: ad.AnnData) -> None:
    table = quick(cohort)
    ceiling = table[table["method"] == "measured"]
    assert set(ceiling["metric"]) == {"ceiling"}
    assert ceiling.groupby("slide").size().to_dict() == dict.fromkeys(SLIDES, 12)
    assert ceiling["value"].between(0, 1).all()
    cohort.layers["ln"] = np.log1p(cohort.X.toarray())
    table = quick(cohort, normalize="none", layer="ln", panel=["G01", "G02"])
    assert "measured" not in set(table["method"])
    assert table.loc[table["metric"] == "depth_only", "value"].isna().all()


def test_order_of_rows_does_not_matter(cohort: ad.AnnData) -> None:
    shuffled = cohort[np.random.default_rng(1).permutation(cohort.n_obs)].copy()
    same(quick(cohort, methods=["ridge"]), quick(shuffled, methods=["ridge"]))


def test_seeds(cohort: ad.AnnData) -> None:
    methods = {**PAPER, "kNN, 3": {"method": "knn", "method_params": {"n_neighbors": 3}}}
    table = quick(cohort, methods=methods, n_seeds=2, rng=5)
    seeds = table.groupby("method")["seed"].unique().map(list).to_dict()
    assert seeds == {"spahgc": [5, 6], "kNN, 3": [5], "measured": [5]}
    first, second = (table[(table["method"] == "spahgc") & (table["seed"] == seed)]["value"] for seed in (5, 6))
    assert not np.allclose(first, second, equal_nan=True)
    alone = quick(cohort, methods=PAPER, n_seeds=1, rng=6)
    np.testing.assert_array_equal(second, alone[alone["method"] == "spahgc"]["value"])


def test_same_patient_is_said(cohort: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="allow_shared_patients=True"):
        quick(cohort, split_by="slide")
    table = quick(cohort, split_by="slide", allow_shared_patients=True)
    assert table.attrs["label"] == "same patient in part"
    assert table.groupby("slide")["shared_patient"].first().to_dict() == {slide: slide[0] == "A" for slide in SLIDES}
    one = cohort[cohort.obs["patient"] == "A"].copy()
    with pytest.raises(ValueError, match="one patient, 'A'"):
        quick(one)
    assert quick(one, split_by="slide", allow_shared_patients=True).attrs["label"] == "same patient"
    assert one.uns["spahgc_cv"]["params"]["label"] == "same patient"


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_what_is_written_survives(cohort: ad.AnnData, tmp_path: Path, kind: str) -> None:
    table = quick(cohort, methods={**PAPER, "knn": {}}, n_seeds=1, key_added="mine")
    same(spahgc.get.cross_validation(cohort, key="mine"), table)
    read = reread(cohort, tmp_path / f"table.{kind}")
    found = spahgc.get.cross_validation(read, key="mine")
    same(found, table)
    assert found.attrs == table.attrs
    params = read.uns["mine_cv"]["params"]
    assert params["methods"]["spahgc"]["method_params"]["preset"] == "paper"
    assert {name: list(held) for name, held in params["folds"].items()} == {"A": ["A1", "A2"], "B": ["B1"], "C": ["C1"]}


def with_noise(table: ad.AnnData, slide: str) -> ad.AnnData:
    """The table with the counts of one slide drawn anew."""
    noisy = table.copy()
    counts = noisy.X.toarray()
    rows = (noisy.obs["region"] == slide).to_numpy()
    counts[rows] = np.random.default_rng(3).poisson(20, (rows.sum(), noisy.n_vars))
    noisy.X = sp.csr_matrix(counts)
    return noisy


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[np.ndarray]]:
    """Maker of all predictions of a cross-validation, in their order."""
    score = _units.score_slide
    seen: list[np.ndarray] = []
    monkeypatch.setattr(_units, "score_slide", lambda m, p, d: (seen.append(p), score(m, p, d))[1])

    def run(table: ad.AnnData, **options: Any) -> list[np.ndarray]:
        seen.clear()
        quick(table, n_seeds=1, **options)
        return list(seen)

    return run


def test_held_out_expression_is_not_seen(cohort: ad.AnnData, predictions: Callable[..., list[np.ndarray]]) -> None:
    for methods in (["ridge"], PAPER):
        clean, noisy = (predictions(table, methods=methods) for table in (cohort, with_noise(cohort, "C1")))
        # Folds A, B and C; C1 comes last.
        np.testing.assert_array_equal(clean[-1], noisy[-1])
        assert not np.array_equal(clean[0], noisy[0])


def test_the_published_protocol_peeks(cohort: ad.AnnData, predictions: Callable[..., list[np.ndarray]]) -> None:
    cohort = cohort[cohort.obs["region"] != "A2"].copy()
    # The same panel on both sides, so that nothing but the peek is left.
    network = {**SMALL, "epochs": 5, "learning_rate": 0.02}
    methods = {"spahgc": {"preset": "paper", "method_params": {"network": network}}}
    options: dict[str, Any] = {"panel": [f"G{i:02d}" for i in range(6)], "methods": methods}
    blind = replace(PROTOCOLS["paper"], peek=False)
    for protocol, seen in (("paper", True), (blind, False)):
        options["protocol"] = protocol
        clean, noisy = (predictions(table, **options) for table in (cohort, with_noise(cohort, "C1")))
        assert np.array_equal(clean[-1], noisy[-1]) != seen


def test_only_the_published_protocol_sets_peek(cohort: ad.AnnData, fits: list[Run]) -> None:
    for protocol in ("honest", "hest"):
        quick(cohort, methods=["knn"], protocol=protocol)
    assert {run.checkpoint_slide for run in fits} == {None}
    fits.clear()
    quick(cohort, methods=["knn"], protocol="paper")
    assert [run.checkpoint_slide.name for run in fits if run.checkpoint_slide] == ["A1", "A2", "B1", "C1"]


def test_panel_is_that_of_the_training_slides(cohort: ad.AnnData) -> None:
    def genes(table: ad.AnnData, **options: Any) -> dict[str, set[str]]:
        found = quick(table, methods=["gene_mean"], panel=6, **options)
        return {str(fold): set(part) for fold, part in found.groupby("fold")["gene"]}

    clean = genes(cohort)
    for patient in "ABC":
        training = cohort[cohort.obs["patient"] != patient].copy()
        assert clean[patient] == set(spahgc.tl.train(training, method="gene_mean", panel=6).genes)
    assert genes(with_noise(cohort, "C1"))["C"] == clean["C"]
    assert len(set(map(frozenset, genes(cohort, protocol="paper").values()))) == 1


def test_inner_splits_follow_the_folds(cohort: ad.AnnData, fits: list[Run]) -> None:
    quick(cohort, methods=["knn"])
    quick(cohort, methods=["knn"], split_by="slide", allow_shared_patients=True)
    assert [run.split_by for run in fits] == ["patient"] * 3 + ["slide", "slide", "patient", "patient"]


@pytest.mark.parametrize("protocol", ["paper", "hest"])
def test_optimistic_protocols_say_so(cohort: ad.AnnData, protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        table = quick(cohort, protocol=protocol)
    assert "optimistic: " in caplog.text
    assert table.attrs["label"].startswith("optimistic: ")
    assert cohort.uns["spahgc_cv"]["params"]["label"] == table.attrs["label"]
    depth, honest = (made.query("metric == 'depth_only'")["value"].mean() for made in (table, quick(cohort)))
    assert depth > honest + 0.2
    with pytest.raises(ValueError, match=f"protocol='{protocol}' has its own unit"):
        quick(cohort, protocol=protocol, normalize="log1p")


def test_rescaled() -> None:
    counts = np.random.default_rng(0).poisson(3, (20, 4)).astype(np.float32)
    counts[:, 3] = 2
    log10 = spahgc._slides.normalize(counts, "log10")
    np.testing.assert_allclose(rescaled(log10, "natural"), np.log1p(counts), rtol=1e-6)
    scaled = rescaled(log10, "range")
    assert scaled.min(axis=0).tolist() == [0, 0, 0, 0]
    assert scaled.max(axis=0).tolist() == [1, 1, 1, 0]
    np.testing.assert_array_equal(rescaled(log10, "none"), log10)


def test_highly_variable_genes() -> None:
    rng = np.random.default_rng(0)
    # Ten genes at each of ten levels; the first of each varies more than by sampling. The last gene of all is rare.
    mean = np.repeat(np.geomspace(2, 60, 10), 10)
    slides = []
    for _ in range(2):
        counts = rng.poisson(mean, (80, 100))
        counts[:, ::10] = rng.poisson(mean[::10] * rng.gamma(2, 0.5, (80, 10)))
        counts[:, 99] = rng.random(80) < 0.05
        slides.append(sp.csr_array(counts))
    assert sum(gene % 10 == 0 for gene in highly_variable(slides, 10)) >= 8
    assert 99 not in highly_variable(slides, 100)


def test_fixed_ridge_is_that_of_hest(cohort: ad.AnnData, predictions: Callable[..., list[np.ndarray]]) -> None:
    found = predictions(cohort, methods=["ridge"], protocol="hest", panel=8)[-1]
    genes = panel_of_all(cohort, PROTOCOLS["hest"], 8, library_key="region", layer=None)
    scaled = np.empty_like(cohort.obsm["image_toy"])
    for slide in SLIDES:
        rows = (cohort.obs["region"] == slide).to_numpy()
        embedding = cohort.obsm["image_toy"][rows]
        scaled[rows] = standardize(Slide(slide, None, embedding, cohort.obsm["spatial"][rows])).embedding
    held = (cohort.obs["region"] == "C1").to_numpy()
    values = np.log1p(cohort[:, genes].X.toarray())
    pca = PCA().fit(scaled[~held])
    model = linear_model.Ridge(alpha=100 / (256 * 8)).fit(pca.transform(scaled[~held]), values[~held])
    expected = model.predict(pca.transform(scaled[held]))
    order = np.lexsort(cohort.obsm["spatial"][held].T)
    np.testing.assert_allclose(found, expected[order], rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="`penalty` must be a finite number of at least 0 or None, got -1"):
        Ridge(penalty=-1.0)


SCRIPT = """
import sys, time
import anndata, spahgc
from spahgc.methods import KNN

spahgc.settings.progress = False
fit = KNN.fit
KNN.fit = lambda self, cohort, run: (time.sleep(0.5), fit(self, cohort, run))[1]
table = anndata.read_h5ad(sys.argv[1])
spahgc.tl.cross_validate(table, methods=["ridge", "knn"], panel=12, n_jobs=1, resume=sys.argv[2])
"""


def test_a_killed_run_goes_on(cohort: ad.AnnData, tmp_path: Path, fits: list[Run]) -> None:
    whole = quick(cohort, methods=["ridge", "knn"])
    fits.clear()
    source, folder = tmp_path / "table.h5ad", tmp_path / "cv"
    cohort.write_h5ad(source)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(source), str(folder)])
    try:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("[!.]*.npz"))) < 4 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    finished = {path: path.stat() for path in folder.glob("[!.]*.npz")}
    assert 4 <= len(finished) < 9  # 3 folds of ridge, kNN and the ceiling
    same(quick(cohort, methods=["ridge", "knn"], resume=folder), whole)
    for path, before in finished.items():
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert len(fits) == 3 - sum(".knn." in path.name for path in finished)
    assert len(list(folder.glob("[!.]*.npz"))) == 9


def test_finished_units_are_not_computed_again(
    cohort: ad.AnnData, tmp_path: Path, fits: list[Run], caplog: pytest.LogCaptureFixture
) -> None:
    first = quick(cohort, resume=tmp_path)
    assert len(fits) == 3
    same(quick(cohort, resume=tmp_path), first)
    # The same slides in another order are the same data.
    same(quick(cohort[::-1].copy(), resume=tmp_path), first)
    assert len(fits) == 3
    # Methods may be added, and the table is that of one run.
    methods = ["ridge", "knn", "gene_mean"]
    both = quick(cohort, methods=methods, resume=tmp_path)
    assert len(fits) == 3
    same(both, quick(cohort, methods=methods))
    # A damaged file is computed again.
    fits.clear()
    broken = next(tmp_path.glob("B.knn.*.npz"))
    broken.write_bytes(broken.read_bytes()[:100])
    same(quick(cohort, resume=tmp_path), first)
    assert len(fits) == 1
    assert "computed again" in caplog.text


def test_other_settings_and_other_data_are_computed_anew(cohort: ad.AnnData, tmp_path: Path) -> None:
    cohort.obs["cellularity"] = 0.1
    quick(cohort, resume=tmp_path)
    before = set(tmp_path.glob("[!.]*.npz"))
    cases: list[dict[str, Any]] = [
        {"panel": 10},
        {"normalize": "log10"},
        {"split_by": "slide", "allow_shared_patients": True},
        {"methods": {"knn": {"method_params": {"n_neighbors": 3}}}},
    ]
    changed = [with_noise(cohort, "C1"), cohort.copy(), cohort.copy(), cohort.copy()]
    changed[1].obsm["image_toy"][3, 0] += 1
    changed[2].obsm["spatial"][3, 0] += 1
    changed[3].obs.loc[cohort.obs_names[3], "cellularity"] = 0.2
    for table, options in [*((cohort, options) for options in cases), *((table, {}) for table in changed)]:
        found = quick(table, resume=tmp_path, **options)
        after = set(tmp_path.glob("[!.]*.npz"))
        new = after - before
        assert {path.name.split(".")[1] for path in new} >= {"knn"}
        same(found, quick(table, **options))
        before = after


def test_a_copy_has_the_results(cohort: ad.AnnData, snapshot: Any) -> None:
    before = snapshot(cohort)
    out = cross_validate(cohort, methods=["gene_mean"], panel=12, n_jobs=1, copy=True)
    assert snapshot(cohort) == before
    assert cross_validate(cohort, methods=["gene_mean"], panel=12, n_jobs=1) is None
    same(spahgc.get.cross_validation(out), spahgc.get.cross_validation(cohort))


def test_a_failing_unit_is_named_and_the_others_are_kept(
    cohort: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = KNN.fit

    def fail(self: KNN, training: Any, run: Run) -> KNN:
        if {slide.name for slide in training} == {"A1", "A2", "C1"}:
            raise ArithmeticError("no luck")
        return fit(self, training, run)

    with monkeypatch.context() as patch:
        patch.setattr(KNN, "fit", fail)
        with pytest.raises(RuntimeError, match="Fold 'B', method 'knn', seed 0 failed: ArithmeticError: no luck"):
            quick(cohort, resume=tmp_path)
    assert "spahgc_cv" not in cohort.uns
    assert {path.name.split(".")[1] for path in tmp_path.glob("A.*.npz")} == {"knn", "gene-mean", "measured"}
    same(quick(cohort, resume=tmp_path), quick(cohort))
    two = cohort[cohort.obs["region"].isin(["A1", "B1"])].copy()
    with pytest.raises(ValueError, match="Fold 'A', method 'spahgc', seed 0 failed: .*two reference slides"):
        quick(two, methods=PAPER)


def test_worker_processes_give_the_same(cohort: ad.AnnData, tmp_path: Path) -> None:
    options: dict[str, Any] = {"methods": {**PAPER, "ridge": {}, "knn": {}}, "n_seeds": 1}
    same(quick(cohort, n_jobs=2, resume=tmp_path, **options), quick(cohort, **options))


@pytest.fixture
def cluster() -> Iterator[Any]:
    import distributed

    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options, silence_logs=logging.ERROR) as made, distributed.Client(made) as client:
        yield client


def test_a_running_dask_client_is_used(cohort: ad.AnnData, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    executor = type(cluster).get_executor
    monkeypatch.setattr(type(cluster), "get_executor", lambda self, **kw: (used.append(self), executor(self, **kw))[1])
    options: dict[str, Any] = {"methods": {**PAPER, "ridge": {}}, "n_seeds": 2}
    same(quick(cohort, n_jobs=None, **options), quick(cohort, **options))
    assert used == [cluster]
    with pytest.raises(ValueError, match="Fold 'A', method 'spahgc', seed [01] failed"):
        quick(cohort[cohort.obs["region"].isin(["A1", "B1"])].copy(), methods=PAPER, n_jobs=None)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"methods": "ridge"}, TypeError, "`methods` must be a sequence of strings or a mapping.*, got 'ridge'"),
        ({"methods": []}, ValueError, "`methods` is empty"),
        ({"methods": ["lasso"]}, ValueError, "No method 'lasso'. Available: "),
        ({"methods": {"a": {"method": "knn", "k": 1}}}, ValueError, "has 'k'. Available: 'method', 'preset'"),
        ({"methods": {"knn": {"method_params": {"k": 1}}}}, ValueError, "Method 'knn' has no parameter 'k'"),
        ({"methods": {"measured": {"method": "knn"}}}, ValueError, "The label 'measured' is reserved"),
        ({"protocol": "nature"}, ValueError, "must be one of 'honest', 'paper', 'hest' or .*got 'nature'"),
        ({"n_seeds": 0}, ValueError, "`n_seeds` must be an integer of at least 1, got 0"),
        ({"panel": "ERBB2"}, TypeError, "`panel` must be .*got 'ERBB2'"),
        ({"panel": ["ERBB2"]}, KeyError, "1 of 1 requested genes"),
        ({"patient_key": "donor"}, KeyError, "no column 'donor'"),
        ({"library_key": "patient", "patient_key": "region"}, ValueError, "several patients"),
        ({"key_added": "a/b"}, ValueError, "`key_added` must consist of"),
        ({"normalize": "cpm"}, ValueError, "must be one of 'log1p', 'log10', 'none' or None, got 'cpm'"),
        ({"layer": "raw"}, KeyError, "no 'raw'"),
    ],
)
def test_bad_input(cohort: ad.AnnData, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        quick(cohort, **options)
    assert "spahgc_cv" not in cohort.uns


def test_nothing_else_is_overwritten(cohort: ad.AnnData) -> None:
    with pytest.raises(KeyError, match="cross_validate.*Available keys: none"):
        spahgc.get.cross_validation(cohort)
    for mine in ("scores of mine", 3, {"mine": 1}):
        cohort.uns["spahgc_cv"] = mine
        with pytest.raises(ValueError, match=r"uns\['spahgc_cv'\] exists already"):
            quick(cohort)


def test_command(cohort: ad.AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort.write_h5ad(tmp_path / "ref.h5ad")
    arguments = ["cross-validate", str(tmp_path / "ref.h5ad"), str(tmp_path / "out.csv"), "--methods", "ridge,knn"]
    arguments += ["--panel", "12", "--n-jobs", "1", "--table", str(tmp_path / "out.h5ad")]
    assert main([*arguments, "--resume", str(tmp_path / "cv")]) == 0
    assert "new patients" in capsys.readouterr().out
    expected = quick(cohort, methods=["ridge", "knn"])
    same(spahgc.get.cross_validation(ad.read_h5ad(tmp_path / "out.h5ad")), expected)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv"), expected)
    assert main(arguments) == 2
    assert "Pass --overwrite" in capsys.readouterr().err
