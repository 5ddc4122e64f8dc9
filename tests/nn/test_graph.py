from __future__ import annotations

import numpy as np
import pytest
import torch

from spahgc.nn import slide_graph


@pytest.fixture
def arrays(arrays):
    z_t, xy, z_r, y_r = arrays
    return z_t[:9], xy[:9], z_r, y_r


def cosine(a, b):
    return float(a.astype(float) @ b / np.linalg.norm(a.astype(float)) / np.linalg.norm(b.astype(float)))


def pairs(edges):
    return list(zip(edges.sender.tolist(), edges.receiver.tolist(), strict=True))


def n_edges(graph):
    tensors = graph.tensors()
    return [len(edges.sender) for edges in (tensors.refer, tensors.near, tensors.close)]


def test_edges_equal_a_loop_over_pairs(arrays):
    z_t, xy, z_r, y_r = arrays
    graph = slide_graph(z_t, xy, z_r, y_r, n_references=4, n_near=3, n_close=2)
    data = graph.tensors()

    refer = []
    for t in range(len(z_t)):
        ranked = sorted(range(len(z_r)), key=lambda r: -cosine(z_t[t], z_r[r]))
        refer += [(r, t) for r in ranked[:4]]
    nodes = sorted({r for r, _ in refer})
    assert len(nodes) < len(z_r)
    assert graph.nodes.tolist() == nodes
    assert pairs(data.refer) == [(nodes.index(r), t) for r, t in refer]

    near = []
    for t in range(len(xy)):
        ranked = sorted((s for s in range(len(xy)) if s != t), key=lambda s: np.linalg.norm(xy[t] - xy[s]))
        near += [(s, t) for s in ranked[:3]]
    assert pairs(data.near) == near

    joint = np.concatenate([z_r, y_r], axis=1)[nodes]
    close = []
    for r in range(len(joint)):
        ranked = sorted((s for s in range(len(joint)) if s != r), key=lambda s: -cosine(joint[r], joint[s]))
        close += [(s, r) for s in ranked[:2]]
    assert pairs(data.close) == close

    np.testing.assert_array_equal(data.target, z_t)
    np.testing.assert_array_equal(data.reference, joint)
    assert data.target.dtype == data.reference.dtype == torch.float32
    back = torch.stack([data.back.receiver, data.back.sender])
    assert torch.equal(torch.stack([data.refer.sender, data.refer.receiver])[:, data.refer.sent], back)


def test_default_numbers_are_the_papers(arrays):
    rng = np.random.default_rng(1)
    z_t, xy = rng.normal(size=(30, 6)), rng.uniform(size=(30, 2))
    graph = slide_graph(z_t, xy, arrays[2], arrays[3])
    assert n_edges(graph) == [30 * 7, 30 * 5, len(graph.nodes) * 3]


def test_ties_are_broken_by_index():
    # All target spots alike, all reference spots alike, spots on a grid.
    xy = np.stack(np.meshgrid(np.arange(4.0), np.arange(4.0)), axis=-1).reshape(-1, 2)
    graph = slide_graph(np.ones((16, 3)), xy, np.ones((12, 3)), np.ones((12, 2)), n_references=4, n_near=2, n_close=2)
    data = graph.tensors()
    assert graph.nodes.tolist() == [0, 1, 2, 3]
    assert pairs(data.refer)[:4] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert pairs(data.close) == [(1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
    assert pairs(data.near)[10:12] == [(1, 5), (4, 5)]


def test_inputs_stay(arrays):
    copies = [array.copy() for array in arrays]
    slide_graph(*arrays).tensors().target.add_(1)
    for array, before in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, before)


def test_small_graphs(arrays):
    z_t, xy, z_r, y_r = arrays
    assert n_edges(slide_graph(z_t[:1], xy[:1], z_r[:1], y_r[:1], n_references=1)) == [1, 0, 0]
    assert n_edges(slide_graph(z_t[:3], xy[:3], z_r[:3], y_r[:3], n_references=3)) == [9, 6, 6]


def test_errors(arrays):
    z_t, xy, z_r, y_r = arrays
    with pytest.raises(ValueError, match=r"has 6 spots to choose from, but k = 7 are needed"):
        slide_graph(z_t, xy, z_r[:6], y_r[:6])
    with pytest.raises(ValueError, match="query has 3 features and bank has 6"):
        slide_graph(z_t[:, :3], xy, z_r, y_r)
    with pytest.raises(ValueError, match="coordinates has 8 rows, but there are 9 embeddings"):
        slide_graph(z_t, xy[:8], z_r, y_r)
    with pytest.raises(ValueError, match="reference_expression has 39 rows"):
        slide_graph(z_t, xy, z_r, y_r[:39])
    with pytest.raises(ValueError, match="features is empty"):
        slide_graph(z_t[:0], xy[:0], z_r, y_r)
    with pytest.raises(ValueError, match="`n_near` must be an integer of at least 1, got 0"):
        slide_graph(*arrays, n_near=0)
    y_r[3, 0] = np.inf
    with pytest.raises(ValueError, match="`reference_expression` has NaN or infinite values in 1 of 40 rows"):
        slide_graph(z_t, xy, z_r, y_r)
