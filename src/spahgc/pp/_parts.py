"""Finished batches on disk, so that an embedding that was stopped goes on from there.

A job is a folder, named by a digest of all that its embedding depends on; a part is a file in it with some finished
batches. The name of a part says which run wrote it: runs on the same job do not touch each other's parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .._disk import replacing
from ._engine import Embedded, Job

logger = logging.getLogger("spahgc")

PART_SECONDS = 10.0
"""A part is written after so many seconds of work; what takes less in all leaves no trace on disk."""
KEEP_DAYS = 30
"""Jobs that nobody has gone on with for so long are removed."""
_FORMAT = 1

Recompute = Callable[[int, int], Embedded]
"""Embeds a batch, by the number of its job and its own."""


class Store:
    """Finished batches of jobs, in a folder.

    Parameters
    ----------
    root
        The folder; it is made when there is something to write.
    jobs
        The jobs.
    """

    def __init__(self, root: Path, jobs: Sequence[Job]) -> None:
        self.root = root
        self.jobs = jobs
        self._run = uuid.uuid4().hex[:12]
        self._started = self._written = time.monotonic()
        self._pending: dict[int, list[tuple[int, Embedded]]] = defaultdict(list)
        self._folders: dict[int, Path] = {}
        self._files: list[Path] = []
        self._usable = True

    def read(self, recompute: Recompute) -> Iterator[tuple[int, int, Embedded]]:
        """What earlier runs finished: number of the job, number of the batch, and its embedding.

        A part that is not whole is left out (each array in it has a checksum), and so are all parts of a run of which
        one batch, embedded again, comes out otherwise: an encoder may have changed under the same name.
        """
        trusted: dict[str, bool] = {}
        if not self.root.is_dir() or not any(self.root.iterdir()):
            return
        for number, job in enumerate(self.jobs):
            done: set[int] = set()
            for path in sorted(self._folder(number).glob("[0-9a-f]*.npz")):
                found = _load(path, job)
                run = path.name.partition(".")[0]
                if found and run not in trusted:
                    batch, stored = found[0]
                    trusted[run] = _same(stored, recompute(number, batch))
                    if not trusted[run]:
                        logger.warning(
                            "Encoder %r embeds tiles otherwise now than when an earlier run was stopped: what that run "
                            "finished is embedded again.",
                            job.encoder.name,
                        )
                if not found or not trusted[run]:
                    path.unlink(missing_ok=True)
                    continue
                self._files.append(path)
                for batch, embedded in found:
                    if batch not in done:
                        done.add(batch)
                        yield number, batch, embedded
            if done:
                logger.info(
                    "Going on where an earlier run was stopped: %d of %d tiles are embedded already.",
                    sum(len(job.batches[batch].spots) for batch in done),
                    job.n_spots,
                )

    def add(self, number: int, batch: int, embedded: Embedded) -> None:
        """Keep a finished batch; it reaches the disk within :data:`PART_SECONDS`, or with the next batch."""
        if not self._usable:
            return
        self._pending[number].append((batch, embedded))
        if time.monotonic() - self._written > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet, unless the work has only begun."""
        now = time.monotonic()
        if not self._usable or now - self._started <= PART_SECONDS:
            return
        try:
            if self._written == self._started:
                self._remove_old()
            for number, finished in self._pending.items():
                self._write(number, finished)
        except OSError as error:
            self._usable = False
            logger.warning(
                "What is finished of this embedding cannot be kept in %s (%s). It goes on, but if it is stopped it "
                "starts from the beginning. Free some space there, or name another folder: "
                "spahgc.settings.cache_dir = ...",
                self.root,
                error,
            )
        self._pending.clear()
        self._written = now

    def remove(self) -> None:
        """Remove the parts of this run and those that it read: all jobs are complete."""
        for path in self._files:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in self._files}:
            # A part that a run was writing when it was killed; those of a run that goes on are younger.
            for path in folder.glob(".*"):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()

    def _folder(self, number: int) -> Path:
        # The digest is taken when it is needed: it reads some tiles.
        if number not in self._folders:
            self._folders[number] = self.root / identity(self.jobs[number])
        return self._folders[number]

    def _write(self, number: int, finished: list[tuple[int, Embedded]]) -> None:
        path = self._folder(number) / f"{self._run}.{len(self._files):06d}.npz"
        with replacing(path) as temporary:
            np.savez(
                temporary,
                batches=np.array([batch for batch, _ in finished], np.int64),
                counts=np.array([(embedded.n_padded, embedded.n_black) for _, embedded in finished], np.int64),
                values=np.concatenate([embedded.values for _, embedded in finished]),
                density=np.concatenate([embedded.density for _, embedded in finished]),
            )
        self._files.append(path)

    def _remove_old(self) -> None:
        if not self.root.is_dir():
            return
        for folder in self.root.iterdir():
            ours = len(folder.name) == 64 and set(folder.name) <= set("0123456789abcdef") and folder.is_dir()
            if ours and time.time() - folder.stat().st_mtime > KEEP_DAYS * 86400:
                shutil.rmtree(folder, ignore_errors=True)


def identity(job: Job) -> str:
    """Digest of all that the embedding of a job depends on, some tiles of each slide as they are read included."""
    encoder, tiling = job.encoder, job.tiling
    facts = {
        "format": _FORMAT,
        "version": version("spahgc"),
        "encoder": [encoder.name, encoder.precision, encoder.threads, dict(encoder.recipe)],
        "tiling": [tiling.widths, tiling.pixels],
        "slides": [
            [slide.name, slide.image, [[level.affine.tolist(), level.array.shape] for level in slide.levels]]
            for slide in job.slides
        ],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for slide, (_, tiles) in zip(job.slides, job.probes, strict=True):
        digest.update(slide.centres.tobytes())
        digest.update(tiles.encode())
    for batch in job.batches:
        digest.update(f"\0{batch.slide} {len(batch.spots)}".encode())
        digest.update(batch.spots.astype(np.int64).tobytes())
    return digest.hexdigest()


def _load(path: Path, job: Job) -> list[tuple[int, Embedded]]:
    """The batches in a part; none if it is not whole."""
    try:
        # A zip file: the CRC-32 of each array is checked as it is read.
        with np.load(path, allow_pickle=False) as arrays:
            batches, counts, values, density = (arrays[name] for name in ("batches", "counts", "values", "density"))
        sizes = [len(job.batches[batch].spots) for batch in batches]
        if values.ndim != 2 or not len(values) == len(density) == sum(sizes) > 0:
            raise ValueError(f"it holds {len(values)} embeddings of {sum(sizes)} spots")
    except (OSError, ValueError, IndexError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is not whole (%s); its tiles are embedded again.", path, error)
        return []
    ends = np.cumsum(sizes)
    return [
        (int(batch), Embedded(values[end - size : end], density[end - size : end], int(padded), int(black)))
        for batch, (padded, black), size, end in zip(batches, counts, sizes, ends, strict=True)
    ]


def _same(stored: Embedded, again: Embedded) -> bool:
    """Whether a batch came out as before, but for rounding: another number of threads or another device."""
    if stored.values.shape != again.values.shape or not np.array_equal(stored.density, again.density):
        return False
    scale = float(np.abs(stored.values).max())
    return bool(np.allclose(stored.values, again.values, rtol=1e-4, atol=1e-5 * scale))
