"""The demonstration, end to end on small drawn slides: its files, its words, and what it does not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from spahgc import _demo, _demo_report, _demo_slides

COHORT = {"n_slides": 4, "n_patients": 3, "n_spots": 40, "n_genes": 40}
SMALL = {"network": {"epochs": 2}, "n_seeds": 1}


def run(out: Path, say: Callable[[str], None] = lambda line: None) -> _demo_slides.Result:
    return _demo.run(out, synthetic=True, say=say, cohort=COHORT, method_params=SMALL)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], _demo_slides.Result]:
    out = tmp_path_factory.mktemp("demo") / "out"
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        from spahgc import settings

        patch.setattr(settings, "progress", False)
        patch.setattr(settings, "device", "cpu")
        result = run(out, lines.append)
    return out, lines, result


def test_files(done: tuple[Path, list[str], _demo_slides.Result]) -> None:
    out, _, result = done
    pictures = {"expression.png", "gene_scores.png", "support.png", "training.png"}
    assert {path.name for path in (out / "figures").iterdir()} == pictures
    assert {path.name for path in (out / "model").iterdir()} == {
        "config.json",
        "reference.safetensors",
        "weights.safetensors",
    }
    # Nothing is left under a temporary name.
    assert {path.name for path in out.iterdir()} == set(_demo.FILES)
    record = json.loads((out / "demo.json").read_text())
    assert record["drawn"]
    assert set(record["seconds"]) >= {"embedding", "training spahgc", "scoring"}
    assert record["scores"]["gene_mean"]["Pearson"] is None
    assert record["scores"]["ridge"]["Pearson"] == result.summary.loc["ridge", "Pearson"]


def test_predictions_are_a_table_for_scanpy(done: tuple[Path, list[str], _demo_slides.Result]) -> None:
    out, _, result = done
    table = sc.read_h5ad(out / "predictions.h5ad")
    np.testing.assert_array_equal(table.X, result.target.obsm["spahgc"].to_numpy())
    assert set(table.layers) == {"context_ridge", "ridge", "knn", "gene_mean", "measured"}
    assert "spahgc_support" in table.obs
    np.testing.assert_allclose(table.var["spahgc_pearson"].mean(), result.summary.loc["spahgc", "Pearson"])
    measured = result.target.to_df().to_numpy()
    normalized = np.log1p(1e4 * measured / measured.sum(axis=1, keepdims=True))
    columns = result.target.var_names.get_indexer(table.var_names)
    np.testing.assert_allclose(table.layers["measured"], normalized[:, columns], rtol=1e-5)
    sc.pp.pca(table, n_comps=3)


def test_scores_are_those_of_a_plain_computation(done: tuple[Path, list[str], _demo_slides.Result]) -> None:
    out, _, result = done
    table = anndata.read_h5ad(out / "predictions.h5ad")
    scores = pd.read_csv(out / "scores.csv").set_index(["method", "metric", "gene"])["value"].sort_index()
    for method in ("spahgc", "ridge"):
        predicted = table.X if method == "spahgc" else table.layers[method]
        pairs = zip(table.layers["measured"].T, predicted.T, strict=True)
        expected = pd.Series([np.corrcoef(a, b)[0, 1] for a, b in pairs], index=table.var_names)
        np.testing.assert_allclose(scores[method, "pearson"][expected.index], expected, rtol=1e-4)
        row = result.summary.loc[method]
        np.testing.assert_allclose(row["Pearson"], expected.mean(), rtol=1e-4)
        np.testing.assert_allclose(row["genes above 0.3"], (expected > 0.3).mean())
    to_ridge = result.summary.loc["spahgc", "Pearson"] - result.summary.loc["ridge", "Pearson"]
    assert result.summary.loc["spahgc", "to ridge"] == to_ridge
    assert result.summary.loc["gene_mean"].isna().tolist() == [True, True, True, False, True, True]


def test_what_is_printed(done: tuple[Path, list[str], _demo_slides.Result]) -> None:
    _, lines, result = done
    text = "\n".join(lines)
    assert "Slides are DRAWN, not real" in lines[0]
    assert "Same patient" not in text
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert {*_demo.METHODS, _demo.ORACLE} <= set(rows)
    assert rows["gene_mean"][1:4] == ["n/a", "n/a", "n/a"]
    assert rows["gene_mean"][4] == f"{result.summary.loc['gene_mean', 'RMSE']:.3f}"
    assert rows["spahgc"][1] == f"{result.summary.loc['spahgc', 'Pearson']:.3f}"
    assert rows["ridge"][2] == "+0.000"
    assert "nan" not in text


def test_report_holds_the_score_table(done: tuple[Path, list[str], _demo_slides.Result]) -> None:
    out, _, result = done
    page = (out / "report.html").read_text()
    for method in (*_demo.METHODS, _demo.ORACLE):
        assert f'<th scope="row">{method}</th>' in page
    for value in result.summary["Pearson"].dropna():
        assert f"{value:.3f}".replace("-", "\N{MINUS SIGN}") in page
    assert "Drawn slides, not real ones" in page
    assert page.count("data:image/png;base64,") == 4
    assert ">nan<" not in page


def test_target_expression_changes_no_prediction(
    done: tuple[Path, list[str], _demo_slides.Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = _demo_slides.drawn_slides

    def noisy(seed: int, **parameters: object) -> _demo_slides.Example:
        example = drawn(seed, **parameters)
        counts = example.target["table"].X
        example.target["table"].X = np.random.default_rng(0).poisson(3.0, counts.shape).astype(np.float32)
        return example

    monkeypatch.setattr(_demo, "drawn_slides", noisy)
    run(tmp_path / "out")
    one, two = (anndata.read_h5ad(folder / "predictions.h5ad") for folder in (done[0], tmp_path / "out"))
    np.testing.assert_array_equal(one.X, two.X)
    np.testing.assert_array_equal(one.obs["spahgc_support"], two.obs["spahgc_support"])
    for method in ("context_ridge", "ridge", "knn", "gene_mean"):
        np.testing.assert_array_equal(one.layers[method], two.layers[method])
    # The noise did arrive where it may.
    assert not np.array_equal(one.layers["measured"], two.layers["measured"])
    assert not np.array_equal(one.var["spahgc_pearson"], two.var["spahgc_pearson"])


def test_target_has_no_genes_and_its_slides_stay_as_they_are() -> None:
    example = _demo_slides.drawn_slides(0, **COHORT)
    before = example.target["table"].copy()
    blind = _demo_slides.he_only(example.target)["table"]
    assert blind.shape == (before.n_obs, 0)
    assert not blind.layers
    assert blind.raw is None
    assert example.target["table"].shape == before.shape


def test_same_patient_is_said(done: tuple[Path, list[str], _demo_slides.Result]) -> None:
    from dataclasses import replace

    result = done[2]
    target = result.target.copy()
    params = target.uns["spahgc"]["params"]
    params["reference_patients"] = ["P1", "P3", "P3"]
    params["shared_patients"] = ["P3"]
    said = _demo_report.headline(replace(result, target=target))
    slides = params["reference_slides"]
    assert any(line.startswith("Same patient: ") and f"{slides[1]}, {slides[2]}" in line for line in said)
    assert not any("does not have" in line for line in said)


def test_finds_the_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, named, beside = tmp_path / "a" / "b", tmp_path / "named", tmp_path / "a" / "shared" / "data"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.delenv("SPAHGC_DATA_DIR", raising=False)
    assert _demo_slides.find_data(None)[0] is None
    (beside / "her2st").mkdir(parents=True)
    found = _demo_slides.find_data(None)[0]
    assert found is not None
    assert found.resolve() == beside
    monkeypatch.setenv("SPAHGC_DATA_DIR", str(named))
    assert _demo_slides.find_data(None) == (None, [named])
    (named / "her2st").mkdir(parents=True)
    assert _demo_slides.find_data(None)[0] == named
    with pytest.raises(FileNotFoundError, match="no folder her2st"):
        _demo_slides.find_data(tmp_path)


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match=r"report\.html.*nothing was touched"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "mine"
    with pytest.raises(FileExistsError, match="is a file"):
        _demo.prepared(tmp_path / "report.html")


def test_earlier_demonstration_may_be_replaced(tmp_path: Path) -> None:
    _demo.prepared(tmp_path / "out")
    for name in ("report.html", "notes.txt"):
        (tmp_path / "out" / name).write_text("old")
    _demo.prepared(tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "old"


def test_real_slides_are_the_ones_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, list[str]]] = []

    def her2st(path: Path, *, slides: list[str]) -> str:
        asked.append((path, slides))
        return "+".join(slides)

    monkeypatch.setattr("spahgc.datasets.her2st", her2st)
    example = _demo_slides.real_slides(data_dir)
    assert asked == [(data_dir / "her2st", ["B4", "C2", "C3", "C5"]), (data_dir / "her2st", ["C4"])]
    assert (example.reference, example.target, example.drawn) == ("B4+C2+C3+C5", "C4", False)


def test_report_says_which_genes_to_trust(done: tuple[Path, list[str], _demo_slides.Result], tmp_path: Path) -> None:
    from dataclasses import replace

    from spahgc.tl._trust import gene_trust, rule
    from spahgc.tl._trust_slots import record

    result = done[2]
    target = result.target.copy()
    panel = list(target.obsm["spahgc"].columns)
    metrics = ("pearson", "pearson_depth_removed", "depth_only")
    rows = [
        ("spahgc", slide, "P1", gene, metric, 0.5 - 0.01 * i + 0.01 * j)
        for i, gene in enumerate(panel)
        for j, slide in enumerate(("S1", "S2", "S3"))
        for metric in metrics
    ]
    table = pd.DataFrame(rows, columns=["method", "slide", "patient", "gene", "metric", "value"])
    params = {
        "label": "spahgc",
        "level": 0.9,
        "baseline": "ridge",
        "rule": rule(0.9),
        "split_by": "slide",
        "same_patient": True,
        "slides": ["S1", "S2", "S3"],
        "patients": ["P1"],
    }
    target.uns["spahgc"]["trust"] = record(gene_trust(table, method="spahgc"), params)
    with_trust = replace(result, target=target)
    figures = _demo_report.draw(with_trust, tmp_path)
    assert figures["trust"].is_file()
    _demo_report.write(with_trust, figures, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Genes to trust" in page
    assert page.count("data:image/png;base64,") == 5
    assert page.count("<td>trusted</td>") == 10
