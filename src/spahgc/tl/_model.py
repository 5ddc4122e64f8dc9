"""A trained model: what it was fitted on, what it can predict, and its folder on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._disk import replacing_folder
from .._run import Progress, no_progress, weighted
from .._slides import Cohort, Float32, Slide, standardize
from .._tables._cohorts import Recipe
from ..get import trust_frame
from ..methods import Method, check_needs, get_method
from ..methods.base import Output
from . import _model_files as files
from ._bank import Bank
from ._support import Support
from ._tensor_file import map_tensors, write_tensors

if TYPE_CHECKING:
    import pandas as pd

_SUPPORT = 0.1
"""Share of the work on a slide that its support counts as."""
_METHOD, _SUPPORT_ARRAYS, _SCALES = "method.", "support.", "slides."
"""How the names of arrays in the files begin, by whose they are."""


class Model:
    """A method fitted on reference slides, with all that it takes to predict another slide.

    Made by :func:`spahgc.tl.train`, used by :func:`spahgc.tl.predict`.

    Parameters
    ----------
    method
        The fitted method.
    reference
        The reference slides, embeddings as the encoder gave them.
    recipe
        Panel, unit, embedding.
    params
        Parameters of the training, for the record.
    trust
        Record of the trust per gene, from a cross-validation on these slides; `None` if there was none.
    support
        How well the reference covers a spot; `None` fits it to the reference.
    """

    def __init__(
        self,
        method: Method,
        reference: Cohort,
        recipe: Recipe,
        *,
        params: dict[str, Any],
        trust: dict[str, Any] | None = None,
        support: Support | None = None,
    ) -> None:
        self.method, self.reference, self.recipe, self.params = method, reference, recipe, params
        self.trust_record = trust
        self._support = Support.fit(reference) if support is None else support
        self._history = method.history()
        # Of a model that was loaded: what it was saved with, so that the whole reference is not read for it.
        self._fingerprint: str | None = None
        self._bank: Bank | None = None

    def __repr__(self) -> str:
        slides = ", ".join(slide.name for slide in self.reference)
        return f"Model({self.method.name}, {len(self.genes)} genes, {self.recipe.use_rep}, reference: {slides})"

    @property
    def genes(self) -> tuple[str, ...]:
        """The panel."""
        return self.recipe.genes

    @property
    def history(self) -> dict[str, list[float]]:
        """Training curves by name, a value per epoch; ``chosen_epoch`` holds the final model's epochs."""
        return self._history

    @property
    def trust(self) -> pd.DataFrame | None:
        """What to expect of each gene on a slide like those held out, see :func:`spahgc.get.trust`.

        `None` if the reference was not cross-validated with this method before the training.
        """
        return None if self.trust_record is None else trust_frame(self.trust_record)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of parameters, weights and reference: equal for models that predict the same."""
        if self._fingerprint is not None:
            return self._fingerprint
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        digest.update(self.reference.fingerprint().encode())
        for name, array in sorted(self.method.state().items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def predict_slide(self, slide: Slide) -> tuple[Float32, Float32]:
        """Predict a slide from its H&E alone.

        Parameters
        ----------
        slide
            The slide, spots in canonical order, embedding as the encoder gave it. Its expression is taken off before
            the method gets it.

        Returns
        -------
        Expression, float32 (n_spots, n_genes), and support, float32 (n_spots,).

        Raises
        ------
        ValueError
            If the slide lacks something that the method needs.
        """
        values = np.empty((len(slide), len(self.genes)), np.float32)
        return values, self.predict_slide_into(slide, values)

    def predict_slide_into(self, slide: Slide, out: Output, *, progress: Progress = no_progress) -> Float32:
        """Predict a slide into something that may be larger than memory.

        Parameters
        ----------
        slide
            As for :meth:`predict_slide`.
        out
            An array (n_spots, n_genes), or what has its slices of rows, which are read and written.
        progress
            Called with the share of the work that was done, each time some was; the shares sum to 1.

        Returns
        -------
        Support, float32 (n_spots,).

        Raises
        ------
        ValueError
            If the slide lacks something that the method needs.
        """
        check_needs(self.method, slide)
        blind = slide.without_expression()
        support = self._support(blind.embedding, progress=weighted(progress, _SUPPORT))
        scaled = standardize(blind if self.method.reads_rows else blind.read())
        self.method.predict_into(scaled, out, progress=weighted(progress, 1 - _SUPPORT))
        return support

    def _description(self) -> dict[str, Any]:
        return {
            "method": self.method.name,
            "method_params": self.method.params(),
            "recipe": self.recipe.to_dict(),
            "params": self.params,
            "slides": [
                {"name": slide.name, "patient": slide.patient, "n_spots": len(slide)} for slide in self.reference
            ],
        }

    def has_seen(self, slide: Slide) -> bool:
        """Whether a slide is one of the reference slides: of the same name, with the same embeddings.

        Parameters
        ----------
        slide
            The slide, spots in canonical order, embedding as the encoder gave it.
        """
        for i, own in enumerate(self.reference):
            if own.name == slide.name and own.embedding.shape == slide.embedding.shape:
                if self._bank is not None:
                    return self._bank.holds(i, slide)
                return np.array_equal(own.embedding, slide.embedding)
        return False

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False, half: bool = False) -> None:
        """Write the model into a folder: ``config.json``, ``weights.safetensors``, ``reference.safetensors``.

        The folder is written beside its place, the reference a few spots at a time, and then renamed, so it is there
        whole or not at all.

        Parameters
        ----------
        path
            The folder to make.
        overwrite
            Replace a model that is there already.
        half
            Keep what there is of each reference spot (embeddings, features of the nodes, expression) in half
            precision, for a large reference: the file has half the size. Each value, scaled by its slide, is rounded to
            11 bits, which moves it by at most 0.05 %. Weights, kernels and linear fits are saved as they are, so a
            method that does not look at reference spots again predicts the same to the last bit. For others the cosine
            of a spot and a reference spot moves by at most 0.0005: reference spots whose cosines differ by less than
            twice that may take each other's place. The saved model counts as another one, with a fingerprint of its
            own. A model that was loaded in half precision stays in it.

        Raises
        ------
        FileExistsError
            If the folder is there and `overwrite` is false, or what is there is not a model.
        ValueError
            If a value is too large for half precision.
        """
        from importlib.metadata import version

        from safetensors.numpy import save_file

        path = Path(path)
        check_free(path, overwrite=overwrite)
        bank = Bank.of(self.reference, half=half) if self._bank is None else self._bank
        fingerprint = self.fingerprint
        if bank.half and self._bank is None:
            fingerprint = hashlib.sha256(f"{fingerprint} in half precision".encode()).hexdigest()
        small = {
            **_prefixed(_METHOD, self.method.state()),
            **_prefixed(_SUPPORT_ARRAYS, self._support.arrays()),
            **_prefixed(_SCALES, bank.scales),
        }
        rows = _prefixed(_METHOD, self.method.reference_rows())
        with replacing_folder(path) as folder:
            save_file({name: np.ascontiguousarray(array) for name, array in small.items()}, folder / files.WEIGHTS)
            halved = [*bank.halved, *rows] if bank.half else []
            write_tensors(folder / files.REFERENCE, {**bank.tensors, **rows}, half=halved)
            config = {
                "format": files.FORMAT,
                "half": bank.half,
                **self._description(),
                "versions": {"spahgc": version("spahgc")},
                "fingerprint": fingerprint,
                "history": self.history,
                "trust": self.trust_record,
                "files": {name: files.describe(folder / name) for name in (files.WEIGHTS, files.REFERENCE)},
            }
            config["checksum"] = files.checksum(config)
            (folder / files.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Model:
        """Open a model in its folder.

        A reference of more than 64 MiB is mapped into memory, and read where and when predictions need it: leave the
        folder in place while the model is in use. Only methods that need the whole reference at once read it here;
        ``spahgc``, ``knn`` and the linear methods do not.

        Parameters
        ----------
        path
            A folder that :meth:`save` wrote.
        verify
            Read a large reference whole, to find out whether it is what was saved. Else size and header of its file are
            checked, which finds every truncated one, but not a damaged value. All other files are always checked whole.

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is not there.
        ValueError
            If a file is truncated, was edited or is damaged, or the folder is of a newer version of spahgc.
        """
        from safetensors.numpy import load_file

        path = Path(path)
        config = files.read_config(path)
        large = (path / files.REFERENCE).stat().st_size > files.CHECKED_WHOLE
        files.check_file(path / files.WEIGHTS, config["files"][files.WEIGHTS], whole=True)
        files.check_file(
            path / files.REFERENCE, config["files"][files.REFERENCE], whole=verify or not large or config["format"] == 1
        )
        small = load_file(path / files.WEIGHTS)
        tensors = map_tensors(path / files.REFERENCE) if large else load_file(path / files.REFERENCE)
        recipe = Recipe.from_dict(config["recipe"])
        method = get_method(config["method"], **config["method_params"])
        if config["format"] == 1:
            # It holds the slides alone, so all else is made of them again.
            bank, state, support = Bank(tensors, {}, half=False), small, None
            reference = bank.reference(config["slides"], recipe.genes)
            cohort = reference.standardized()
        else:
            bank = Bank(tensors, _of(_SCALES, small), half=config["half"])
            state, support = _of(_METHOD, {**small, **tensors}), Support.from_arrays(_of(_SUPPORT_ARRAYS, small))
            reference = bank.reference(config["slides"], recipe.genes)
            cohort = bank.standardized(reference)
        method.restore(state, cohort if method.reads_reference else cohort.read())
        model = cls(method, reference, recipe, params=config["params"], trust=config.get("trust"), support=support)
        model._history, model._fingerprint = config["history"], config["fingerprint"]
        model._bank = bank if bank.half else None
        return model


def check_free(path: Path, *, overwrite: bool) -> None:
    """There is nothing at `path`, or a model that may be overwritten."""
    if path.exists() and not (overwrite and files.is_model(path)):
        advice = (
            "Pass overwrite=True to replace it"
            if files.is_model(path)
            else "It is not a model folder, or holds other files as well, and is never replaced. Remove it yourself"
        )
        raise FileExistsError(f"{path} exists already. {advice}, or choose another path.")


def _prefixed(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def _of(prefix: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`_prefixed`, for the arrays that have the prefix."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
