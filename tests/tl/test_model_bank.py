"""The reference of a saved model: mapped into memory, and in half precision."""

from __future__ import annotations

import os
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import spahgc
from spahgc._slides import Cohort, Rows, Slide, Stack, expression_of, standardize
from spahgc._tables._cohorts import target_slides
from spahgc.nn import cosine_topk
from spahgc.tl import Model, _model_folder
from spahgc.tl._model_folder import Bank, write_arrays

from .conftest import Models, content
from .limited import run_limited

U = 2.0**-11
"""Largest relative error of a number that is rounded to float16 (Higham 2002, section 2.1). Beside it there is an
absolute one, half the spacing of subnormal numbers:"""
TINY = 2.0**-25
SOME = 6
"""Spots of which derivatives are taken."""
LOOKS_AGAIN = {"spahgc", "spahgc-paper", "knn", "egn", "bleep", "mclstexp"}
"""Methods that read the reference spots to predict."""


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any size are mapped, as large ones are."""
    monkeypatch.setattr(_model_folder, "READ_WHOLE", 0)


@pytest.fixture
def slide(models: Models, target: ad.AnnData) -> Slide:
    """A slide to predict."""
    found = target_slides(target, models("ridge").recipe, library_key="region", patient_key="patient")
    return found[0].slide


def there_and_back(model: Model, path: Path, *, half: bool = False) -> Model:
    model.save(path, half=half)
    return Model.load(path)


def predicted(model: Model, slide: Slide) -> tuple[np.ndarray, np.ndarray]:
    made = model.predict([slide])
    return made.values, made.support


def same(one: Model, other: Model, slide: Slide) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(predicted(one, slide), predicted(other, slide), strict=True))


def array(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / "reference" / f"{name}.npy")


def standardized(model: Model) -> Stack:
    """Embeddings of all reference spots, as a method gets them."""
    cohort = model.reference.standardized() if model._bank is None else model._bank.standardized(model.reference)
    return Stack([one.embedding for one in cohort])


@pytest.mark.usefixtures("mapped")
def test_a_mapped_model_predicts_the_same(models: Models, variant: str, slide: Slide, tmp_path: Path) -> None:
    model = models(variant)
    loaded = there_and_back(model, tmp_path / "model")
    assert same(loaded, model, slide)
    assert same(Model.load(tmp_path / "model", verify=True), model, slide)
    assert loaded.fingerprint == model.fingerprint
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


def test_half_precision_rounds_once(models: Models, tmp_path: Path) -> None:
    """Standardised values by half a unit in the last place; all else is as it was."""
    full, half = (there_and_back(models("spahgc"), tmp_path / str(half), half=half) for half in (False, True))
    for name in ("coordinates", "cellularity"):
        np.testing.assert_array_equal(array(tmp_path / "True", name), array(tmp_path / "False", name))
    n_spots = [len(one) for one in full.reference]
    for name in ("embedding", "expression", "method.nodes.context"):
        ends = np.cumsum(n_spots)[:-1]
        parts = (np.split(array(tmp_path / half, name), ends) for half in ("True", "False"))
        for stored, raw in zip(*parts, strict=True):
            assert stored.dtype == np.float16
            values = raw.astype(np.float64)
            if name in ("embedding", "expression"):
                values = (values - values.mean(axis=0)) / values.std(axis=0)
            # The standardized values are float32 first.
            assert (np.abs(stored - values) <= np.abs(values) * (U + 1e-6) + TINY + 1e-6).all()
    for one, other in zip(full.reference, half.reference, strict=True):
        assert (one.name, one.patient) == (other.name, other.patient)
        for name in ("embedding", "expression"):
            before, after = np.asarray(getattr(one, name)), np.asarray(getattr(other, name))
            off = np.abs(before - before.mean(axis=0))
            assert after.dtype == np.float32
            assert (np.abs(after - before) <= off * U + TINY * before.std(axis=0) + 1e-5).all()


def test_half_precision_of_extreme_features() -> None:
    """Features that float16 cannot hold, or that are constant, come back to 11 bits of their spread."""
    rng = np.random.default_rng(0)
    embedding = (rng.normal(size=(50, 4)) * [1e-5, 1e9, 1e-3, 0] + [0, 1e9, 1e3, 7e4]).astype(np.float32)
    expression = np.column_stack([np.full(50, 1e5), rng.poisson(3, 50) * 1e5]).astype(np.float32)
    one = Slide("a", "P", embedding, rng.uniform(size=(50, 2)), expression)
    cohort = Cohort((one,), ("g0", "g1"))
    (half,) = Bank.of(cohort, half=True).reference([{"name": "a", "patient": "P"}], cohort.genes)
    (own,) = cohort
    for before, stored in ((own.embedding, half.embedding), (expression_of(own), half.expression)):
        after, spread = np.asarray(stored).astype(np.float64), before.astype(np.float64).std(axis=0)
        # Beside the rounding to float16, the result is float32.
        limit = 4 * U * spread + 2.0**-23 * np.abs(before).max(axis=0)
        assert (np.abs(after - before).max(axis=0) <= limit).all()


@pytest.mark.parametrize("is_mapped", [False, True])
def test_half_precision_of_every_method(
    models: Models, variant: str, slide: Slide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_mapped: bool
) -> None:
    if is_mapped:
        monkeypatch.setattr(_model_folder, "READ_WHOLE", 0)
    model = models(variant)
    half = there_and_back(model, tmp_path / "model", half=True)
    (found, support), (expected, expected_support) = predicted(half, slide), predicted(model, slide)
    np.testing.assert_array_equal(support, expected_support)
    assert np.array_equal(found, expected) is (variant not in LOOKS_AGAIN)
    assert half.fingerprint != model.fingerprint
    assert half.genes == model.genes
    assert same(Model.load(tmp_path / "model", verify=True), half, slide)
    # It stays what it is.
    half.save(tmp_path / "again")
    full = there_and_back(model, tmp_path / "full")
    full.save(tmp_path / "from full", half=True)
    assert content(tmp_path / "again") == content(tmp_path / "model") == content(tmp_path / "from full")


def test_cosines_in_half_precision(models: Models, slide: Slide, tmp_path: Path) -> None:
    """A vector whose numbers are off by U turns by at most asin(U), and no cosine changes more than the angle does."""
    full, half = (there_and_back(models("knn"), tmp_path / str(half), half=half) for half in (False, True))
    query = standardize(slide.read()).embedding
    n = models("knn").reference.n_spots
    (index, cosine), (index_half, cosine_half) = (cosine_topk(query, standardized(model), n) for model in (full, half))
    turn = np.arcsin(U) + 1e-6
    in_order, in_order_half = np.empty_like(cosine), np.empty_like(cosine)
    np.put_along_axis(in_order, index, cosine, axis=1)
    np.put_along_axis(in_order_half, index_half, cosine_half, axis=1)
    off = np.abs(in_order - in_order_half)
    assert 0 < off.max() <= turn < 0.0005
    # So what is retrieved is at most twice that less similar than what it takes the place of.
    k = models("knn").method.n_neighbors
    chosen = np.take_along_axis(in_order, index_half[:, :k], axis=1)
    assert (chosen >= cosine[:, k - 1 : k] - 2 * turn).all()


def test_means_of_neighbours_in_half_precision(models: Models, slide: Slide, tmp_path: Path) -> None:
    full, half = models("knn"), there_and_back(models("knn"), tmp_path / "model", half=True)
    query = standardize(slide.read()).embedding
    index, index_half = (cosine_topk(query, standardized(m), full.method.n_neighbors)[0] for m in (full, half))
    alike = (np.sort(index, axis=1) == np.sort(index_half, axis=1)).all(axis=1)
    assert alike.mean() > 0.5
    expression = full.reference.expression().astype(np.float64)
    mean = np.concatenate([np.tile(expression_of(s).mean(axis=0), (len(s), 1)) for s in full.reference])
    limit = (np.abs(expression - mean)[index].mean(axis=1) * U + 1e-5)[alike]
    off = np.abs(predicted(full, slide)[0] - predicted(half, slide)[0])[alike]
    assert (off <= limit).all()
    assert off.max() > 1e-5


def test_networks_in_half_precision(models: Models, slide: Slide, tmp_path: Path) -> None:
    """Where the graph is the same, a prediction moves by no more than its derivatives allow for numbers off by U."""
    full, half = models("spahgc"), there_and_back(models("spahgc"), tmp_path / "model", half=True)
    graph, graph_half = (model.method._graph(standardize(slide), "context") for model in (full, half))
    np.testing.assert_array_equal(graph.references, graph_half.references)
    np.testing.assert_array_equal(graph.close, graph_half.close)
    assert 0 < ((graph_half.joint - graph.joint).abs() - graph.joint.abs() * U).max() <= 2e-6
    (network,), tensors = full.method._networks, graph.tensors()

    def of_network(joint: torch.Tensor) -> torch.Tensor:
        return network(tensors._replace(reference=joint))[:SOME]

    joint, joint_half = graph.joint, graph_half.joint
    slopes = torch.autograd.functional.jacobian(of_network, joint)
    # The scaled expression is float32 first. Second-order terms are smaller by another factor of about U.
    limit = (slopes.abs() * (joint.abs() * U + 2e-6)).sum(dim=(2, 3)) * 1.01 + 2e-6
    off = (of_network(joint) - of_network(joint_half)).abs()
    assert (off <= limit).all()
    assert off.max() > max(0.01 * limit.max(), 6e-6)
    assert limit.max() < 0.01 * of_network(joint).std()
    share = (1 - full.method._preset.kernel) / (1 + len(full.method._linear))
    whole = np.abs(predicted(full, slide)[0] - predicted(half, slide)[0])[:SOME]
    assert (whole <= share * full.method._std * limit.numpy() + 1e-5).all()


@pytest.mark.parametrize("half", [False, True])
def test_a_reference_slide_is_known_again(
    models: Models, reference: ad.AnnData, slide: Slide, tmp_path: Path, half: bool
) -> None:
    loaded = there_and_back(models("gene_mean"), tmp_path / "model", half=half)
    with pytest.warns(UserWarning, match="Slide 'B1' is one of the reference slides"):
        spahgc.tl.predict(loaded, reference[reference.obs["region"] == "B1"].copy())
    own = models("gene_mean").reference.slides[0]
    moved = own.embedding.copy()
    moved[3, 1] += 0.01
    for model in (models("gene_mean"), loaded):
        for same in (own, replace(own, name="A2"), replace(own, embedding=moved), own.take(np.arange(20))):
            assert model.has_seen(same) == own.name
        assert model.has_seen(replace(own, embedding=own.embedding + 0.01)) is None
        assert model.has_seen(slide) is None


def test_writing_takes_a_block_of_memory(tmp_path: Path) -> None:
    """Twenty times as many rows as a block has, of a matrix that is made when it is read."""
    n, d = 160_000, 16
    repeated = Rows(np.arange(d, dtype=np.float32)[None], np.zeros(n, np.intp))
    tracemalloc.start()
    write_arrays(tmp_path / "folder", {"a": repeated}, half=True)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    written = np.load(tmp_path / "folder" / "a.npy")
    assert written.dtype == np.float16
    assert most < written.nbytes / 3
    assert (written == np.arange(d)).all()


def test_too_large_for_half_precision(tmp_path: Path) -> None:
    values = np.array([[1.0], [65519.0], [-65519.0]])  # the largest that are rounded down to 65504
    write_arrays(tmp_path / "fits", {"a": values}, half=True)
    assert np.load(tmp_path / "fits" / "a.npy").ravel().tolist() == [1, 65504, -65504]
    with pytest.raises(ValueError, match="a has values beyond 65504, the largest float16.*half=False"):
        write_arrays(tmp_path / "folder", {"a": values + 1}, half=True)


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
    for half in (False, True):
        model.save(tmp_path / str(half), half=half)
    size, half_size = (
        sum(path.stat().st_size for path in (tmp_path / name / "reference").iterdir()) for name in ("False", "True")
    )
    assert size > 4 * most
    assert half_size > max(2 * most, _model_folder.READ_WHOLE)
    arrays = {"embedding": np.asarray(slide.embedding), "coordinates": slide.coordinates}
    np.savez(tmp_path / "slide.npz", **arrays)
    small.save(tmp_path / "small")
    found = run_limited("bank", tmp_path, most)
    assert found["whole"] == "MemoryError"
    expected, support = predicted(model, slide)
    for half in ("False", "True"):
        result = dict(np.load(tmp_path / f"{half}.npz"))
        np.testing.assert_array_equal(result["support"], support)
        assert found[half]["read"] < 0.02 * size
        assert found[half]["seconds"] < 1
        if half == "False":
            np.testing.assert_array_equal(result["values"], expected)
        else:
            assert 0 < np.abs(result["values"] - expected).max() < 0.1 * expected.std()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to RLIMIT_DATA")
def test_less_memory_than_the_prediction_takes(tmp_path: Path) -> None:
    """200,000 spots of 300 genes are 240 MB: with two thirds of that, no prediction in memory, but one on disk."""
    found = run_limited("store", tmp_path, 160_000_000)
    assert (found["table"], found["before"]) == ("MemoryError", ["small.zarr"])
    assert 0.4 < found["mean"] < 0.6
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["large.zarr", "small.zarr"]
