"""The interface of a method, and the registry."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from .._run import Progress, no_progress, with_progress
from .._slides import Cohort, Float32, Rows, Slide, SplitBy

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from ._evidence import Evidence

State = dict[str, np.ndarray]
ARRAYS = ("embedding", "coordinates", "cellularity")
"""What a method can need of a slide."""


class Output(Protocol):
    """What predictions are written into: an array (n_spots, n_genes), or what has its slices of rows."""

    def __getitem__(self, rows: slice, /) -> Float32:
        """Some rows, float32."""

    def __setitem__(self, rows: slice, values: np.ndarray, /) -> None:
        """Replace some rows."""


@dataclass(frozen=True)
class Run:
    """How a fit is run; what it is fitted with is the method's own parameters.

    Parameters
    ----------
    seed
        Seed of everything random.
    device
        Torch device name; `None` takes :data:`spahgc.settings`.
    progress
        Show a progress bar.
    split_by
        What is held out while tuning: ``"patient"`` for targets of new patients, ``"slide"`` for other slides of the
        reference's own patients.
    peek
        The scored slide **with its expression** (standardised embedding). A leak, to reproduce what was published:
        only ``tl.cross_validate(protocol="paper")`` sets it, and only ``preset="paper"`` of SpaHGC looks at it, to
        choose its checkpoint.
    fabric
        Lightning's, launched: this fit is one of several processes that train together (:attr:`Method.distributed`).
    """

    seed: int = 0
    device: str | None = None
    progress: bool = False
    split_by: SplitBy = "patient"
    peek: Slide | None = None
    fabric: Fabric | None = None


class Method(ABC):
    """A predictor of expression from embeddings and positions.

    A method is made with its parameters, fitted on a cohort of reference slides whose embeddings are standardised per
    slide, and then predicts slides one by one. A slide to be predicted comes without expression.
    """

    name: ClassVar[str]
    """Name in the registry."""
    source: ClassVar[str] = ""
    """Paper the method is from."""
    min_slides: ClassVar[int] = 1
    """Fewest reference slides it can be fitted on."""
    stochastic: ClassVar[bool] = False
    """Whether the seed changes what is fitted; where it does not, one seed stands for all."""
    reads_rows: ClassVar[bool] = False
    """Whether :meth:`predict` reads a slide's embedding block by block (:class:`~spahgc._slides.Rows`), so that the
    slide may be larger than memory. Others are given an array."""
    reads_reference: ClassVar[bool] = False
    """Whether :meth:`restore` takes reference slides whose arrays are not read yet (:class:`~spahgc._slides.Rows`), and
    reads of them, when it predicts, what it needs, so that the reference may be larger than memory. Others are given
    arrays."""
    distributed: ClassVar[bool] = False
    """Whether several processes can train it together (:class:`Run`)."""
    needs: ClassVar[frozenset[str]] = frozenset({"embedding"})
    """Arrays of a slide that it reads beside the reference's expression, of :data:`ARRAYS`."""

    @abstractmethod
    def fit(self, cohort: Cohort, run: Run) -> Self:
        """Fit on reference slides (standardised embeddings); returns itself."""

    @abstractmethod
    def predict(self, slide: Slide) -> Float32:
        """Expression of a slide (standardised embedding, canonical spot order), float32 (n_spots, n_genes)."""

    def predict_into(self, slide: Slide, out: Output, *, progress: Progress = no_progress) -> None:
        """Write what :meth:`predict` gives, to the last bit, into something that may be larger than memory.

        A method that works block by block has its own; for others the whole prediction is made first.

        Parameters
        ----------
        slide
            As for :meth:`predict`.
        out
            What is written into; what it held before plays no part.
        progress
            Told of the work that was done.
        """
        values = self.predict(slide)
        for rows in with_progress(len(slide), progress):
            out[rows] = values[rows]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "predict" in vars(cls) and "predict_into" not in vars(cls):
            # Where a class changes `predict` alone, the `predict_into` of its base would give what that predicts.
            cls.predict_into = Method.predict_into  # type: ignore[method-assign]

    @abstractmethod
    def params(self) -> dict[str, Any]:
        """Parameters it was made with; ``type(self)(**params)`` makes it again. JSON types only."""

    @abstractmethod
    def state(self) -> State:
        """What was fitted, as named arrays, without the reference slides."""

    def reference_rows(self) -> Mapping[str, np.ndarray | Rows]:
        """What it makes of each reference spot, float32 (n_spots, d) by name.

        A saved model keeps these arrays beside the reference slides, and hands them to :meth:`restore` with the state,
        so that they need not be made again. They may be memory-mapped then, and rounded to float16.
        """
        return {}

    @abstractmethod
    def restore(self, state: Mapping[str, np.ndarray], cohort: Cohort) -> Self:
        """Take back what :meth:`state` gave; `cohort` is the reference it was fitted on.

        What :meth:`reference_rows` gave may be among the state.
        """

    def to(self, device: str | None) -> Self:
        """Predict on a torch device (`None` takes :data:`spahgc.settings`), where a method uses one."""
        return self

    def searches(self) -> dict[str, dict[str, Any]]:
        """How similar reference spots were found while fitting, by what is compared, for the record.

        ``"method"`` is ``"exact"`` or ``"approximate"``; the latter with its ``"recall"``. Empty for methods that look
        for none, and for those that are always exact.
        """
        return {}

    def evidence(self, slide: Slide) -> Evidence | None:
        """Which reference spots it looks at when it predicts the spots of a slide, and how much.

        `None` for methods that look at none: what they know of the reference is in their coefficients alone.

        Parameters
        ----------
        slide
            As for :meth:`predict`.
        """
        return None

    def history(self) -> dict[str, list[float]]:
        """Curves of the training, by name; empty where there is none."""
        return {}


METHODS: dict[str, type[Method]] = {}


def register(method: type[Method]) -> type[Method]:
    """Class decorator: make a method available by its name."""
    unknown = sorted(method.needs - set(ARRAYS))
    if unknown:
        raise ValueError(
            f"Method {method.name!r} needs {', '.join(map(repr, unknown))}, which no slide has. Available: "
            f"{', '.join(map(repr, ARRAYS))}."
        )
    if method.name in METHODS and METHODS[method.name].__qualname__ != method.__qualname__:
        raise ValueError(f"A method named {method.name!r} is registered already ({METHODS[method.name].__qualname__}).")
    METHODS[method.name] = method
    return method


def get_method(name: str, **params: Any) -> Method:
    """Make the method that `name` names, with its parameters."""
    if name not in METHODS:
        raise ValueError(f"No method {name!r}. Available: {', '.join(sorted(METHODS))}.")
    accepted = inspect.signature(METHODS[name]).parameters
    unknown = [param for param in params if param not in accepted]
    if unknown and not any(param.kind is param.VAR_KEYWORD for param in accepted.values()):
        raise ValueError(
            f"Method {name!r} has no parameter {', '.join(map(repr, unknown))}. Available: "
            f"{', '.join(map(repr, accepted)) or 'none'}."
        )
    return METHODS[name](**params)


def check_needs(method: Method | type[Method], slide: Slide) -> None:
    """A slide has what a method needs; an error that names the slide and what it lacks where it does not."""
    missing = [name for name in ARRAYS if name in method.needs and getattr(slide, name) is None]
    if missing:
        has = [name for name in ARRAYS if getattr(slide, name) is not None]
        raise ValueError(
            f"Method {method.name!r} needs {', '.join(missing)} of every slide, and slide {slide.name!r} has none "
            f"(it has {', '.join(has)}). Run spahgc.pp.image_embedding(sdata), which writes it."
        )
