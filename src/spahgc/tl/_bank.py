"""The reference slides of a saved model: as arrays that can be stored, memory-mapped and read a few rows at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np

from .._slides import Cohort, Float32, Float64, Rows, Slide, expression_of, standardization, standardize
from ..methods._features import GeneScale
from ._tensor_file import Tensors


@dataclass(frozen=True, eq=False)
class Bank:
    """Reference slides, with what their embeddings are standardised by, so that they need not be read for it.

    In half precision embeddings and expression are stored standardised per slide, since raw ones may be smaller or
    larger than float16 resolves.
    """

    tensors: Tensors
    """By number of the slide and name: ``"0.embedding"``; a row per spot."""
    scales: Mapping[str, Float64]
    """Mean and divisor of each feature on each slide, (n_slides, d), and in half precision of each gene."""
    half: bool

    @classmethod
    def of(cls, reference: Cohort, *, half: bool) -> Self:
        """Of reference slides, embeddings as the encoder gave them."""
        moments = [standardization(slide.embedding) for slide in reference]
        scales = {
            "embedding.mean": np.array([mean for mean, _ in moments]),
            "embedding.divisor": np.array([divisor for _, divisor in moments]),
        }
        if half:
            genes = GeneScale.fit(reference)
            scales |= {"expression.mean": genes.mean, "expression.divisor": genes.divisor}
        tensors: dict[str, Any] = {}
        for i, slide in enumerate(reference):
            arrays = {"embedding": slide.embedding, "expression": expression_of(slide)}
            for name, values in arrays.items():
                scale = {"mean": scales[f"{name}.mean"][i], "scale": scales[f"{name}.divisor"][i]} if half else {}
                tensors[f"{i}.{name}"] = Rows(values, **scale)
            tensors[f"{i}.coordinates"] = slide.coordinates
            if slide.cellularity is not None:
                tensors[f"{i}.cellularity"] = slide.cellularity
        return cls(tensors, scales, half)

    @property
    def halved(self) -> list[str]:
        """Names of the tensors that are stored in half precision."""
        return [name for name in self.tensors if name.endswith((".embedding", ".expression"))] if self.half else []

    def reference(self, slides: Sequence[Mapping[str, Any]], genes: tuple[str, ...]) -> Cohort:
        """The slides as they were; in half precision but for rounding.

        Parameters
        ----------
        slides
            Name and patient of each.
        genes
            The panel.
        """
        made = []
        for i, slide in enumerate(slides):
            embedding, expression = (
                self._unscaled(i, name) if self.half else self.tensors[f"{i}.{name}"]
                for name in ("embedding", "expression")
            )
            made.append(
                Slide(
                    slide["name"],
                    slide["patient"],
                    cast("Float32", embedding),
                    cast("Float64", self.tensors[f"{i}.coordinates"]),
                    cast("Float32", expression),
                    cast("Float32 | None", self.tensors.get(f"{i}.cellularity")),
                )
            )
        return Cohort.in_order(made, genes)

    def standardized(self, reference: Cohort) -> Cohort:
        """What :meth:`Cohort.standardized` gives, of slides that :meth:`reference` gave, read when asked for."""
        return reference.with_embeddings([self._standardized(i) for i in range(len(reference))])

    def holds(self, i: int, slide: Slide) -> bool:
        """Whether a slide has the embeddings of reference slide `i`, as they are stored."""
        stored = self.tensors[f"{i}.embedding"]
        if stored.shape != slide.embedding.shape:
            return False
        own = np.asarray(standardize(slide).embedding if self.half else slide.embedding)
        return np.array_equal(own.astype(np.float16) if self.half else own, np.asarray(stored))

    def _standardized(self, i: int) -> Rows:
        if self.half:
            return Rows(self.tensors[f"{i}.embedding"])
        return Rows(
            self.tensors[f"{i}.embedding"],
            mean=self.scales["embedding.mean"][i],
            scale=self.scales["embedding.divisor"][i],
        )

    def _unscaled(self, i: int, name: str) -> Rows:
        mean, divisor = self.scales[f"{name}.mean"][i], self.scales[f"{name}.divisor"][i]
        # What is constant is stored as 0, whatever it was divided by.
        factor = np.where(np.isfinite(divisor), divisor, 1.0)
        return Rows(self.tensors[f"{i}.{name}"], mean=-mean / factor, scale=1 / factor)
