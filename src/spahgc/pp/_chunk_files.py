"""Blocks of an image straight from the files of its zarr array.

zarr reads each chunk through an event loop and several threads. For the chunks of an image, of which there are
thousands, that takes five times as long as reading the file and decoding it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Decode = Callable[[bytes], Any]


class ChunkFiles:
    """The chunks of a local zarr array, three axes, uint8, as blocks of a dask array.

    Parameters
    ----------
    folder
        Folder of the array.
    key
        From the index of a chunk to the name of its file in the folder.
    decode
        From the content of a file to that of the chunk.
    chunk
        Shape of the chunks.
    shape
        Shape of the array.
    """

    def __init__(
        self,
        folder: Path,
        key: Callable[[tuple[int, ...]], str],
        decode: Decode,
        *,
        chunk: tuple[int, ...],
        shape: tuple[int, ...],
    ) -> None:
        self.folder, self.key, self.decode = folder, key, decode
        self.chunk, self.shape = chunk, shape
        self.trusted = False
        """Whether a block was found to be as zarr gives it."""

    def read(self, i: int, j: int) -> NDArray[np.uint8] | None:
        """Block in row i, column j, all channels, (c, h, w); `None` where zarr has to say what is there."""
        count = -(-self.shape[0] // self.chunk[0])
        parts = []
        for c in range(count):
            try:
                content = self.decode((self.folder / self.key((c, i, j))).read_bytes())
                parts.append(np.frombuffer(content, np.uint8).reshape(self.chunk))
            except (OSError, RuntimeError, ValueError, EOFError, zlib.error):  # damaged or not there
                return None
        # Chunks at the end of an axis are stored whole.
        height, width = (
            min(size, whole - at * size) for size, whole, at in zip(self.chunk[1:], self.shape[1:], (i, j), strict=True)
        )
        block = parts[0] if count == 1 else np.concatenate(parts)[: self.shape[0]]
        return np.ascontiguousarray(block[:, :height, :width])


def chunk_files(array: Any, graph: Mapping[Any, Any]) -> ChunkFiles | None:
    """The files behind a dask array, if it is a plain zarr array on this machine's file system; else `None`.

    Parameters
    ----------
    array
        dask array (c, y, x).
    graph
        Its graph.
    """
    import zarr
    from zarr.storage import LocalStore

    sources = [value for value in graph.values() if isinstance(value, zarr.Array)]
    # As `dask.array.from_zarr` makes it, one task for each block and the source: nothing happens in between.
    if not array.name.startswith("from-zarr-") or len(sources) != 1 or len(graph) != array.npartitions + 1:
        return None
    (source,) = sources
    store = source.store_path.store
    decode = _decoder(source)
    plain = (
        source.shape == array.shape
        and source.dtype == array.dtype == np.uint8
        and all(set(sizes[:-1]) <= {size} for sizes, size in zip(array.chunks, source.chunks, strict=True))
        and all(
            sizes[0] == min(size, whole)
            for sizes, size, whole in zip(array.chunks, source.chunks, source.shape, strict=True)
        )
        and source.shards is None
        and source.order == "C"
        and not source.filters
    )
    if not plain or decode is None or not isinstance(store, LocalStore):
        return None
    folder = Path(store.root) / source.store_path.path
    return ChunkFiles(folder, source.metadata.encode_chunk_key, decode, chunk=source.chunks, shape=source.shape)


def _decoder(source: Any) -> Decode | None:
    """What decodes a chunk; `None` if that takes more than one of the usual codecs."""
    import numcodecs
    from numcodecs.abc import Codec

    if not source.compressors:
        return bytes
    if len(source.compressors) > 1:
        return None
    (codec,) = source.compressors
    if isinstance(codec, Codec):  # zarr's second format
        return codec.decode
    # How hard something was compressed is of no matter for decoding it.
    usual = {"zstd": numcodecs.Zstd, "gzip": numcodecs.GZip, "blosc": numcodecs.Blosc}
    name = codec.to_dict().get("name")
    return usual[name]().decode if name in usual else None
