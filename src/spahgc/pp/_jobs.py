"""Run jobs, here or on a cluster, and collect what comes back batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from .._settings import settings
from .._slides import Float32
from ._engine import Embedded, Job, embed
from ._parts import Store

Todo = Iterable[tuple[int, int]]
"""Batches to embed: number of the job, number of the batch."""
Run = Callable[[Sequence[Job], Todo], Iterator[tuple[int, int, Embedded]]]
"""Embeds batches of jobs, and hands each out with the two numbers, in any order."""


class Result(NamedTuple):
    """The embedding of a table."""

    embedding: Float32
    """(n_obs, d)."""
    cellularity: Float32
    """Mean haematoxylin of each spot's tile, (n_obs,)."""
    n_padded: int
    """Number of tiles that leave the image."""
    n_black: int
    """Number of spots whose first tile is black throughout."""


def run_here(jobs: Sequence[Job], todo: Todo, *, workers: int) -> Iterator[tuple[int, int, Embedded]]:
    """A :data:`Run` in this process, with threads."""
    for number, group in groupby(todo, lambda item: item[0]):
        job, batches = jobs[number], [batch for _, batch in group]
        found = embed(
            job.slides,
            [job.batches[batch] for batch in batches],
            encoder=job.encoder,
            tiling=job.tiling,
            workers=workers,
        )
        for batch, embedded in zip(batches, found, strict=True):
            yield number, batch, embedded


def run_jobs(jobs: Sequence[Job], run: Run, *, resume: bool, progress: bool) -> Iterator[tuple[int, Result]]:
    """Embed jobs, and hand each out with its number when it is complete.

    With `resume`, finished batches are kept on disk until all jobs are handed out, and used by the next run of the
    same job if this one is stopped.
    """
    from tqdm.auto import tqdm

    tables = [_Table(job) for job in jobs]
    store = Store(settings.cache_dir, jobs) if resume else None
    n_spots, name = sum(job.n_spots for job in jobs), jobs[0].encoder.name
    with tqdm(total=n_spots, desc=f"embed ({name})", unit="spot", disable=not progress) as bar:
        if store is not None:
            for number, batch, embedded in store.read(lambda *item: next(run(jobs, [item]))[2]):
                bar.update(tables[number].add(batch, embedded))
            yield from ((number, table.result()) for number, table in enumerate(tables) if not table.missing)
        todo = [(number, batch) for number, table in enumerate(tables) for batch in sorted(table.missing)]
        try:
            for number, batch, embedded in run(jobs, todo):
                bar.update(tables[number].add(batch, embedded))
                if store is not None:
                    store.add(number, batch, embedded)
                if not tables[number].missing:
                    yield number, tables[number].result()
        except BaseException:
            if store is not None:
                store.flush()
            raise
    if store is not None:
        store.remove()


class _Table:
    """The rows of a table, filled batch by batch."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.missing = set(range(len(job.batches)))
        self._values: Float32 | None = None
        self._density = np.empty(job.n_spots, np.float32)
        self._n_padded = self._n_black = 0

    def add(self, number: int, embedded: Embedded) -> int:
        """Take a batch; the number of its spots."""
        batch, values = self.job.batches[number], embedded.values
        if self._values is None:
            self._values = np.empty((self.job.n_spots, values.shape[1]), np.float32)
        if values.shape[1] != self._values.shape[1]:
            raise ValueError(
                f"encoder {self.job.encoder.name!r} returned embeddings of width {values.shape[1]} after ones of width "
                f"{self._values.shape[1]}."
            )
        rows = self.job.slides[batch.slide].rows[batch.spots]
        self._values[rows], self._density[rows] = values, embedded.density
        self._n_padded += embedded.n_padded
        self._n_black += embedded.n_black
        self.missing.remove(number)
        return len(rows)

    def result(self) -> Result:
        """The whole table."""
        if self._values is None or self.missing:
            raise RuntimeError("The table is not complete.")
        return Result(self._values, self._density, self._n_padded, self._n_black)
