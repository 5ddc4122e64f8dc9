"""Reference spots most similar to a spot, and the training graphs that connect them; searches are cached in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._disk import cached, digest
from .._geometry import spatial_knn
from .._settings import settings
from .._slides import Cohort, Float32, Float64, Rows, Stack
from ..nn import Config, GraphTensors, SlideGraph, cosine_topk, spatial_blocks


def kept_topk(query: NDArray, bank: NDArray, k: int, **options: Any) -> tuple[NDArray, NDArray]:
    """Search as :func:`cosine_topk`, with results that are kept in a run."""

    def search() -> dict[str, NDArray]:
        return dict(zip(("index", "similarity"), cosine_topk(query, bank, k, **options), strict=True))

    found = cached(lambda: digest(query, bank, k, str(options)), search)
    return found["index"], found["similarity"]


class References:
    """Search the reference slides for the `k` spots most similar to each query spot."""

    def __init__(self, slides: Sequence[NDArray | Rows], k: int) -> None:
        self.slides, self._k = list(slides), k
        self._starts: list[int] = np.cumsum([0, *map(len, slides)]).tolist()

    def search(
        self,
        query: NDArray,
        *,
        without: int | None = None,
        device: str | torch.device = "cpu",
    ) -> NDArray[np.int64]:
        """Rows over all slides of the most similar spots, (n, k), one slide excluded; `query` may be a part of all."""

        def search() -> dict[str, NDArray]:
            others = [slide for i, slide in enumerate(self.slides) if i != without]
            found = cosine_topk(query, Stack(others), self._k, device=device)[0]
            if without is not None:
                start, stop = self._starts[without : without + 2]
                found += (stop - start) * (found >= start)
            return {"rows": found}

        return cached(lambda: digest("rows", query, *self._digests, self._k, str(without)), search)["rows"]

    @cached_property
    def _digests(self) -> list[str]:
        return [digest(slide) for slide in self.slides]


class TrainingGraphs(Sequence[tuple[GraphTensors, Tensor]]):
    """Graph and expression of each reference slide, or block of one, with references from the other slides.

    Only edges are kept; features and expression are gathered when an item is read.
    """

    def __init__(
        self,
        cohort: Cohort,
        values: Mapping[str, Float64 | Rows],
        config: Config,
        *,
        references: References,
        device: str | torch.device = "cpu",
    ) -> None:
        embedding = np.concatenate([np.asarray(slide) for slide in references.slides])
        self._expression: Float32 = np.concatenate([np.asarray(values[slide.name], np.float32) for slide in cohort])
        self._graphs: list[tuple[SlideGraph, NDArray[np.intp], Tensor | None]] = []
        self.names: list[str] = []  # slide of each item, and number of the block
        first = 0
        for i, slide in enumerate(cohort):
            features = references.slides[i]
            retrieved = references.search(np.asarray(features), without=i, device=device)
            blocks = spatial_blocks(slide.coordinates, settings.max_nodes, n_near=config.n_near, hops=config.n_layers)
            for number, (rows, core) in enumerate(blocks, start=1):
                near = spatial_knn(slide.coordinates[rows], config.n_near)
                some, found = Rows(features, rows), retrieved[rows]
                graph = SlideGraph.of(
                    some, near, found, embedding, self._expression, config.n_close, device=device, topk=kept_topk
                )
                self._graphs.append((graph, first + rows, torch.from_numpy(core) if len(core) < len(rows) else None))
                self.names.append(slide.name if len(blocks) == 1 else f"{slide.name}, block {number}")
            first += len(slide)

    def __len__(self) -> int:
        return len(self._graphs)

    def __getitem__(self, i: Any) -> Any:
        graph, rows, core = self._graphs[i]
        return graph.tensors(core), torch.from_numpy(self._expression[rows])
