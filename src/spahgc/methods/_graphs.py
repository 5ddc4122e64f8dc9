"""Graphs that the network is trained on: a slide each, or blocks of one that is too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .._slides import Cohort, Float32, Float64, Rows
from ._references import References

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..nn import Config, GraphTensors


@dataclass(frozen=True, eq=False)
class _Tables:
    """Edges of a graph, and which spots of the reference its nodes are."""

    name: str
    target: NDArray[np.intp]
    """Target spots, rows of all spots, (n,)."""
    core: NDArray[np.intp] | None
    reference: NDArray[np.intp]
    """Reference spots, rows of all spots, (m,)."""
    near: NDArray[np.int64]
    close: NDArray[np.int64]
    references: NDArray[np.integer]


class TrainingGraphs(Sequence["tuple[GraphTensors, Tensor]"]):
    """Graph and expression of each reference slide, or block of one, with references from the other slides.

    Only the edges are kept: features and expression are put together when an item is asked for.

    Parameters
    ----------
    nodes
        The reference slides, with what their nodes carry as the embedding.
    values
        Expression that is trained on, by slide.
    config
        Numbers of neighbours, and of layers.
    references
        The spots of the nodes, to be searched.
    max_nodes
        Spots of a slide from which on it is trained in blocks.
    device
        Of the matrix products of the retrieval.
    """

    def __init__(
        self,
        nodes: Cohort,
        values: Mapping[str, Float64 | Rows],
        config: Config,
        *,
        references: References,
        max_nodes: int,
        device: str | torch.device = "cpu",
    ) -> None:
        from ..nn import reference_nodes, spatial_blocks, spatial_knn

        self._embedding = nodes.embedding()
        self._expression: Float32 = np.concatenate([np.asarray(values[slide.name], np.float32) for slide in nodes])
        slide_of = nodes.slide_index()
        self._tables: list[_Tables] = []
        for i, slide in enumerate(nodes):
            own = np.flatnonzero(slide_of == i)
            retrieved = references.search(slide.embedding, n_queries=len(slide_of), without=i, device=device)
            blocks = spatial_blocks(slide.coordinates, max_nodes, n_near=config.n_near, hops=config.n_layers)
            for block in blocks:
                found = reference_nodes(
                    retrieved[block.rows], self._embedding, self._expression, config.n_close, device=device
                )
                self._tables.append(
                    _Tables(
                        slide.name,
                        own[block.rows],
                        None if len(blocks) == 1 else block.core,
                        found.index,
                        spatial_knn(slide.coordinates[block.rows], config.n_near),
                        found.close,
                        found.references,
                    )
                )

    @property
    def names(self) -> list[str]:
        """Slide of each item; a block has its number as well."""
        names, counts = [], {table.name: 0 for table in self._tables}
        for table in self._tables:
            counts[table.name] += 1
            names.append(table.name if table.core is None else f"{table.name}, block {counts[table.name]}")
        return names

    def __len__(self) -> int:
        return len(self._tables)

    def __getitem__(self, i):  # type: ignore[no-untyped-def]
        """Graph tensors and expression, float32 (n, g)."""
        import torch

        from ..nn import GraphTensors

        table = self._tables[i]
        joint = np.concatenate([self._embedding[table.reference], self._expression[table.reference]], axis=1)
        graph = GraphTensors(
            torch.from_numpy(self._embedding[table.target]),
            torch.from_numpy(joint),
            torch.from_numpy(table.near),
            torch.from_numpy(table.close),
            torch.from_numpy(table.references),
            None,
            None if table.core is None else torch.from_numpy(table.core),
        )
        return graph, torch.from_numpy(self._expression[table.target])
