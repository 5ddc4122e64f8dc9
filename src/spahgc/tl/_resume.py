"""A folder where a cross-validation keeps what it has finished, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from .._disk import replacing
from .._slides import Slide
from .._tables import _slots as check
from .._tables._cohorts import slide_rows
from ._units import Result, Unit

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("spahgc")

FORMAT = 1
PROTOCOL = "protocol.json"


class Folder:
    """Finished units as files, beside ``protocol.json``, which says what run they are of.

    Methods and seeds may be added to a run; all else has to be the same.

    Parameters
    ----------
    path
        The folder; made if it is not there.
    run
        What the results depend on, JSON types.
    methods
        Parameters of each method, by label.

    Raises
    ------
    ValueError
        If the folder is of another run; the message says what differs.
    FileExistsError
        If the folder holds other things.
    """

    def __init__(self, path: str | os.PathLike[str], *, run: dict[str, Any], methods: dict[str, Any]) -> None:
        self.path = Path(path)
        place = self.path / PROTOCOL
        ours = json.loads(json.dumps({"format": FORMAT, "spahgc": version("spahgc"), **run, "methods": methods}))
        if place.is_file():
            theirs = json.loads(place.read_text(encoding="utf-8"))
            shared = ours["methods"].keys() & theirs.get("methods", {}).keys()
            compared = [
                {**_flat(side), **{f"methods[{label!r}]": side["methods"][label] for label in sorted(shared)}}
                for side in (theirs, ours)
            ]
            _same(self.path, *compared)
            ours["methods"] = {**theirs["methods"], **ours["methods"]}
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(
                f"{self.path} holds something else, and no {PROTOCOL} of a cross-validation. Pass another folder as "
                f"resume."
            )
        with replacing(place) as temporary:
            temporary.write_text(json.dumps(ours, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def read(self, unit: Unit) -> Result | None:
        """The result of a unit, if it is finished."""
        place = self._place(unit)
        if not place.is_file():
            return None
        try:
            with np.load(place, allow_pickle=False) as arrays:
                slides, metrics, genes = (
                    tuple(arrays[name].astype(str).tolist()) for name in ("slides", "metrics", "genes")
                )
                return Result(slides, metrics, genes, arrays["values"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s); it is computed again.", place, error)
            return None

    def write(self, unit: Unit, result: Result) -> None:
        """Keep the result of a unit; its file is there whole or not at all."""
        with replacing(self._place(unit)) as temporary:
            np.savez(
                temporary,
                slides=np.array(result.slides, dtype=np.str_),
                metrics=np.array(result.metrics, dtype=np.str_),
                genes=np.array(result.genes, dtype=np.str_),
                values=result.values,
            )

    def _place(self, unit: Unit) -> Path:
        # Names of slides and methods may hold anything: the digest tells apart what is spelt alike.
        parts = [unit.fold, unit.method, str(unit.seed)]
        readable = ".".join("".join(c if c.isalnum() else "-" for c in part)[:40] for part in parts)
        return self.path / f"{readable}.{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]}.npz"


def data_fingerprint(adata: AnnData, *, use_rep: str, library_key: str, patients: dict[str, str], matrix: Any) -> str:
    """SHA-256 over all that is read from a table; the order of its rows does not matter."""
    digest = hashlib.sha256("\0".join(adata.var_names.astype(str)).encode())
    embedding, coordinates = (
        check.embedding(adata, use_rep, what="reference"),
        check.coordinates(adata, what="reference"),
    )
    cellularity = check.cellularity(adata, what="reference")
    for name, rows in slide_rows(adata, library_key).items():
        rows = rows[Slide(name, None, embedding[rows], coordinates[rows]).order]
        digest.update(f"\0{name}\0{patients[name]}\0{len(rows)}".encode())
        counts = sp.csr_matrix(matrix[rows], dtype=np.float64, copy=True)
        counts.sum_duplicates()
        counts.eliminate_zeros()
        density = () if cellularity is None else (cellularity[rows],)
        for array in (embedding[rows], coordinates[rows], *density, counts.data, counts.indices, counts.indptr):
            digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "methods"}


def _same(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    differing = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    if not differing:
        return
    said = []
    for name in differing:
        if name == "data":
            said.append("data: embeddings, positions, cellularity, counts, slides or patients were others")
        else:
            said.append(f"{name}: there {_short(theirs.get(name))}, now {_short(ours.get(name))}")
    raise ValueError(
        f"The folder {path} is of another run: {'; '.join(said)}. Call it as before, or pass another folder as resume."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:97]}..."
