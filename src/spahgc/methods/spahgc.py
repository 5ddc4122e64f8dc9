"""SpaHGC: a heterogeneous graph between a slide and the reference slides (Shi, Wang, Wan, Min; CVPR 2026)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from .._run import Progress, no_progress, weighted, with_progress
from .._settings import settings
from .._slides import Cohort, Float32, Rows, Slide, Stack, blocks, expression_of
from ._evidence import Evidence
from ._part import Part
from ._presets import PRESETS, VIEWS, Preset
from .base import Method, Output, Run, State
from .kernel import ContextKernel
from .linear import Ridge, mean_pearson

if TYPE_CHECKING:
    import torch

    from ..nn import Config
    from ..nn import SpaHGC as Network

logger = logging.getLogger("spahgc")


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
    reads_reference: ClassVar[bool] = True
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
        preset = replace(self._preset, views=self._preset.views[:n_networks])
        self._part = part = Part.prepare(cohort, preset, config, run)
        self._device, self._networks = device, []
        components = part.components(self._preset.n_components)
        curves = []
        graphs = {view: part.graphs(view, device) for view in preset.views}
        for seed, view in zip(seeds, cycle(self._preset.views), strict=False):
            network, history = train(
                graphs[view],
                config,
                seed=seed,
                device=device,
                components=components,
                names=graphs[view].names,
                progress=run.progress,
                validate=_checkpoint_score(part, run.checkpoint_slide, device) if self.preset == "paper" else None,
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

    def searches(self) -> dict[str, dict[str, Any]]:
        return {view: references.record() for view, references in self._part.references.items()}

    def to(self, device: str | None) -> Self:
        self._device = settings.torch_device(device)
        return self

    def predict(self, slide: Slide) -> Float32:
        out = np.empty((len(slide), len(self._part.level)), np.float32)
        SpaHGC.predict_into(self, slide, out)  # that of a subclass may be made of this method
        return out

    def predict_into(self, slide: Slide, out: Output, *, progress: Progress = no_progress) -> None:
        part, networks, views = self._part, self._networks, self._preset.views
        # Alone where there is no network.
        kernel = 0.0 if part.kernel is None else self._preset.kernel if networks else 1.0
        blend = 1 / (1 + len(part.linear))
        others: list[tuple[float, Ridge | ContextKernel]] = [(blend, method) for method in part.linear]
        if kernel > 0 and part.kernel is not None:
            others.append((blend * kernel, part.kernel))
        # A graph takes about as long as a network does.
        once = weighted(progress, 1 / (len(views[: len(networks)]) + len(networks) + len(others)))
        for rows in blocks(len(slide)):
            out[rows] = np.zeros((rows.stop - rows.start, len(part.level)), np.float32)
        for i, view in enumerate(views[: len(networks)]):
            self._add_networks(slide, view, networks[i :: len(views)], blend * (1 - kernel), out, once)
        for weight, method in others:
            values = method.relative_values(slide)
            for rows in with_progress(len(slide), once):
                out[rows] += weight * values(rows)
        for rows in blocks(len(slide)):
            out[rows] = out[rows] * part.spread + part.level

    def _add_networks(
        self, slide: Slide, view: str, networks: list[Network], weight: float, out: Output, once: Progress
    ) -> None:
        """Add what the networks of a view predict; `weight` is that of all networks, of all views, together."""
        from ..nn import predict

        graph = self._part.graph(slide, view, self._device, progress=once)
        share = weight / len(self._networks)

        def add(rows: slice, values: Float32) -> None:
            out[rows] += share * values

        for network in networks:
            predict(network.to(self._device), graph, add, progress=once)
            network.cpu()

    def evidence(self, slide: Slide) -> Evidence | None:
        from ..nn import predict

        views = self._preset.views
        parts = []
        for i, view in enumerate(views[: len(self._networks)]):
            graph = self._part.graph(slide, view, self._device)
            weight = np.zeros(graph.references.shape, np.float32)

            def add(rows: slice, attention: Float32, weight: Float32 = weight) -> None:
                weight[rows] += attention

            for network in self._networks[i :: len(views)]:
                predict(network.to(self._device), graph, None, attended=add)
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
        # A spot's own embedding is in the reference as it is.
        return {f"nodes.{view}": Stack([slide.embedding for slide in of]) for view, of in nodes if view != "spot"}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        import torch

        from ..nn import Config
        from ..nn import SpaHGC as Network

        config = Config(**self._preset.network)
        n_networks = len({key.split(".")[0] for key in state if key.startswith("network")})
        preset = replace(self._preset, views=self._preset.views[:n_networks])
        self._part = Part.restore(state, cohort, preset, config)
        self._device = settings.torch_device()
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


def _checkpoint_score(part: Part, slide: Slide | None, device: torch.device) -> Callable[[Network], float] | None:
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


def _check(cohort: Cohort, config: Config) -> None:
    if len(cohort) < 2:
        raise ValueError(
            f"This preset of spahgc needs at least two reference slides: while training, each is the target of "
            f"references from the others, and there is only "
            f"{cohort.slides[0].name!r}. With one slide, preset='default', method='ridge' or 'knn' are possible."
        )
    fewest = cohort.n_spots - max(len(slide) for slide in cohort)
    if fewest < config.n_references:
        raise ValueError(
            f"Each spot refers to K = {config.n_references} spots of other slides, and some slide has only {fewest} "
            f"of them. Add reference slides or spots, or lower K: "
            f"method_params={{'network': {{'n_references': {max(1, fewest)}}}}}."
        )
