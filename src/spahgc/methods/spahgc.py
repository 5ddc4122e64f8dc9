"""SpaHGC: a heterogeneous graph between a slide and the reference slides (Shi, Wang, Wan, Min; CVPR 2026)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from .._settings import settings
from .._slides import Cohort, Float32, Float64, Slide, blocks, expression_of
from ._context import ContextRows
from ._graphs import TrainingGraphs
from ._linear import mean_pearson, pooled_expression, relative_expression
from ._presets import PRESETS, VIEWS, Preset
from .base import Method, Run, State, register
from .context_kernel import ContextKernel
from .context_ridge import ContextRidge
from .ridge import Ridge

if TYPE_CHECKING:
    import torch

    from ..nn import Config, LargeGraph
    from ..nn import SpaHGC as Network

logger = logging.getLogger("spahgc")

_LINEAR: tuple[type[Ridge], ...] = (Ridge, ContextRidge)


@register
class SpaHGC(Method):
    """Heterogeneous graph of a slide and the reference spots it retrieves.

    ``preset="paper"`` is the published method to the letter: 200 epochs, and the last one is used. ``preset="default"``
    is four networks of two layers and width 128, trained for 30 epochs on expression relative to each slide; the nodes
    of two carry the embeddings of a spot and of its surroundings, those of the other two the spot's alone. Their mean
    is averaged with kernel ridge regression over all reference spots, which counts a third. For targets of new patients
    (:class:`~spahgc.methods.Run`) the result is averaged with ridge and context ridge, a third each. With a single
    reference slide the graph has no other slide to refer to while training, and no network is trained.

    Parameters
    ----------
    preset
        ``"default"`` or ``"paper"``.
    network
        Fields of :class:`spahgc.nn.Config` to change.
    n_seeds
        Networks to average; `None` takes the preset's.
    changes
        Further fields of the preset to change, for ablations: ``relative``, ``views``, ``kernel``,
        ``linear_for_new``, ``n_components``.
    """

    name: ClassVar[str] = "spahgc"
    reads_rows: ClassVar[bool] = True
    source: ClassVar[str] = "Shi, Wang, Wan, Min. SpaHGC. CVPR 2026. arXiv:2603.22821"
    stochastic: ClassVar[bool] = True
    distributed: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def __init__(
        self,
        preset: str = "default",
        network: Mapping[str, Any] | None = None,
        n_seeds: int | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise ValueError(f"No preset {preset!r}. Available: {', '.join(PRESETS)}.")
        self.preset, self.network, self.n_seeds = preset, dict(network or {}), n_seeds
        self.changes = dict(changes or {})
        changeable = [f.name for f in fields(Preset) if f.name not in ("network", "n_seeds")]
        unknown = [name for name in self.changes if name not in changeable]
        if unknown:
            raise ValueError(
                f"changes has no {', '.join(map(repr, unknown))}. Available: {', '.join(map(repr, changeable))}."
            )
        chosen = replace(PRESETS[preset], **self.changes)
        if not chosen.views or not set(chosen.views) <= set(VIEWS):
            raise ValueError(f"views is one or more of {', '.join(map(repr, VIEWS))}, not {list(chosen.views)}.")
        if not 0 <= chosen.kernel <= 1:
            raise ValueError(f"kernel is a share between 0 and 1, not {chosen.kernel}.")
        self._preset = replace(
            chosen, network={**chosen.network, **self.network}, n_seeds=chosen.n_seeds if n_seeds is None else n_seeds
        )
        if (self._preset.kernel or self._preset.linear_for_new) and not self._preset.relative:
            raise ValueError(
                "kernel and linear_for_new need relative=True: all sides of the average are on that scale."
            )
        if self._preset.n_seeds < (0 if self._preset.kernel else 1):
            raise ValueError(f"n_seeds is at least 1 (0 with the kernel), not {n_seeds}.")
        self._history: dict[str, list[float]] = {}

    def params(self) -> dict[str, Any]:
        return {"preset": self.preset, "network": self.network, "n_seeds": self.n_seeds, "changes": self.changes}

    def history(self) -> dict[str, list[float]]:
        return self._history

    def fit(self, cohort: Cohort, run: Run) -> Self:
        from ..nn import Config, train

        config = Config(**self._preset.network)
        n_networks = self._preset.n_seeds
        if len(cohort) == 1 and self._preset.kernel:
            logger.warning(
                "There is one reference slide, %r, and no other for it to refer to while training: spahgc trains no "
                "network, and predicts by kernel ridge regression.",
                cohort.slides[0].name,
            )
            n_networks = 0
        if n_networks:
            _check(cohort, config)
        device = settings.torch_device(run.device)
        seeds = [int(s) for s in np.random.SeedSequence(run.seed).generate_state(n_networks)]
        self._part = part = _Part.prepare(cohort, self._preset, config, run)
        self._device, self._networks = device, []
        components = part.components(self._preset.n_components)
        curves = []
        graphs = {view: part.graphs(view, device) for view in self._preset.views[: len(seeds)]}
        for seed, view in zip(seeds, cycle(self._preset.views), strict=False):
            network, history = train(
                graphs[view],
                config,
                seed=seed,
                device=device,
                components=components,
                names=graphs[view].names,
                progress=run.progress,
                validate=_peek(part, run.peek, device) if self.preset == "paper" else None,
                fabric=run.fabric,
            )
            self._networks.append(network.cpu())
            curves.append(history)
        self._history = {
            key: np.mean([curve[key] for curve in curves], axis=0).tolist() for key in (curves[0] if curves else {})
        }
        if "validation" in self._history:
            self._history["chosen_epoch"] = [float(np.argmax(self._history["validation"]) + 1)]
        return self

    def to(self, device: str | None) -> Self:
        self._device = settings.torch_device(device)
        return self

    def predict(self, slide: Slide) -> Float32:
        part, networks = self._part, self._networks
        # Alone where there is no network.
        kernel = 0.0 if part.kernel is None else self._preset.kernel if networks else 1.0
        blend = 1 / (1 + len(part.linear))
        out = np.zeros((len(slide), len(part.level)), np.float32)
        for i, view in enumerate(self._preset.views[: len(networks)]):
            self._add_networks(slide, view, networks[i :: len(self._preset.views)], blend * (1 - kernel), out)
        others: list[tuple[float, Ridge | ContextKernel]] = [(blend, method) for method in part.linear]
        if kernel > 0 and part.kernel is not None:
            others.append((blend * kernel, part.kernel))
        for weight, method in others:
            values = method.relative_values(slide)
            for rows in blocks(len(slide)):
                out[rows] += weight * values(rows)
        for rows in blocks(len(slide)):
            out[rows] = out[rows] * part.spread + part.level
        return out

    def _add_networks(self, slide: Slide, view: str, networks: list[Network], weight: float, out: Float32) -> None:
        """Add what the networks of a view predict; `weight` is that of all networks, of all views, together."""
        from ..nn import predict

        graph = self._part.graph(slide, view, self._device)
        share = weight / len(self._networks)

        def add(rows: slice, values: Float32) -> None:
            out[rows] += share * values

        for network in networks:
            predict(network.to(self._device), graph, add)
            network.cpu()

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
        for i, view in zip(range(n_networks), cycle(self._preset.views), strict=False):
            prefix = f"network{i}."
            weights = {
                key.removeprefix(prefix): torch.from_numpy(state[key].copy()) for key in state if key.startswith(prefix)
            }
            network = Network(
                self._part.nodes[view].slides[0].embedding.shape[1],
                len(cohort.genes),
                config,
                components=weights.get("components"),
            )
            network.load_state_dict(weights)
            self._networks.append(network.eval())
        return self


@dataclass(eq=False)
class _Part:
    """Reference slides made ready for the network: scaled expression, what nodes carry, the kernel."""

    config: Config
    nodes: dict[str, Cohort]
    """By view, the reference slides with what their nodes carry as the embedding."""
    values: dict[str, Float64]
    """Expression that the network is trained on, by slide."""
    level: Float64
    spread: Float64
    """Prediction = output * spread + level."""
    kernel: ContextKernel | None
    """What the networks are averaged with, and what makes the features of the nodes."""
    linear: tuple[Ridge, ...]
    """What that is averaged with for new patients."""

    @classmethod
    def prepare(cls, cohort: Cohort, preset: Preset, config: Config, run: Run) -> Self:
        """Scale the expression, and fit the kernel and the linear methods."""
        kernel = ContextKernel().fit(cohort, run) if preset.kernel > 0 or preset.views != ("spot",) else None
        wanted = _LINEAR if preset.linear_for_new and run.split_by == "patient" else ()
        return cls._made(cohort, preset, config, kernel, tuple(kind(relative=True).fit(cohort, run) for kind in wanted))

    @classmethod
    def _made(
        cls, cohort: Cohort, preset: Preset, config: Config, kernel: ContextKernel | None, linear: tuple[Ridge, ...]
    ) -> Self:
        n_genes = len(cohort.genes)
        values, level, spread = (
            relative_expression(cohort)
            if preset.relative
            else (pooled_expression(cohort), np.zeros(n_genes), np.ones(n_genes))
        )
        part = cls(config, {}, values, level, spread, kernel, linear)
        for view in preset.views:
            part.nodes[view] = replace(cohort, slides=tuple(part.node_features(slide, view) for slide in cohort))
        return part

    def node_features(self, slide: Slide, view: str) -> Slide:
        """The slide with what its nodes carry as the embedding; components are of mean square 1."""
        return slide if view == "spot" else replace(slide, embedding=np.asarray(self._components(slide, view)))

    def _components(self, slide: Slide, view: str) -> ContextRows:
        if self.kernel is None:
            raise ValueError(f"The components of view {view!r} are those of the kernel, and there is none.")
        context = self.kernel.context if view == "context" else self.kernel.context.of_spot()
        return ContextRows(context, slide, divisor=max(float(np.sqrt(np.mean(context.scale**2))), 1e-12))

    def graphs(self, view: str, device: torch.device) -> TrainingGraphs:
        """Graph of each reference slide as the target, with references from the others, and its expression."""
        return TrainingGraphs(
            self.nodes[view], self.values, self.config, max_nodes=settings.max_nodes, device=str(device)
        )

    def graph(self, slide: Slide, view: str, device: torch.device) -> LargeGraph:
        """Graph of a slide to predict, with references from all reference slides; features are made when read."""
        from ..nn import large_graph

        nodes, config = self.nodes[view], self.config
        return large_graph(
            slide.embedding if view == "spot" else self._components(slide, view),
            slide.coordinates,
            nodes.embedding(),
            self._expression(nodes),
            n_references=config.n_references,
            n_near=config.n_near,
            n_close=config.n_close,
            device=device,
        )

    def _expression(self, references: Cohort) -> Float32:
        return np.concatenate([self.values[reference.name] for reference in references]).astype(np.float32)

    def components(self, size: int | None) -> torch.Tensor | None:
        """Leading components of the expression, (r, n_genes); `None` for no size."""
        import torch

        if size is None:
            return None
        return torch.from_numpy(_leading_axes(np.concatenate(list(self.values.values())), size))

    def arrays(self) -> State:
        """What :meth:`restore` needs beside the cohort."""
        parts: list[Method] = [*self.linear, *([] if self.kernel is None else [self.kernel])]
        return {f"{part.name}.{key}": value for part in parts for key, value in part.state().items()}

    @classmethod
    def restore(cls, state: Mapping[str, np.ndarray], cohort: Cohort, preset: Preset, config: Config) -> Self:
        """Inverse of :meth:`arrays`."""

        def of(method: Ridge | ContextKernel) -> State:
            prefix = f"{method.name}."
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

        kernel, linear = ContextKernel(), [kind(relative=True) for kind in _LINEAR]
        return cls._made(
            cohort,
            preset,
            config,
            kernel.restore(of(kernel), cohort) if of(kernel) else None,
            tuple(method.restore(of(method), cohort) for method in linear if of(method)),
        )


def _peek(part: _Part, slide: Slide | None, device: torch.device) -> Callable[[Network], float] | None:
    """Score of a network on the very slide that is scored: how the published checkpoint was chosen (:class:`Run`)."""
    if slide is None:
        return None
    from ..nn import predict

    measured, graph = expression_of(slide), part.graph(slide.without_expression(), "spot", device)

    def score(network: Network) -> float:
        predicted = np.empty(measured.shape)
        predict(network, graph, lambda rows, values: np.copyto(predicted[rows], values))
        return mean_pearson(measured, predicted)

    return score


def _leading_axes(values: Float64, size: int) -> Float32:
    """Right singular vectors of expression, (r, n_genes), with their signs fixed."""
    axes = np.linalg.svd(values, full_matrices=False)[2][:size]
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    return np.ascontiguousarray(axes * signs[:, None], dtype=np.float32)


def _fewest_references(cohort: Cohort) -> int:
    return cohort.n_spots - max(len(slide) for slide in cohort)


def _check(cohort: Cohort, config: Config) -> None:
    if len(cohort) < 2:
        raise ValueError(
            f"This preset of spahgc needs at least two reference slides: while training, each is the target of "
            f"references from the others, and there is only "
            f"{cohort.slides[0].name!r}. With one slide, preset='default', method='ridge' or 'knn' are possible."
        )
    fewest = _fewest_references(cohort)
    if fewest < config.n_references:
        raise ValueError(
            f"Each spot refers to K = {config.n_references} spots of other slides, and some slide has only {fewest} "
            f"of them. Add reference slides or spots, or lower K: "
            f"method_params={{'network': {{'n_references': {max(1, fewest)}}}}}."
        )
