"""The reference of a saved model: mapped into memory."""

from __future__ import annotations

import os
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import spahgc
from spahgc._slides import Cohort, Rows, Slide
from spahgc._tables._cohorts import target_slides
from spahgc.tl import Model, _model_folder
from spahgc.tl._model_folder import write_arrays

from .conftest import Models, content
from .limited import run_limited


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any size are mapped, as large ones are."""
    monkeypatch.setattr(_model_folder, "READ_WHOLE", 0)


@pytest.fixture
def slide(models: Models, target: ad.AnnData) -> Slide:
    """A slide to predict."""
    found = target_slides(target, models("ridge").recipe, library_key="region", patient_key="patient")
    return found[0].slide


def there_and_back(model: Model, path: Path) -> Model:
    model.save(path)
    return Model.load(path)


def predicted(model: Model, slide: Slide) -> tuple[np.ndarray, np.ndarray]:
    made = model.predict([slide])
    return made.values, made.support


def same(one: Model, other: Model, slide: Slide) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(predicted(one, slide), predicted(other, slide), strict=True))


@pytest.mark.usefixtures("mapped")
def test_a_mapped_model_predicts_the_same(models: Models, variant: str, slide: Slide, tmp_path: Path) -> None:
    model = models(variant)
    loaded = there_and_back(model, tmp_path / "model")
    assert same(loaded, model, slide)
    assert same(Model.load(tmp_path / "model", verify=True), model, slide)
    assert loaded.fingerprint == model.fingerprint
    if model.method.keeps_reference:
        assert loaded.reference.fingerprint() == model.reference.fingerprint()
    loaded.save(tmp_path / "again")
    assert content(tmp_path / "again") == content(tmp_path / "model")
    # It can be saved over itself.
    loaded.save(tmp_path / "model", overwrite=True)
    assert same(loaded, model, slide)
    assert content(tmp_path / "again") == content(tmp_path / "model")


@pytest.mark.usefixtures("mapped")
def test_what_a_method_gets(models: Models, slide: Slide, tmp_path: Path) -> None:
    """Rows to read when it predicts, or arrays where it says nothing of rows."""
    for variant, kind in (("spahgc", Rows), ("egn", np.ndarray)):
        loaded = there_and_back(models(variant), tmp_path / variant)
        if variant == "spahgc":
            embeddings = loaded.method._references["context"].slides
        else:
            embeddings = [one.embedding for one in loaded.method._cohort]
        assert all(isinstance(embedding, kind) for embedding in embeddings)
        assert not any(one.embedding.flags.writeable for one in loaded.reference)


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_an_error_at_once(models: Models, tmp_path: Path, share: float) -> None:
    models("knn").save(tmp_path / "model")
    path = tmp_path / "model" / "reference" / "embedding.npy"
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ValueError, match=r"embedding.npy cannot be read .*truncated or damaged"):
        Model.load(tmp_path / "model")


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("name", ["weights.safetensors", "reference/expression.npy"])
@pytest.mark.parametrize("at", [0, 90, -1])
def test_damage_is_found(models: Models, tmp_path: Path, name: str, at: int) -> None:
    """A value of a large reference with `verify`, all else at once."""
    models("knn").save(tmp_path / "model")
    path = tmp_path / "model" / name
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    if name.endswith(".npy") and at == -1:
        Model.load(tmp_path / "model")
    else:
        with pytest.raises(ValueError, match=f"{name} (is not the file that was saved|cannot be read)"):
            Model.load(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{name} (is not the file that was saved|cannot be read)"):
        Model.load(tmp_path / "model", verify=True)


def test_a_reference_slide_is_known_again(models: Models, reference: ad.AnnData, slide: Slide, tmp_path: Path) -> None:
    loaded = there_and_back(models("gene_mean"), tmp_path / "model")
    with pytest.warns(UserWarning, match="Slide 'B1' is one of the reference slides"):
        spahgc.tl.predict(loaded, reference[reference.obs["region"] == "B1"].copy())
    own = models("gene_mean").reference.slides[0]
    moved = own.embedding.copy()
    moved[3, 1] += 0.01
    for model in (models("gene_mean"), loaded):
        for same in (own, replace(own, name="A2"), replace(own, embedding=moved), own.take(np.arange(20))):
            assert model.has_seen(same) == own.name
        other = replace(own, embedding=own.embedding + 0.01)
        assert model.has_seen(other) == own.name  # by its expression
        assert model.has_seen(other.without_expression()) is None
        assert model.has_seen(slide) is None


def test_the_fast_preset_is_saved_without_reference_spots(reference: ad.AnnData, slide: Slide, tmp_path: Path) -> None:
    model = spahgc.tl.train(reference, preset="fast", panel=12)
    loaded = there_and_back(model, tmp_path / "model")
    assert list((tmp_path / "model" / "reference").iterdir()) == []
    assert sum(path.stat().st_size for path in (tmp_path / "model").iterdir()) < 100_000
    assert same(model, loaded, slide)
    assert same(model, there_and_back(loaded, tmp_path / "again"), slide)
    assert model.fingerprint == loaded.fingerprint
    assert model.has_seen(model.reference.slides[0]) == loaded.has_seen(model.reference.slides[0]) == "A1"
    assert [len(part) for part in loaded.reference] == [len(part) for part in model.reference]
    with pytest.raises(ValueError, match="'fast' has no presets|preset='fast'"):
        spahgc.tl.train(reference, method="ridge", preset="fast", panel=12)


def test_writing_takes_a_block_of_memory(tmp_path: Path) -> None:
    """Twenty times as many rows as a block has, of a matrix that is made when it is read."""
    n, d = 160_000, 16
    repeated = Rows(np.arange(d, dtype=np.float32)[None], np.zeros(n, np.intp))
    tracemalloc.start()
    write_arrays(tmp_path / "folder", {"a": repeated})
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    written = np.load(tmp_path / "folder" / "a.npy")
    assert written.dtype == np.float32
    assert most < written.nbytes / 3
    assert (written == np.arange(d)).all()


def test_a_reference_larger_than_memory(models: Models, slide: Slide, tmp_path: Path) -> None:
    """In a process that may take a quarter of the reference's size: opened without reading it, and searched."""
    small, n, most = models("spahgc"), 170_000, 32_000_000
    rng = np.random.default_rng(0)

    def large(name: str, patient: str | None) -> Slide:
        embedding = rng.random((n, 10), np.float32)
        return Slide(name, patient, embedding, rng.random((n, 2)), rng.random((n, len(small.genes)), np.float32))

    cohort = Cohort.in_order((large(one.name, one.patient) for one in small.reference), small.genes)
    width = small.method.reference_rows()["nodes.context"].shape[1]
    nodes = rng.standard_normal((cohort.n_spots, width), np.float32)
    method = spahgc.methods.get_method("spahgc", **small.method.params())
    method.restore({**small.method.state(), "nodes.context": nodes}, cohort.standardized())
    model = Model(method, cohort, small.recipe, params=small.params, support=small._support)
    model.save(tmp_path / "large")
    size = sum(path.stat().st_size for path in (tmp_path / "large" / "reference").iterdir())
    assert size > max(4 * most, _model_folder.READ_WHOLE)
    arrays = {"embedding": np.asarray(slide.embedding), "coordinates": slide.coordinates}
    np.savez(tmp_path / "slide.npz", **arrays)
    small.save(tmp_path / "small")
    found = run_limited("bank", tmp_path, most)
    assert found["whole"] == "MemoryError"
    expected, support = predicted(model, slide)
    result = dict(np.load(tmp_path / "large.npz"))
    np.testing.assert_array_equal(result["support"], support)
    np.testing.assert_array_equal(result["values"], expected)
    assert found["large"]["read"] < 0.02 * size
    assert found["large"]["seconds"] < 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to RLIMIT_DATA")
def test_less_memory_than_the_prediction_takes(tmp_path: Path) -> None:
    """200,000 spots of 300 genes are 240 MB: with two thirds of that, no prediction in memory, but one on disk."""
    found = run_limited("store", tmp_path, 160_000_000)
    assert (found["table"], found["before"]) == ("MemoryError", ["small.zarr"])
    assert 0.4 < found["mean"] < 0.6
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["large.zarr", "small.zarr"]
