"""Attention in one pass is attention by tensor operations, and so is its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.utils import softmax

from spahgc.nn import _fused
from spahgc.nn._fused import Edges, attention, edges_of, mean


def by_operations(query: Tensor, both: Tensor, edges: Edges, heads: int) -> Tensor:
    """The formula, edge by edge."""
    n, width = query.shape
    key, value = both.view(len(both), 2, heads, -1).unbind(1)
    q, k, v = query.view(n, heads, -1)[edges.receiver], key[edges.sender], value[edges.sender]
    weights = softmax((q * k).sum(2) * (width // heads) ** -0.5, edges.receiver, num_nodes=n)
    return query.new_zeros(n, width).index_add(0, edges.receiver, (weights[:, :, None] * v).flatten(1))


@pytest.fixture
def edges() -> Edges:
    references = torch.stack([torch.randperm(30, generator=torch.Generator().manual_seed(i))[:4] for i in range(50)])
    return edges_of(references, 33)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_values_and_gradients(edges, backwards, threads, monkeypatch):
    """Both ways over the edges; some reference nodes have none."""
    monkeypatch.setattr(_fused, "_SMALL", 0)
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    n, m = (33, 50) if backwards else (50, 33)
    edges = edges.reversed() if backwards else edges
    query = torch.randn(n, 24, generator=generator).requires_grad_()
    both = torch.randn(m, 48, generator=generator).requires_grad_()
    weight = torch.randn(n, 24, generator=generator)
    found = attention(query, both, edges, 3)
    expected = by_operations(query, both, edges, 3)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (query, both)),
        torch.autograd.grad((expected * weight).sum(), (query, both)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
        assert mine.abs().max() > 0.1
    torch.set_num_threads(1)


def test_edges_reversed_twice_are_the_edges(edges):
    for mine, theirs in zip(edges, edges.reversed().reversed(), strict=True):
        assert torch.equal(mine, theirs)


def test_reversed_edges_join_the_same_nodes(edges):
    back = edges.reversed()
    there = {(int(s), int(r)) for s, r in zip(edges.sender, edges.receiver, strict=True)}
    assert there == {(int(r), int(s)) for s, r in zip(back.sender, back.receiver, strict=True)}
    assert torch.equal(back.receiver, back.receiver.sort().values)


def test_large_scores_stay_finite(edges):
    query, both = torch.full((50, 8), 1e4), torch.full((33, 16), 1e4)
    out = attention(query, both, edges, 2)
    torch.testing.assert_close(out, torch.full((50, 8), 1e4))


@pytest.mark.parametrize("threads", [1, 2])
def test_mean_and_its_gradient(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(_fused, "_SMALL", 0)
    generator = torch.Generator().manual_seed(0)
    neighbours = torch.randint(30, (50, 4), generator=generator)
    states = torch.randn(30, 8, generator=generator, requires_grad=True)
    into = torch.randn(50, 8, generator=generator)
    expected = states[neighbours].mean(dim=1)
    (to_states,) = torch.autograd.grad((expected * into).sum(), states)
    found = mean(states, edges_of(neighbours, 30), 4)
    (found_gradient,) = torch.autograd.grad((found * into).sum(), states)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradient, to_states)
