"""The command: its help, one line for a user's error, and the library's numbers."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import distributed
import numpy as np
import pandas as pd
import pytest
import spatialdata
from spatialdata import SpatialData
from spatialdata._io.format import SpatialDataContainerFormats

import spahgc
from spahgc._run import dask_client
from spahgc.cli import main


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def digests(folder: Path) -> dict[str, str]:
    """Checksum of every file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def slides() -> SpatialData:
    """Three slides of three patients, not embedded."""
    return spahgc.datasets.synthetic_cohort(n_slides=3, n_patients=3, n_spots=25, n_genes=40, rng=1)


@pytest.fixture(scope="module")
def table(slides: SpatialData) -> anndata.AnnData:
    return spahgc.pp.image_embedding(slides, copy=True, progress=False)["table"]


@pytest.fixture
def files(table: anndata.AnnData, tmp_path: Path) -> Path:
    """A folder with ref.h5ad (S1, S2) and target.h5ad (S3, without genes)."""
    table[table.obs["region"] != "S3"].copy().write_h5ad(tmp_path / "ref.h5ad")
    table[table.obs["region"] == "S3", :0].copy().write_h5ad(tmp_path / "target.h5ad")
    return tmp_path


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--help"], ["demo", "embed", "train", "predict", "cross-validate"]),
        (["--version"], [f"spahgc {spahgc.__version__}"]),
        (["train", "--help"], ["--panel", "--patient-key", "--preset"]),
        (["predict", "--help"], ["OUT.h5ad"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("arguments", [[], ["cook"], ["train", "only-one"], ["demo", "--data", "x", "--synthetic"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: spahgc" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, spahgc.cli\n"
        "try: spahgc.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'anndata', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert last_line(done.stdout) == "[]"


def test_train_and_predict_give_the_numbers_of_the_library(
    table: anndata.AnnData, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--method", "ridge", "--panel", "20", "--seed", "3", "--normalize", "log10"]
    assert main(["train", str(files / "ref.h5ad"), str(files / "model"), *options]) == 0
    assert main(["predict", str(files / "model"), str(files / "target.h5ad"), str(files / "out.h5ad")]) == 0
    assert "20 genes of 25 spots in obsm['spahgc']" in last_line(capsys.readouterr().out)
    reference = table[table.obs["region"] != "S3"].copy()
    target = table[table.obs["region"] == "S3", :0].copy()
    spahgc.tl.predict(spahgc.tl.train(reference, method="ridge", panel=20, rng=3, normalize="log10"), target)
    written = anndata.read_h5ad(files / "out.h5ad")
    assert list(written.obsm["spahgc"].columns) == list(target.obsm["spahgc"].columns)
    np.testing.assert_array_equal(written.obsm["spahgc"].to_numpy(), target.obsm["spahgc"].to_numpy())
    np.testing.assert_array_equal(written.obs["spahgc_support"], target.obs["spahgc_support"])
    assert written.uns["spahgc"]["params"]["seed"] == 3
    out = str(files / "x.h5ad")
    assert main(["predict", str(files / "model"), str(files / "target.h5ad"), out, "--as-x"]) == 0
    np.testing.assert_array_equal(anndata.read_h5ad(out).X, target.obsm["spahgc"].to_numpy())
    assert not [path for path in files.iterdir() if path.name.startswith(".")]


def test_predict_into_a_zarr(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, target, out = str(files / "model"), str(files / "target.h5ad"), str(files / "out.zarr")
    assert main(["train", str(files / "ref.h5ad"), model, "--method", "ridge", "--panel", "7"]) == 0
    assert main(["predict", model, target, str(files / "x.h5ad"), "--as-x", "--key-added", "mine"]) == 0
    assert main(["predict", model, target, out, "--key-added", "mine"]) == 0
    assert "7 genes of 25 spots in X" in last_line(capsys.readouterr().out)
    expected, found = anndata.read_h5ad(files / "x.h5ad"), anndata.read_zarr(out)
    np.testing.assert_array_equal(found.X, expected.X)
    np.testing.assert_array_equal(found.obs["mine_support"], expected.obs["mine_support"])
    assert main(["predict", model, target, out]) == 2
    assert "out.zarr exists already. Pass --overwrite to replace it" in last_line(capsys.readouterr().err)
    assert main(["predict", model, target, out, "--overwrite"]) == 0
    assert "spahgc_support" in anndata.read_zarr(out).obs
    (files / "mine.zarr").mkdir()
    assert main(["predict", model, target, str(files / "mine.zarr"), "--overwrite"]) == 2
    assert "never replaced" in last_line(capsys.readouterr().err)


def test_genes_from_a_file(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "genes.txt").write_text("density-00\n\ncolor-01\n")
    arguments = ["train", str(files / "ref.h5ad"), str(files / "model"), "--method", "knn"]
    assert main([*arguments, "--genes", str(files / "genes.txt")]) == 0
    assert spahgc.tl.Model.load(files / "model").genes == ("density-00", "color-01")
    assert main([*arguments, "--genes", str(files / "none.txt")]) == 2
    assert "none.txt" in last_line(capsys.readouterr().err)


@pytest.mark.parametrize("container", list(SpatialDataContainerFormats))
def test_embed_adds_to_the_zarr_and_touches_nothing_else(
    slides: SpatialData, table: anndata.AnnData, tmp_path: Path, container: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "slides.zarr"
    slides.write(path, sdata_formats=SpatialDataContainerFormats[container], update_sdata_path=False)
    before = digests(path)
    assert main(["embed", str(path)]) == 0
    assert "obsm['image_texture'] (75 spots x 378)" in capsys.readouterr().out
    after = digests(path)
    consolidated = {".zmetadata", "zarr.json"}
    columns = {"tables/table/obs/.zattrs", "tables/table/obs/zarr.json"}
    assert {name for name in before if after.get(name) != before[name]} <= consolidated | columns
    slots = ("obsm/image_texture", "uns/image_texture", "obs/cellularity", "uns/cellularity")
    places = tuple(f"tables/table/{slot}/" for slot in slots)
    assert [name for name in after.keys() - before.keys() if not name.startswith(places)] == []
    read = spatialdata.read_zarr(path)
    np.testing.assert_array_equal(read["table"].obsm["image_texture"], table.obsm["image_texture"])
    assert read["table"].uns["image_texture"]["params"]["encoder"] == "texture"
    pd.testing.assert_frame_equal(read["table"].obs, table.obs)
    assert read["table"].uns["cellularity"]["params"] == table.uns["cellularity"]["params"]
    # Again, with other tiles: what was there is replaced.
    assert main(["embed", str(path), "--tile-um", "60"]) == 0
    again = spatialdata.read_zarr(path)["table"]
    assert again.uns["image_texture"]["params"]["tile_um"] == 60
    assert not np.array_equal(again.obsm["image_texture"], table.obsm["image_texture"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["slides.zarr"]
    assert not np.array_equal(again.obs["cellularity"], table.obs["cellularity"])
    # And train takes the zarr as it is.
    for method in ("knn", "cellularity"):
        assert main(["train", str(path), str(tmp_path / method), "--method", method, "--panel", "5"]) == 0


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of the last call of `pp.image_embedding`, which is stopped there."""
    got: dict[str, Any] = {}

    def embed(sdata: SpatialData, encoder: str, **options: Any) -> None:
        got.clear()
        got.update(options, encoder=encoder, device=spahgc.settings.device, cluster=_dask_address())
        raise ValueError("enough")

    monkeypatch.setattr(spahgc.pp, "image_embedding", embed)
    return got


def test_embed_hands_its_options_on(slides: SpatialData, tmp_path: Path, handed_on: dict[str, Any]) -> None:
    path, got = tmp_path / "slides.zarr", handed_on
    slides.write(path, update_sdata_path=False)
    arguments = ["--encoder", "timm:hf-hub:a/b", "--precision", "bfloat16", "--no-resume", "--batch-size", "8"]
    assert main(["embed", str(path), *arguments, "--device", "cpu", "--tile-um", "64"]) == 2
    assert got["encoder"] == "timm:hf-hub:a/b"
    assert got["key_added"] == "image_hf-hub_a_b"
    expected = {"precision": "bfloat16", "resume": False, "batch_size": 8, "device": "cpu", "tile_um": 64.0}
    assert got == {**got, **expected, "cluster": None}
    assert main(["embed", str(path)]) == 2
    assert "resume" not in got  # the library's default


def _dask_address() -> str | None:
    client = dask_client()
    return None if client is None else client.scheduler.address


def test_embed_on_a_scheduler(slides: SpatialData, tmp_path: Path, handed_on: dict[str, Any]) -> None:
    path = tmp_path / "slides.zarr"
    slides.write(path, update_sdata_path=False)
    alone = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**alone, protocol="tcp") as cluster:
        assert main(["embed", str(path), "--scheduler", cluster.scheduler_address]) == 2
        assert handed_on["cluster"] == cluster.scheduler_address
    assert _dask_address() is None
    with pytest.raises(SystemExit):
        main(["embed", str(path), "--scheduler", "tcp://127.0.0.1:1", "--n-jobs", "2"])


def test_failed_embed_leaves_the_zarr_as_it_was(
    slides: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "slides.zarr"
    slides.write(path, update_sdata_path=False)
    before = digests(path)
    assert main(["embed", str(path), "--encoder", "unheard"]) == 2
    assert "No encoder 'unheard'. Available: " in capsys.readouterr().err

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("anndata.io.write_elem", full)
    assert main(["embed", str(path)]) == 2
    said = last_line(capsys.readouterr().err)
    assert re.fullmatch(r"spahgc: error: .*No space left \(\d+ MB are free\), so it was not written.*table'", said)
    assert digests(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["slides.zarr"]


def test_errors_are_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ref, model = str(files / "ref.h5ad"), str(files / "model")
    (files / "note.txt").write_text("no table")
    (files / "taken").mkdir()
    for arguments, message in (
        (["train", str(files / "none.h5ad"), model], "There is no "),
        (["train", str(files / "note.txt"), model], "neither an .h5ad file nor a zarr folder"),
        # The text of a KeyError, without the quotes that str puts around it.
        (["train", ref, model, "--patient-key", "donor"], "reference.obs has no column 'donor'"),
        (["train", ref, model, "--method", "magic"], "No method 'magic'"),
        (["train", ref, model, "--panel", "0"], "`panel` must be an integer of at least 1"),
        (["train", ref, model, "--device", "toaster"], "toaster"),
        (["train", ref, str(files / "taken")], "It is not a model folder"),
        (["predict", model, ref, str(files / "out.h5ad")], "There is no model folder"),
        (["predict", model, ref, str(files / "out.csv")], "must end in .h5ad"),
        (["predict", model, ref, ref], "--overwrite"),
        (["embed", ref], "not a SpatialData zarr"),
        (["demo", "--data", str(files)], "no folder her2st"),
    ):
        assert main([*arguments, *(["--out", str(files / "demo")] if arguments[0] == "demo" else [])]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("spahgc: error: "), captured.err
        assert message in captured.err
        assert captured.err.count("\n") == 1
    assert not (files / "model").exists()
    assert spahgc.settings.device == "cpu"


def test_debug_shows_the_traceback(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(files / "none.h5ad"), str(files / "model")]
    for with_debug in (["--debug", *arguments], [*arguments, "--debug"]):
        assert main(with_debug) == 2
        error = capsys.readouterr().err
        assert "Traceback" in error
        assert last_line(error).startswith("spahgc: error: There is no")


def test_overwrite(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", str(files / "ref.h5ad"), str(files / "model"), "--method", "knn", "--panel"]
    predict = ["predict", str(files / "model"), str(files / "target.h5ad"), str(files / "out.h5ad")]
    assert main([*train, "5"]) == 0
    assert main([*train, "6"]) == 2
    assert "Pass --overwrite to replace it" in capsys.readouterr().err
    assert main([*train, "7", "--overwrite"]) == 0
    assert main(predict) == 0
    assert main(predict) == 2
    assert main([*predict, "--overwrite"]) == 0
    assert anndata.read_h5ad(files / "out.h5ad").obsm["spahgc"].shape == (25, 7)


def test_warnings_for_the_user_are_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(files / "ref.h5ad"), str(files / "model"), "--method", "knn", "--panel", "5"]) == 0
    assert main(["predict", str(files / "model"), str(files / "ref.h5ad"), str(files / "out.h5ad")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("spahgc: warning: Slide 'S1' is one of the reference slides")]
    assert not any("UserWarning" in line for line in lines)
