"""The demonstration, end to end on small drawn slides: its files, its words, and what it does not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import spahgc
from spahgc.cli import _demo as demo

COHORT = {"n_slides": 4, "n_patients": 3, "n_spots": 40, "n_genes": 40}
SMALL = {"network": {"epochs": 2}, "n_seeds": 1}


def run(out: Path, say: Callable[[str], None] = lambda line: None) -> None:
    demo.run(out, synthetic=True, say=say, cohort=COHORT, method_params=SMALL)


def summary(out: Path) -> pd.DataFrame:
    return demo.summarize(pd.read_csv(out / "scores.csv"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spahgc.settings, "progress", False)
        patch.setattr(spahgc.settings, "device", "cpu")
        run(out, lines.append)
    return out, "\n".join(lines).splitlines()


def test_files(done: tuple[Path, list[str]]) -> None:
    out, _ = done
    pictures = {"expression.png", "gene_scores.png", "support.png", "training.png"}
    assert {path.name for path in (out / "figures").iterdir()} == pictures
    # Nothing is left under a temporary name.
    assert {path.name for path in out.iterdir()} == set(demo.FILES)


def test_predictions_are_a_table_for_scanpy(done: tuple[Path, list[str]]) -> None:
    out, _ = done
    table = sc.read_h5ad(out / "predictions.h5ad")
    target = demo.drawn_slides(0, **COHORT).target
    spahgc.pp.image_embedding(target, progress=False)
    again = spahgc.tl.predict(spahgc.tl.Model.load(out / "model"), target["table"], copy=True)
    np.testing.assert_allclose(table.X, again.obsm["spahgc"].to_numpy(), atol=1e-5)
    assert set(table.layers) == {"context_ridge", "low_rank_ridge", "ridge", "knn", "gene_mean", "measured"}
    np.testing.assert_allclose(table.obs["spahgc_support"], again.obs["spahgc_support"])
    np.testing.assert_allclose(table.var["spahgc_pearson"].mean(), summary(out).loc["spahgc", "Pearson"])
    measured = target["table"].to_df().to_numpy()
    normalized = np.log1p(1e4 * measured / measured.sum(axis=1, keepdims=True))
    columns = target["table"].var_names.get_indexer(table.var_names)
    np.testing.assert_allclose(table.layers["measured"], normalized[:, columns], rtol=1e-5)
    sc.pp.pca(table, n_comps=3)


def test_scores_are_those_of_a_plain_computation(done: tuple[Path, list[str]]) -> None:
    out, _ = done
    table = anndata.read_h5ad(out / "predictions.h5ad")
    scores = pd.read_csv(out / "scores.csv").set_index(["method", "metric", "gene"])["value"].sort_index()
    rows = summary(out)
    for method in ("spahgc", "ridge"):
        predicted = table.X if method == "spahgc" else table.layers[method]
        pairs = zip(table.layers["measured"].T, predicted.T, strict=True)
        expected = pd.Series([np.corrcoef(a, b)[0, 1] for a, b in pairs], index=table.var_names)
        np.testing.assert_allclose(scores[method, "pearson"][expected.index], expected, rtol=1e-4)
        np.testing.assert_allclose(rows.loc[method, "Pearson"], expected.mean(), rtol=1e-4)
        np.testing.assert_allclose(rows.loc[method, "genes above 0.3"], (expected > 0.3).mean())
    assert rows.loc["spahgc", "to ridge"] == rows.loc["spahgc", "Pearson"] - rows.loc["ridge", "Pearson"]
    np.testing.assert_allclose(rows.loc[demo.ORACLE, "Pearson"], scores["ridge", "depth_only"].mean())
    assert rows.loc["gene_mean"].isna().tolist() == [True, True, True, False, True, True]


def test_what_is_printed_and_reported(done: tuple[Path, list[str]]) -> None:
    out, lines = done
    text, scores = "\n".join(lines), summary(out)
    page = (out / "report.html").read_text()
    assert "Slides are DRAWN, not real" in lines[0]
    assert "Drawn slides, not real ones" in page
    assert "Same patient" not in text
    rows = {line.split("  ")[0]: line.split() for line in lines}
    for method in (*demo.METHODS, demo.ORACLE):
        assert method in rows
        assert f"<th>{method}</th>" in page
    assert rows["gene_mean"][1:4] == ["n/a", "n/a", "n/a"]
    assert rows["gene_mean"][4] == f"{scores.loc['gene_mean', 'RMSE']:.3f}"
    assert rows["spahgc"][1] == f"{scores.loc['spahgc', 'Pearson']:.3f}"
    assert rows["ridge"][2] == "+0.000"
    for value in scores["Pearson"].dropna():
        assert f"{value:.3f}".replace("-", "\N{MINUS SIGN}") in page
    assert page.count("data:image/png;base64,") == 4
    assert "nan" not in text
    assert ">nan<" not in page


def test_target_expression_changes_no_prediction(
    done: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = demo.drawn_slides

    def noisy(seed: int, **parameters: object) -> demo.Example:
        example = drawn(seed, **parameters)
        counts = example.target["table"].X
        example.target["table"].X = np.random.default_rng(0).poisson(3.0, counts.shape).astype(np.float32)
        return example

    monkeypatch.setattr(demo, "drawn_slides", noisy)
    run(tmp_path / "out")
    one, two = (anndata.read_h5ad(folder / "predictions.h5ad") for folder in (done[0], tmp_path / "out"))
    np.testing.assert_array_equal(one.X, two.X)
    np.testing.assert_array_equal(one.obs["spahgc_support"], two.obs["spahgc_support"])
    for method in ("context_ridge", "low_rank_ridge", "ridge", "knn", "gene_mean"):
        np.testing.assert_array_equal(one.layers[method], two.layers[method])
    # The noise did arrive where it may.
    assert not np.array_equal(one.layers["measured"], two.layers["measured"])
    assert not np.array_equal(one.var["spahgc_pearson"], two.var["spahgc_pearson"])


def test_target_has_no_genes_and_its_slides_stay_as_they_are() -> None:
    target = demo.drawn_slides(0, **COHORT).target
    blind = demo.he_only(target)["table"]
    assert blind.shape == (target["table"].n_obs, 0)
    assert not blind.layers
    assert blind.raw is None
    assert target["table"].n_vars > 0


def test_same_patient_is_said() -> None:
    params = {
        "target_slides": ["S4"],
        "reference_slides": ["S1", "S2", "S3"],
        "reference_patients": ["P1", "P3", "P3"],
        "shared_patients": ["P3"],
    }
    remarks = demo.remarks(params, drawn=False)
    assert any(line.startswith("Same patient: S4") and "S2, S3" in line for line in remarks)
    assert not any("does not have" in line for line in remarks)
    assert "does not have" in demo.remarks({**params, "shared_patients": []}, drawn=False)[0]


def test_finds_the_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, named, beside = tmp_path / "a" / "b", tmp_path / "named", tmp_path / "a" / "shared" / "data"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.delenv("SPAHGC_DATA_DIR", raising=False)
    assert not demo.find_data(None)[1]
    (beside / "her2st").mkdir(parents=True)
    folder, real = demo.find_data(None)
    assert real
    assert folder.resolve() == beside
    monkeypatch.setenv("SPAHGC_DATA_DIR", str(named))
    assert demo.find_data(None) == (named, False)
    (named / "her2st").mkdir(parents=True)
    assert demo.find_data(None) == (named, True)
    with pytest.raises(FileNotFoundError, match="no folder her2st"):
        demo.find_data(tmp_path)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match=r"report\.html.*nothing was touched"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "mine"
    with pytest.raises(OSError, match=r"report\.html"):
        demo.prepare(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "mine"


def test_earlier_demonstration_may_be_replaced(tmp_path: Path) -> None:
    demo.prepare(tmp_path / "out")
    for name in ("report.html", "notes.txt"):
        (tmp_path / "out" / name).write_text("old")
    demo.prepare(tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "old"


def test_real_slides_are_the_ones_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, list[str]]] = []

    def her2st(path: Path, *, slides: list[str]) -> str:
        asked.append((path, slides))
        return "+".join(slides)

    monkeypatch.setattr("spahgc.datasets.her2st", her2st)
    example = demo.real_slides(data_dir)
    assert asked == [(data_dir / "her2st", ["B4", "C2", "C3", "C5"]), (data_dir / "her2st", ["C4"])]
    assert (example.reference, example.target, example.drawn) == ("B4+C2+C3+C5", "C4", False)
