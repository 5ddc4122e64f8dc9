"""Chassis of the published methods: shared layers, positions, training loop, choice of the number of epochs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from .._checks import Range, above, at_least, matrix
from .._geometry import spatial_knn
from .._settings import settings
from .._slides import Cohort, Float32, Float64, Slide, expression_of
from ..nn.training import History, few_threads, fit, seeded
from .base import Method, Run, State, parameters
from .linear import mean_pearson

Step = tuple[Tensor, ...]
"""Standardized expression of a reference slide, (n_spots, n_genes), and the arguments of the network for it."""

UNTUNED_EPOCHS = 15  # if nothing can be held out
N_POSITIONS = 128  # columns and rows of the grid of learned positions; a Visium slide has 78 rows
HEADS = 4  # of all attention
_MAX_FOLDS = 2
_SMOOTHING = 5
_PATIENCE = 12
_WEIGHTS = "network."


# Layers that several methods share.


class SlideNetwork(nn.Module):
    """Layers and parameters of a network by name, with the loss of its method as the forward pass."""

    def __init__(self, method: NetworkMethod, n_features: int, scale: ExpressionScale) -> None:
        super().__init__()
        self.method = method
        for name, part in method.layers(n_features, scale).items():
            setattr(self, name, part)

    def forward(self, expression: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """Terms of the loss on one slide, and their sum as ``"loss"``."""
        terms = self.method.losses(self, expression, *inputs)
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}


class Stem(nn.Sequential):
    """Dropout of the embedding and a linear map to the width of the network."""

    def __init__(self, n_features: int, hidden: int, dropout: float) -> None:
        super().__init__(nn.Dropout(dropout), nn.Linear(n_features, hidden))


class Head(nn.Sequential):
    """LayerNorm and linear map to the genes, initialized close to 0, the mean of every gene."""

    def __init__(self, hidden: int, n_genes: int) -> None:
        output = nn.Linear(hidden, n_genes)
        nn.init.normal_(output.weight, std=0.02)
        nn.init.zeros_(output.bias)
        super().__init__(nn.LayerNorm(hidden), output)


class FeedForward(nn.Sequential):
    """LayerNorm, then two linear maps with GELU and dropout."""

    def __init__(self, hidden: int, dropout: float) -> None:
        first, second = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
        super().__init__(nn.LayerNorm(hidden), first, nn.GELU(), second, nn.Dropout(dropout))


class Transformer(nn.Sequential):
    """Pre-norm transformer over the spots of one slide, (n_spots, hidden).

    The input has no batch dimension and the attention weights no dropout: torch then uses its blockwise kernels, and
    memory grows with the number of spots instead of its square.
    """

    def __init__(self, hidden: int, n_layers: int, dropout: float) -> None:
        if hidden % HEADS:
            raise ValueError(f"`hidden` must be a multiple of {HEADS} (attention heads), got {hidden}.")
        layers = [
            nn.TransformerEncoderLayer(hidden, HEADS, 2 * hidden, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(n_layers)
        ]
        for layer in layers:
            layer.self_attn.dropout = 0.0
            layer.dropout.p = 0.0  # within the feed-forward network; only its output has dropout
        super().__init__(*layers)


class PositionEmbedding(nn.Embedding):
    """Sum of a learned vector per grid column and one per grid row."""

    def __init__(self, hidden: int) -> None:
        super().__init__(2 * N_POSITIONS, hidden)
        nn.init.normal_(self.weight, std=0.1)

    def forward(self, position: Tensor) -> Tensor:
        """Column and row of each spot, int64 (n_spots, 2), to (n_spots, hidden)."""
        x, y = position.unbind(dim=1)
        return super().forward(x) + super().forward(y + N_POSITIONS)


def grid_positions(coordinates: ArrayLike, n_positions: int = N_POSITIONS) -> NDArray[np.int64]:
    """Column and row of each spot on a square grid from the upper left corner of the slide's spots, int64 (n, 2).

    The pitch is the median distance to the nearest other spot. It is widened on slides that exceed `n_positions`.
    """
    xy = matrix(coordinates, "coordinates", dtype=np.float64)
    places = np.unique(xy, axis=0)  # Several spots at one place say nothing about the pitch.
    if len(places) < 2:
        return np.zeros(xy.shape, dtype=np.int64)
    pitch = float(np.median(np.linalg.norm(places - places[spatial_knn(places, 1)[:, 0]], axis=1)))
    offset = xy - xy.min(axis=0)
    pitch = max(pitch, float(offset.max()) / max(n_positions - 1, 0.5))
    # The small constant rounds halves up on every machine.
    return np.minimum(np.floor(offset / pitch + 0.5 + 1e-9), n_positions - 1).astype(np.int64)


def edge_index(neighbors: Tensor) -> Tensor:
    """Edges from each neighbor to its spot as in PyG, (2, n_spots * k), from neighbors int64 (n_spots, k)."""
    n, k = neighbors.shape
    return torch.stack([neighbors.reshape(-1), torch.arange(n, device=neighbors.device).repeat_interleave(k)])


# Training.


@dataclass(frozen=True)
class ExpressionScale:
    """Mean and standard deviation of each gene over all reference spots."""

    mean: Float64
    std: Float64  # 0 for a constant gene

    @classmethod
    def fit(cls, cohort: Cohort) -> Self:
        """Moments of the expression of a cohort."""
        values = cohort.expression().astype(np.float64)
        std = values.std(axis=0)
        return cls(values.mean(axis=0), np.where(std > 1e-6, std, 0.0))

    def __call__(self, expression: np.ndarray) -> Float32:
        """Standardize expression; constant genes become 0."""
        return ((expression - self.mean) / np.where(self.std > 0, self.std, np.inf)).astype(np.float32)

    def inverse_transform(self, values: np.ndarray) -> Float32:
        """Scale standardized expression back."""
        return (values * self.std + self.mean).astype(np.float32)


@parameters(
    hidden=at_least(1),
    epochs=at_least(1),
    learning_rate=above(0),
    dropout=Range("of at least 0 and less than 1", lambda value: 0 <= value < 1),
)
class NetworkMethod(Method):
    """Base class of methods that train a network on the reference slides, one whole slide per step.

    Expression is standardized per gene. The number of epochs is the one with the best mean per-gene Pearson, smoothed
    over five epochs, on held-out groups of reference slides, one at a time, at most the two smallest groups. The
    network is then trained again on all slides. If nothing can be held out, it is trained for 15 epochs.

    Parameters
    ----------
    hidden
        Width of the network. With attention, a multiple of 4.
    epochs
        Maximum number of epochs.
    learning_rate
        Learning rate of AdamW.
    dropout
        Dropout rate.
    """

    hidden: int = 64
    epochs: int = 60
    learning_rate: float = 1e-3
    dropout: float = 0.2

    stochastic: ClassVar[bool] = True

    @abstractmethod
    def layers(self, n_features: int, scale: ExpressionScale) -> dict[str, nn.Module | nn.Parameter]:
        """Create the layers of the network, by name."""

    @abstractmethod
    def forward(self, net: Any, embedding: Tensor, *inputs: Tensor) -> Tensor:
        """Apply the layers `net` to the inputs of a slide; standardized expression, (n_spots, n_genes)."""

    def inputs(self, slide: Slide, references: Cohort, scale: ExpressionScale) -> tuple[np.ndarray, ...]:
        """Inputs of the network for a slide; `references` never includes the slide itself."""
        return (slide.embedding,)

    def losses(self, net: Any, expression: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
        """Terms of the loss, by name."""
        return {"mse": mse_loss(self.forward(net, *inputs), expression)}

    def recall(self, net: Any, references: Callable[[], Sequence[Step]]) -> None:
        """Store what predictions need of the reference slides; called in evaluation mode before predicting."""

    def fit(self, cohort: Cohort, run: Run) -> Self:
        if len(cohort) < self.min_slides:
            raise ValueError(
                f"{self.name!r} needs at least {self.min_slides} reference slides, because each slide is trained with "
                f"the others as its references, but there is only {cohort.slides[0].name!r}. With one slide, use "
                "method='ridge', 'knn', or 'stnet'."
            )
        self._device = settings.torch_device(run.device)
        choosing, training = (int(s) for s in np.random.SeedSequence(run.seed).generate_state(2))
        epochs, validation = self._choose_epochs(cohort, run, choosing)
        self._cohort, self._scale = cohort, ExpressionScale.fit(cohort)
        label = f"Training {self.name}" if run.progress else ""
        self._fitted, self._history = self._train(cohort, epochs, training, label)
        if validation:
            self._history["validation"] = validation
        self._history["chosen_epoch"] = [float(epochs)]
        return self

    def to(self, device: str | None) -> Self:
        self._device = settings.torch_device(device)
        self._fitted.to(self._device)
        return self

    def predict(self, slide: Slide) -> Float32:
        return self._apply(self._fitted, self._tensors(self.inputs(slide, self._cohort, self._scale)), self._scale)

    def state(self) -> State:
        weights = {f"{_WEIGHTS}{key}": value.cpu().numpy() for key, value in self._fitted.state_dict().items()}
        return {**weights, "mean": self._scale.mean, "std": self._scale.std}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._device = settings.torch_device()
        self._cohort, self._scale = cohort, ExpressionScale(state["mean"], state["std"])
        network = SlideNetwork(self, cohort.slides[0].embedding.shape[1], self._scale)
        network.load_state_dict(
            {k.removeprefix(_WEIGHTS): torch.from_numpy(v.copy()) for k, v in state.items() if k.startswith(_WEIGHTS)}
        )
        network.to(self._device)
        with few_threads(max(map(len, cohort)), self.hidden):
            self._fitted = self._ready(network, lambda: self._steps(cohort, self._scale))
        return self

    def _choose_epochs(self, cohort: Cohort, run: Run, seed: int) -> tuple[int, list[float]]:
        """Number of epochs with the best smoothed score on held-out groups, and the score after each epoch."""
        # Hold out the smallest groups to leave most spots for training.
        groups = sorted(cohort.splits(run.split_by), key=lambda names: (cohort.subset(names).n_spots, names))
        label = f"Choosing the epochs of {self.name}" if run.progress else ""
        curves = []
        for names in groups[:_MAX_FOLDS]:
            rest = cohort.subset([slide.name for slide in cohort if slide.name not in names])
            if len(rest) < self.min_slides:
                continue
            history = self._train(rest, self.epochs, seed, label, cohort.subset(names))[1]
            if "validation" in history:
                curves.append(history["validation"])
        if not curves:
            return min(UNTUNED_EPOCHS, self.epochs), []
        # A fold that stopped early was past its best, so later epochs of the others do not count.
        shortest = min(len(curve) for curve in curves)
        curve = np.mean([curve[:shortest] for curve in curves], axis=0)
        padded = np.pad(curve, _SMOOTHING // 2, mode="edge")
        smooth = np.convolve(padded, np.full(_SMOOTHING, 1 / _SMOOTHING), mode="valid")
        return int(smooth.argmax()) + 1, curve.tolist()

    def _train(
        self, cohort: Cohort, epochs: int, seed: int, label: str = "", held_out: Cohort | None = None
    ) -> tuple[SlideNetwork, History]:
        """Train a network, in evaluation mode at the end; held-out slides are scored after each epoch."""
        scale = ExpressionScale.fit(cohort)
        steps = self._steps(cohort, scale)
        # The correlation over a single spot is undefined.
        scored = [slide for slide in held_out or () if len(slide) > 1]
        inputs = [self._tensors(self.inputs(slide.without_expression(), cohort, scale)) for slide in scored]

        def validate(history: History) -> bool:
            self._ready(network, lambda: steps)
            predicted = [self._apply(network, given, scale).astype(np.float64) for given in inputs]
            pairs = zip(scored, predicted, strict=True)
            scores = history.setdefault("validation", [])
            scores.append(float(np.mean([mean_pearson(expression_of(slide), values) for slide, values in pairs])))
            return len(scores) - int(np.argmax(scores)) > _PATIENCE

        weights_and_dropout, shuffle = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
        with few_threads(max(map(len, cohort)), self.hidden), seeded(weights_and_dropout, self._device):
            network = SlideNetwork(self, cohort.slides[0].embedding.shape[1], scale).to(self._device)
            history = fit(
                network,
                steps,
                [slide.name for slide in cohort],
                epochs=epochs,
                learning_rate=self.learning_rate,
                weight_decay=1e-2,
                shuffle=shuffle,
                label=label,
                after_epoch=validate if scored else None,
            )
            return self._ready(network, lambda: steps), history

    def _steps(self, cohort: Cohort, scale: ExpressionScale) -> list[Step]:
        """Inputs and standardized expression of each reference slide, with the other slides as its references."""
        steps: list[Step] = []
        for slide in cohort:
            others = cohort.subset([other.name for other in cohort if other.name != slide.name])
            inputs = self.inputs(slide.without_expression(), others, scale)
            steps.append(self._tensors((scale(expression_of(slide)), *inputs)))
        return steps

    def _tensors(self, arrays: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(self._device) for array in arrays)

    def _apply(self, network: SlideNetwork, inputs: Sequence[Tensor], scale: ExpressionScale) -> Float32:
        with torch.no_grad():
            # float64 on the CPU only: MPS has none.
            return scale.inverse_transform(self.forward(network, *inputs).cpu().double().numpy())

    def _ready(self, network: SlideNetwork, references: Callable[[], Sequence[Step]]) -> SlideNetwork:
        """Switch a network to evaluation mode and let it recall the reference slides."""
        with torch.no_grad():
            self.recall(network.eval(), references)
        return network
