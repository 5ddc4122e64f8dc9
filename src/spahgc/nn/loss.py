"""Losses (DESIGN sections 2.5 and 2.6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from .config import Config

_CONSTANT = 1e-6


class Terms(NamedTuple):
    """The terms of the loss of one step, scalars."""

    mse: Tensor
    pearson: Tensor
    """1 - mean per-gene Pearson."""
    target: Tensor
    reference: Tensor

    def total(self, config: Config) -> Tensor:
        """MSE + 0.5 (1 - Pearson) + 0.2 L_target + 0.1 L_reference, with the weights of `config`."""
        return (
            self.mse
            + config.weight_pearson * self.pearson
            + config.weight_target * self.target
            + config.weight_reference * self.reference
        )


def supervised_terms(prediction: Tensor, expression: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error and 1 - mean per-gene Pearson of a prediction, (n, g) against (n, g)."""
    if prediction.shape != expression.shape:
        raise ValueError(f"prediction is {tuple(prediction.shape)} and expression is {tuple(expression.shape)}.")
    return mse_loss(prediction, expression), pearson_loss(prediction, expression)


class Measured(NamedTuple):
    """Measured expression of a slide, prepared once for :func:`supervised_terms_by_components`."""

    centred: Tensor
    """Expression less its mean, (n, g)."""
    mean: Tensor
    """(g,)"""
    squares: Tensor
    """Sums of squares of the centred expression, (g,)."""
    varies: Tensor
    """Genes that are not constant, boolean (g,)."""

    @classmethod
    def of(cls, expression: Tensor) -> Measured:
        """From expression, (n, g)."""
        mean = expression.mean(dim=0)
        centred = expression - mean
        varies = centred.abs().amax(dim=0) > _CONSTANT * expression.abs().amax(dim=0)
        return cls(centred, mean, centred.square().sum(dim=0), varies)


def supervised_terms_by_components(weights: Tensor, components: Tensor, measured: Measured) -> tuple[Tensor, Tensor]:
    """:func:`supervised_terms` of a prediction ``weights @ components`` that is never made.

    Sums of squares and products over spots follow from products of the weights, (r, r) and (r, g), so nothing as large
    as the prediction, (n, g), is written.

    Parameters
    ----------
    weights
        Weights of the components at each spot, (n, r).
    components
        (r, g).
    measured
        The slide's expression.
    """
    n, mean = len(weights), weights.mean(dim=0)
    centred = weights - mean
    own = ((centred.T @ centred @ components) * components).sum(dim=0)
    both = ((centred.T @ measured.centred) * components).sum(dim=0)
    level = mean @ components
    mse = ((own - 2 * both + measured.squares) / n + (level - measured.mean).square()).mean()
    with torch.no_grad():
        defined = measured.varies & (own > n * _CONSTANT**2 * (level.square() + own / n))
    # The undefined genes are replaced before the root, not after: a NaN times zero in the backward pass is still NaN.
    correlation = both.where(defined, 0.0) / (own * measured.squares).where(defined, 1.0).sqrt()
    return mse, (1 - correlation).where(defined, 0.0).sum() / defined.sum().clamp(min=1)


def pearson_per_gene(prediction: Tensor, expression: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson correlation of each gene over spots.

    Parameters
    ----------
    prediction, expression
        (n, g).

    Returns
    -------
    Correlation, (g,), 0 where it is not defined, and where it is defined, boolean (g,): where neither side is constant
    to one part in a million of its largest value. Gradients are finite everywhere.
    """
    centred_p, varies_p = _centre(prediction)
    centred_e, varies_e = _centre(expression)
    defined = varies_p & varies_e
    # The undefined genes are replaced before the root, not after: a NaN times zero in the backward pass is still NaN.
    product = (centred_p.square().sum(dim=0) * centred_e.square().sum(dim=0)).where(defined, 1.0)
    correlation = (centred_p * centred_e).sum(dim=0).where(defined, 0.0) / product.sqrt()
    return correlation, defined


def _centre(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values less their mean, divided by the largest (squares neither vanish nor overflow); which columns vary."""
    centred = values - values.mean(dim=0)
    with torch.no_grad():
        spread = centred.abs().amax(dim=0)
        varies = spread > _CONSTANT * values.abs().amax(dim=0)
    return centred / spread.where(varies, 1.0), varies


def pearson_loss(prediction: Tensor, expression: Tensor) -> Tensor:
    """1 - the mean per-gene Pearson correlation over the genes that have one; 0 where none has.

    Parameters
    ----------
    prediction, expression
        (n, g). A gene that is constant over the spots, in either, contributes nothing.
    """
    correlation, defined = pearson_per_gene(prediction, expression)
    return (1 - correlation).where(defined, 0.0).sum() / defined.sum().clamp(min=1)


def contrastive_loss(view_1: Tensor, view_2: Tensor) -> Tensor:
    """2 - 2 cos of the two states of each node, (n, hidden) each, averaged over nodes."""
    return (2 - 2 * cosine_similarity(view_1.float(), view_2.float(), dim=1)).mean()
