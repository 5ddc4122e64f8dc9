"""SpaHGC: a heterogeneous graph between a slide and the reference slides (Shi, Wang, Wan, Min; CVPR 2026)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from itertools import cycle
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch

from .._checks import at_least, format_names
from .._run import Progress, no_progress, weighted, with_progress
from .._settings import settings
from .._slides import Cohort, Float32, Rows, Slide, Stack, blocks, expression_of
from ..nn import Config, SpaHGCNetwork, predict, train
from ._evidence import Evidence
from ._part import Part
from ._presets import PRESETS, VIEWS, Preset
from .base import Method, Output, Run, State, parameters
from .kernel import ContextKernel
from .linear import Ridge, mean_pearson

logger = logging.getLogger("spahgc")


@parameters(n_seeds=at_least(0))
class SpaHGC(Method):
    """Average of four small graph networks and a kernel regression, which counts a third; no masking, no contrast.

    That is ``preset="default"``. Its networks have two layers and width 128 and are trained for 30 epochs on expression
    relative to each slide, without the masked views and contrastive loss of the publication. The nodes of two networks
    carry the embeddings of a spot and of its surroundings, those of the other two the spot's alone. To predict new
    patients (:class:`~spahgc.methods.Run`), the result is further averaged with ridge and context ridge, a third each.
    With a single reference slide, no network is trained, because its graph has no other slide to refer to.

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
        Further fields of the preset to change, for ablations: ``relative``, ``views``, ``kernel``,
        ``linear_for_new``, ``n_components``.

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
            raise ValueError(f"`changes` has no {format_names(unknown)}. Available: {format_names(changeable)}.")
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
        self._history: dict[str, list[float]] = {}

    def history(self) -> dict[str, list[float]]:
        return self._history

    def fit(self, cohort: Cohort, run: Run) -> Self:
        n_networks = self._preset.n_seeds
        if len(cohort) == 1 and self._preset.kernel:
            logger.warning(
                "There is only one reference slide, %r, so spahgc trains no network (its graph has no other slide to "
                "refer to) and predicts with kernel ridge regression.",
                cohort.slides[0].name,
            )
            n_networks = 0
        if n_networks:
            _check(cohort, self._config)
        seeds = [int(s) for s in np.random.SeedSequence(run.seed).generate_state(n_networks)]
        views = self._preset.views[:n_networks]
        self._device, self._networks = settings.torch_device(run.device), []
        self._part = part = Part.prepare(cohort, replace(self._preset, views=views), self._config, run)
        components = part.components(self._preset.n_components)
        graphs = {view: part.graphs(view, self._device) for view in views}
        curves: list[dict[str, list[float]]] = []
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

    def searches(self) -> dict[str, dict[str, Any]]:
        return {view: references.record() for view, references in self._part.references.items()}

    def to(self, device: str | None) -> Self:
        self._device = settings.torch_device(device)
        return self

    def predict(self, slide: Slide) -> Float32:
        out = np.empty((len(slide), len(self._part.level)), np.float32)
        SpaHGC.predict_into(self, slide, out)  # A subclass may define predict_into by predict.
        return out

    def predict_into(self, slide: Slide, out: Output, *, progress: Progress = no_progress) -> None:
        part, networks = self._part, self._by_view()
        # The kernel is alone if there is no network.
        kernel = 0.0 if part.kernel is None else self._preset.kernel if self._networks else 1.0
        blend = 1 / (1 + len(part.linear))
        others: list[tuple[float, Ridge | ContextKernel]] = [(blend, method) for method in part.linear]
        if kernel > 0 and part.kernel is not None:
            others.append((blend * kernel, part.kernel))
        # A graph takes about as long as a network.
        once = weighted(progress, 1 / (len(networks) + len(self._networks) + len(others)))
        for rows in blocks(len(slide)):
            out[rows] = np.zeros((rows.stop - rows.start, len(part.level)), np.float32)
        share = blend * (1 - kernel) / max(len(self._networks), 1)

        def add(rows: slice, values: Float32) -> None:
            out[rows] += share * values

        for view, of_view in networks.items():
            graph = part.graph(slide, view, self._device, progress=once)
            for network in of_view:
                predict(network.to(self._device), graph, add, progress=once)
                network.cpu()
        for weight, method in others:
            relative = method.relative_values(slide)
            for rows in with_progress(len(slide), once):
                out[rows] += weight * relative(rows)
        for rows in blocks(len(slide)):
            out[rows] = out[rows] * part.std + part.level

    def _by_view(self) -> dict[str, list[SpaHGCNetwork]]:
        views = self._preset.views
        return {view: self._networks[i :: len(views)] for i, view in enumerate(views[: len(self._networks)])}

    def evidence(self, slide: Slide) -> Evidence | None:
        parts = []
        for view, networks in self._by_view().items():
            graph = self._part.graph(slide, view, self._device)
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
        arrays = {
            f"network{i}.{name}": tensor.detach().cpu().numpy()
            for i, network in enumerate(self._networks)
            for name, tensor in network.state_dict().items()
        }
        return {**arrays, **self._part.arrays()}

    def reference_rows(self) -> Mapping[str, Rows]:
        nodes = self._part.nodes.items()
        # A spot's own embedding is in the reference already.
        return {f"nodes.{view}": Stack([slide.embedding for slide in of]) for view, of in nodes if view != "spot"}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        saved: dict[str, dict[str, torch.Tensor]] = {}
        for key in state:
            part, _, name = key.partition(".")
            if part.startswith("network"):
                saved.setdefault(part, {})[name] = torch.from_numpy(state[key].copy())
        views = self._preset.views[: len(saved)]
        self._part = Part.restore(state, cohort, views, self._config)
        self._device, self._networks = settings.torch_device(), []
        for i, view in zip(range(len(saved)), cycle(views), strict=False):
            weights, n_features = saved[f"network{i}"], self._part.nodes[view].slides[0].embedding.shape[1]
            components = weights.get("components")
            network = SpaHGCNetwork(n_features, len(cohort.genes), self._config, components=components)
            network.load_state_dict(weights)
            self._networks.append(network.eval())
        return self

    def _checkpoint_score(self, slide: Slide | None) -> Callable[[SpaHGCNetwork], float] | None:
        """Score of a network on the very slide that is scored: how the published checkpoint was chosen."""
        if slide is None:
            return None
        measured, graph = expression_of(slide), self._part.graph(slide.without_expression(), "spot", self._device)
        predicted = np.empty(measured.shape)

        def score(network: SpaHGCNetwork) -> float:
            predict(network, graph, lambda rows, values: np.copyto(predicted[rows], values))
            return mean_pearson(measured, predicted)

        return score


def _check(cohort: Cohort, config: Config) -> None:
    if len(cohort) < 2:
        raise ValueError(
            "This preset of spahgc needs at least two reference slides, because each is trained with the others as its "
            f"references. Got only {cohort.slides[0].name!r}. With one slide, use preset='default' or method='ridge'."
        )
    fewest = cohort.n_spots - max(len(slide) for slide in cohort)
    if fewest < config.n_references:
        raise ValueError(
            f"Each spot refers to K = {config.n_references} spots of other slides, but for some slide there are only "
            f"{fewest}. Add reference slides or spots, or lower K: "
            f"method_params={{'network': {{'n_references': {max(1, fewest)}}}}}."
        )
