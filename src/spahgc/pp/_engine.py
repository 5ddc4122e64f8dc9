"""From located slides to the embeddings of their spots: tiles are read ahead while the encoder works."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._slides import Float32
from ..encoders._base import Encoder, check_embeddings
from ._locate import LocatedSlide
from ._tiles import CACHE_BYTES, Cache, TileReader

AHEAD = 3
"""Batches that are read before the encoder asks for them."""
_AHEAD_BYTES = 192 * 2**20  # of tiles that wait; one batch is read ahead in any case
_TOGETHER = 16  # spots a thread takes at once: enough to reuse blocks, few enough to share the work

Spots = NDArray[np.intp]
Item = TypeVar("Item")
Started = TypeVar("Started")


class Embedded(NamedTuple):
    """What a batch of spots becomes."""

    values: Float32
    """Embeddings, (n, d)."""
    density: Float32
    """Mean haematoxylin of each spot's tile at the first width, (n,)."""
    n_padded: int
    """Number of tiles that leave the image."""
    n_black: int
    """Number of spots whose first tile is black throughout, as where a zarr image has no data."""


class Batch(NamedTuple):
    """Spots that the encoder gets at once: what is embedded, kept and handed out is always whole batches."""

    slide: int
    """Index into the slides of the job."""
    spots: Spots
    """Indices into the centres of the slide."""


@dataclass(frozen=True)
class Tiling:
    """What the tiles of a spot are."""

    widths: tuple[float, ...]
    """Side of each field of view, micrometres."""
    pixels: int
    """Side in pixels that each is resampled to."""


@dataclass(frozen=True, eq=False)
class Job:
    """All that the embedding of one table depends on."""

    slides: tuple[LocatedSlide, ...]
    encoder: Encoder
    tiling: Tiling
    batch_size: int

    @cached_property
    def batches(self) -> list[Batch]:
        """The spots of all slides in the order in which they are read; always the same for the same job."""
        # Encoders that run in threads take what a thread takes at once.
        size = _TOGETHER if self.encoder.threads else self.batch_size
        out = []
        for number, slide in enumerate(self.slides):
            order = reader(slide, self.tiling).order(self.tiling.widths)
            out += [Batch(number, order[at : at + size]) for at in range(0, len(order), size)]
        return out

    @cached_property
    def probes(self) -> list[tuple[Spots, str]]:
        """For each slide, some of its spots, and a digest of their tiles as they are read.

        Raises
        ------
        ValueError
            If all of them are black: zarr fills in what it does not find.
        """
        out = []
        for number, slide in enumerate(self.slides):
            order = np.concatenate([batch.spots for batch in self.batches if batch.slide == number])
            spots = order[[0, len(order) // 2, -1]]
            digest, black = probe(slide, self.tiling, spots)
            if black:
                raise ValueError(
                    f"Tiles at the first, the middle and the last spot of slide {slide.name!r} are black throughout: "
                    f"image {slide.image!r} holds nothing there. Was its file moved or deleted since it was opened? "
                    "Read it again, with spatialdata.read_zarr(path)."
                )
            out.append((spots, digest))
        return out

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return sum(len(slide.rows) for slide in self.slides)


def reader(slide: LocatedSlide, tiling: Tiling, cache: Cache | None = None) -> TileReader:
    """A reader of the tiles of a slide."""
    return TileReader(slide.levels, slide.centres, tiling.pixels, cache=cache, image=slide.image)


def probe(slide: LocatedSlide, tiling: Tiling, spots: Spots) -> tuple[str, bool]:
    """A digest of the tiles of some spots, and whether all are black."""
    source = reader(slide, tiling)
    tiles = np.stack([source.read(int(spot), tiling.widths[0])[0] for spot in spots])
    return hashlib.sha256(tiles.tobytes()).hexdigest(), not tiles.any()


def embed(
    slides: Sequence[LocatedSlide],
    batches: Iterable[Batch],
    *,
    encoder: Encoder,
    tiling: Tiling,
    workers: int,
    cache_bytes: int = CACHE_BYTES,
) -> Iterator[Embedded]:
    """Embed batches, in their order.

    Parameters
    ----------
    slides
        What the batches refer to.
    batches
        Batches, those of a slide one after another.
    encoder
        The encoder; unless it runs in threads, it is called from this thread, once for each batch and field of view.
    tiling
        What the tiles of a spot are.
    workers
        Threads that read tiles, and that run an encoder that runs in threads.
    cache_bytes
        Decoded blocks of images that are kept.
    """
    from ..encoders._texture import hematoxylin

    cache = Cache(cache_bytes)
    pool = ThreadPoolExecutor(workers)
    current: tuple[int, TileReader] | None = None

    def fill(source: TileReader, spots: Spots, tiles: list[NDArray[np.uint8]], density: Float32) -> tuple[int, int]:
        """Read the tiles of some spots into their places; how many are padded, and how many spots black."""
        padded = 0
        for width, of_width in zip(tiling.widths, tiles, strict=True):
            for k, spot in enumerate(spots):
                of_width[k], outside = source.read(int(spot), width)
                padded += outside
        density[:] = hematoxylin(tiles[0])  # before the encoder gets its hands on the tiles
        return padded, sum(not tile.any() for tile in tiles[0])

    def encode(tiles: list[NDArray[np.uint8]]) -> Float32:
        fields = [check_embeddings(encoder.encode(of_width), len(of_width), name=encoder.name) for of_width in tiles]
        return np.concatenate(fields, axis=1)

    def start(batch: Batch) -> Callable[[], Embedded]:
        """Begin to read a batch; what comes back waits for it, and embeds it."""
        nonlocal current
        if current is None or current[0] != batch.slide:
            current = batch.slide, reader(slides[batch.slide], tiling, cache)
        source, spots = current[1], batch.spots
        tiles = [np.empty((len(spots), 3, tiling.pixels, tiling.pixels), np.uint8) for _ in tiling.widths]
        density = np.empty(len(spots), np.float32)
        if encoder.threads:
            # A thread takes a batch from the image to its embedding.
            def whole() -> Embedded:
                counts = fill(source, spots, tiles, density)
                return Embedded(encode(tiles), density, *counts)

            return pool.submit(whole).result
        parts = [slice(at, at + _TOGETHER) for at in range(0, len(spots), _TOGETHER)]
        reading: list[Future[tuple[int, int]]] = [
            pool.submit(fill, source, spots[part], [of_width[part] for of_width in tiles], density[part])
            for part in parts
        ]

        def encoded() -> Embedded:
            padded, black = zip(*(part.result() for part in reading), strict=True)
            return Embedded(encode(tiles), density, sum(padded), sum(black))

        return encoded

    def depth(batch: Batch) -> int:
        if encoder.threads:
            return 2 * workers
        size = len(batch.spots) * len(tiling.widths) * 3 * tiling.pixels**2
        return max(1, min(AHEAD, _AHEAD_BYTES // size))

    try:
        for finish in _ahead(batches, start, depth):
            yield finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ahead(items: Iterable[Item], start: Callable[[Item], Started], depth: Callable[[Item], int]) -> Iterator[Started]:
    """Hand out started items in their order, with the next ones started already."""
    waiting: deque[Started] = deque()
    for item in items:
        waiting.append(start(item))
        if len(waiting) > depth(item):
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
