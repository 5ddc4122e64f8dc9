"""A trained model: what it was fitted on and what it predicts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import _keys as keys
from .._checks import checked
from .._disk import Scratch, digest, local_path, replacing_folder
from .._run import spot_bar, weighted
from .._settings import settings
from .._slides import UNITS, Cohort, Float32, Rows, Slide, blocks, standardize
from .._tables._cohorts import Recipe
from .._tables._predictions import Prediction, Trust
from ..methods import Method, check_needs, get_method
from . import _model_folder as files
from ._support import Support
from ._trust import trust_for_targets

_SUPPORT = 0.1  # share of the work on a slide that its support counts as
_METHOD, _SUPPORT_ARRAYS, _SCALES = "method.", "support.", "slides."  # prefixes of saved arrays


class Model:
    """A method fitted on reference slides, with everything needed to predict another slide.

    Made by :func:`spahgc.tl.train`, used by :func:`spahgc.tl.predict`.

    Parameters
    ----------
    method, reference, recipe
        The fitted method; reference slides, embeddings as the encoder gave them; panel, unit and embedding.
    params
        Parameters of the training, for the record.
    trust
        Trust per gene from a cross-validation on these slides, if any.
    support
        Fitted support of the reference; `None` fits it.
    """

    def __init__(
        self,
        method: Method,
        reference: Cohort,
        recipe: Recipe,
        *,
        params: dict[str, Any],
        trust: Trust | None = None,
        support: Support | None = None,
    ) -> None:
        self.method, self.reference, self.recipe, self.params = method, reference, recipe, params
        self._trust = trust
        self._support = Support.fit(reference) if support is None else support
        self._history = method.history()
        # Set when a model is loaded, so that the whole reference need not be read.
        self._fingerprint: str | None = None

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
        """Expected score of each gene (:func:`spahgc.get.trust`), if the reference was cross-validated before."""
        return None if self._trust is None else self._trust.frame

    def _reference_arrays(self) -> dict[str, Any]:
        return files.reference_arrays(self.reference) if self.method.keeps_reference else {}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of parameters, weights and reference: equal for models that predict the same."""
        if self._fingerprint is not None:
            return self._fingerprint
        digests = {name: digest(array) for name, array in self._reference_arrays().items()}
        return files.fingerprint(self._description(), self.method.state(), digests)

    def predict(
        self,
        slides: Sequence[Slide],
        *,
        rows: Sequence[NDArray[np.intp]] | None = None,
        scratch: Scratch | None = None,
        record: dict[str, Any] | None = None,
        progress: bool | None = None,
    ) -> Prediction:
        """Predict slides from their H&E alone; measured expression is removed before the method sees a slide.

        Parameters
        ----------
        slides
            Slides, spots in canonical order, embeddings as the encoder gave them.
        rows
            Rows of the spots of each slide in the prediction; `None`: one slide after the other.
        scratch
            File for values that may be larger than memory.
        record
            Result of :meth:`record`; `None` makes it.
        progress
            See :func:`spahgc.tl.train`.

        Returns
        -------
        The prediction: values float32 (n_spots, n_genes), support float32 (n_spots,), and its record.

        Raises
        ------
        ValueError
            If a slide lacks an array that the method requires.
        FloatingPointError
            If the prediction has NaN or infinite values.
        """
        starts = np.cumsum([0, *map(len, slides)]).tolist()
        spans = [range(start, stop) for start, stop in pairwise(starts)]
        rows = [np.asarray(span) for span in spans] if rows is None else rows
        values: Any = np.empty((starts[-1], len(self.genes)), np.float32) if scratch is None else scratch
        support = np.empty(starts[-1], np.float32)
        n_bad = 0
        with spot_bar(starts[-1], show=settings.progress if progress is None else progress) as bar:
            for slide, index, span in zip(slides, rows, spans, strict=True):
                bar.describe("Predicting" if len(slides) == 1 else f"Predicting {slide.name}")
                check_needs(self.method, slide)
                advance, blind = bar.over(len(slide)), slide.without_expression()
                support[index] = self._support(blind.embedding, progress=weighted(advance, _SUPPORT))
                scaled = standardize(blind if self.method.reads_rows else blind.read())
                out = _Placed(values, index if scratch is None else span)
                self.method.predict_into(scaled, out, progress=weighted(advance, 1 - _SUPPORT))
                n_bad += sum(int((~np.isfinite(out[block]).all(axis=1)).sum()) for block in blocks(len(slide)))
        if n_bad:
            raise FloatingPointError(
                f"Prediction failed: {n_bad} spots have NaN or infinite values. Nothing was written."
            )
        if scratch is not None:
            order = np.empty(starts[-1], np.intp)
            order[np.concatenate(rows)] = np.arange(starts[-1])
            values = Rows(scratch.mapped(), order)
        return Prediction(values, self.genes, support, self.record(slides) if record is None else record)

    def record(self, slides: Sequence[Slide], library_key: str | None = None) -> dict[str, Any]:
        """Record of a prediction of `slides` for ``uns``, with the `library_key` of their table."""
        known = self.reference.patients
        record: dict[str, Any] = {
            keys.PARAMS: {
                "method": self.method.name,
                "method_params": self.method.params(),
                "normalize": self.recipe.normalize,
                "use_rep": self.recipe.use_rep,
                "library_key": library_key,
                **self.params,
                "reference_slides": [slide.name for slide in self.reference],
                "reference_patients": [str(patient) for patient in known],
                "target_slides": list(dict.fromkeys(slide.name for slide in slides)),
                "shared_patients": sorted({str(slide.patient) for slide in slides if slide.patient in known}),
                "patient_not_known": sorted({slide.name for slide in slides if slide.patient is None}),
            },
            "genes": list(self.genes),
            "units": UNITS[self.recipe.normalize],
            "encoder": dict(self.recipe.encoder or {}),
            "model": self.fingerprint,
            "training": {name: list(curve) for name, curve in self.history.items()},
            "versions": {package: version(package) for package in ("spahgc", "torch", "torch-geometric", "anndata")},
        }
        if self._trust is not None:
            patients = {slide.name: slide.patient for slide in slides}
            record["trust"] = trust_for_targets(self._trust, patients, known).to_slots()
        return record

    def _description(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "method": self.method.name,
            "method_params": self.method.params(),
            "recipe": {**vars(recipe), "genes": list(recipe.genes)},
            "params": self.params,
            "slides": [
                {"name": slide.name, "patient": slide.patient, "n_spots": len(slide)} for slide in self.reference
            ],
        }

    def has_seen(self, slide: Slide) -> str | None:
        """Name of the reference slide that is the same section as `slide`, whatever its name; `None` if none is."""
        number = self._support.seen(slide)
        return None if number is None else self.reference.slides[number].name

    @checked()
    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to a folder: ``config.json``, ``weights.safetensors``, and ``reference`` with .npy files.

        The folder appears complete or not at all.

        Parameters
        ----------
        path
            Folder to make.
        overwrite
            Replace an existing model.

        Raises
        ------
        FileExistsError
            If the folder exists and `overwrite` is false, or is not a model.
        """
        from safetensors.numpy import save

        path = local_path(path)
        files.check_free(path, overwrite=overwrite)
        state, arrays = self.method.state(), self._reference_arrays()
        scales = files.embedding_scales(self.reference) if arrays else {}
        fitted: dict[str, NDArray] = {}
        for prefix, part in ((_METHOD, state), (_SUPPORT_ARRAYS, self._support.arrays()), (_SCALES, scales)):
            fitted |= {f"{prefix}{name}": np.ascontiguousarray(array) for name, array in part.items()}
        weights = save(fitted)
        arrays |= {f"{_METHOD}{name}": values for name, values in self.method.reference_rows().items()}
        with replacing_folder(path) as folder:
            (folder / files.WEIGHTS).write_bytes(weights)
            described = files.write_arrays(folder / files.REFERENCE, arrays)
            description = self._description()
            digests = {name: entry["sha256"] for name, entry in described.items()}
            config = {
                "format": files.FORMAT,
                **description,
                "versions": {"spahgc": version("spahgc")},
                "fingerprint": files.fingerprint(description, state, digests),
                "history": self.history,
                "trust": None if self._trust is None else self._trust.to_json(),
                "weights": hashlib.sha256(weights).hexdigest(),
                "arrays": described,
            }
            files.write_config(folder, config)

    @classmethod
    @checked()
    def load(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Model:
        """Open a model in its folder.

        A reference of more than 64 MiB is memory-mapped and read when predictions need it: do not change the folder
        while the model is in use. Methods other than ``spahgc``, ``knn`` and the linear ones read the whole reference.

        Parameters
        ----------
        path
            Folder that :meth:`save` wrote.
        verify
            Read a large reference as a whole to verify its checksums. Otherwise only the size and header of its files
            are checked, which detects truncated files but not damaged values.

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is missing.
        ValueError
            If a file is truncated, was edited or is damaged, or the folder has another format.
        """
        path = Path(path)
        config = files.read_config(path)
        try:
            return cls._restored(path, config, verify=verify)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path / files.CONFIG} does not match the arrays of the model ({type(error).__name__}: {error}). Copy "
                f"the folder again, or train again."
            ) from error

    @classmethod
    def _restored(cls, path: Path, config: dict[str, Any], *, verify: bool) -> Model:
        from safetensors.numpy import load

        def of(prefix: str, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        content = (path / files.WEIGHTS).read_bytes()
        files.check_same(path / files.WEIGHTS, hashlib.sha256(content).hexdigest() == config["weights"])
        weights = load(content)
        description = {name: config[name] for name in ("method", "method_params", "recipe", "params", "slides")}
        digests = {name: entry["sha256"] for name, entry in config["arrays"].items()}
        if files.fingerprint(description, of(_METHOD, weights), digests) != config["fingerprint"]:
            raise ValueError(f"{path / files.CONFIG} does not match its fingerprint: it was edited. Train again.")
        arrays = files.read_arrays(path / files.REFERENCE, config["arrays"], verify=verify)
        recipe = Recipe(**{**config["recipe"], "genes": tuple(config["recipe"]["genes"])})
        method = get_method(config["method"], **config["method_params"])
        reference = files.cohort_of(arrays, config["slides"], recipe.genes)
        cohort = files.standardized(reference, of(_SCALES, weights)) if method.keeps_reference else reference
        method.restore(of(_METHOD, {**weights, **arrays}), cohort if method.reads_reference else cohort.read())
        trust = None if config["trust"] is None else Trust.from_slots(config["trust"])
        support = Support.from_arrays(of(_SUPPORT_ARRAYS, weights))
        model = cls(method, reference, recipe, params=config["params"], trust=trust, support=support)
        model._history, model._fingerprint = config["history"], config["fingerprint"]
        return model


class _Placed:
    """Rows of an array, or a contiguous span of a file, that belong to a slide, in the order of its spots."""

    def __init__(self, values: Any, index: NDArray[np.intp] | range) -> None:
        self._values, self._index = values, index

    def __getitem__(self, rows: slice) -> Float32:
        return self._values[self._at(rows)]

    def __setitem__(self, rows: slice, values: NDArray[Any]) -> None:
        self._values[self._at(rows)] = values

    def _at(self, rows: slice) -> NDArray[np.intp] | slice:
        place = self._index[rows]
        return slice(place.start, place.stop) if isinstance(place, range) else place
