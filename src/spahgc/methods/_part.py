"""Reference slides of SpaHGC, prepared for the networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Self

import numpy as np
import torch

from .._run import Progress, no_progress
from .._settings import settings
from .._slides import Cohort, Float64, Rows, Slide, Stack
from ..nn import Config, SlideGraph, slide_graph
from ._features import ContextRows, GeneScale, leading_axes
from ._presets import Preset
from ._references import References, TrainingGraphs, cached_topk
from .base import Run, State
from .kernel import ContextKernel
from .linear import ContextRidge, Ridge

_LINEAR: tuple[type[Ridge], ...] = (Ridge, ContextRidge)


class Part:
    """Reference slides prepared for the networks: scaled expression, features of the nodes, and fitted companions.

    The kernel is averaged with the networks, and its components are what nodes carry; the linear methods are averaged
    with both for new patients. `saved` holds features of the nodes by view, from a saved model.
    """

    def __init__(
        self,
        cohort: Cohort,
        views: tuple[str, ...],
        config: Config,
        *,
        scale: GeneScale,
        values: Mapping[str, Float64 | Rows],
        kernel: ContextKernel | None,
        linear: tuple[Ridge, ...],
        saved: Mapping[str, np.ndarray],
    ) -> None:
        self.config, self.values, self.kernel, self.linear, self._scale = config, values, kernel, linear, scale
        self.level, self.std = scale.mean.mean(axis=0), scale.std.mean(axis=0)
        self.nodes: dict[str, Cohort] = {}
        self.references: dict[str, References] = {}
        for view in views:
            self.nodes[view] = nodes = (
                cohort.with_embeddings([Rows(features) for features in cohort.split(saved[view])])
                if view in saved
                else replace(cohort, slides=tuple(self.node_features(slide, view) for slide in cohort))
            )
            self.references[view] = References([slide.embedding for slide in nodes], config.n_references)

    @classmethod
    def prepare(cls, cohort: Cohort, preset: Preset, config: Config, run: Run) -> Self:
        """Scale the expression, and fit the kernel and the linear methods."""
        scale = GeneScale.fit(cohort) if preset.relative else GeneScale.identity(cohort)
        wanted = _LINEAR if preset.linear_for_new and run.split_by == "patient" else ()
        return cls(
            cohort,
            preset.views,
            config,
            scale=scale,
            values=scale.values(cohort),
            kernel=ContextKernel().fit(cohort, run) if preset.kernel > 0 or preset.views != ("spot",) else None,
            linear=tuple(kind(relative=True).fit(cohort, run) for kind in wanted),
            saved={},
        )

    @classmethod
    def restore(cls, state: Mapping[str, np.ndarray], cohort: Cohort, views: tuple[str, ...], config: Config) -> Self:
        """Inverse of :meth:`arrays`; the slides are not read."""
        parts: dict[str, State] = {}
        for key, array in state.items():
            name, _, rest = key.partition(".")
            parts.setdefault(name, {})[rest] = array
        scale, kernel = GeneScale(state["mean"], state["std"]), parts.get(ContextKernel.name)
        return cls(
            cohort,
            views,
            config,
            scale=scale,
            values=scale.rows(cohort),
            kernel=None if kernel is None else ContextKernel().restore(kernel, cohort),
            linear=tuple(
                kind(relative=True).restore(parts[kind.name], cohort) for kind in _LINEAR if kind.name in parts
            ),
            saved=parts.get("nodes", {}),
        )

    def arrays(self) -> State:
        """Fitted state, without the reference slides."""
        fitted = [*self.linear, *([] if self.kernel is None else [self.kernel])]
        arrays = {f"{part.name}.{key}": value for part in fitted for key, value in part.state().items()}
        return {**arrays, "mean": self._scale.mean, "std": self._scale.std}

    def node_features(self, slide: Slide, view: str) -> Slide:
        """The slide with the features of its nodes as the embedding."""
        return slide if view == "spot" else replace(slide, embedding=np.asarray(self._components(slide, view)))

    def _components(self, slide: Slide, view: str) -> ContextRows:
        """Components of the kernel, scaled to a mean square of 1."""
        if self.kernel is None:
            raise ValueError(f"View {view!r} consists of components of the kernel, but there is none.")
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
            device=device,
        )

    def graph(self, slide: Slide, view: str, device: torch.device, *, progress: Progress = no_progress) -> SlideGraph:
        """Graph of a slide to predict, with references from all reference slides."""
        nodes, config = self.nodes[view], self.config
        return slide_graph(
            slide.embedding if view == "spot" else self._components(slide, view),
            slide.coordinates,
            Stack([reference.embedding for reference in nodes]),
            Stack([self.values[reference.name] for reference in nodes]),
            n_references=config.n_references,
            n_near=config.n_near,
            n_close=config.n_close,
            device=device,
            search=partial(self.references[view].search, n_queries=len(slide), device=device),
            topk=cached_topk,
            progress=progress,
        )

    def components(self, n_components: int | None) -> torch.Tensor | None:
        """Leading components of the expression, (n_components, n_genes)."""
        if n_components is None:
            return None
        return torch.from_numpy(leading_axes(np.concatenate(list(self.values.values())), n_components))
