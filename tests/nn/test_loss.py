from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch.nn.functional import mse_loss

from spahgc.nn import contrastive_loss, pearson_loss, pearson_per_gene
from spahgc.nn.loss import Measured, supervised_terms_by_components


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    truth = rng.gamma(1.0, size=(40, 7))
    return 3 + 0.5 * truth + rng.normal(size=truth.shape), truth


def test_pearson_equals_scipy_per_gene(pair):
    found, defined = pearson_per_gene(*(torch.from_numpy(x).float() for x in pair))
    expected = [pearsonr(pair[0][:, j], pair[1][:, j]).statistic for j in range(7)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert defined.all()
    loss = pearson_loss(*(torch.from_numpy(x).float() for x in pair))
    assert loss.item() == pytest.approx(1 - np.mean(expected), abs=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_pearson_does_not_depend_on_the_scale(pair, scale):
    prediction, truth = (torch.from_numpy(x).float() for x in pair)
    expected = pearson_per_gene(prediction, truth)[0]
    torch.testing.assert_close(pearson_per_gene(prediction * scale, truth / scale)[0], expected)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [0.0, 3.3, 1e6])
def test_a_constant_gene_contributes_nothing(pair, side, value):
    sides = [torch.from_numpy(x).float() for x in pair]
    expected = pearson_loss(*(x[:, 1:] for x in sides))
    sides[side][:, 0] = value
    sides[0].requires_grad_()
    loss = pearson_loss(*sides)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert sides[0].grad.isfinite().all()
    assert not sides[0].grad[:, 0].any()
    assert sides[0].grad[:, 1:].abs().sum() > 0


def test_all_genes_constant_give_no_loss_and_no_gradient():
    prediction = torch.zeros(5, 3, requires_grad=True)
    loss = pearson_loss(prediction, torch.rand(5, 3))
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()


def test_pearson_gradient_is_right(pair):
    prediction, truth = (torch.from_numpy(x) for x in pair)
    truth[:, 2] = 1.0
    assert torch.autograd.gradcheck(lambda p: pearson_loss(p, truth), prediction.requires_grad_())


def test_contrastive_loss_by_hand():
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    second = torch.tensor([[3.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    assert contrastive_loss(first, second).item() == pytest.approx((0 + 4 + 2) / 3)
    # Cosines that are not symmetric around 0, so that the sign matters: 1, 0.6 and 0.8.
    near = torch.tensor([[2.0, 0.0], [1.6, 1.2], [4.0, 3.0]])
    assert contrastive_loss(first, near).item() == pytest.approx((0 + 0.8 + 0.4) / 3)
    zero = torch.zeros(2, 3, requires_grad=True)
    contrastive_loss(zero, torch.ones(2, 3)).backward()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_terms_by_components_are_those_of_the_prediction(scale):
    """Without making the prediction: the same values and gradients, with a gene constant on either side."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(40, 4, generator=generator).requires_grad_()
    components = scale * torch.randn(4, 9, generator=generator)
    components[:, 2] = 0
    expression = scale * (torch.randn(40, 9, generator=generator) + 2)
    expression[:, 5] = 3 * scale
    found = supervised_terms_by_components(weights, Measured.of(expression, components))
    prediction = weights @ components
    expected = mse_loss(prediction, expression), pearson_loss(prediction, expression)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=0)
        (gradient,) = torch.autograd.grad(mine, weights, retain_graph=True)
        (wanted,) = torch.autograd.grad(theirs, weights, retain_graph=True)
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def test_terms_by_components_of_nothing_have_no_gradient():
    """An output layer that starts at zero: no correlation is defined, and no gradient is NaN."""
    weights = torch.zeros(6, 2, requires_grad=True)
    mse, pearson = supervised_terms_by_components(weights, Measured.of(torch.rand(6, 3), torch.ones(2, 3)))
    (mse + pearson).backward()
    assert torch.isfinite(weights.grad).all()
    assert pearson == 0
