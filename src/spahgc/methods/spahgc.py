"""SpaHGC: a heterogeneous graph between a slide and the reference slides (Shi, Wang, Wan, Min; CVPR 2026)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import cycle
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch

from .._checks import at_least, format_names
from .._run import Progress, no_progress, weighted, with_progress
from .._settings import logger, settings
from .._slides import Cohort, Float32, Float64, Rows, Slide, Stack, blocks, expression_of
from ..nn import Config, SlideGraph, SpaHGCNetwork, predict, slide_graph, train
from ._features import ContextRows, GeneScale, leading_axes
from ._references import References, TrainingGraphs, kept_topk
from .base import Evidence, Method, Run, State, parameters
from .kernel import ContextKernel
from .linear import RANK, ContextRidge, Ridge, mean_pearson

_LINEAR: tuple[type[Ridge], ...] = (Ridge, ContextRidge)
VIEWS = ("spot", "components", "context")


@dataclass(frozen=True)
class Preset:
    """What a preset sets; `SpaHGC` describes the fields that its ``changes`` may hold."""

    network: Mapping[str, Any] = field(default_factory=dict)  # fields of `Config` that differ from the paper's
    relative: bool = False
    views: tuple[str, ...] = ("spot",)
    kernel: float = 0.0
    linear_for_new: bool = False
    n_components: int | None = None
    n_seeds: int = 1


_SMALL = {
    "hidden": 128,
    "n_layers": 2,
    "dropout": 0.4,
    "n_references": 15,
    "n_near": 12,
    "learning_rate": 1.5e-3,
    "epochs": 30,
    "weight_target": 0.0,
    "weight_reference": 0.0,
}
PRESETS = {
    "paper": Preset(),
    "default": Preset(
        network=_SMALL,
        relative=True,
        views=("context", "components"),
        kernel=1 / 3,
        linear_for_new=True,
        n_components=32,
        n_seeds=4,
    ),
}


@parameters(n_seeds=at_least(0))
class SpaHGC(Method):
    """Average of four small graph networks and a kernel regression, which counts a third; no masking, no contrast.

    That is ``preset="default"``. Its networks have two layers and width 128 and are trained for 30 epochs on expression
    relative to each slide, without the masked views and contrastive loss of the publication. The nodes of two networks
    carry the embeddings of a spot and of its surroundings, those of the other two the spot's alone. To predict new
    patients (:class:`~spahgc.methods.Run`), the result is further averaged with ridge and context ridge on the ten
    leading components of the expression, a third each. With a single reference slide, no network is trained, because
    its graph has no other slide to refer to.

    ``preset="paper"`` is the published method, with masking and contrastive loss: one network, 200 epochs, the last one
    used.

    Parameters
    ----------
    preset
        ``"default"`` or ``"paper"``.
    network
        Fields of :class:`spahgc.nn.Config` to change.
    n_seeds
        Networks to average; `None` takes the preset's.
    changes
        Further fields of the preset to change, for ablations. ``relative``: train on expression with mean 0 and
        variance 1 per gene and slide. ``views``: what the nodes carry, in turn for the networks: ``"spot"``, the
        embedding; ``"components"``, its 128 leading components; or ``"context"``, those of the spot and of its
        surroundings. ``kernel``: share of :class:`ContextKernel` in the average, 0 to 1. ``linear_for_new``: whether
        ridge and context ridge take part for new patients. ``n_components``: leading components of the expression that
        the output combines; `None` for the genes.

    Examples
    --------
    >>> from spahgc.methods import SpaHGC
    >>> SpaHGC(preset="paper", network={"epochs": 50}).params()["network"]
    {'epochs': 50}
    """

    preset: Literal["default", "paper"] = "default"
    network: Mapping[str, Any] | None = None
    n_seeds: int | None = None
    changes: Mapping[str, Any] | None = None

    name: ClassVar[str] = "spahgc"
    reads_rows: ClassVar[bool] = True
    reads_reference: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    distributed: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"embedding", "coordinates"})

    def __post_init__(self) -> None:
        self.network, self.changes = dict(self.network or {}), dict(self.changes or {})
        changeable = [field.name for field in fields(Preset) if field.name not in ("network", "n_seeds")]
        unknown = [name for name in self.changes if name not in changeable]
        if unknown:
            raise ValueError(
                f"`changes` has unknown names: {format_names(unknown)}. Available: {format_names(changeable)}."
            )
        preset = replace(PRESETS[self.preset], **self.changes)
        n_seeds = preset.n_seeds if self.n_seeds is None else self.n_seeds
        if not preset.views or not set(preset.views) <= set(VIEWS):
            raise ValueError(f"`views` must be one or more of {format_names(VIEWS)}, got {list(preset.views)}.")
        if not 0 <= preset.kernel <= 1:
            raise ValueError(f"`kernel` must be between 0 and 1, got {preset.kernel}.")
        if (preset.kernel or preset.linear_for_new) and not preset.relative:
            raise ValueError("`kernel` and `linear_for_new` need relative=True, the scale of everything averaged.")
        if n_seeds == 0 and not preset.kernel:
            raise ValueError("`n_seeds` must be at least 1 without a kernel, got 0.")
        self._preset = replace(preset, network={**preset.network, **self.network}, n_seeds=n_seeds)
        self._config = Config(**self._preset.network)

    def fit(self, cohort: Cohort, run: Run) -> Self:
        preset, n_networks = self._preset, self._preset.n_seeds
        if len(cohort) == 1 and preset.kernel:
            logger.warning(
                "There is only one reference slide, %r, so spahgc trains no network (its graph has no other slide to "
                "refer to) and predicts with kernel ridge regression.",
                cohort.slides[0].name,
            )
            n_networks = 0
        if n_networks and len(cohort) < 2:
            raise ValueError(
                "This preset of spahgc needs at least two reference slides, because each is trained with the others as "
                f"its references. Got only {cohort.slides[0].name!r}. With one slide, use preset='default' or "
                "method='ridge'."
            )
        fewest, needed = cohort.n_spots - max(len(slide) for slide in cohort), self._config.n_references
        if n_networks and fewest < needed:
            raise ValueError(
                f"Each spot refers to K = {needed} spots of other slides, but for some slide there are only {fewest}. "
                "Add reference slides or spots, or lower K: "
                f"method_params={{'network': {{'n_references': {max(1, fewest)}}}}}."
            )
        views = preset.views[:n_networks]
        kinds = _LINEAR if preset.linear_for_new and run.split_by == "patient" else ()
        self._device, self._networks = settings.torch_device(run.device), []
        self._scale = GeneScale.fit(cohort) if preset.relative else GeneScale.identity(cohort)
        self._kernel = ContextKernel().fit(cohort, run) if preset.kernel > 0 or views != ("spot",) else None
        self._linear = [kind(rank=RANK).fit(cohort, run) for kind in kinds]
        values = self._scale.values(cohort)
        self._prepare(cohort, values, views, {})
        components = None
        if preset.n_components is not None:
            components = torch.from_numpy(leading_axes(np.concatenate(list(values.values())), preset.n_components))
        graphs = {
            view: TrainingGraphs(cohort, values, self._config, references=references, device=self._device)
            for view, references in self._references.items()
        }
        curves: list[dict[str, list[float]]] = []
        seeds = np.random.SeedSequence(run.seed).generate_state(n_networks).tolist()
        for seed, view in zip(seeds, cycle(views), strict=False):
            network, history = train(
                graphs[view],
                self._config,
                seed=seed,
                device=self._device,
                components=components,
                names=graphs[view].names,
                progress=run.progress,
                validate=self._checkpoint_score(run.checkpoint_slide) if self.preset == "paper" else None,
                fabric=run.fabric,
            )
            self._networks.append(network.cpu())
            curves.append(history)
        self._history = {key: np.mean([c[key] for c in curves], axis=0).tolist() for key in (curves or [{}])[0]}
        if "validation" in self._history:
            self._history["chosen_epoch"] = [float(np.argmax(self._history["validation"]) + 1)]
        return self

    def _prepare(
        self,
        cohort: Cohort,
        values: Mapping[str, Float64 | Rows],
        views: tuple[str, ...],
        saved: Mapping[str, np.ndarray],
    ) -> None:
        """Prepare the reference slides for the networks; `saved` has features of the nodes by view, if any."""
        self._values, self._level, self._std = values, self._scale.mean.mean(axis=0), self._scale.std.mean(axis=0)
        self._references: dict[str, References] = {}
        for view in views:
            features: list[Float32 | ContextRows | Rows]
            if view in saved:
                features = [Rows(part) for part in cohort.split(saved[view])]
            else:
                features = [self._node_features(slide, view) for slide in cohort]
            # Computed once, unless they are the embeddings, which may be larger than memory.
            in_memory = [np.asarray(part) if isinstance(part, ContextRows) else part for part in features]
            self._references[view] = References(in_memory, self._config.n_references)

    def _node_features(self, slide: Slide, view: str) -> Float32 | ContextRows:
        """Features of the nodes of a slide: its embedding, or components of the kernel with a mean square of 1."""
        if view == "spot":
            return slide.embedding
        if self._kernel is None:
            raise ValueError(f"View {view!r} consists of components of the kernel, but there is none.")
        whole = self._kernel.context
        context = whole if view == "context" else replace(whole, weights=whole.weights[:1])
        return ContextRows(context, slide, divisor=max(float(np.sqrt(np.mean(context.scale**2))), 1e-12))

    def _graph(self, slide: Slide, view: str, *, progress: Progress = no_progress) -> SlideGraph:
        """Graph of a slide to predict, with references from all reference slides."""
        references, config = self._references[view], self._config
        return slide_graph(
            self._node_features(slide, view),
            slide.coordinates,
            Stack(references.slides),
            Stack(list(self._values.values())),
            n_references=config.n_references,
            n_near=config.n_near,
            n_close=config.n_close,
            device=self._device,
            search=partial(references.search, device=self._device),
            topk=kept_topk,
            progress=progress,
        )

    def to(self, device: str | None) -> Self:
        self._device = settings.torch_device(device)
        return self

    def predict(self, slide: Slide) -> Float32:
        out = np.empty((len(slide), len(self._level)), np.float32)
        SpaHGC.predict_into(self, slide, out)  # A subclass may define predict_into by predict.
        return out

    def predict_into(self, slide: Slide, out: Any, *, progress: Progress = no_progress) -> None:
        networks = self._by_view()
        # The kernel is alone if there is no network.
        kernel = 0.0 if self._kernel is None else self._preset.kernel if self._networks else 1.0
        blend = 1 / (1 + len(self._linear))
        others: list[tuple[float, Ridge | ContextKernel]] = [(blend, method) for method in self._linear]
        if kernel > 0 and self._kernel is not None:
            others.append((blend * kernel, self._kernel))
        # A graph takes about as long as a network.
        once = weighted(progress, 1 / (len(networks) + len(self._networks) + len(others)))
        for rows in blocks(len(slide)):
            out[rows] = np.zeros((rows.stop - rows.start, len(self._level)), np.float32)
        share = blend * (1 - kernel) / max(len(self._networks), 1)

        def add(rows: slice, values: Float32) -> None:
            out[rows] += share * values

        for view, of_view in networks.items():
            graph = self._graph(slide, view, progress=once)
            for network in of_view:
                predict(network.to(self._device), graph, add, progress=once)
                network.cpu()
        for weight, method in others:
            relative = method.relative_values(slide)
            for rows in with_progress(len(slide), once):
                out[rows] += weight * relative(rows)
        for rows in blocks(len(slide)):
            out[rows] = out[rows] * self._std + self._level

    def _by_view(self) -> dict[str, list[SpaHGCNetwork]]:
        views = self._preset.views
        return {view: self._networks[i :: len(views)] for i, view in enumerate(views[: len(self._networks)])}

    def evidence(self, slide: Slide) -> Evidence | None:
        parts = []
        for view, networks in self._by_view().items():
            graph = self._graph(slide, view)
            weight = np.zeros(graph.references.shape, np.float32)

            def add(rows: slice, attention: Float32, weight: Float32 = weight) -> None:
                weight[rows] += attention

            for network in networks:
                predict(network.to(self._device), graph, attended=add)
                network.cpu()
            parts.append((graph.nodes[graph.references], weight))
        # Without networks, or with networks that attend to nothing, no reference spot has a weight.
        return Evidence.merged(parts) if any(weight.any() for _, weight in parts) else None

    def state(self) -> State:
        state = {"mean": self._scale.mean, "std": self._scale.std}
        for i, network in enumerate(self._networks):
            state |= {f"network{i}.{name}": value.cpu().numpy() for name, value in network.state_dict().items()}
        for method in (*self._linear, *([] if self._kernel is None else [self._kernel])):
            state |= {f"{method.name}.{key}": value for key, value in method.state().items()}
        return state

    def reference_rows(self) -> Mapping[str, Rows]:
        # A spot's own embedding is in the reference already.
        return {f"nodes.{view}": Stack(of.slides) for view, of in self._references.items() if view != "spot"}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        parts: dict[str, State] = {}
        for key, array in state.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = array
        n_networks = sum(part.startswith("network") for part in parts)
        views, kernel = self._preset.views[:n_networks], parts.get(ContextKernel.name)
        self._device, self._networks = settings.torch_device(), []
        self._scale = GeneScale(state["mean"], state["std"])
        self._kernel = None if kernel is None else ContextKernel().restore(kernel, cohort)
        fitted = [kind for kind in _LINEAR if kind.name in parts]
        self._linear = [kind(rank=RANK).restore(parts[kind.name], cohort) for kind in fitted]
        self._prepare(cohort, self._scale.rows(cohort), views, parts.get("nodes", {}))
        for i, view in zip(range(n_networks), cycle(views), strict=False):
            weights = {name: torch.from_numpy(array.copy()) for name, array in parts[f"network{i}"].items()}
            n_features = self._references[view].slides[0].shape[1]
            network = SpaHGCNetwork(n_features, len(cohort.genes), self._config, components=weights.get("components"))
            network.load_state_dict(weights)
            self._networks.append(network.eval())
        return self

    def _checkpoint_score(self, slide: Slide | None) -> Callable[[SpaHGCNetwork], float] | None:
        """Score of a network on the very slide that is scored: how the published checkpoint was chosen."""
        if slide is None:
            return None
        measured, graph = expression_of(slide), self._graph(slide.without_expression(), "spot")
        predicted = np.empty(measured.shape)

        def score(network: SpaHGCNetwork) -> float:
            predict(network, graph, lambda rows, values: np.copyto(predicted[rows], values))
            return mean_pearson(measured, predicted)

        return score
