"""Run jobs on a ``dask.distributed`` cluster: ranges of tiles are its tasks."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from socket import gethostname
from typing import Any

from .._settings import settings
from ..encoders._base import Encode, Encoder, Precision, Tiles
from ..encoders._table import resolve
from ._engine import Batch, Embedded, Job, Tiling, embed, probe
from ._jobs import Todo
from ._locate import LocatedSlide
from ._tiles import CACHE_BYTES

RETRIES = 2
"""Times that a task that failed is tried again: a file system may have been away. Tasks of a worker that is lost do not
count, dask moves them."""
TASK_SPOTS = 2048
"""Most spots of a task, unless a batch has more."""
_TASKS_PER_THREAD = 8  # so that the last ones to finish do not keep the others waiting for long
_READERS = 2  # threads that read for an encoder that is called from one

_lock = threading.Lock()
_encoding = threading.Lock()
_encoders: dict[str, Encoder] = {}


@dataclass(frozen=True, eq=False)
class EncoderSpec:
    """An encoder as the user named it: each worker loads it once."""

    token: str
    encoder: Any
    device: str | None
    precision: Precision | None
    default_device: str
    """What the client's settings say."""
    recipe: dict[str, Any]
    """What it has to be, as the client found it."""


def run_on(client: Any, spec: EncoderSpec, jobs: Sequence[Job], todo: Todo) -> Iterator[tuple[int, int, Embedded]]:
    """A :data:`~spahgc.pp._jobs.Run` on the workers of a client.

    Images travel as their dask graphs: those on disk as a path, which the workers have to reach, those in memory whole.
    """
    from distributed import as_completed

    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, batch in todo:
        groups[number, jobs[number].batches[batch].slide].append(batch)
    n_threads = max(1, sum(client.nthreads().values()))
    n_spots = sum(len(jobs[number].batches[batch].spots) for (number, _), of in groups.items() for batch in of)
    most = max(1, min(TASK_SPOTS, n_spots // (n_threads * _TASKS_PER_THREAD)))

    # Tasks, and not scattered: what was on a worker that is lost is then made again.
    shared = client.submit(_keep, spec, pure=False)
    tasks: dict[Any, tuple[int, list[int]]] = {}
    try:
        for (number, slide), batches in groups.items():
            job = jobs[number]
            located = client.submit(_keep, (job.slides[slide], *job.probes[slide]), pure=False)
            for piece in _pieces(job, batches, most):
                spots = [job.batches[batch].spots for batch in piece]
                task = client.submit(_embed, located, shared, spots, job.tiling, pure=False, retries=RETRIES)
                tasks[task] = number, piece
        for task in as_completed(list(tasks)):
            number, piece = tasks.pop(task)
            found = task.result()
            if isinstance(found, Exception):
                raise found
            for batch, embedded in zip(piece, found, strict=True):
                yield number, batch, embedded
            task.release()
    finally:
        client.cancel(list(tasks))


def _pieces(job: Job, batches: Sequence[int], most: int) -> Iterator[list[int]]:
    """Batches, one after another, of up to `most` spots together, but at least one."""
    piece: list[int] = []
    n_spots = 0
    for batch in batches:
        size = len(job.batches[batch].spots)
        if piece and n_spots + size > most:
            yield piece
            piece, n_spots = [], 0
        piece.append(batch)
        n_spots += size
    if piece:
        yield piece


def _keep(value: Any) -> Any:
    """Runs on a worker: what tasks share."""
    return value


def _embed(
    located: tuple[LocatedSlide, Any, str], spec: EncoderSpec, spots: list[Any], tiling: Tiling
) -> list[Embedded] | Exception:
    """Runs on a worker. What would fail again is handed back and not raised: it is not worth another try."""
    from distributed import get_worker

    share = CACHE_BYTES // max(1, get_worker().state.nthreads)
    batches = [Batch(0, of_batch) for of_batch in spots]
    slide, probed, digest = located
    try:
        if probe(slide, tiling, probed)[0] != digest:
            raise ValueError(
                f"The worker on {gethostname()} does not see image {slide.image!r} as it is seen here: it is read from "
                "a path that is another one there, or not there. Put it where all workers see it, and read it by its "
                "whole path: spatialdata.read_zarr('/shared/slides.zarr')."
            )
        encoder = _loaded(spec)
        workers = 1 if encoder.threads else _READERS
        return list(embed([slide], batches, encoder=encoder, tiling=tiling, workers=workers, cache_bytes=share))
    except (TypeError, ValueError) as error:
        return error


def _in_turn(encode: Encode) -> Encode:
    """Called from one thread at a time, while the tasks in the other threads read."""

    def alone(tiles: Tiles) -> Any:
        with _encoding:
            return encode(tiles)

    return alone


def _loaded(spec: EncoderSpec) -> Encoder:
    with _lock:
        if spec.token not in _encoders:
            settings.device = spec.default_device
            encoder = resolve(spec.encoder, device=spec.device, precision=spec.precision)
            if dict(encoder.recipe) != spec.recipe:
                raise ValueError(
                    f"Encoder {encoder.name!r} is another on a worker ({dict(encoder.recipe)}) than here "
                    f"({spec.recipe}). Install the same packages and weights on the workers."
                )
            _encoders.clear()  # one at a time: weights are large
            _encoders[spec.token] = encoder if encoder.threads else replace(encoder, encode=_in_turn(encoder.encode))
        return _encoders[spec.token]
