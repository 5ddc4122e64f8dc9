"""The chassis of the neural baselines: scaling, choice of the number of epochs, training, state."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from .._settings import settings
from .._slides import Cohort, Float32, Float64, Slide, expression_of
from ._linear import mean_pearson
from .base import Method, Run, State

if TYPE_CHECKING:
    from ..nn.baselines import Network, Step, Training

UNTUNED_EPOCHS = 15
"""Epochs where nothing can be held out."""
N_POSITIONS = 128
"""Columns, and rows, of the grid that positions are learned on: a Visium slide has 78 rows."""
_MAX_FOLDS = 2
_SMOOTHING = 5
_PATIENCE = 12
_NETWORK = "network."


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each gene over all reference spots."""

    mean: Float64
    spread: Float64
    """0 for a constant gene."""

    @classmethod
    def fit(cls, cohort: Cohort) -> Self:
        """The scale of a cohort's expression."""
        values = cohort.expression().astype(np.float64)
        spread = values.std(axis=0)
        return cls(values.mean(axis=0), np.where(spread > 1e-6, spread, 0.0))

    def __call__(self, expression: np.ndarray) -> Float32:
        """Standardised expression; 0 for a constant gene."""
        divisor = np.where(self.spread > 0, self.spread, 1.0)
        return np.where(self.spread > 0, (expression - self.mean) / divisor, 0.0).astype(np.float32)

    def back(self, values: np.ndarray) -> Float32:
        """Inverse of the call."""
        return (values * self.spread + self.mean).astype(np.float32)


def at_least_one(**values: int) -> None:
    """An error for a value below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is at least 1, not {value}.")


class Neural(Method):
    """A network on the reference slides, one whole slide a step, on expression standardised per gene.

    The number of epochs is the one with the best mean per-gene Pearson, smoothed over five epochs, on held-out groups
    of reference slides (:class:`Run`), one at a time, the two smallest groups at most; then the network is trained anew
    on all slides. Where nothing can be held out it is :data:`~spahgc.methods._neural.UNTUNED_EPOCHS`.

    A subclass makes the network and says what it reads; its constructor keeps each parameter under its name.

    Parameters
    ----------
    hidden
        Width of the network.
    epochs
        Most epochs that are trained.
    learning_rate
        Of AdamW.
    dropout
        Share of values that are dropped while training.
    """

    stochastic: ClassVar[bool] = True
    _least_hidden: ClassVar[int] = 1

    def __init__(self, hidden: int = 64, epochs: int = 60, learning_rate: float = 1e-3, dropout: float = 0.2) -> None:
        for name, value, least in (("hidden", hidden, self._least_hidden), ("epochs", epochs, 1)):
            if value < least:
                raise ValueError(f"{name} is at least {least}, not {value}.")
        if learning_rate <= 0:
            raise ValueError(f"learning_rate is greater than 0, not {learning_rate}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is at least 0 and less than 1, not {dropout}.")
        self.hidden, self.epochs, self.learning_rate, self.dropout = hidden, epochs, learning_rate, dropout
        self._history: dict[str, list[float]] = {}

    @abstractmethod
    def _network(self, n_features: int, scale: Scale) -> Network:
        """Make the network."""

    def _inputs(self, slide: Slide, references: Cohort, scale: Scale) -> dict[str, np.ndarray]:
        """What the network reads of a slide; `references` never holds the slide itself."""
        return {"embedding": slide.embedding}

    def params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def history(self) -> dict[str, list[float]]:
        return self._history

    def fit(self, cohort: Cohort, run: Run) -> Self:
        if len(cohort) < self.min_slides:
            raise ValueError(
                f"{self.name} needs {self.min_slides} reference slides: while training, each slide looks at the others."
                f" The reference has only {', '.join(repr(slide.name) for slide in cohort)}. With one slide, "
                "method='ridge', 'knn' or 'stnet' are possible."
            )
        self._device = settings.torch_device(run.device)
        choosing, training = (int(s) for s in np.random.SeedSequence(run.seed).generate_state(2))
        epochs, validation = self._choose_epochs(cohort, run, choosing)
        self._cohort, self._scale = cohort, Scale.fit(cohort)
        self._fitted, self._history = self._train(cohort, self._training(epochs, training, run, "Training"))
        if validation:
            self._history["validation"] = validation
        self._history["chosen_epoch"] = [float(epochs)]
        return self

    def to(self, device: str | None) -> Self:
        self._device = settings.torch_device(device)
        self._fitted.to(self._device)
        return self

    def predict(self, slide: Slide) -> Float32:
        return self._apply(self._fitted, self._tensors(self._inputs(slide, self._cohort, self._scale)), self._scale)

    def state(self) -> State:
        weights = {f"{_NETWORK}{key}": value.cpu().numpy() for key, value in self._fitted.state_dict().items()}
        return {**weights, "mean": self._scale.mean, "spread": self._scale.spread}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        import torch

        from ..nn.baselines import few_threads, ready

        self._device = settings.torch_device()
        self._cohort, self._scale = cohort, Scale(state["mean"], state["spread"])
        network = self._network(cohort.slides[0].embedding.shape[1], self._scale)
        network.load_state_dict(
            {k.removeprefix(_NETWORK): torch.from_numpy(v.copy()) for k, v in state.items() if k.startswith(_NETWORK)}
        )
        network.to(self._device)
        with few_threads(max(len(slide) for slide in cohort), self.hidden):
            self._fitted = ready(network, self._steps(cohort, self._scale) if network.recalls else [])
        return self

    def _training(self, epochs: int, seed: int, run: Run, label: str) -> Training:
        from ..nn.baselines import Training

        return Training(
            epochs,
            self.learning_rate,
            seed=seed,
            label=f"{label} {self.name}" if run.progress else "",
            patience=_PATIENCE,
        )

    def _train(
        self, cohort: Cohort, training: Training, held_out: Cohort | None = None
    ) -> tuple[Network, dict[str, list[float]]]:
        """Train on a cohort; the history has ``validation`` on `held_out`, where a score can be had."""
        from ..nn.baselines import few_threads, fit_network

        scale = Scale.fit(cohort)
        steps = self._steps(cohort, scale)
        # One spot has no correlation over spots.
        scored = [slide for slide in held_out or () if len(slide) > 1]
        held = [(slide, self._tensors(self._inputs(slide.without_expression(), cohort, scale))) for slide in scored]

        def score(network: Network) -> float:
            found = [
                mean_pearson(expression_of(s), self._apply(network, inputs, scale).astype(np.float64))
                for s, inputs in held
            ]
            return float(np.mean(found))

        with few_threads(max(len(slide) for slide in cohort), self.hidden):
            return fit_network(
                lambda: self._network(cohort.slides[0].embedding.shape[1], scale),
                steps,
                training,
                device=self._device,
                names=[slide.name for slide in cohort],
                validate=score if held else None,
            )

    def _choose_epochs(self, cohort: Cohort, run: Run, seed: int) -> tuple[int, list[float]]:
        """Number of epochs with the best smoothed score on held-out groups, and the scores after each epoch."""
        # The smallest groups are held out, so that most is left to train on.
        groups = sorted(cohort.splits(run.split_by), key=lambda names: (cohort.subset(names).n_spots, names))
        curves = []
        for names in groups[:_MAX_FOLDS]:
            rest = cohort.subset([slide.name for slide in cohort if slide.name not in names])
            if len(rest) < self.min_slides:
                continue
            training = self._training(self.epochs, seed, run, "Choosing the epochs of")
            history = self._train(rest, training, cohort.subset(names))[1]
            if "validation" in history:
                curves.append(history["validation"])
        if not curves:
            return min(UNTUNED_EPOCHS, self.epochs), []
        # A fold that stopped early had passed its best, so what the others did later counts for nothing.
        shortest = min(len(curve) for curve in curves)
        curve = np.mean([curve[:shortest] for curve in curves], axis=0)
        padded = np.pad(curve, _SMOOTHING // 2, mode="edge")
        smooth = np.convolve(padded, np.full(_SMOOTHING, 1 / _SMOOTHING), mode="valid")
        return int(smooth.argmax()) + 1, curve.tolist()

    def _steps(self, cohort: Cohort, scale: Scale) -> list[Step]:
        """Inputs and standardised expression of each reference slide, which never refers to itself."""
        import torch

        steps: list[Step] = []
        for slide in cohort:
            others = cohort.subset([other.name for other in cohort if other.name != slide.name])
            expression = torch.from_numpy(scale(expression_of(slide))).to(self._device)
            steps.append((self._tensors(self._inputs(slide.without_expression(), others, scale)), expression))
        return steps

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        import torch

        return {name: torch.from_numpy(np.ascontiguousarray(v)).to(self._device) for name, v in inputs.items()}

    def _apply(self, network: Network, inputs: Mapping[str, Any], scale: Scale) -> Float32:
        import torch

        from ..nn.baselines import few_threads

        with torch.no_grad(), few_threads(len(inputs["embedding"]), self.hidden):
            return scale.back(network(inputs).double().cpu().numpy())
