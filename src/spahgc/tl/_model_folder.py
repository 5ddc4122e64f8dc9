"""Folder of a saved model: configuration, weights, and reference arrays that may be larger than memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .._disk import digest
from .._slides import Cohort, Float64, Rows, Slide, Stack, blocks, expression_of, standardization

FORMAT = 4
CONFIG, WEIGHTS, REFERENCE = "config.json", "weights.safetensors", "reference"
READ_WHOLE = 2**26  # bytes of a reference up to which it is read and checked on loading; others are memory-mapped
_AGAIN = "Copy the folder again, or train again."

Arrays = Mapping[str, "NDArray[np.floating] | Rows"]


def embedding_scales(reference: Cohort) -> dict[str, Float64]:
    """Mean and divisor of each feature on each slide, (n_slides, d)."""
    means, divisors = zip(*(standardization(slide.embedding) for slide in reference), strict=True)
    return {"mean": np.array(means), "divisor": np.array(divisors)}


def cohort_of(arrays: Mapping[str, Any], slides: Sequence[Mapping[str, Any]], genes: tuple[str, ...]) -> Cohort:
    """Slides as they were saved, from the arrays of :func:`reference_arrays`; without values if there are none."""
    made, start = [], 0
    for slide in slides:
        if not arrays:
            nothing = np.empty((slide["n_spots"], 0), np.float32)
            made.append(Slide(slide["name"], slide["patient"], nothing, np.zeros((len(nothing), 2)), None))
            continue
        rows = slice(start, start := start + slide["n_spots"])
        density = arrays["cellularity"][rows] if "cellularity" in arrays else np.array(np.nan)
        embedding, coordinates, expression = (arrays[name][rows] for name in ("embedding", "coordinates", "expression"))
        known = None if np.isnan(density).all() else density
        made.append(Slide(slide["name"], slide["patient"], embedding, coordinates, expression, known))
    return Cohort.in_order(made, genes)


def standardized(reference: Cohort, scales: Mapping[str, Float64]) -> Cohort:
    """Equivalent of :meth:`Cohort.standardized` that does not read the embeddings."""
    parts = zip(reference, scales["mean"], scales["divisor"], strict=True)
    return reference.with_embeddings([Rows(slide.embedding, mean=mean, scale=scale) for slide, mean, scale in parts])


def reference_arrays(reference: Cohort) -> dict[str, NDArray[np.floating] | Rows]:
    """Arrays of reference slides, a row per spot; missing cellularity is NaN."""
    arrays: dict[str, NDArray[np.floating] | Rows] = {
        "embedding": Stack([slide.embedding for slide in reference]),
        "expression": Stack([expression_of(slide) for slide in reference]),
        "coordinates": np.concatenate([slide.coordinates for slide in reference]),
    }
    if any(slide.cellularity is not None for slide in reference):
        missing = np.full(max(len(slide) for slide in reference), np.nan, np.float32)
        density = [missing[: len(s)] if s.cellularity is None else s.cellularity for s in reference]
        arrays["cellularity"] = np.concatenate(density)
    return arrays


def fingerprint(description: Mapping[str, Any], state: Mapping[str, NDArray], digests: Mapping[str, str]) -> str:
    """SHA-256 of a model: description, fitted state, and digests of the reference arrays."""
    fitted = {name: digest(array) for name, array in state.items()}
    of_slides = {name: digests[name] for name in digests if "." not in name}
    return hashlib.sha256(json.dumps([description, fitted, of_slides], sort_keys=True).encode()).hexdigest()


def write_arrays(folder: Path, arrays: Arrays) -> dict[str, dict[str, Any]]:
    """Write arrays to .npy files, a block at a time, and describe them for ``config.json``."""
    folder.mkdir()
    described = {}
    for name, values in arrays.items():
        path = folder / f"{name}.npy"
        header = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": values.shape}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for rows in blocks(len(values)):
                file.write(np.ascontiguousarray(values[rows], dtype=values.dtype).data)
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        described[name] = {"shape": list(values.shape), "dtype": str(values.dtype), "sha256": digest(content)}
    return described


def read_arrays(folder: Path, described: Mapping[str, Any], *, verify: bool) -> dict[str, NDArray[np.floating]]:
    """Arrays of a model: a small reference is read and verified, a large one memory-mapped."""
    paths = {name: folder / f"{name}.npy" for name in described}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is incomplete: {', '.join(missing)} missing.")
    large = sum(path.stat().st_size for path in paths.values()) > READ_WHOLE
    arrays = {}
    for name, path in paths.items():
        try:
            array = np.asarray(np.load(path, mmap_mode="r" if large else None, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read ({error}): it is truncated or damaged. {_AGAIN}") from error
        expected = described[name]
        same = (list(array.shape), str(array.dtype)) == (expected["shape"], expected["dtype"])
        check_same(path, same and ((large and not verify) or digest(array) == expected["sha256"]))
        arrays[name] = array
    return arrays


def check_same(path: Path, same: bool) -> None:
    """Raise unless a file is the one that was saved."""
    if not same:
        raise ValueError(f"{path} is not the file that was saved (truncated, edited or damaged). {_AGAIN}")


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise if `path` exists, unless it is a model with nothing beside it, and may be overwritten."""
    if not path.exists():
        return
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    is_model = CONFIG in names and names <= {CONFIG, WEIGHTS, REFERENCE}
    if not (overwrite and is_model):
        advice = (
            "Pass overwrite=True to replace it"
            if is_model
            else "It is not a model folder, or holds other files as well, and is never replaced. Remove it yourself"
        )
        raise FileExistsError(f"{path} exists already. {advice}, or choose another path.")


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write ``config.json``."""
    text = json.dumps({**config, "checksum": _checksum(config)}, indent=2)
    (path / CONFIG).write_text(text + "\n", encoding="utf-8")


def read_config(path: Path) -> dict[str, Any]:
    """Content of ``config.json`` of a complete folder, unless it was edited or is of another format."""
    if not path.is_dir():
        raise FileNotFoundError(f"There is no model folder {path}. Model.save makes one.")
    kinds = {CONFIG: Path.is_file, WEIGHTS: Path.is_file, REFERENCE: Path.is_dir}
    missing = [name for name, is_there in kinds.items() if not is_there(path / name)]
    if missing:
        present = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing"
        raise FileNotFoundError(f"{path} is not a complete model: {', '.join(missing)} missing (present: {present}).")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        found = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{path / CONFIG} cannot be read ({error}): it is truncated or was edited."
        raise ValueError(f"{problem} {_AGAIN}") from error
    if found != FORMAT:
        raise ValueError(
            f"{path} has model format {found!r}, but this version of spahgc reads format {FORMAT}. It was written by "
            f"spahgc {config.get('versions', {}).get('spahgc', 'unknown')}: update spahgc (pip install -U spahgc), or "
            f"train again."
        )
    if config.get("checksum") != _checksum(config):
        raise ValueError(f"{path / CONFIG} was edited after it was saved. {_AGAIN}")
    return cast("dict[str, Any]", config)


def _checksum(config: Mapping[str, Any]) -> str:
    content = {key: value for key, value in config.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
