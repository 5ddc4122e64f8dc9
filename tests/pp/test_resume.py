"""`pp.image_embedding(resume=True)`: a run that was stopped goes on, and nothing half-written is ever taken."""

from __future__ import annotations

import importlib.util
import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import spahgc
from spahgc.encoders._table import resolve
from spahgc.pp import _engine

from .conftest import Make

KEY = "image_projection"
ENCODER = '''
import os, time
import numpy as np

WEIGHTS = np.random.default_rng(5).normal(size=(3 * 16 * 16, 24)).astype(np.float32)
SEEN = []

def projection(tiles):
    """Writes down how many tiles it was given, after it has given them back."""
    SEEN.append(len(tiles))
    if "SEEN" in os.environ:
        with open(os.environ["SEEN"], "a") as file:
            file.write(f"{len(tiles)}\\n")
        if len(SEEN) == int(os.environ["LAST"]):
            time.sleep(600)  # until it is killed, however late that is on a loaded machine
    return tiles.reshape(len(tiles), -1).astype(np.float32) @ WEIGHTS
'''
EMBED = """
import sys
sys.path.insert(0, sys.argv[1])
from encoder_of_the_test import projection
import spatialdata, spahgc
from spahgc.pp import _engine
_engine.PART_SPOTS = 2
sdata = spatialdata.read_zarr(sys.argv[2])
spahgc.pp.image_embedding(sdata, projection, tile_px=16, batch_size=2, n_jobs=1, progress=False)
"""


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Folder of parts, which are written after every batch."""
    monkeypatch.setattr(spahgc.settings, "cache_dir", tmp_path / "cache")
    monkeypatch.setattr(_engine, "PART_SPOTS", 2)
    return tmp_path / "cache"


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    """The encoder of these tests, as a user's module that a new process finds again."""
    path = tmp_path / "encoder_of_the_test.py"
    path.write_text(textwrap.dedent(ENCODER))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _embed(sdata: Any, encoder: Any, **kwargs: Any) -> np.ndarray:
    spahgc.pp.image_embedding(sdata, encoder, **{"tile_px": 16, "batch_size": 2, "key_added": KEY, **kwargs})
    return np.asarray(sdata["table"].obsm[KEY])


def _until(encoder: Callable[..., np.ndarray], after: int) -> Callable[..., np.ndarray]:
    """The encoder, which fails after some batches."""
    calls = []

    def failing(tiles: np.ndarray) -> np.ndarray:
        calls.append(len(tiles))
        if len(calls) > after:
            raise RuntimeError("power cut")
        return encoder(tiles)

    for name in ("__name__", "__qualname__", "__module__"):
        setattr(failing, name, getattr(encoder, name))
    return failing


def _stopped(sdata: Any, encoder: Callable[..., np.ndarray], after: int) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        _embed(sdata, _until(encoder, after))
    assert KEY not in sdata["table"].obsm
    assert "cellularity" not in sdata["table"].obs


def _parts_in(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_killed_at_80_percent(make_sdata: Make, cache: Path, module: ModuleType, tmp_path: Path) -> None:
    """`kill -9`, in a process of its own; the next embeds what is missing: the same result to the bit."""
    sdata = make_sdata()
    expected = _embed(sdata, module.projection, resume=False)
    density = sdata["table"].obs["cellularity"].copy()
    sdata = make_sdata()
    sdata.write(tmp_path / "slides.zarr")
    seen = tmp_path / "seen"
    environment = os.environ | {"SPAHGC_CACHE_DIR": str(cache), "SEEN": str(seen), "LAST": "28"}
    arguments = [sys.executable, "-c", EMBED, str(tmp_path), str(tmp_path / "slides.zarr")]
    process = subprocess.Popen(arguments, env=environment)
    while process.poll() is None and (not seen.exists() or len(seen.read_text().split()) < 28):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert _parts_in(cache)

    module.SEEN.clear()
    got = _embed(sdata, module.projection)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(sdata["table"].obs["cellularity"], density)
    # 36 batches in all, of which at most 7 are missing, up to 4 were not on disk yet, and one is checked.
    assert len(module.SEEN) <= 12
    assert not _parts_in(cache)


def test_it_goes_on_with_padding_fields_of_view_and_threads(
    make_sdata: Make, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weight-free encoder, stopped as by Ctrl-C: counts of padded tiles and the stain density come back too."""
    expected = make_sdata()
    spahgc.pp.image_embedding(expected, tile_px=32, resume=False)
    sdata = make_sdata()
    calls = []
    texture = resolve("texture")

    def until(tiles: np.ndarray) -> Any:
        calls.append(len(tiles))
        if len(calls) > 9:
            raise KeyboardInterrupt
        return texture.encode(tiles)

    with pytest.raises(KeyboardInterrupt):
        spahgc.pp.image_embedding(sdata, replace(texture, encode=until), tile_px=32, n_jobs=1)
    assert set(sdata["table"].obsm) == {"spatial"}
    with caplog.at_level(logging.INFO, "spahgc"):
        spahgc.pp.image_embedding(sdata, tile_px=32)
    assert "tiles are embedded already" in caplog.text
    got, wanted = sdata["table"], expected["table"]
    np.testing.assert_array_equal(got.obsm["image_texture"], wanted.obsm["image_texture"])
    np.testing.assert_array_equal(got.obs["cellularity"], wanted.obs["cellularity"])
    assert got.uns["image_texture"] == wanted.uns["image_texture"]
    assert not _parts_in(cache)


def test_an_encoder_that_changed_is_seen(
    make_sdata: Make, cache: Path, module: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    sdata = make_sdata()
    _stopped(sdata, module.projection, after=20)
    assert len(_parts_in(cache)) == 20
    module.WEIGHTS = module.WEIGHTS + np.float32(0.01)
    module.SEEN.clear()
    got = _embed(sdata, module.projection)
    assert "'projection' gives other embeddings than" in caplog.text
    assert sum(module.SEEN) >= 70
    np.testing.assert_array_equal(got, _embed(make_sdata(), module.projection, resume=False))


@pytest.mark.parametrize("change", ["image", "spots", "tile_um", "tile_px", "batch_size"])
def test_another_job_is_not_gone_on_with(make_sdata: Make, cache: Path, module: ModuleType, change: str) -> None:
    _stopped(make_sdata(), module.projection, after=20)
    changed: dict[str, Any] = {"tile_um": {"tile_um": 100.0}, "batch_size": {"batch_size": 3}}.get(change, {})
    sdata = make_sdata()
    if change == "image":
        sdata = make_sdata(image=lambda k: np.full((240, 300, 3), 50 + k, np.uint8))
    if change == "spots":
        sdata.shapes["B"].geometry = sdata.shapes["B"].geometry.translate(1, 0)
    if change == "tile_px":
        module.WEIGHTS = np.tile(module.WEIGHTS, (4, 1))
        changed = {"tile_px": 32}
    module.SEEN.clear()
    _embed(sdata, module.projection, **changed)
    assert sum(module.SEEN) == 70


def test_a_part_that_is_not_whole_is_never_taken(
    make_sdata: Make, cache: Path, module: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut off anywhere, or with a byte that flipped anywhere: embedded again, or of no effect."""
    expected = _embed(make_sdata(), module.projection, resume=False)
    sdata = make_sdata()
    _stopped(sdata, module.projection, after=30)
    parts = _parts_in(cache)
    rng = np.random.default_rng(0)
    for k, path in enumerate(parts[1:], start=1):
        content = bytearray(path.read_bytes())
        if k % 2:
            path.write_bytes(content[: rng.integers(0, len(content))])
        else:
            content[rng.integers(0, len(content))] ^= 0xFF
            path.write_bytes(content)
    module.SEEN.clear()
    got = _embed(sdata, module.projection)
    np.testing.assert_array_equal(got, expected)
    assert "is damaged" in caplog.text
    assert sum(module.SEEN) >= 70 - 2 * 16
    # What was being written when a run was killed has a name of its own.
    _stopped(make_sdata(), module.projection, after=10)
    whole = _parts_in(cache)
    for path in whole:
        path.rename(path.with_name(f".{path.stem}.123.part.npz"))
    module.SEEN.clear()
    np.testing.assert_array_equal(_embed(make_sdata(), module.projection), expected)
    assert sum(module.SEEN) == 70


def test_runs_on_the_same_job_at_once(make_sdata: Make, cache: Path, module: ModuleType) -> None:
    """A second run starts and ends while the first one works: both are right, and nothing is left."""
    expected = _embed(make_sdata(), module.projection, resume=False)
    results = []

    def slow(tiles: np.ndarray) -> np.ndarray:
        if len(_parts_in(cache)) == 10 and not results:
            results.append(_embed(make_sdata(), module.projection))
        return np.asarray(module.projection(tiles))

    slow.__name__ = module.projection.__name__
    results.append(_embed(make_sdata(), slow))
    assert len(results) == 2
    for got in results:
        np.testing.assert_array_equal(got, expected)
    assert not list(cache.iterdir())


def test_several_objects_are_kept_until_all_are_done(make_sdata: Make, cache: Path, module: ModuleType) -> None:
    """Killed in the second object, the first, which was complete, is not embedded again."""
    objects = [make_sdata(), make_sdata(("A",))]
    with pytest.raises(RuntimeError, match="power cut"):
        spahgc.pp.image_embedding(objects, _until(module.projection, 36 + 9), tile_px=16, batch_size=2)
    assert KEY in objects[0]["table"].obsm
    assert KEY not in objects[1]["table"].obsm
    module.SEEN.clear()
    again = [make_sdata(), make_sdata(("A",))]
    spahgc.pp.image_embedding(again, module.projection, tile_px=16, batch_size=2)
    assert len(module.SEEN) <= 18 - 9 + 1
    np.testing.assert_array_equal(again[0]["table"].obsm[KEY], objects[0]["table"].obsm[KEY])
    np.testing.assert_array_equal(
        again[1]["table"].obsm[KEY], _embed(make_sdata(("A",)), module.projection, resume=False)
    )
    assert not list(cache.iterdir())


def test_without_resume_nothing_is_read_or_written(make_sdata: Make, cache: Path, module: ModuleType) -> None:
    _stopped(make_sdata(), module.projection, after=20)
    before = _parts_in(cache)
    module.SEEN.clear()
    _embed(make_sdata(), module.projection, resume=False)
    assert sum(module.SEEN) == 70
    assert _parts_in(cache) == before


def test_old_jobs_are_removed(make_sdata: Make, cache: Path, module: ModuleType) -> None:
    cache.mkdir()
    zeros = "0" * 64
    names = (f"{zeros}.000000.npz", f".{zeros}.000000.12-34.part.npz", f"{'1' * 64}.000000.npz", "mine.npz")
    old, killed, young, other = (cache / name for name in names)
    for path in (old, killed, young, other):
        path.touch()
    for path in (old, killed, other):
        os.utime(path, times=(0, 0))
    _embed(make_sdata(("A",)), module.projection)
    assert _parts_in(cache) == sorted([young, other])


@pytest.fixture(params=["tmpfs", "limit"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder to which some parts can be written, and the next one by half."""
    folder = tmp_path / "small"
    folder.mkdir()
    if request.param == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("mounting a small file system is not allowed here")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_full(
    make_sdata: Make,
    cache: Path,
    module: ModuleType,
    full: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It goes on without parts, says so once, and leaves no half of a file."""
    monkeypatch.setattr(spahgc.settings, "cache_dir", full)
    sizes = []

    def looking(tiles: np.ndarray) -> np.ndarray:
        sizes.append([path.stat().st_size for path in _parts_in(full)])
        return np.asarray(module.projection(tiles))

    got = _embed(make_sdata(), looking)
    np.testing.assert_array_equal(got, _embed(make_sdata(), module.projection, resume=False))
    assert caplog.text.count("cannot be kept in") == 1
    assert "spahgc.settings.cache_dir" in caplog.text
    assert all(size == of[0] for of in sizes for size in of)
    assert len(sizes[-1]) < 30
    assert not _parts_in(full)


def test_a_cache_folder_that_cannot_be_made(
    make_sdata: Make, cache: Path, module: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file")
    _embed(make_sdata(), module.projection)
    assert caplog.text.count("cannot be kept in") == 1
