"""Losses (DESIGN sections 2.5 and 2.6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

_CONSTANT = 1e-6  # largest deviation from the mean, relative to the largest value, of a gene that counts as constant


class Measured(NamedTuple):
    """Measured expression of a slide and the components of its prediction, prepared once for all steps.

    `centered` is the expression minus its mean, (n_spots, n_genes); `squares` are its sums of squares, and `varies` is
    false for constant genes, (n_genes,); `components` is (n_components, n_genes).
    """

    centered: Tensor
    mean: Tensor
    squares: Tensor
    varies: Tensor
    components: Tensor

    @classmethod
    def of(cls, expression: Tensor, components: Tensor) -> Measured:
        """Prepare expression, (n_spots, n_genes)."""
        mean = expression.mean(dim=0)
        centered = expression - mean
        varies = centered.abs().amax(dim=0) > _CONSTANT * expression.abs().amax(dim=0)
        return cls(centered, mean, centered.square().sum(dim=0), varies, components)


def supervised_terms_by_components(weights: Tensor, measured: Measured) -> tuple[Tensor, Tensor]:
    """Mean squared error and :func:`pearson_loss` of the prediction ``weights @ components``, without computing it.

    Sums over spots follow from products of the weights, (n_spots, n_components), so that nothing as large as the
    prediction is written.
    """
    n, mean, components = len(weights), weights.mean(dim=0), measured.components
    centered = weights - mean
    own = ((centered.T @ centered @ components) * components).sum(dim=0)
    both = ((centered.T @ measured.centered) * components).sum(dim=0)
    level = mean @ components
    mse = ((own - 2 * both + measured.squares) / n + (level - measured.mean).square()).mean()
    with torch.no_grad():
        defined = measured.varies & (own > n * _CONSTANT**2 * (level.square() + own / n))
    # Undefined genes are replaced before the root, not after: NaN times zero in the backward pass is still NaN.
    correlation = both.where(defined, 0.0) / (own * measured.squares).where(defined, 1.0).sqrt()
    return mse, _one_minus_mean(correlation, defined)


def pearson_per_gene(prediction: Tensor, expression: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson correlation of each gene over spots, from prediction and expression, (n_spots, n_genes) each.

    It is 0 where it is undefined, with a finite gradient. The second result, boolean (n_genes,), is true for genes that
    are not constant, to one part in a million, on either side.

    Examples
    --------
    >>> import torch
    >>> from spahgc.nn import pearson_per_gene
    >>> pearson_per_gene(torch.tensor([[1.0, 2.0], [2.0, 2.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]]))
    (tensor([1., 0.]), tensor([ True, False]))
    """
    centered_p, varies_p = _center(prediction)
    centered_e, varies_e = _center(expression)
    defined = varies_p & varies_e
    # Undefined genes are replaced before the root, not after: NaN times zero in the backward pass is still NaN.
    product = (centered_p.square().sum(dim=0) * centered_e.square().sum(dim=0)).where(defined, 1.0)
    return (centered_p * centered_e).sum(dim=0).where(defined, 0.0) / product.sqrt(), defined


def _center(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values minus their mean, divided by the largest (squares neither vanish nor overflow); which columns vary."""
    centered = values - values.mean(dim=0)
    with torch.no_grad():
        largest = centered.abs().amax(dim=0)
        varies = largest > _CONSTANT * values.abs().amax(dim=0)
    return centered / largest.where(varies, 1.0), varies


def pearson_loss(prediction: Tensor, expression: Tensor) -> Tensor:
    """1 - mean per-gene Pearson correlation over the genes for which it is defined; 0 if there are none."""
    return _one_minus_mean(*pearson_per_gene(prediction, expression))


def _one_minus_mean(correlation: Tensor, defined: Tensor) -> Tensor:
    return (1 - correlation).where(defined, 0.0).sum() / defined.sum().clamp(min=1)


def contrastive_loss(view_1: Tensor, view_2: Tensor) -> Tensor:
    """2 - 2 cos of the two states of each node, (n_nodes, hidden) each, averaged over nodes."""
    return (2 - 2 * cosine_similarity(view_1.float(), view_2.float(), dim=1)).mean()
