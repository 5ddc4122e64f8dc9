"""Compiled attention and means equal the formulas, and so do their gradients; random draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.utils import softmax

from spahgc.nn import SpaHGCNetwork, layers
from spahgc.nn.layers import Edges, FastDropout, RunningAttention, attend, draw, neighbor_mean


def by_formula(query: Tensor, both: Tensor, edges: Edges, heads: int) -> Tensor:
    """The formula, edge by edge."""
    n, width = query.shape
    key, value = both.view(len(both), 2, heads, -1).unbind(1)
    q, k, v = query.view(n, heads, -1)[edges.receiver], key[edges.sender], value[edges.sender]
    weights = softmax((q * k).sum(2) * (width // heads) ** -0.5, edges.receiver, num_nodes=n)
    return query.new_zeros(n, width).index_add(0, edges.receiver, (weights[:, :, None] * v).flatten(1))


@pytest.fixture
def edges() -> Edges:
    references = torch.stack([torch.randperm(30, generator=torch.Generator().manual_seed(i))[:4] for i in range(50)])
    return Edges.of(references, 33)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("threads", [1, 2, "tensor operations"])
def test_values_and_gradients(edges, backwards, threads, monkeypatch):
    """Both ways over the edges, compiled and as on a GPU; some reference nodes have none."""
    if threads == "tensor operations":
        monkeypatch.setattr(layers, "_compiled", lambda states: False)
        threads = 1
    monkeypatch.setattr(layers, "_SMALL", 0)
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    n, m = (33, 50) if backwards else (50, 33)
    edges = edges.reversed() if backwards else edges
    query = torch.randn(n, 24, generator=generator).requires_grad_()
    both = torch.randn(m, 48, generator=generator).requires_grad_()
    weight = torch.randn(n, 24, generator=generator)
    found = attend(query, both, edges, 3)
    expected = by_formula(query, both, edges, 3)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (query, both)),
        torch.autograd.grad((expected * weight).sum(), (query, both)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
        assert mine.abs().max() > 0.1
    torch.set_num_threads(1)


def test_reversed_edges_join_the_same_nodes(edges):
    back = edges.reversed()
    there = {(int(s), int(r)) for s, r in zip(edges.sender, edges.receiver, strict=True)}
    assert there == {(int(r), int(s)) for s, r in zip(back.sender, back.receiver, strict=True)}
    assert torch.equal(back.receiver, back.receiver.sort().values)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(edges, back.reversed(), strict=True))


def test_edges_in_parts_are_all_edges(edges):
    """Whatever the order, and with scores that would overflow an exponential."""
    generator = torch.Generator().manual_seed(0)
    query, both = torch.randn(50, 24, generator=generator) * 50, torch.randn(33, 48, generator=generator)
    running, order = RunningAttention(query, 3), torch.randperm(len(edges.sender), generator=generator)
    for part in order.split(17):
        running.add(both, edges.sender[part], edges.receiver[part])
    torch.testing.assert_close(running.result(), attend(query, both, edges, 3))


def test_large_scores_stay_finite(edges):
    query, both = torch.full((50, 8), 1e4), torch.full((33, 16), 1e4)
    out = attend(query, both, edges, 2)
    torch.testing.assert_close(out, torch.full((50, 8), 1e4))


@pytest.mark.parametrize("threads", [1, 2, "tensor operations"])
def test_mean_and_its_gradient(threads, monkeypatch):
    if threads == "tensor operations":
        monkeypatch.setattr(layers, "_compiled", lambda states: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(layers, "_SMALL", 0)
    generator = torch.Generator().manual_seed(0)
    neighbors = torch.randint(30, (50, 4), generator=generator)
    states = torch.randn(30, 8, generator=generator, requires_grad=True)
    into = torch.randn(50, 8, generator=generator)
    expected = states[neighbors].mean(dim=1)
    (to_states,) = torch.autograd.grad((expected * into).sum(), states)
    found = neighbor_mean(states, Edges.of(neighbors, 30))
    (found_gradient,) = torch.autograd.grad((found * into).sum(), states)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_gradient, to_states)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9, 1.0])
def test_each_element_is_chosen_with_the_share(share: float) -> None:
    found = draw((1001, 999), share, torch.Generator().manual_seed(0))
    assert found.shape == (1001, 999)
    assert found.dtype == torch.bool
    error = (share * (1 - share) / found.numel()) ** 0.5
    assert found.float().mean().item() == pytest.approx(share, abs=4 * error + 1e-5)
    if 0 < share < 1:
        # Four neighbors come from one number: none says anything about the next.
        neighbors = (found[:, :-1] & found[:, 1:]).float().mean().item()
        assert neighbors == pytest.approx(share**2, abs=6 * error)


def test_choices_come_from_the_generator() -> None:
    first, again, other = (draw((50, 7), 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_keeps_the_mean_and_its_gradient_is_what_was_kept() -> None:
    torch.manual_seed(0)
    states = torch.ones(400, 500, requires_grad=True)
    out = FastDropout(0.4)(states)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    out.sum().backward()
    torch.testing.assert_close(states.grad, out.detach())


def test_dropout_is_off_in_evaluation_and_at_zero() -> None:
    states = torch.randn(20, 30)
    assert torch.equal(FastDropout(0.4).eval()(states), states)
    assert torch.equal(FastDropout(0.0)(states), states)
    assert any(isinstance(module, FastDropout) for module in SpaHGCNetwork(8, 4).modules())
