"""A slide predicted a few spots at a time gets what the whole graph at once gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spahgc._slides import Rows, Stack
from spahgc.nn import Config, SpaHGCNetwork, inference, slide_graph

N, N_FEATURES, N_GENES = 57, 6, 5


def network(config: Config, components: torch.Tensor | None = None) -> SpaHGCNetwork:
    torch.manual_seed(1)
    return SpaHGCNetwork(N_FEATURES, N_GENES, config, components=components).eval()


def numbers(config: Config) -> dict[str, int]:
    return {"n_references": config.n_references, "n_near": config.n_near, "n_close": config.n_close}


def in_chunks(model: SpaHGCNetwork, arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, list[slice]]:
    out, written = np.full((len(arrays[0]), N_GENES), np.nan, np.float32), []

    def write(rows: slice, values: np.ndarray) -> None:
        written.append(rows)
        out[rows] = values

    inference.predict(model, slide_graph(*arrays, **numbers(model.config)), write)
    return out, written


@pytest.mark.parametrize("switch", [None, "use_near", "use_close", "use_refer", "use_pooling"])
@pytest.mark.parametrize("in_file", [False, True])
def test_chunks_equal_the_whole(arrays, small, monkeypatch, switch, in_file):
    """Whatever is switched off, and with the hidden states in a file: the same to 1e-5."""
    monkeypatch.setattr(inference, "CHUNK", 10)
    if in_file:
        monkeypatch.setattr(inference, "IN_MEMORY", 0)
    model = network(small if switch is None else replace(small, **{switch: False}))
    with torch.no_grad():
        expected = model(slide_graph(*arrays, **numbers(small)).tensors()).numpy()
    found, written = in_chunks(model, arrays)
    assert [rows.start for rows in written] == [0, 10, 20, 30, 40, 50]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert expected.std(axis=0).min() > 1e-3


def test_paper_preset_with_components(arrays, monkeypatch):
    """Four layers, and references that attend to spots of several chunks."""
    monkeypatch.setattr(inference, "CHUNK", 8)
    components = torch.randn(3, N_GENES, generator=torch.Generator().manual_seed(0))
    model = network(Config(), components)
    with torch.no_grad():
        expected = model(slide_graph(*arrays).tensors()).numpy()
    np.testing.assert_allclose(in_chunks(model, arrays)[0], expected, atol=1e-5)


def test_large_scores_stay_finite(arrays, small, monkeypatch):
    """The softmax over chunks is relative to the largest score so far: none overflows, whatever the order."""
    monkeypatch.setattr(inference, "CHUNK", 5)
    z_t, xy, z_r, y_r = arrays
    model = network(small)
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.refer.to_reference.query.weight.mul_(300)
            layer.refer.to_reference.key.weight.mul_(300)
        expected = model(slide_graph(z_t, xy, z_r, y_r, **numbers(small)).tensors()).numpy()
    found, _ = in_chunks(model, arrays)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_reference_that_is_read_in_parts(arrays, small):
    """Bit for bit what arrays give."""
    z_t, xy, z_r, y_r = arrays
    parts = (z_t, xy, Stack([Rows(z_r[:7]), z_r[7:]]), Stack([y_r[:20].astype(np.float64), Rows(y_r[20:])]))
    model = network(small)
    np.testing.assert_array_equal(in_chunks(model, parts)[0], in_chunks(model, arrays)[0])


def test_a_single_spot(arrays, small):
    z_t, xy, z_r, y_r = arrays
    model = network(small)
    with torch.no_grad():
        expected = model(slide_graph(z_t[:1], xy[:1], z_r, y_r, **numbers(small)).tensors()).numpy()
    np.testing.assert_allclose(in_chunks(model, (z_t[:1], xy[:1], z_r, y_r))[0], expected, atol=1e-5)


@pytest.mark.parametrize("switch", [None, "use_refer", "use_pooling"])
def test_attention_is_handed_over(arrays, small, monkeypatch, switch):
    """Once a layer and once for the pooling, where they attend; the same in chunks, and with nothing else changed."""
    config = replace(small, **({} if switch is None else {switch: False}))
    model = network(config)
    graph = slide_graph(*arrays, **numbers(config))
    told = {}
    for chunk in (10_000, 13):
        monkeypatch.setattr(inference, "CHUNK", chunk)
        total, calls = np.zeros(graph.references.shape, np.float32), 0

        def attended(rows, weights, total=total):
            nonlocal calls
            np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
            total[rows] += weights
            calls += len(weights)

        out = np.empty((N, N_GENES), np.float32)
        inference.predict(model, graph, lambda rows, values, out=out: np.copyto(out[rows], values), attended=attended)
        np.testing.assert_allclose(out, in_chunks(model, arrays)[0], atol=1e-6)
        told[chunk] = total
        n_layers = 0 if switch == "use_refer" else config.n_layers
        assert calls == N * (n_layers + (0 if switch == "use_pooling" else 1))
        inference.predict(model, graph, None, attended=lambda rows, weights: None)
    np.testing.assert_allclose(told[13], told[10_000], atol=1e-5)
