"""Reference spots most similar to a spot, and the training graphs that connect them; searches are cached in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._disk import cached, digest
from .._geometry import spatial_knn
from .._settings import logger, settings
from .._slides import Cohort, Float32, Float64, Rows, Stack
from ..nn import ApproximateIndex, Config, GraphTensors, SlideGraph, cosine_topk, spatial_blocks

FEWEST_QUERIES = 30_000  # for an approximate index: building one takes about as long as searching for these
_LARGEST_SHARE = 0.2  # of the lists of an index, beyond which looking into them takes longer than the exact search


class References:
    """Search for the `k` most similar among the spots of the reference slides."""

    def __init__(self, slides: Sequence[NDArray | Rows], k: int) -> None:
        self.slides, self._k = list(slides), k
        self._starts: list[int] = np.cumsum([0, *map(len, slides)]).tolist()

    def search(
        self,
        query: NDArray,
        *,
        n_queries: int | None = None,
        without: int | None = None,
        device: str | torch.device = "cpu",
    ) -> NDArray[np.int64]:
        """Rows over all slides of the most similar spots, (n, k), one slide excluded; `query` may be a part of all."""
        least, n = settings.approximate_from, self._starts[-1]
        many = (len(query) if n_queries is None else n_queries) >= FEWEST_QUERIES
        # A GPU multiplies matrices faster than a CPU looks into lists.
        approximate = least is not None and n >= least and many and str(device) == "cpu"

        def search() -> dict[str, NDArray]:
            if approximate and self._index is not None:
                return {"rows": self._index.search(query, without=without)[0]}
            others = [slide for i, slide in enumerate(self.slides) if i != without]
            found = cosine_topk(query, Stack(others), self._k, device=device)[0]
            if without is not None:
                start, stop = self._starts[without : without + 2]
                found += (stop - start) * (found >= start)
            return {"rows": found}

        name = f"{without} {approximate}"
        return cached(lambda: digest("rows", query, *self._digests, self._k, name), search)["rows"]

    def record(self) -> dict[str, Any]:
        """Search method: ``"exact"``, or ``"approximate"`` with the recall and size of the index."""
        index: ApproximateIndex | None = vars(self).get("_index")
        if index is None:
            return {"method": "exact"}
        recall = {"recall": index.recall, "recall_queries": index.n_queries}
        return {"method": "approximate", **recall, "n_lists": index.n_lists, "n_probed": index.n_probed}

    @cached_property
    def _digests(self) -> list[str]:
        return [digest(slide) for slide in self.slides]

    @cached_property
    def _index(self) -> ApproximateIndex | None:
        """Approximate index; `None` without faiss, or if it needs so many lists for its recall that it does not pay."""
        n = self._starts[-1]
        if find_spec("faiss") is None:
            logger.info(
                "Exact search among %d reference spots. An approximate index is faster: pip install 'spahgc[ann]'", n
            )
            return None
        index = ApproximateIndex(self.slides, self._k)
        pays = index.n_probed <= _LARGEST_SHARE * index.n_lists
        verdict = "it is used" if pays else "the exact search is faster, and used"
        lists = f"{index.n_probed} of {index.n_lists} lists"
        logger.info("Index of %d reference spots: recall %.4f with %s; %s.", n, index.recall, lists, verdict)
        return index if pays else None


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
            retrieved = references.search(np.asarray(features), n_queries=cohort.n_spots, without=i, device=device)
            blocks = spatial_blocks(slide.coordinates, settings.max_nodes, n_near=config.n_near, hops=config.n_layers)
            for number, (rows, core) in enumerate(blocks, start=1):
                near = spatial_knn(slide.coordinates[rows], config.n_near)
                graph = SlideGraph.of(
                    Rows(features, rows),
                    near,
                    retrieved[rows],
                    embedding,
                    self._expression,
                    config.n_close,
                    device=device,
                )
                whole = len(core) == len(rows)
                self._graphs.append((graph, first + rows, None if whole else torch.from_numpy(core)))
                self.names.append(slide.name if len(blocks) == 1 else f"{slide.name}, block {number}")
            first += len(slide)

    def __len__(self) -> int:
        return len(self._graphs)

    def __getitem__(self, i: Any) -> Any:
        graph, rows, core = self._graphs[i]
        return graph.tensors(core), torch.from_numpy(self._expression[rows])
