"""EGN in compact form: cross-attention to exemplars from the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from .._slides import Cohort, Slide
from ._neural import Neural, Scale, at_least_one
from ._references import References
from .base import register

if TYPE_CHECKING:
    from ..nn.baselines import Network


@register
class EGN(Neural):
    """EGN and EGGN (Yang et al., WACV 2023 and Pattern Recognition 2024): attention to exemplars.

    Each spot attends to the reference spots most similar by cosine of the embedding, which carry their embedding and
    their expression. While training, the exemplars of a slide come from the other slides. The loss is MSE and 1 - mean
    per-gene Pearson. The graph of windows and exemplars of EGGN passes the same messages.

    The compact form leaves out the extractor that is trained to find exemplars, the vision transformer on the tile that
    exemplars revise layer by layer, and, of EGGN, the edges between the windows of a slide.

    Parameters
    ----------
    n_exemplars
        Exemplars of each spot (fewer, where the other slides have fewer spots).
    weight
        Weight of the Pearson term beside the MSE.
    hidden
        Width of the states, a multiple of 4.
    epochs
        Most epochs that are trained.
    learning_rate
        Of AdamW.
    dropout
        Share of values that are dropped while training.
    """

    name: ClassVar[str] = "egn"
    source: ClassVar[str] = (
        "Yang et al. Exemplar guided deep neural network for spatial transcriptomics analysis of gene expression "
        "prediction. WACV 2023. arXiv:2210.16721. Yang et al. Spatial transcriptomics analysis of gene expression "
        "prediction using exemplar guided graph neural network. Pattern Recognition 2024"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    min_slides: ClassVar[int] = 2

    def __init__(
        self,
        n_exemplars: int = 9,
        weight: float = 0.5,
        hidden: int = 64,
        epochs: int = 60,
        learning_rate: float = 1e-3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(hidden, epochs, learning_rate, dropout)
        at_least_one(n_exemplars=n_exemplars)
        if weight < 0:
            raise ValueError(f"weight is at least 0, not {weight}.")
        self.n_exemplars, self.weight = n_exemplars, weight

    def _network(self, n_features: int, scale: Scale) -> Network:
        from ..nn.baselines import EGN as Net

        return Net(n_features, len(scale.mean), hidden=self.hidden, weight=self.weight, dropout=self.dropout)

    def _inputs(self, slide: Slide, references: Cohort, scale: Scale) -> dict[str, np.ndarray]:
        embedding = references.embedding()
        others = References([other.embedding for other in references], min(self.n_exemplars, len(embedding)))
        found = others.search(slide.embedding)
        rows, exemplars = np.unique(found, return_inverse=True)
        return {
            "embedding": slide.embedding,
            "exemplars": exemplars.reshape(found.shape).astype(np.int64),
            "exemplar_embedding": embedding[rows],
            "exemplar_expression": scale(references.expression()[rows]),
        }
