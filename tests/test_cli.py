"""The command: one line for a user's error, the library's numbers, and the demonstration end to end."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest

import spahgc
from spahgc import _demo, _demo_slides
from spahgc.cli import main

SMALL = {"network": {"epochs": 2}, "n_seeds": 1}


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("demo", "embed", "train", "predict"))


def test_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path / "none.h5ad"), str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("spahgc: error: ")
    assert "none.h5ad" in error
    assert "Traceback" not in error
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def table() -> anndata.AnnData:
    sdata = spahgc.datasets.synthetic_cohort(n_slides=3, n_patients=3, n_spots=40, n_genes=40, rng=1)
    spahgc.pp.image_embedding(sdata)
    return sdata["table"]


def test_train_and_predict_give_the_numbers_of_the_library(table: anndata.AnnData, tmp_path: Path) -> None:
    names = sorted(table.obs["region"].unique())
    reference = table[table.obs["region"] != names[-1]].copy()
    target = table[table.obs["region"] == names[-1]].copy()
    reference.write_h5ad(tmp_path / "ref.h5ad")
    target.write_h5ad(tmp_path / "target.h5ad")
    train = ["train", str(tmp_path / "ref.h5ad"), str(tmp_path / "model"), "--method", "ridge", "--panel", "20"]
    assert main(train) == 0
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "target.h5ad"), str(tmp_path / "out.h5ad")]) == 0
    spahgc.tl.predict(spahgc.tl.train(reference, method="ridge", panel=20), target)
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert list(written.obsm["spahgc"].columns) == list(target.obsm["spahgc"].columns)
    np.testing.assert_array_equal(written.obsm["spahgc"].to_numpy(), target.obsm["spahgc"].to_numpy())
    np.testing.assert_array_equal(written.obs["spahgc_support"], target.obs["spahgc_support"])


def test_demo_writes_everything_and_reads_no_target_expression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"n_slides": 3, "n_patients": 3, "n_spots": 40, "n_genes": 40}
    lines: list[str] = []
    first, second = tmp_path / "first", tmp_path / "second"
    _demo.run(first, synthetic=True, say=lines.append, cohort=small, method_params=SMALL)
    assert any("DRAWN" in line for line in lines)
    for name in ("predictions.h5ad", "scores.csv", "report.html", "model/config.json"):
        assert (first / name).is_file()
    assert len(list((first / "figures").glob("*.png"))) >= 3
    report = (first / "report.html").read_text()
    assert all(word in report for word in ("context_ridge", "gene_mean", "n/a"))
    assert json.loads((first / "demo.json").read_text())["drawn"]

    drawn = _demo_slides.drawn_slides

    def noisy(seed: int, **parameters: object) -> _demo_slides.Example:
        example = drawn(seed, **parameters)
        counts = example.target["table"].X
        example.target["table"].X = np.random.default_rng(0).poisson(3.0, counts.shape).astype(np.float32)
        return example

    monkeypatch.setattr(_demo, "drawn_slides", noisy)
    _demo.run(second, synthetic=True, say=lines.append, cohort=small, method_params=SMALL)
    one, two = (anndata.read_h5ad(folder / "predictions.h5ad") for folder in (first, second))
    np.testing.assert_array_equal(one.X, two.X)
    assert not np.array_equal(one.layers["measured"], two.layers["measured"])


def test_demo_leaves_the_files_of_others_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FileExistsError, match=r"report\.html.*nothing was touched"):
        _demo.run(tmp_path, synthetic=True, say=print)
    assert (tmp_path / "report.html").read_text() == "mine"
