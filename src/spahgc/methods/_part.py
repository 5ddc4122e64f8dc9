"""The reference slides of SpaHGC, ready for the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np

from .._run import Progress, no_progress
from .._settings import settings
from .._slides import Cohort, Float64, Rows, Slide, Stack
from ._features import ContextRows, GeneScale, leading_axes
from ._graphs import TrainingGraphs
from ._presets import Preset
from ._references import References
from .base import Method, Run, State
from .kernel import ContextKernel
from .linear import ContextRidge, Ridge

if TYPE_CHECKING:
    import torch

    from ..nn import Config, LargeGraph

_LINEAR: tuple[type[Ridge], ...] = (Ridge, ContextRidge)


@dataclass(eq=False)
class Part:
    """Reference slides made ready for the network: scaled expression, what nodes carry, the kernel."""

    config: Config
    nodes: dict[str, Cohort]
    """By view, the reference slides with what their nodes carry as the embedding."""
    references: dict[str, References]
    """By view, the same, to be searched."""
    values: Mapping[str, Float64 | Rows]
    """Expression that the network is trained on, by slide."""
    scale: GeneScale
    """What makes it of the slides' expression."""
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
        cls,
        cohort: Cohort,
        preset: Preset,
        config: Config,
        kernel: ContextKernel | None,
        linear: tuple[Ridge, ...],
        state: Mapping[str, np.ndarray] | None = None,
    ) -> Self:
        """What `state` holds is taken from it, and the slides are not read for it."""
        state = state or {}
        if "mean" in state:
            scale = GeneScale(state["mean"], state["spread"])
        else:
            scale = GeneScale.fit(cohort) if preset.relative else GeneScale.identity(cohort)
        values: Mapping[str, Float64 | Rows] = scale.rows(cohort) if state else scale.values(cohort)
        part = cls(config, {}, {}, values, scale, scale.mean.mean(axis=0), scale.std.mean(axis=0), kernel, linear)
        for view in preset.views:
            part.nodes[view] = (
                cohort.with_embeddings([Rows(own) for own in cohort.split(state[f"nodes.{view}"])])
                if f"nodes.{view}" in state
                else replace(cohort, slides=tuple(part.node_features(slide, view) for slide in cohort))
            )
            part.references[view] = References(
                [slide.embedding for slide in part.nodes[view]],
                config.n_references,
                approximate=True,
                pairs=view == "spot",  # components are those of the reference
            )
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
            self.nodes[view],
            self.values,
            self.config,
            references=self.references[view],
            max_nodes=settings.max_nodes,
            device=str(device),
        )

    def graph(self, slide: Slide, view: str, device: torch.device, *, progress: Progress = no_progress) -> LargeGraph:
        """Graph of a slide to predict, with references from all reference slides; features are made when read."""
        from ..nn import large_graph

        nodes, config = self.nodes[view], self.config
        return large_graph(
            slide.embedding if view == "spot" else self._components(slide, view),
            slide.coordinates,
            Stack([reference.embedding for reference in nodes]),
            Stack([self.values[reference.name] for reference in nodes]),
            n_references=config.n_references,
            n_near=config.n_near,
            n_close=config.n_close,
            device=device,
            search=partial(self.references[view].search, n_queries=len(slide), device=device),
            progress=progress,
        )

    def components(self, size: int | None) -> torch.Tensor | None:
        """Leading components of the expression, (r, n_genes); `None` for no size."""
        import torch

        if size is None:
            return None
        return torch.from_numpy(leading_axes(np.concatenate(list(self.values.values())), size))

    def arrays(self) -> State:
        """What :meth:`restore` needs beside the cohort."""
        parts: list[Method] = [*self.linear, *([] if self.kernel is None else [self.kernel])]
        arrays = {f"{part.name}.{key}": value for part in parts for key, value in part.state().items()}
        return {**arrays, "mean": self.scale.mean, "spread": self.scale.std}

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
            state,
        )
