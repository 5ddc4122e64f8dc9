"""Interface of a prediction method, and the registry of methods."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, dataclass_transform

import numpy as np
from numpy.typing import NDArray

from .._checks import Range, checked, format_names
from .._run import Progress, no_progress, with_progress
from .._slides import Cohort, Float32, Float64, Rows, Slide, SplitBy
from ._features import GeneScale, leading_axes

if TYPE_CHECKING:
    from lightning.fabric import Fabric

State = dict[str, np.ndarray]
RowValues = Callable[[slice], Float64]
"""Function that predicts the given rows of a slide, float64 (n_rows, n_genes)."""
ARRAYS = ("embedding", "coordinates", "cellularity")
"""Slide arrays that a method may require."""

C = TypeVar("C", bound="type[Method]")


@dataclass(frozen=True)
class Run:
    """Settings of one fit that are not parameters of the method.

    Parameters
    ----------
    seed, device, progress
        Random seed; torch device, `None` takes :data:`spahgc.settings`; whether to show a progress bar.
    split_by
        Unit held out when tuning hyperparameters: ``"patient"`` to predict new patients, ``"slide"`` to predict
        further slides of known patients.
    checkpoint_slide
        The test slide **with its expression** (standardized embedding). This is a leak, needed to reproduce published
        scores. Only ``tl.cross_validate(protocol="paper")`` sets it, and only ``preset="paper"`` of SpaHGC uses it, to
        select its checkpoint.
    fabric
        Launched Lightning Fabric of a distributed fit (:attr:`Method.distributed`).
    """

    seed: int = 0
    device: str | None = None
    progress: bool = False
    split_by: SplitBy = "patient"
    checkpoint_slide: Slide | None = None
    fabric: Fabric | None = None


@dataclass(frozen=True, eq=False)
class Evidence:
    """Reference spots that a method looks at for each spot of a slide, and how much."""

    index: NDArray[np.int64]
    """Rows of the reference slides, one after the other, (n_spots, k); those with most weight first."""
    weight: Float32
    """(n_spots, k), summing to 1; 0 where fewer than k are looked at."""

    @classmethod
    def merged(cls, parts: Sequence[tuple[NDArray[np.integer], NDArray[np.floating]]]) -> Self:
        """Merge rows and weights of several sources, each (n_spots, k_i); weights of a repeated row are added."""
        index = np.concatenate([rows.astype(np.int64) for rows, _ in parts], axis=1)
        weight = np.concatenate([weights.astype(np.float64) for _, weights in parts], axis=1)
        order = np.argsort(index, axis=1, kind="stable")
        index, weight = np.take_along_axis(index, order, axis=1), np.take_along_axis(weight, order, axis=1)
        for j in range(1, index.shape[1]):
            same = index[:, j] == index[:, j - 1]
            weight[same, j] += weight[same, j - 1]
            weight[same, j - 1] = 0
        order = np.argsort(-weight, axis=1, kind="stable")
        index, weight = np.take_along_axis(index, order, axis=1), np.take_along_axis(weight, order, axis=1)
        return cls(index, (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32))


class Method(ABC):
    """Predictor of expression from embeddings and positions.

    A method is created with its parameters, fitted on a cohort of reference slides with standardized embeddings, and
    then predicts slides one by one. Slides to predict come without expression. The constructor stores each parameter
    under its own name.
    """

    name: ClassVar[str]
    """Name in the registry."""
    min_slides: ClassVar[int] = 1
    """Smallest number of reference slides."""
    stochastic: ClassVar[bool] = False
    """Whether the fit depends on the seed."""
    reads_rows: ClassVar[bool] = False
    """Whether :meth:`predict` reads the embedding block by block, so that slides may be larger than memory."""
    reads_reference: ClassVar[bool] = False
    """Whether :meth:`restore` accepts reference slides that are read on access, which may be larger than memory."""
    keeps_reference: ClassVar[bool] = True
    """Whether a saved model contains the reference slides."""
    distributed: ClassVar[bool] = False
    """Whether several processes can train it together."""
    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    """Required slide arrays: ``"embedding"``, ``"coordinates"``, ``"cellularity"``."""

    @abstractmethod
    def fit(self, cohort: Cohort, run: Run) -> Self:
        """Fit on reference slides with standardized embeddings, and return the method itself."""

    @abstractmethod
    def predict(self, slide: Slide) -> Float32:
        """Predict a slide with standardized embedding and spots in canonical order; float32 (n_spots, n_genes)."""

    def predict_into(self, slide: Slide, out: Any, *, progress: Progress = no_progress) -> None:
        """Write the values of :meth:`predict` into `out`, an array or store whose slices of rows can be read and set.

        By default, the whole prediction is computed first; methods that work block by block override this. `progress`
        receives completed shares of the work, which sum to 1.
        """
        values = self.predict(slide)
        for rows in with_progress(len(slide), progress):
            out[rows] = values[rows]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "predict" in vars(cls) and "predict_into" not in vars(cls):
            # A class that overrides `predict` alone must not inherit the `predict_into` of another prediction.
            cls.predict_into = Method.predict_into  # type: ignore[method-assign]

    def params(self) -> dict[str, Any]:
        """Parameters of the constructor; ``type(self)(**params)`` is an equal method. JSON types only."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    @abstractmethod
    def state(self) -> State:
        """Fitted state as named arrays, without the reference slides."""

    def reference_rows(self) -> Mapping[str, np.ndarray | Rows]:
        """Features of each reference spot that are expensive to recompute, float32 (n_spots, d) by name.

        A saved model stores them beside the reference slides and passes them to :meth:`restore` with the state,
        possibly memory-mapped and rounded to float16.
        """
        return {}

    @abstractmethod
    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        """Restore a fit from :meth:`state` (and :meth:`reference_rows`) and the reference slides it was fitted on."""

    def to(self, device: str | None) -> Self:
        """Predict on another torch device. `None` takes :data:`spahgc.settings`."""
        return self

    def evidence(self, slide: Slide) -> Evidence | None:
        """Reference spots behind the prediction of each spot of a slide, and their weights.

        `None` for methods that keep what they learned in coefficients alone.
        """
        return None

    def history(self) -> dict[str, list[float]]:
        """Training curves by name; empty for methods without epochs."""
        return getattr(self, "_history", {})


@dataclass_transform(kw_only_default=True, eq_default=False)
def parameters(**ranges: Range) -> Callable[[C], C]:
    """Class decorator: turn annotated class attributes into keyword-only constructor parameters with checked ranges.

    Ranges apply to subclasses as well.
    """

    def decorate(cls: C) -> C:
        made: Any = dataclass(kw_only=True, eq=False)(cls)
        made._ranges = {**getattr(cls, "_ranges", {}), **ranges}
        made.__init__ = checked(**made._ranges)(made.__init__)
        return cls

    return decorate


class BlockwiseMethod(Method):
    """Method that predicts standardized expression block by block and scales it back to the reference."""

    reads_rows: ClassVar[bool] = True
    reads_reference: ClassVar[bool] = True

    @abstractmethod
    def relative_values(self, slide: Slide) -> RowValues:
        """Return a function that predicts the given rows, before they are scaled back."""

    def predict(self, slide: Slide) -> Float32:
        out = np.empty((len(slide), len(self._level)), np.float32)
        BlockwiseMethod.predict_into(self, slide, out)  # A subclass may define predict_into by predict.
        return out

    def predict_into(self, slide: Slide, out: Any, *, progress: Progress = no_progress) -> None:
        values = self.relative_values(slide)
        for rows in with_progress(len(slide), progress):
            out[rows] = values(rows) * self._std + self._level

    def state(self) -> State:
        return {"level": self._level, "std": self._std}

    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        self._level, self._std = state["level"], state["std"]
        return self

    def _standardize(self, cohort: Cohort, scale: GeneScale, rank: int | None = None) -> dict[str, Float64]:
        """Standardized expression of each slide; predictions return to the mean level and deviation of the slides.

        With `rank`, the expression is replaced by that many leading components.
        """
        self._level, self._std = scale.mean.mean(axis=0), scale.std.mean(axis=0)
        values = scale.values(cohort)
        if rank is None:
            return values
        axes = leading_axes(np.concatenate(list(values.values())), rank).astype(np.float64)
        return {name: expression @ axes.T @ axes for name, expression in values.items()}


class Registry(UserDict[str, Any]):
    """Methods by name; the module of a built-in method is imported when the method is looked up."""

    def __getitem__(self, name: str) -> type[Method]:
        if name not in self.data:
            raise ValueError(f"No method {name!r}. Available: {format_names(sorted(self.data), most=len(self.data))}.")
        if isinstance(self.data[name], str):
            module, _, cls = self.data[name].partition(":")
            self.data[name] = getattr(import_module(f".{module}", __package__), cls)
        method: type[Method] = self.data[name]
        return method


BUILT_IN = {
    "spahgc": "spahgc:SpaHGC",
    "gene_mean": "linear:GeneMean",
    "cellularity": "linear:Cellularity",
    "coordinates": "linear:Coordinates",
    "fast": "linear:Fast",
    "ridge": "linear:Ridge",
    "low_rank_ridge": "linear:LowRankRidge",
    "context_ridge": "linear:ContextRidge",
    "smoothed_ridge": "linear:SmoothedRidge",
    "context_kernel": "kernel:ContextKernel",
    "knn": "knn:KNN",
    "stnet": "stnet:STNet",
    "histogene": "histogene:HisToGene",
    "hist2st": "hist2st:Hist2ST",
    "thitogene": "thitogene:THItoGene",
    "egn": "egn:EGN",
    "bleep": "bleep:BLEEP",
    "mclstexp": "mclstexp:MclSTExp",
    "m2ost": "m2ost:M2OST",
    "triplex": "triplex:TRIPLEX",
}
"""Module and class of each built-in method."""
METHODS = Registry(BUILT_IN)
"""Registered methods by name."""


def register(method: C) -> C:
    """Class decorator: make a method available by its name, which no other method may have."""
    unknown = sorted(method.needs - set(ARRAYS))
    if unknown:
        raise ValueError(
            f"Method {method.name!r} requires {format_names(unknown)}, which no slide has. "
            f"Available: {format_names(ARRAYS)}."
        )
    if method.name in METHODS and METHODS[method.name].__qualname__ != method.__qualname__:
        raise ValueError(
            f"Method name {method.name!r} is already registered ({METHODS[method.name].__qualname__}). Choose another."
        )
    METHODS[method.name] = method
    return method


def get_method(name: str, **params: Any) -> Method:
    """Create a registered method with its parameters.

    Examples
    --------
    >>> from spahgc.methods import get_method
    >>> get_method("knn", n_neighbors=5)
    KNN(n_neighbors=5)
    """
    accepted = inspect.signature(METHODS[name]).parameters
    unknown = [param for param in params if param not in accepted]
    if unknown and not any(param.kind is param.VAR_KEYWORD for param in accepted.values()):
        raise ValueError(
            f"Method {name!r} has no parameter {format_names(unknown)}. Available: {format_names(accepted)}."
        )
    return METHODS[name](**params)


def check_needs(method: Method | type[Method], slide: Slide) -> None:
    """Raise if a slide lacks an array that the method requires."""
    missing = [name for name in ARRAYS if name in method.needs and getattr(slide, name) is None]
    if missing:
        present = [name for name in ARRAYS if getattr(slide, name) is not None]
        raise ValueError(
            f"Method {method.name!r} requires {', '.join(missing)}, but slide {slide.name!r} has only "
            f"{', '.join(present)}. Run spahgc.pp.image_embedding(sdata), which writes it."
        )
