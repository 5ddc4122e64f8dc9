from __future__ import annotations

import pytest
import torch

from spahgc.nn import Config, HeteroEncoder, TargetEncoder, complementary_masks
from spahgc.nn.masking import complementary_views


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_masks_are_complementary_to_the_element(ratio):
    first, second = complementary_masks((300, 200), ratio, torch.Generator().manual_seed(0))
    assert torch.equal(first.int() + second.int(), torch.ones(300, 200, dtype=torch.int32))
    # 60,000 draws: five standard errors.
    assert abs((~first).float().mean().item() - ratio) <= 5 * (ratio * (1 - ratio) / 60_000) ** 0.5
    # Element by element, not by row or column.
    if 0 < ratio < 1:
        assert first.float().mean(dim=0).std() > 0
        assert first.float().mean(dim=1).std() > 0


def test_masks_come_from_the_generator():
    draws = [complementary_masks((50, 40), 0.5, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_ratio_out_of_range():
    with pytest.raises(ValueError, match="between 0 and 1"):
        complementary_masks((2, 2), 1.5)


def test_views_add_up_to_the_graph(cohort):
    graph = cohort()[0][0]
    first, second = complementary_views(graph, 0.1, 0.9, torch.Generator().manual_seed(0))
    for name in ("target", "reference"):
        assert torch.equal(getattr(first, name) + getattr(second, name), getattr(graph, name))
    assert (first.target == 0).float().mean() < 0.3
    assert (first.reference == 0).float().mean() > 0.7
    assert first.near is graph.near


def test_target_encoder_follows_by_the_formula_and_gets_no_gradient(cohort, small):
    graph = cohort()[0][0]
    torch.manual_seed(0)
    encoder = HeteroEncoder(6, 5, small)
    follower = TargetEncoder(encoder, decay=0.75)
    before = [p.clone() for p in follower.module.parameters()]
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert all(torch.equal(own, old) for own, old in zip(follower.module.parameters(), before, strict=True))
    follower.update(encoder)
    for own, old, new in zip(follower.module.parameters(), before, encoder.parameters(), strict=True):
        torch.testing.assert_close(own, 0.75 * old + 0.25 * new)
        assert not torch.equal(own, old)

    states = follower(graph)
    assert not any(state.requires_grad for state in states)
    loss = sum((a - b).square().mean() for a, b in zip(encoder(graph), states, strict=True))
    loss.backward()
    assert all(own.grad is None for own in follower.module.parameters())
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_target_encoder_has_no_dropout(cohort):
    config = Config(hidden=16, n_layers=1, dropout=0.5)
    encoder = HeteroEncoder(6, 5, config).train()
    follower = TargetEncoder(encoder)
    graph = cohort()[0][0]
    assert torch.equal(follower(graph)[0], follower(graph)[0])
    assert not torch.equal(encoder(graph)[0], encoder(graph)[0])
    assert encoder.training


def test_decay_out_of_range():
    with pytest.raises(ValueError, match="decay"):
        TargetEncoder(torch.nn.Linear(2, 2), decay=-0.1)
