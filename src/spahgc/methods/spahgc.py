"""SpaHGC: a heterogeneous graph between a slide and the reference slides (Shi, Wang, Wan, Min; CVPR 2026)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from .._settings import settings
from .._slides import Cohort, Float32, Float64, Slide, expression_of
from ..metrics import pearson
from ._linear import pooled_expression, relative_expression
from .base import Method, Run, State, register
from .context_ridge import ContextRidge
from .ridge import Ridge

if TYPE_CHECKING:
    import torch
    from torch_geometric.data import HeteroData

    from ..nn import Config
    from ..nn import SpaHGC as Network

_LINEAR: tuple[type[Ridge], ...] = (Ridge, ContextRidge)
_MAX_FOLDS = 5
_SMOOTHING = 5


@dataclass(frozen=True)
class Preset:
    """What a preset sets.

    Parameters
    ----------
    network
        Fields of :class:`spahgc.nn.Config` that differ from the paper's.
    blend
        Train on expression relative to each slide, and average the networks' prediction with that of ridge and context
        ridge.
    n_components
        Leading components of the reference expression that the network's output is a combination of; `None`: the genes.
    n_seeds
        Networks that are trained and averaged.
    choose_epochs
        Choose the number of epochs on held-out reference slides; otherwise it is the network's `epochs`.
    """

    network: Mapping[str, Any] = field(default_factory=dict)
    blend: bool = False
    n_components: int | None = None
    n_seeds: int = 1
    choose_epochs: bool = False


PRESETS: dict[str, Preset] = {
    "paper": Preset(),
    "default": Preset(
        network={
            "hidden": 64,
            "n_layers": 2,
            "n_references": 15,
            "learning_rate": 1e-3,
            "epochs": 60,
            "weight_target": 0.0,
            "weight_reference": 0.0,
        },
        blend=True,
        n_components=32,
        n_seeds=3,
        choose_epochs=True,
    ),
}
UNTUNED_EPOCHS = 40
"""Epochs of a preset that chooses them, where too few slides are there to hold one out."""


@register
class SpaHGC(Method):
    """Heterogeneous graph of a slide and the reference spots it retrieves.

    ``preset="paper"`` is the published method to the letter: 200 epochs, and the last one is used. ``preset="default"``
    is three small networks on the same graph, trained on expression relative to each slide, averaged with ridge and
    context ridge: the networks count half, the two linear methods a quarter each. The number of epochs is chosen on
    held-out reference slides; 0 stands for the linear methods alone.

    Parameters
    ----------
    preset
        ``"default"`` or ``"paper"``.
    network
        Fields of :class:`spahgc.nn.Config` to change.
    n_seeds
        Networks to average; `None` takes the preset's.
    """

    name: ClassVar[str] = "spahgc"
    source: ClassVar[str] = "Shi, Wang, Wan, Min. SpaHGC. CVPR 2026. arXiv:2603.22821"
    min_slides: ClassVar[int] = 2
    stochastic: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def __init__(
        self, preset: str = "default", network: Mapping[str, Any] | None = None, n_seeds: int | None = None
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(f"No preset {preset!r}. Available: {', '.join(PRESETS)}.")
        if n_seeds is not None and n_seeds < 1:
            raise ValueError(f"n_seeds is at least 1, not {n_seeds}.")
        self.preset, self.network, self.n_seeds = preset, dict(network or {}), n_seeds
        chosen = PRESETS[preset]
        self._preset = replace(
            chosen, network={**chosen.network, **self.network}, n_seeds=chosen.n_seeds if n_seeds is None else n_seeds
        )
        self._history: dict[str, list[float]] = {}

    def params(self) -> dict[str, Any]:
        return {"preset": self.preset, "network": self.network, "n_seeds": self.n_seeds}

    def history(self) -> dict[str, list[float]]:
        return self._history

    def fit(self, cohort: Cohort, run: Run) -> Self:
        from ..nn import Config, train

        config = Config(**self._preset.network)
        _check(cohort, config)
        device = settings.torch_device(run.device)
        seeds = [int(s) for s in np.random.SeedSequence(run.seed).generate_state(self._preset.n_seeds + 1)]
        part = _Part.prepare(cohort, self._preset, config, run)
        epochs, validation = (
            _choose_epochs(part, self._preset, run, seeds[0], device)
            if self._preset.choose_epochs
            else (config.epochs, [])
        )
        self._part, self._device, self._networks = part, device, []
        curves = []
        for seed in seeds[1:] if epochs else []:
            network, history = train(
                part.graphs,
                replace(config, epochs=epochs),
                seed=seed,
                device=device,
                components=part.components,
                names=[slide.name for slide in cohort],
                progress=run.progress,
                validate=None if self._preset.choose_epochs else _peek(part, run.peek, device),
            )
            self._networks.append(network.cpu())
            curves.append(history)
        self._history = {
            key: np.mean([curve[key] for curve in curves], axis=0).tolist() for key in (curves[0] if curves else {})
        }
        if validation:
            self._history["validation"] = validation
        self._history["chosen_epoch"] = [float(epochs)]
        return self

    def to(self, device: str | None) -> Self:
        self._device = settings.torch_device(device)
        return self

    def predict(self, slide: Slide) -> Float32:
        import torch

        part = self._part
        data = part.graph(slide).to(str(self._device))
        outputs = []
        for network in self._networks:
            network.to(self._device)
            with torch.no_grad():
                outputs.append(network(data).double().cpu().numpy())
            network.cpu()
        return part.unscaled(_blend(outputs, part.linear_values(slide)))

    def state(self) -> State:
        arrays = {
            f"network{i}.{name}": tensor.detach().cpu().numpy()
            for i, network in enumerate(self._networks)
            for name, tensor in network.state_dict().items()
        }
        return {**arrays, **self._part.arrays()}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        import torch

        from ..nn import Config
        from ..nn import SpaHGC as Network

        config = Config(**self._preset.network)
        self._part = _Part.restore(state, cohort, self._preset, config)
        self._device = settings.torch_device()
        n_networks = len({key.split(".")[0] for key in state if key.startswith("network")})
        self._networks = []
        for i in range(n_networks):
            prefix = f"network{i}."
            weights = {
                key.removeprefix(prefix): torch.from_numpy(state[key].copy()) for key in state if key.startswith(prefix)
            }
            network = Network(
                cohort.slides[0].embedding.shape[1], len(cohort.genes), config, components=weights.get("components")
            )
            network.load_state_dict(weights)
            self._networks.append(network.eval())
        return self


@dataclass(eq=False)
class _Part:
    """Reference slides made ready for the network: scaled expression, linear methods to blend with, graphs."""

    cohort: Cohort
    config: Config
    values: dict[str, Float64]
    """Expression that the network is trained on, by slide."""
    level: Float64
    spread: Float64
    """Prediction = output * spread + level."""
    linear: tuple[Ridge, ...]
    """What the networks are averaged with; empty for the networks alone."""
    graphs: list[tuple[HeteroData, torch.Tensor]] = field(default_factory=list)
    components: torch.Tensor | None = None

    @classmethod
    def prepare(cls, cohort: Cohort, preset: Preset, config: Config, run: Run, tuned: tuple[Ridge, ...] = ()) -> Self:
        """Fit the linear methods and build the graph of each slide as the target, with references from the others.

        Hyperparameters are taken from `tuned`, the linear methods of a larger cohort, if given.
        """
        import torch

        settled: list[tuple[float, int] | None] = [method.hyperparameters for method in tuned] or [None] * len(_LINEAR)
        linear = tuple(
            kind(relative=True).fit(cohort, run, hyperparameters=given)
            for kind, given in zip(_LINEAR if preset.blend else (), settled if preset.blend else (), strict=True)
        )
        part = cls._scaled(cohort, config, linear)
        if preset.n_components is not None:
            stacked = np.concatenate([part.values[slide.name] for slide in cohort])
            part.components = torch.from_numpy(_leading_axes(stacked, preset.n_components))
        for slide in cohort:
            others = cohort.subset([other.name for other in cohort if other.name != slide.name])
            expression = torch.from_numpy(part.values[slide.name].astype(np.float32))
            part.graphs.append((part.graph(slide, others=others), expression))
        return part

    @classmethod
    def _scaled(cls, cohort: Cohort, config: Config, linear: tuple[Ridge, ...]) -> Self:
        if linear:
            return cls(cohort, config, *relative_expression(cohort), linear)
        n_genes = len(cohort.genes)
        return cls(cohort, config, pooled_expression(cohort), np.zeros(n_genes), np.ones(n_genes), ())

    def graph(self, slide: Slide, *, others: Cohort | None = None) -> HeteroData:
        """Graph of a slide with references from `others` (all reference slides, if not given)."""
        from ..nn import build_graph

        references = self.cohort if others is None else others
        return build_graph(
            slide.embedding,
            slide.coordinates,
            references.embedding(),
            np.concatenate([self.values[reference.name] for reference in references]).astype(np.float32),
            n_references=self.config.n_references,
            n_near=self.config.n_near,
            n_close=self.config.n_close,
        )

    def linear_values(self, slide: Slide) -> Float64 | None:
        """Mean prediction of the linear methods in the scale that the network is trained on; `None` without them."""
        return np.mean([method.relative_values(slide) for method in self.linear], axis=0) if self.linear else None

    def unscaled(self, values: np.ndarray) -> Float32:
        """From the scale that the network is trained on to the unit of the expression."""
        return (values * self.spread + self.level).astype(np.float32)

    def arrays(self) -> State:
        """What :meth:`restore` needs beside the cohort."""
        return {f"{m.name}.{key}": value for m in self.linear for key, value in m.state().items()}

    @classmethod
    def restore(cls, state: Mapping[str, np.ndarray], cohort: Cohort, preset: Preset, config: Config) -> Self:
        """Inverse of :meth:`arrays`, without the graphs of the reference slides."""
        linear = []
        for kind in _LINEAR if preset.blend else ():
            prefix = f"{kind.name}."
            parts = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            linear.append(kind(relative=True).restore(parts, cohort))
        return cls._scaled(cohort, config, tuple(linear))


def _choose_epochs(whole: _Part, preset: Preset, run: Run, seed: int, device: torch.device) -> tuple[int, list[float]]:
    """Number of epochs with the best mean per-gene Pearson on held-out groups of reference slides, and that curve.

    The curve starts with the linear methods alone (0 epochs) and is smoothed over five epochs.
    """
    from ..nn import train

    cohort, config = whole.cohort, whole.config
    curves = []
    for held_out in _folds(cohort.splits(run.split_by)):
        rest = cohort.subset([slide.name for slide in cohort if slide.name not in held_out])
        if len(rest) < SpaHGC.min_slides or _fewest_references(rest) < config.n_references:
            continue
        part = _Part.prepare(rest, preset, config, run, whole.linear)
        held = [(s, part.graph(s).to(str(device)), part.linear_values(s)) for s in cohort if s.name in held_out]

        def score(network: Network, held: list[tuple[Slide, HeteroData, Float64 | None]] = held) -> float:
            return float(np.mean([_mean_pearson(s, _blend([network(d).cpu().numpy()], r)) for s, d, r in held]))

        _, history = train(part.graphs, config, seed=seed, device=device, components=part.components, validate=score)
        start = np.mean([_mean_pearson(s, _blend([], r)) for s, _, r in held]) if preset.blend else 0.0
        curves.append([float(start), *history["validation"]])
    if not curves:
        return min(UNTUNED_EPOCHS, config.epochs), []
    curve = np.mean(curves, axis=0)
    padded = np.pad(curve, _SMOOTHING // 2, mode="edge")
    smooth = np.convolve(padded, np.full(_SMOOTHING, 1 / _SMOOTHING), mode="valid")
    return int(smooth.argmax()), curve.tolist()


def _peek(part: _Part, slide: Slide | None, device: torch.device) -> Callable[[Network], float] | None:
    """Score of a network on the very slide that is scored: how the published checkpoint was chosen (:class:`Run`)."""
    if slide is None:
        return None
    graph = part.graph(slide.without_expression()).to(str(device))
    return lambda network: _mean_pearson(slide, network(graph).cpu().numpy())


def _folds(groups: tuple[tuple[str, ...], ...]) -> list[tuple[str, ...]]:
    """At most five folds: groups beyond that share one."""
    return [
        tuple(name for group in groups[i::_MAX_FOLDS] for name in group) for i in range(min(_MAX_FOLDS, len(groups)))
    ]


def _blend(outputs: list[np.ndarray], linear: Float64 | None) -> np.ndarray:
    """Mean of the networks' outputs, averaged with the linear methods where there are any; either alone if need be."""
    if not outputs and linear is None:
        raise ValueError("There is neither a network nor a linear method to predict with.")
    sides = [np.mean(outputs, axis=0)] if outputs else []
    return np.mean(sides if linear is None else [*sides, linear], axis=0)


def _mean_pearson(slide: Slide, predicted: np.ndarray) -> float:
    scores = pearson(expression_of(slide), predicted)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0


def _leading_axes(values: Float64, size: int) -> Float32:
    """Right singular vectors of expression, (r, n_genes), with their signs fixed."""
    axes = np.linalg.svd(values, full_matrices=False)[2][:size]
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    return np.ascontiguousarray(axes * signs[:, None], dtype=np.float32)


def _fewest_references(cohort: Cohort) -> int:
    return cohort.n_spots - max(len(slide) for slide in cohort)


def _check(cohort: Cohort, config: Config) -> None:
    if len(cohort) < SpaHGC.min_slides:
        raise ValueError(
            f"spahgc needs at least two reference slides: while training, each is the target of references from the "
            f"others, and there is "
            f"only {cohort.slides[0].name!r}. With one slide, method='ridge', 'context_ridge' or 'knn' are possible."
        )
    fewest = _fewest_references(cohort)
    if fewest < config.n_references:
        raise ValueError(
            f"Each spot refers to K = {config.n_references} spots of other slides, and some slide has only {fewest} "
            f"of them. Add reference "
            f"slides or spots, or lower K: method_params={{'network': {{'n_references': {max(1, fewest)}}}}}."
        )
