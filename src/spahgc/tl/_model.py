"""A trained model: what it was fitted on, what it can predict, and its folder on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._slides import Cohort, Float32, Slide, expression_of, standardize
from .._tables import Recipe
from ..get import trust_frame
from ..methods import Method, check_needs, get_method
from ._support import Support

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
"""Version of the folder; a folder of a newer one is refused."""
CONFIG, WEIGHTS, REFERENCE = "config.json", "weights.safetensors", "reference.safetensors"


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
    """

    def __init__(
        self,
        method: Method,
        reference: Cohort,
        recipe: Recipe,
        *,
        params: dict[str, Any],
        trust: dict[str, Any] | None = None,
    ) -> None:
        self.method, self.reference, self.recipe, self.params = method, reference, recipe, params
        self.trust_record = trust
        self._support = Support.fit(reference)
        self._history = method.history()

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
        check_needs(self.method, slide)
        blind = slide.without_expression()
        support = self._support(blind.embedding)
        return self.method.predict(standardize(blind if self.method.reads_rows else blind.read())), support

    def _description(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "method": self.method.name,
            "method_params": self.method.params(),
            "recipe": self.recipe.to_dict(),
            "params": self.params,
            "slides": [
                {"name": slide.name, "patient": slide.patient, "n_spots": len(slide)} for slide in self.reference
            ],
        }

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model into a folder: ``config.json``, ``weights.safetensors``, ``reference.safetensors``.

        The folder is written under a temporary name beside its place and then renamed, so it is there whole or not at
        all.

        Parameters
        ----------
        path
            The folder to make.
        overwrite
            Replace a model that is there already.

        Raises
        ------
        FileExistsError
            If the folder is there and `overwrite` is false, or what is there is not a model.
        """
        from importlib.metadata import version

        from safetensors.numpy import save_file

        path = Path(path)
        check_free(path, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            save_file({k: np.ascontiguousarray(v) for k, v in self.method.state().items()}, folder / WEIGHTS)
            save_file(_bank(self.reference), folder / REFERENCE)
            config = {
                **self._description(),
                "versions": {"spahgc": version("spahgc")},
                "fingerprint": self.fingerprint,
                "history": self.history,
                "trust": self.trust_record,
                "sha256": {name: _sha256(folder / name) for name in (WEIGHTS, REFERENCE)},
            }
            config["checksum"] = _checksum(config)
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            folder.chmod(0o755)
            if path.exists():
                retired = folder.with_name(f"{folder.name}.old")
                path.rename(retired)
                try:
                    folder.rename(path)
                except BaseException:
                    retired.rename(path)
                    raise
                shutil.rmtree(retired)
            else:
                folder.rename(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a model from its folder.

        Parameters
        ----------
        path
            A folder that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files is not there.
        ValueError
            If a file is truncated or was edited, or the folder is of a newer version of spahgc.
        """
        from safetensors.numpy import load_file

        path = Path(path)
        config = _read_config(path)
        slides = config["slides"]
        for name, expected in config["sha256"].items():
            if _sha256(path / name) != expected:
                raise ValueError(
                    f"{path / name} is not the file that was saved (truncated, edited or damaged). Copy the folder "
                    f"again, or train again."
                )
        weights, bank = load_file(path / WEIGHTS), load_file(path / REFERENCE)
        recipe = Recipe.from_dict(config["recipe"])
        reference = Cohort(
            tuple(
                Slide(
                    s["name"],
                    s["patient"],
                    bank[f"{i}.embedding"],
                    bank[f"{i}.coordinates"],
                    bank[f"{i}.expression"],
                    bank.get(f"{i}.cellularity"),
                )
                for i, s in enumerate(slides)
            ),
            recipe.genes,
        )
        method = get_method(config["method"], **config["method_params"]).restore(weights, reference.standardized())
        model = cls(method, reference, recipe, params=config["params"], trust=config.get("trust"))
        model._history = config["history"]
        return model


def _is_model(path: Path) -> bool:
    """Whether a folder holds a model and nothing else, so that replacing it loses nothing else."""
    return (path / CONFIG).is_file() and {entry.name for entry in path.iterdir()} <= {CONFIG, WEIGHTS, REFERENCE}


def check_free(path: Path, *, overwrite: bool) -> None:
    """There is nothing at `path`, or a model that may be overwritten."""
    if path.exists() and not (overwrite and _is_model(path)):
        advice = (
            "Pass overwrite=True to replace it"
            if _is_model(path)
            else "It is not a model folder, or holds other files as well, and is never replaced. Remove it yourself"
        )
        raise FileExistsError(f"{path} exists already. {advice}, or choose another path.")


def _bank(reference: Cohort) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for i, slide in enumerate(reference):
        arrays |= {
            f"{i}.embedding": slide.embedding,
            f"{i}.coordinates": slide.coordinates,
            f"{i}.expression": expression_of(slide),
        }
        if slide.cellularity is not None:
            arrays[f"{i}.cellularity"] = slide.cellularity
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise FileNotFoundError(f"There is no model folder {path}. Model.save makes one.")
    missing = [name for name in (CONFIG, WEIGHTS, REFERENCE) if not (path / name).is_file()]
    if missing:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing"
        raise FileNotFoundError(f"{path} is not a whole model: {', '.join(missing)} missing (there: {there}).")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        found = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path / CONFIG} cannot be read ({error}): it is truncated or was edited. Copy it again, or train again."
        ) from error
    if not isinstance(found, int) or found > FORMAT:
        raise ValueError(
            f"{path} has model format {found}; this spahgc reads up to {FORMAT}. It was written by spahgc "
            f"{config.get('versions', {}).get('spahgc', 'of a newer version')}: update spahgc (pip install -U spahgc)."
        )
    if config.get("checksum") != _checksum(config):
        raise ValueError(f"{path / CONFIG} was edited after it was saved. Copy it again, or train again.")
    return config


def _checksum(config: dict[str, Any]) -> str:
    content = {key: value for key, value in config.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
