"""Masked views, and the encoder that follows by moving average."""

from __future__ import annotations

import pytest
import torch

from spahgc.nn import Config, HeteroEncoder, TargetEncoder
from spahgc.nn.model import complementary_views


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_views_are_complementary_to_the_element(cohort, ratio):
    graph = cohort(n_spots=300, n_features=200)[0][0]
    config = Config(mask_target=ratio, mask_reference=1 - ratio)
    first, second = complementary_views(graph, config, torch.Generator().manual_seed(0))
    for name, lost in (("target", ratio), ("reference", 1 - ratio)):
        features, one, other = (getattr(part, name) for part in (graph, first, second))
        assert torch.equal(one + other, features)
        masked = one == 0
        assert torch.equal(masked, other != 0)
        # Five standard errors.
        assert abs(masked.float().mean().item() - lost) <= 5 * (lost * (1 - lost) / masked.numel()) ** 0.5 + 1e-9
        if 0 < lost < 1:  # element by element, not by row or column
            assert masked.float().mean(dim=0).std() > 0
            assert masked.float().mean(dim=1).std() > 0
    assert first.near is second.near is graph.near


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
