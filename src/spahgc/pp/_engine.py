"""From located slides to embeddings: threads read tiles ahead, and finished parts are kept on disk.

A part is a range of tiles of one slide. It is what a stopped embedding resumes with, and a task on a cluster.
"""

from __future__ import annotations

import json
import re
import threading
import time
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from itertools import chain, groupby, islice
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
from ._tiles import TileReader

PART_SPOTS = 256  # spots of a part: most that is lost when a run is killed
AHEAD = 3  # batches that are read before the encoder asks for them
_AHEAD_BYTES = 192 * 2**20  # of waiting tiles; one batch is read ahead in any case
_TOGETHER = 16  # spots that a thread reads at once: enough to reuse blocks, few enough to share the work
_KEEP_SECONDS = 30 * 86400  # parts that no run resumed for so long are removed
_READERS = 2  # threads of a dask task that read for an encoder that is called from one thread

Spots = NDArray[np.intp]
Advance = Callable[[int], Any]  # called with a number of finished spots


class Embedded(NamedTuple):
    """Embeddings (n, d); by spot, hematoxylin of its first tile, number of padded tiles, and if the first is black."""

    values: Float32
    density: Float32
    padded: NDArray[np.uint8]
    black: NDArray[np.bool_]


class Part(NamedTuple):
    """Spots, in reading order, of the slide with this number."""

    slide: int
    spots: Spots


Parts = dict[int, Part]  # by number


class Tiling(NamedTuple):
    """Sides of the fields of view in micrometers, the side in pixels of each tile, and tiles per batch."""

    widths: tuple[float, ...]
    pixels: int
    batch_size: int


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that an embedding depends on."""

    slides: tuple[LocatedSlide, ...]
    encoder: Encoder
    tiling: Tiling

    def reader(self, number: int) -> TileReader:
        """Reader of the tiles of a slide."""
        slide = self.slides[number]
        return TileReader(slide.levels, slide.centers, self.tiling.pixels, image=slide.image)

    @cached_property
    def parts(self) -> list[Part]:
        """Parts of all slides, whole batches each; always the same for the same job."""
        batch = self.tiling.batch_size
        size = max(1, PART_SPOTS // batch) * batch
        parts = []
        for number in range(len(self.slides)):
            order = self.reader(number).order(self.tiling.widths)
            parts += [Part(number, order[at : at + size]) for at in range(0, len(order), size)]
        return parts

    @cached_property
    def probes(self) -> list[tuple[Spots, str]]:
        """For each slide three of its spots and a digest of their tiles; raises if all are black."""
        probes = []
        for number, slide in enumerate(self.slides):
            own = [part.spots for part in self.parts if part.slide == number]
            spots = np.array([own[0][0], own[len(own) // 2][0], own[-1][-1]])
            tiles = self.probe(number, spots)
            if not tiles.any():
                # zarr reads missing files as zeros.
                raise ValueError(
                    f"Tiles at the first, a middle and the last spot of slide {slide.name!r} are black throughout: "
                    f"image {slide.image!r} holds nothing there. Was its file moved or deleted since it was opened? "
                    "Read it again, with spatialdata.read_zarr(path)."
                )
            probes.append((spots, digest(tiles)))
        return probes

    def probe(self, number: int, spots: Spots) -> Tiles:
        """Tiles of some spots of a slide."""
        reader = self.reader(number)
        return np.stack([reader.read(int(spot), self.tiling.widths[0])[0] for spot in spots])

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


def embed(job: Job, parts: Parts, advance: Advance = int, *, workers: int) -> Iterator[tuple[int, Embedded]]:
    """Embed parts in their order while `workers` threads read the tiles of the next batches.

    An encoder with `threads` runs in these threads; any other is called from this thread, per batch and field of view.
    """
    from ..encoders._texture import hematoxylin

    encoder, (widths, pixels, batch_size) = job.encoder, job.tiling
    size = _TOGETHER if encoder.threads else batch_size
    batch_bytes = size * len(widths) * 3 * pixels**2
    n_ahead = 2 * workers if encoder.threads else max(1, min(AHEAD, _AHEAD_BYTES // batch_bytes))
    pool = ThreadPoolExecutor(workers)

    def start(reader: TileReader, spots: Spots) -> Callable[[], Embedded]:
        """Start to read a batch; the result waits for it and embeds it."""
        n = len(spots)
        tiles = np.empty((len(widths), n, 3, pixels, pixels), np.uint8)
        density, padded, black = np.empty(n, np.float32), np.zeros(n, np.uint8), np.empty(n, np.bool_)

        def read(first: int) -> None:
            """Read some tiles into their places."""
            some = slice(first, first + _TOGETHER)
            for width, of_width in zip(widths, tiles, strict=True):
                for k, spot in enumerate(spots[some], start=first):
                    of_width[k], beyond = reader.read(int(spot), width)
                    padded[k] += beyond
            density[some] = hematoxylin(tiles[0, some])  # before the encoder can modify the tiles
            black[some] = ~tiles[0, some].any(axis=(1, 2, 3))

        def encode(reading: Iterable[None]) -> Embedded:
            deque(reading, maxlen=0)  # waits until all tiles are read
            fields = [check_embeddings(encoder.encode(field), n, name=encoder.name) for field in tiles]
            return Embedded(np.concatenate(fields, axis=1), density, padded, black)

        pieces = range(0, n, _TOGETHER)
        if encoder.threads:
            return pool.submit(encode, map(read, pieces)).result
        return partial(encode, pool.map(read, pieces))

    def batches() -> Iterator[Callable[[], Embedded]]:
        for slide, group in groupby(parts.values(), lambda part: part.slide):
            reader = job.reader(slide)
            for part in group:
                for at in range(0, len(part.spots), size):
                    yield start(reader, part.spots[at : at + size])

    upcoming, started = batches(), deque[Callable[[], Embedded]]()
    try:
        for number, part in parts.items():
            done: list[Embedded] = []
            for _ in range(0, len(part.spots), size):
                started.extend(islice(upcoming, n_ahead + 1 - len(started)))
                done.append(started.popleft()())
                advance(len(done[-1].values))
            widths_found = [batch.values.shape[1] for batch in done]
            if len(set(widths_found)) > 1:
                raise ValueError(f"Encoder {encoder.name!r} returned embeddings of different widths: {widths_found}.")
            yield number, Embedded(*(np.concatenate(arrays) for arrays in zip(*done, strict=True)))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# Embeds parts and yields each with its number, in any order.
Run = Callable[[Job, Parts, Advance], Iterator[tuple[int, Embedded]]]


def embed_slides(job: Job, run: Run, *, resume: bool, progress: bool) -> Iterator[tuple[int, Embedded]]:
    """Embed slides and yield each with its number once it is complete, in the order of its spots.

    With `resume`, finished parts stay on disk until all slides are done, for the next run if this one is stopped.
    """
    from tqdm.auto import tqdm

    todo = dict(enumerate(job.parts))
    missing = Counter(part.slide for part in job.parts)
    slides: dict[int, Any] = {}
    n_spots, keep = sum(len(part.spots) for part in job.parts), resume
    with tqdm(total=n_spots, desc=f"embed ({job.encoder.name})", unit="spot", disable=not progress) as bar:
        # Both are generators: the second starts when the first has taken its parts out of `todo`.
        for number, embedded in chain(_stored(job, todo) if resume else (), run(job, todo, bar.update)):
            slide, spots = job.parts[number]
            if number not in todo:
                bar.update(len(spots))
            elif keep:
                keep = _store(job, number, embedded)
            if slide not in slides:
                n = len(job.slides[slide].rows)
                slides[slide] = Embedded(*(np.empty((n, *part.shape[1:]), part.dtype) for part in embedded))
            for whole, part in zip(slides[slide], embedded, strict=True):
                whole[spots] = part
            missing[slide] -= 1
            if not missing[slide]:
                yield slide, slides.pop(slide)
    if resume:
        _remove(job)


# Finished parts in the cache folder.


def _path(job: Job, number: int) -> Path:
    return settings.cache_dir / f"{job.digest}.{number:06d}.npz"


def _stored(job: Job, todo: Parts) -> Iterator[tuple[int, Embedded]]:
    """Yield the parts that stopped runs left, without them in `todo`, unless the encoder gives other embeddings now."""
    n_spots = 0
    for number, part in enumerate(job.parts):
        path = _path(job, number)
        if not path.exists():
            continue
        try:
            with np.load(path, allow_pickle=False) as arrays:
                embedded = Embedded(**arrays)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            logger.warning("%s is damaged (%s); its tiles are embedded again.", path, error)
            continue
        if not n_spots and not _is_current(embedded, job, part):
            logger.warning(
                "Encoder %r gives other embeddings than when an earlier run was stopped. The tiles that run finished "
                "are embedded again.", job.encoder.name,
            )  # fmt: skip
            return
        n_spots += len(part.spots)
        del todo[number]
        yield number, embedded
    if n_spots:
        logger.info("Resuming a stopped run: %d tiles are embedded already.", n_spots)


def _is_current(embedded: Embedded, job: Job, part: Part) -> bool:
    """Whether the first batch comes out the same, but for rounding as with another number of threads."""
    first = Part(part.slide, part.spots[: job.tiling.batch_size])
    _, again = next(embed(job, {0: first}, workers=1))
    values = embedded.values[: len(first.spots)]
    if values.shape != again.values.shape:
        return False
    return bool(np.allclose(values, again.values, rtol=1e-4, atol=1e-5 * float(np.abs(values).max())))


def _store(job: Job, number: int, embedded: Embedded) -> bool:
    """Write a finished part; warn and return False if that fails, as on a full disk."""
    try:
        with replacing(_path(job, number)) as temporary:
            np.savez(temporary, **embedded._asdict())
    except OSError as error:
        logger.warning(
            "Finished parts of this embedding cannot be kept in %s (%s). The embedding continues, but if it is "
            "stopped it starts from the beginning. Free some space there, or choose another folder: "
            "spahgc.settings.cache_dir = ...", settings.cache_dir, error,
        )  # fmt: skip
        return False
    return True


def _remove(job: Job) -> None:
    """Remove the parts of this job, and old ones of any job."""
    for path in settings.cache_dir.glob("*.npz"):
        with suppress(FileNotFoundError):  # another run removed it
            is_old = re.match(r"\.?[0-9a-f]{64}\.", path.name) and time.time() - path.stat().st_mtime > _KEEP_SECONDS
            if is_old or path.name.startswith(job.digest):
                path.unlink()


# On the workers of a dask.distributed client.

_lock = threading.Lock()  # the tasks in the threads of a worker load and call its encoder one at a time


@dataclass(frozen=True, eq=False)
class EncoderSpec:
    """An encoder as the user named it, and the recipe that the client found; each worker loads it once."""

    encoder: Any
    device: str | None
    precision: Precision | None
    default_device: str
    recipe: dict[str, Any]


def embed_on(
    client: Any, spec: EncoderSpec, job: Job, parts: Parts, advance: Advance
) -> Iterator[tuple[int, Embedded]]:
    """Embed parts on the workers of a client; images travel as dask graphs, so those on disk as their paths."""
    from distributed import as_completed

    # What tasks share is a task too, and not scattered, so that it is made again if its worker is lost.
    share = partial(client.submit, _identity, pure=False)
    shared = share(spec)
    slides = {number: share((job.slides[number], *job.probes[number])) for number in {p.slide for p in parts.values()}}
    tasks = {
        client.submit(_embed_part, slides[slide], shared, spots, job.tiling, pure=False): number
        for number, (slide, spots) in parts.items()
    }
    try:
        for task in as_completed(list(tasks)):
            embedded = task.result()
            yield tasks.pop(task), embedded
            advance(len(embedded.values))
            task.release()
    finally:
        client.cancel(list(tasks))


def _identity(value: Any) -> Any:
    return value


def _embed_part(probed: tuple[LocatedSlide, Spots, str], spec: EncoderSpec, spots: Spots, tiling: Tiling) -> Embedded:
    """Embed a part on a worker."""
    slide, probe, tiles = probed
    with _lock:
        encoder = _loaded(spec)
    job = Job((slide,), encoder, tiling)
    if digest(job.probe(0, probe)) != tiles:
        raise ValueError(
            f"The worker on {gethostname()} does not see image {slide.image!r} as it is seen here: its path does not "
            "exist there or is another one. Put it where all workers see it, and read it by its absolute path: "
            "spatialdata.read_zarr('/shared/slides.zarr')."
        )
    return next(embed(job, {0: Part(0, spots)}, workers=1 if encoder.threads else _READERS))[1]


@lru_cache(maxsize=1)  # because weights are large
def _loaded(spec: EncoderSpec) -> Encoder:
    """Encoder of this worker."""
    settings.device = spec.default_device
    encoder = resolve(spec.encoder, device=spec.device, precision=spec.precision)
    if dict(encoder.recipe) != spec.recipe:
        raise ValueError(
            f"Encoder {encoder.name!r} on a worker ({dict(encoder.recipe)}) differs from the one here "
            f"({spec.recipe}). Install the same packages and weights on the workers."
        )

    def encode_alone(tiles: Tiles) -> Any:
        with _lock:
            return encoder.encode(tiles)

    return encoder if encoder.threads else replace(encoder, encode=encode_alone)
