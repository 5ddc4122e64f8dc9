"""Tensors on disk that are never in memory as a whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spahgc._slides import Rows
from spahgc.tl._tensor_file import header_sha256, map_tensors, write_tensors


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "0.embedding": rng.normal(size=(9000, 3)).astype(np.float32),
        "0.coordinates": rng.normal(size=(9000, 2)),
        "é": rng.normal(size=(5, 3)).astype(np.float16),
        "vector": rng.normal(size=7).astype(np.float32),
        "empty": np.empty((0, 4), np.float32),
    }


def test_is_the_file_that_safetensors_writes(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_tensors(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_mapped_is_what_safetensors_reads(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    rows = Rows(tensors["0.embedding"], mean=np.array([1.0, 2, 3]), scale=np.array([2.0, np.inf, 1]))
    write_tensors(tmp_path / "file", {**tensors, "rows": rows}, half=["rows"])
    mapped, read = map_tensors(tmp_path / "file"), load_file(tmp_path / "file")
    assert mapped.keys() == read.keys() == {*tensors, "rows"}
    for name, array in read.items():
        assert mapped[name].dtype == array.dtype
        assert mapped[name].flags.aligned
        assert not mapped[name].flags.writeable or not mapped[name].size
        np.testing.assert_array_equal(mapped[name], array)
    np.testing.assert_array_equal(read["rows"], np.asarray(rows).astype(np.float16))


def test_nothing_but_empty_tensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"a": np.empty((0, 2))})
    assert map_tensors(tmp_path / "file")["a"].shape == (0, 2)


def test_writing_takes_a_block_of_memory(tmp_path: Path) -> None:
    """Twenty times as many rows as a block has, of a matrix that is made when it is read."""
    n, d = 160_000, 16
    repeated = Rows(np.arange(d, dtype=np.float32)[None], np.zeros(n, np.intp))
    tracemalloc.start()
    write_tensors(tmp_path / "file", {"a": repeated}, half=["a"])
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "file").stat().st_size
    assert size > n * d * 2
    assert most < size / 3
    assert (map_tensors(tmp_path / "file")["a"][-1] == np.arange(d)).all()


def test_too_large_for_half_precision(tmp_path: Path) -> None:
    values = np.array([[1.0], [65519.0], [-65519.0]])  # the largest that are rounded down to 65504
    write_tensors(tmp_path / "file", {"a": values}, half=["a"])
    assert map_tensors(tmp_path / "file")["a"].ravel().tolist() == [1, 65504, -65504]
    with pytest.raises(ValueError, match="a has values beyond 65504, the largest of half precision.*without half"):
        write_tensors(tmp_path / "file", {"a": values + 1}, half=["a"])


def test_header(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, tensors)
    content, digest = path.read_bytes(), header_sha256(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert header_sha256(path) == digest
    for changed in (content[:9] + b"x" + content[10:], b"\x01" + content[1:], b"\xff" * 8 + content[8:], b"", b"abc"):
        path.write_bytes(changed)
        assert header_sha256(path) != digest
