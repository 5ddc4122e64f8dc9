"""From located slides to embeddings: threads read tiles ahead, and finished parts are kept on disk.

A part is a range of tiles of one slide. It is what a stopped embedding resumes with, and a task on a cluster.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from socket import gethostname
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._disk import digest, replacing
from .._settings import logger, settings
from .._slides import Float32
from ..encoders._base import Encoder, Precision, Tiles, check_embeddings
from ..encoders._table import resolve
from ._images import LocatedSlide
from ._tiles import CACHE_BYTES, BlockCache, TileReader

PART_SPOTS = 256  # spots of a part: most that is lost when a run is killed
AHEAD = 3  # batches that are read before the encoder asks for them
_AHEAD_BYTES = 192 * 2**20  # of waiting tiles; one batch is read ahead in any case
_TOGETHER = 16  # spots that a thread reads at once: enough to reuse blocks, few enough to share the work
_KEEP_DAYS = 30  # parts that no run resumed for so long are removed
_READERS = 2  # threads of a dask task that read for an encoder that is called from one thread
_RETRIES = 2  # of a failed dask task; tasks of a lost worker are moved by dask and do not count

Spots = NDArray[np.intp]
Advance = Callable[[int], Any]  # called with a number of finished spots


class Embedded(NamedTuple):
    """Embeddings (n, d), mean hematoxylin of the first field of view (n,), and how many tiles are padded or black."""

    values: Float32
    density: Float32
    n_padded: int
    n_black: int


class TileRange(NamedTuple):
    """Spots, in reading order, of the slide with this number."""

    slide: int
    spots: Spots


class Tiling(NamedTuple):
    """Sides of the fields of view in micrometers, the side in pixels of each tile, and tiles per batch."""

    widths: tuple[float, ...]
    pixels: int
    batch_size: int


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that the embedding of one table depends on."""

    slides: tuple[LocatedSlide, ...]
    encoder: Encoder
    tiling: Tiling

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return sum(len(slide.rows) for slide in self.slides)

    @cached_property
    def parts(self) -> list[TileRange]:
        """Parts of all slides, whole batches each; always the same for the same job."""
        batch = self.tiling.batch_size
        size = max(1, PART_SPOTS // batch) * batch
        parts = []
        for number, slide in enumerate(self.slides):
            order = reader_of(slide, self.tiling).order(self.tiling.widths)
            parts += [TileRange(number, order[at : at + size]) for at in range(0, len(order), size)]
        return parts

    @cached_property
    def probes(self) -> list[tuple[Spots, str]]:
        """For each slide three of its spots and a digest of their tiles; raises if all are black."""
        probes = []
        for number, slide in enumerate(self.slides):
            own = [part.spots for part in self.parts if part.slide == number]
            spots = np.array([own[0][0], own[len(own) // 2][0], own[-1][-1]])
            tiles, black = probe(slide, self.tiling, spots)
            if black:
                # zarr reads missing files as zeros.
                raise ValueError(
                    f"Tiles at the first, a middle and the last spot of slide {slide.name!r} are black throughout: "
                    f"image {slide.image!r} holds nothing there. Was its file moved or deleted since it was opened? "
                    "Read it again, with spatialdata.read_zarr(path)."
                )
            probes.append((spots, tiles))
        return probes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that the embedding depends on, including some tiles of each slide."""
        encoder = self.encoder
        facts = {
            "version": version("spahgc"),
            "encoder": [encoder.name, encoder.precision, encoder.threads, dict(encoder.recipe)],
            "tiling": self.tiling,
            "slides": [
                [slide.name, slide.image, [[level.affine.tolist(), level.array.shape] for level in slide.levels]]
                for slide in self.slides
            ],
            "tiles": [tiles for _, tiles in self.probes],
        }
        spots = [part.spots for part in self.parts]
        return digest(json.dumps(facts, sort_keys=True), *(slide.centers for slide in self.slides), *spots)


def reader_of(slide: LocatedSlide, tiling: Tiling, cache: BlockCache | None = None) -> TileReader:
    """Reader of the tiles of a slide."""
    return TileReader(slide.levels, slide.centers, tiling.pixels, cache=cache, image=slide.image)


def probe(slide: LocatedSlide, tiling: Tiling, spots: Spots) -> tuple[str, bool]:
    """Digest of the tiles of some spots, and whether all are black."""
    reader = reader_of(slide, tiling)
    tiles = np.stack([reader.read(int(spot), tiling.widths[0])[0] for spot in spots])
    return digest(tiles), not tiles.any()


def embed(
    slides: Sequence[LocatedSlide],
    parts: Sequence[TileRange],
    *,
    encoder: Encoder,
    tiling: Tiling,
    workers: int,
    cache_bytes: int = CACHE_BYTES,
    advance: Advance = int,
) -> Iterator[Embedded]:
    """Embed parts in their order while `workers` threads read the tiles of the next batches.

    An encoder with `threads` runs in these threads; any other is called from this thread, per batch and field of view.
    """
    from ..encoders._texture import hematoxylin

    cache = BlockCache(cache_bytes)
    pool = ThreadPoolExecutor(workers)
    size = _TOGETHER if encoder.threads else tiling.batch_size
    current: tuple[int, TileReader] | None = None

    def start(number: int, spots: Spots) -> Callable[[], Embedded]:
        """Start to read a batch of a slide; the result waits for it and embeds it."""
        nonlocal current
        if current is None or current[0] != number:
            current = number, reader_of(slides[number], tiling, cache)
        reader = current[1]
        tiles = [np.empty((len(spots), 3, tiling.pixels, tiling.pixels), np.uint8) for _ in tiling.widths]
        density = np.empty(len(spots), np.float32)

        def read(first: int) -> tuple[int, int]:
            """Read some tiles into their places; return how many are padded and how many are black."""
            some = slice(first, first + _TOGETHER)
            padded = 0
            for width, of_width in zip(tiling.widths, tiles, strict=True):
                for k, spot in enumerate(spots[some], start=first):
                    of_width[k], is_padded = reader.read(int(spot), width)
                    padded += is_padded
            density[some] = hematoxylin(tiles[0][some])  # before the encoder can modify the tiles
            return padded, sum(not tile.any() for tile in tiles[0][some])

        def encode(counts: Iterable[tuple[int, int]]) -> Embedded:
            padded, black = zip(*counts, strict=True)
            fields = [
                check_embeddings(encoder.encode(of_width), len(of_width), name=encoder.name) for of_width in tiles
            ]
            return Embedded(np.concatenate(fields, axis=1), density, sum(padded), sum(black))

        pieces = range(0, len(spots), _TOGETHER)
        if encoder.threads:
            return pool.submit(lambda: encode([read(first) for first in pieces])).result
        reading = [pool.submit(read, first) for first in pieces]
        return lambda: encode([piece.result() for piece in reading])

    depth = max(1, min(AHEAD, _AHEAD_BYTES // (size * len(tiling.widths) * 3 * tiling.pixels**2)))
    batches = ((part.slide, part.spots[at : at + size]) for part in parts for at in range(0, len(part.spots), size))
    started = _ahead((start(*batch) for batch in batches), 2 * workers if encoder.threads else depth)
    try:
        for part in parts:
            done: list[Embedded] = []
            while sum(len(batch.values) for batch in done) < len(part.spots):
                done.append(next(started)())
                check_width(encoder, done[-1].values, done[0].values)
                advance(len(done[-1].values))
            values, density, padded, black = zip(*done, strict=True)
            yield Embedded(np.concatenate(values), np.concatenate(density), sum(padded), sum(black))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ahead(items: Iterator[Callable[[], Embedded]], depth: int) -> Iterator[Callable[[], Embedded]]:
    """Yield items in their order after taking the next `depth` of them."""
    waiting: deque[Callable[[], Embedded]] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting


def check_width(encoder: Encoder, values: Float32, first: Float32) -> None:
    """Raise if an encoder returned embeddings of different widths."""
    if values.shape[1] != first.shape[1]:
        raise ValueError(
            f"encoder {encoder.name!r} returned embeddings of width {values.shape[1]} after embeddings of width "
            f"{first.shape[1]}."
        )


Todo = Iterable[tuple[int, int]]  # numbers of jobs and of their parts
# Embeds parts of jobs and yields each with its two numbers, in any order.
Run = Callable[[Sequence[Job], Todo, Advance], Iterator[tuple[int, int, Embedded]]]


def run_here(jobs: Sequence[Job], todo: Todo, advance: Advance, *, workers: int) -> Iterator[tuple[int, int, Embedded]]:
    """Embed parts in this process, with threads."""
    for number, group in groupby(todo, lambda item: item[0]):
        job, parts = jobs[number], [part for _, part in group]
        found = embed(
            job.slides,
            [job.parts[part] for part in parts],
            encoder=job.encoder,
            tiling=job.tiling,
            workers=workers,
            advance=advance,
        )
        for part, embedded in zip(parts, found, strict=True):
            yield number, part, embedded


def run_jobs(jobs: Sequence[Job], run: Run, *, resume: bool, progress: bool) -> Iterator[tuple[int, Embedded]]:
    """Embed jobs and yield each with its number once it is complete, rows in the order of the table.

    With `resume`, finished parts stay on disk until all jobs are done, for the next run if this one is stopped.
    """
    from tqdm.auto import tqdm

    store = PartStore(settings.cache_dir) if resume else None
    missing = [set(range(len(job.parts))) for job in jobs]
    tables: list[Embedded | None] = [None] * len(jobs)
    n_spots, name = sum(job.n_spots for job in jobs), jobs[0].encoder.name
    with tqdm(total=n_spots, desc=f"embed ({name})", unit="spot", disable=not progress) as bar:

        def finished() -> Iterator[tuple[int, int, Embedded]]:
            for number, part, embedded in store.load(jobs) if store else ():
                bar.update(len(embedded.values))
                yield number, part, embedded
            todo = [(number, part) for number, parts in enumerate(missing) for part in sorted(parts)]
            for number, part, embedded in run(jobs, todo, bar.update):
                if store:
                    store.save(jobs[number], part, embedded)
                yield number, part, embedded

        for number, part, (values, density, n_padded, n_black) in finished():
            job, table = jobs[number], tables[number]
            if table is None:
                empty = np.empty((job.n_spots, values.shape[1]), np.float32)
                table = Embedded(empty, np.empty(job.n_spots, np.float32), 0, 0)
            check_width(job.encoder, values, table.values)
            rows = job.slides[job.parts[part].slide].rows[job.parts[part].spots]
            table.values[rows], table.density[rows] = values, density
            table = table._replace(n_padded=table.n_padded + n_padded, n_black=table.n_black + n_black)
            tables[number] = table
            missing[number].remove(part)
            if not missing[number]:
                yield number, table
    if store:
        store.remove()


class PartStore:
    """Finished parts on disk, in ``{digest of the job}.{run}.{part}.npz``: runs do not touch each other's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run = uuid.uuid4().hex[:12]
        self._files: list[Path] = []
        self._usable = True

    def load(self, jobs: Sequence[Job]) -> Iterator[tuple[int, int, Embedded]]:
        """Yield the parts that stopped runs left.

        A run is trusted if its first batch, embedded again, is the same: an encoder may change without another name.
        """
        trusted: dict[str, bool] = {}
        for number, job in enumerate(jobs):
            done: set[int] = set()
            for path in sorted(self.folder.glob(f"{job.digest}.*.npz")):
                run, part = path.name.split(".")[1], int(path.name.split(".")[2])
                stored = _load(path, len(job.parts[part].spots))
                if stored is not None and run not in trusted:
                    trusted[run] = _same(stored, job, job.parts[part])
                    if not trusted[run]:
                        logger.warning(
                            "Encoder %r gives other embeddings than when an earlier run was stopped. The tiles that "
                            "run finished are embedded again.",
                            job.encoder.name,
                        )
                if stored is None or not trusted[run]:
                    path.unlink(missing_ok=True)
                    continue
                self._files.append(path)
                if part not in done:
                    done.add(part)
                    yield number, part, stored
            if done:
                n_spots = sum(len(job.parts[part].spots) for part in done)
                logger.info("Resuming a stopped run: %d of %d tiles are embedded already.", n_spots, job.n_spots)

    def save(self, job: Job, part: int, embedded: Embedded) -> None:
        """Write a finished part; if the disk is full, warn once and go on without."""
        if not self._usable:
            return
        path = self.folder / f"{job.digest}.{self._run}.{part:06d}.npz"
        try:
            if not self._files:  # the first part of this run
                for old in self.folder.glob("*.npz"):
                    days = (time.time() - old.stat().st_mtime) / 86400
                    if days > _KEEP_DAYS and re.match(r"\.?[0-9a-f]{64}\.", old.name):
                        old.unlink(missing_ok=True)
            with replacing(path) as temporary:
                counts = np.array([embedded.n_padded, embedded.n_black])
                np.savez(temporary, values=embedded.values, density=embedded.density, counts=counts)
            self._files.append(path)
        except OSError as error:
            self._usable = False
            logger.warning(
                "Finished parts of this embedding cannot be kept in %s (%s). The embedding continues, but if it is "
                "stopped it starts from the beginning. Free some space there, or choose another folder: "
                "spahgc.settings.cache_dir = ...",
                self.folder,
                error,
            )

    def remove(self) -> None:
        """Remove the parts of this run and those that it loaded."""
        for path in self._files:
            path.unlink(missing_ok=True)


def _load(path: Path, n_spots: int) -> Embedded | None:
    """Part in a file, or `None` if the file is damaged; zip files have a checksum for each array."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            values, density, (padded, black) = arrays["values"], arrays["density"], arrays["counts"]
        if values.ndim != 2 or not len(values) == len(density) == n_spots:
            raise ValueError(f"it holds {len(values)} embeddings of {n_spots} spots")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged (%s); its tiles are embedded again.", path, error)
        return None
    return Embedded(values, density, int(padded), int(black))


def _same(stored: Embedded, job: Job, part: TileRange) -> bool:
    """Whether the first batch of a part comes out the same, but for rounding as with another number of threads."""
    some = TileRange(part.slide, part.spots[: job.tiling.batch_size])
    again = next(embed(job.slides, [some], encoder=job.encoder, tiling=job.tiling, workers=1))
    values, density = stored.values[: len(some.spots)], stored.density[: len(some.spots)]
    if values.shape != again.values.shape or not np.array_equal(density, again.density):
        return False
    return bool(np.allclose(values, again.values, rtol=1e-4, atol=1e-5 * float(np.abs(values).max())))


# On the workers of a dask.distributed client.

_loading = threading.Lock()
_encoding = threading.Lock()
_encoders: dict[str, Encoder] = {}


@dataclass(frozen=True, eq=False)
class EncoderSpec:
    """An encoder as the user named it, and the recipe that the client found; each worker loads it once."""

    token: str
    encoder: Any
    device: str | None
    precision: Precision | None
    default_device: str
    recipe: dict[str, Any]


def run_on(
    client: Any, spec: EncoderSpec, jobs: Sequence[Job], todo: Todo, advance: Advance
) -> Iterator[tuple[int, int, Embedded]]:
    """Embed parts on the workers of a client; images travel as dask graphs, so those on disk as their paths."""
    from distributed import as_completed

    # What tasks share is a task too, and not scattered, so that it is made again if its worker is lost.
    shared = client.submit(_identity, spec, pure=False)
    slides: dict[tuple[int, int], Any] = {}
    tasks: dict[Any, tuple[int, int]] = {}
    try:
        for number, part in todo:
            job = jobs[number]
            slide, spots = job.parts[part]
            if (number, slide) not in slides:
                known = (job.slides[slide], *job.probes[slide])
                slides[number, slide] = client.submit(_identity, known, pure=False)
            work = slides[number, slide], shared, spots, job.tiling
            tasks[client.submit(_embed_part, *work, pure=False, retries=_RETRIES)] = number, part
        for task in as_completed(list(tasks)):
            result = task.result()
            if isinstance(result, Exception):
                raise result
            yield *tasks.pop(task), result
            advance(len(result.values))
            task.release()
    finally:
        client.cancel(list(tasks))


def _identity(value: Any) -> Any:
    return value


def _embed_part(
    known: tuple[LocatedSlide, Spots, str], spec: EncoderSpec, spots: Spots, tiling: Tiling
) -> Embedded | Exception:
    """Embed a part on a worker; an error that would occur again is returned, so that it is not retried."""
    from distributed import get_worker

    slide, probed, digest = known
    try:
        if probe(slide, tiling, probed)[0] != digest:
            raise ValueError(
                f"The worker on {gethostname()} does not see image {slide.image!r} as it is seen here: its path does "
                "not exist there or is another one. Put it where all workers see it, and read it by its absolute "
                "path: spatialdata.read_zarr('/shared/slides.zarr')."
            )
        encoder = _loaded(spec)
        found = embed(
            [slide],
            [TileRange(0, spots)],
            encoder=encoder,
            tiling=tiling,
            workers=1 if encoder.threads else _READERS,
            cache_bytes=CACHE_BYTES // max(1, get_worker().state.nthreads),
        )
        return next(found)
    except (TypeError, ValueError) as error:
        return error


def _loaded(spec: EncoderSpec) -> Encoder:
    """Encoder of this worker; the tasks in its threads call it one at a time."""
    with _loading:
        if spec.token not in _encoders:
            settings.device = spec.default_device
            encoder = resolve(spec.encoder, device=spec.device, precision=spec.precision)
            if dict(encoder.recipe) != spec.recipe:
                raise ValueError(
                    f"Encoder {encoder.name!r} on a worker ({dict(encoder.recipe)}) differs from the one here "
                    f"({spec.recipe}). Install the same packages and weights on the workers."
                )

            def encode_alone(tiles: Tiles) -> Any:
                with _encoding:
                    return encoder.encode(tiles)

            _encoders.clear()  # one at a time, because weights are large
            _encoders[spec.token] = encoder if encoder.threads else replace(encoder, encode=encode_alone)
        return _encoders[spec.token]
