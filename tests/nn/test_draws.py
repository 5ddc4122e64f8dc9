from __future__ import annotations

import pytest
import torch

from spahgc.nn import SpaHGC
from spahgc.nn._draws import Dropout, chosen


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.9, 1.0])
def test_each_element_is_chosen_with_the_share(share: float) -> None:
    found = chosen((1001, 999), share, torch.Generator().manual_seed(0))
    assert found.shape == (1001, 999)
    assert found.dtype == torch.bool
    error = (share * (1 - share) / found.numel()) ** 0.5
    assert found.float().mean().item() == pytest.approx(share, abs=4 * error + 1e-5)
    if 0 < share < 1:
        # Four neighbours come from one number: none says anything about the next.
        neighbours = (found[:, :-1] & found[:, 1:]).float().mean().item()
        assert neighbours == pytest.approx(share**2, abs=6 * error)


def test_choices_come_from_the_generator() -> None:
    first, again, other = (chosen((50, 7), 0.5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_dropout_keeps_the_mean_and_its_gradient_is_what_was_kept() -> None:
    torch.manual_seed(0)
    states = torch.ones(400, 500, requires_grad=True)
    out = Dropout(0.4)(states)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    out.sum().backward()
    torch.testing.assert_close(states.grad, out.detach())


def test_dropout_is_off_in_evaluation_and_at_zero() -> None:
    states = torch.randn(20, 30)
    assert torch.equal(Dropout(0.4).eval()(states), states)
    assert torch.equal(Dropout(0.0)(states), states)


def test_the_network_uses_it() -> None:
    assert any(isinstance(module, Dropout) for module in SpaHGC(8, 4).modules())
