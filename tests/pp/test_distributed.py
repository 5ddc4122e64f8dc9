"""`pp.image_embedding` on the workers of a `dask.distributed` client."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
from spatialdata import read_zarr

import spahgc
from spahgc.pp import _engine

from .conftest import Make

WEIGHTS = np.random.default_rng(5).normal(size=(3 * 16 * 16, 24)).astype(np.float32)


def project(tiles: np.ndarray) -> np.ndarray:
    return tiles.reshape(len(tiles), -1).astype(np.float32) @ WEIGHTS


class PatientNanny(distributed.Nanny):
    """Closes its worker within a minute instead of 5 s, which a loaded machine does not meet."""

    async def close(self, timeout: float = 60, reason: str = "nanny-close") -> Any:
        return await super().close(timeout=timeout, reason=reason)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two worker processes of one thread; a worker that is lost comes back."""
    import dask

    with (
        dask.config.set({"distributed.worker.daemon": True, "distributed.comm.timeouts.connect": "120s"}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            worker_class=PatientNanny,
            dashboard_address=None,
            memory_limit=None,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_engine, "PART_SPOTS", 4)
    monkeypatch.setattr(spahgc.settings, "cache_dir", tmp_path / "cache")


def _expected(sdata: Any, encoder: Any, **kwargs: Any) -> Any:
    """As one process embeds it: naming a number of threads says that the cluster is not meant."""
    return spahgc.pp.image_embedding(sdata, encoder, n_jobs=1, copy=True, **kwargs)["table"]


def _equal(table: Any, expected: Any, key: str) -> None:
    np.testing.assert_array_equal(table.obsm[key], expected.obsm[key])
    np.testing.assert_array_equal(table.obs["cellularity"], expected.obs["cellularity"])


def _recording(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """An encoder that leaves a file for each call, named by the process."""
    folder.mkdir()

    def recording(tiles: np.ndarray) -> np.ndarray:
        (folder / f"{os.getpid()}.{time.monotonic_ns()}").touch()
        return project(tiles)

    return recording


def _processes(folder: Path) -> set[int]:
    return {int(path.name.split(".")[0]) for path in folder.iterdir()}


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "on disk"])
def test_the_same_as_in_one_process(make_sdata: Make, client: Any, tmp_path: Path, stored: bool) -> None:
    sdata = make_sdata(scale_factors=[2])
    if stored:
        sdata.write(tmp_path / "slides.zarr")
        sdata = read_zarr(tmp_path / "slides.zarr")
    calls = tmp_path / "calls"
    wanted = _expected(sdata, project, tile_px=16, batch_size=3, key_added="image_p")
    spahgc.pp.image_embedding(sdata, _recording(calls), tile_px=16, batch_size=3, key_added="image_p")
    _equal(sdata["table"], wanted, "image_p")
    assert len(_processes(calls)) == 2
    assert os.getpid() not in _processes(calls)


def test_an_image_that_the_workers_do_not_see(
    make_sdata: Make, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zarr would fill in zeros."""
    sdata = make_sdata()
    sdata.write(tmp_path / "slides.zarr")
    monkeypatch.chdir(tmp_path)
    sdata = read_zarr("slides.zarr")
    with pytest.raises(ValueError, match=r"does not see image '[AB]_image' as it is seen here.*read_zarr\('/shared"):
        spahgc.pp.image_embedding(sdata, project, tile_px=16)
    assert set(sdata["table"].obsm) == {"spatial"}


def test_a_named_encoder_and_several_objects(make_sdata: Make, client: Any) -> None:
    objects = [make_sdata(), make_sdata(("A",))]
    expected = [_expected(sdata, "texture", tile_px=32) for sdata in objects]
    got = spahgc.pp.image_embedding(objects, tile_px=32, copy=True)
    assert isinstance(got, list)
    for copied, wanted in zip(got, expected, strict=True):
        _equal(copied["table"], wanted, "image_texture")
        assert copied["table"].uns["image_texture"] == wanted.uns["image_texture"]


def test_a_worker_is_killed_in_the_middle(make_sdata: Make, client: Any, tmp_path: Path) -> None:
    """SIGKILL from within a task, after others were finished: another worker does it, and the result is the same."""
    sdata = make_sdata()
    wanted = _expected(sdata, project, tile_px=16, batch_size=2, key_added="image_p")
    calls = tmp_path / "calls"
    recording = _recording(calls)

    def deadly(tiles: np.ndarray) -> np.ndarray:
        if len(list(calls.iterdir())) > 20:
            try:
                (tmp_path / "killed").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return recording(tiles)

    before = set(client.run(os.getpid).values())
    spahgc.pp.image_embedding(sdata, deadly, tile_px=16, batch_size=2, key_added="image_p")
    assert (tmp_path / "killed").exists()
    client.wait_for_workers(2, timeout=300)
    assert len(before - set(client.run(os.getpid).values())) == 1
    _equal(sdata["table"], wanted, "image_p")


def test_what_fails_on_a_worker_fails_here(make_sdata: Make, client: Any) -> None:
    def broken(tiles: np.ndarray) -> np.ndarray:
        return project(tiles) * np.nan

    sdata = make_sdata()
    with pytest.raises(ValueError, match=r"Encoder 'broken' was given .* have NaN"):
        spahgc.pp.image_embedding(sdata, broken, tile_px=16)
    assert set(sdata["table"].obsm) == {"spatial"}


class Weighty:
    """An encoder that leaves a file when it arrives somewhere."""

    __name__ = "weighty"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        (self.folder / f"{os.getpid()}.{time.monotonic_ns()}").touch()

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        return project(tiles)


def test_an_encoder_does_not_travel_with_every_task(make_sdata: Make, client: Any, tmp_path: Path) -> None:
    sdata = make_sdata()
    spahgc.pp.image_embedding(sdata, Weighty(tmp_path), tile_px=16, batch_size=2)
    workers = client.run(os.getpid).values()
    found = Counter(int(path.name.split(".")[0]) for path in tmp_path.iterdir() if path.is_file())
    loads = [found[worker] for worker in workers]
    # With every task it would be many times. Once is enough, but dask may send what tasks share a second time: to make
    # it, and as what another worker made.
    assert all(1 <= n <= 2 for n in loads), loads


def test_another_encoder_on_the_workers_is_refused(make_sdata: Make, client: Any) -> None:
    spec = _engine.EncoderSpec("texture", None, None, "cpu", {"weights": "those of here"})
    task = client.submit(_engine._loaded, spec, pure=False)
    with pytest.raises(ValueError, match="'texture' on a worker .* differs from .*those of here.*Install the same"):
        task.result()


def test_a_stopped_run_goes_on_over_a_cluster(
    make_sdata: Make, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_engine, "PART_SPOTS", 2)
    first, second = tmp_path / "first", tmp_path / "second"
    recording = _recording(first)

    def encode(tiles: np.ndarray) -> np.ndarray:
        if len(list(first.iterdir())) >= 24:
            raise RuntimeError("power cut")
        return recording(tiles)

    sdata = make_sdata()
    with pytest.raises(RuntimeError, match="power cut"):
        spahgc.pp.image_embedding(sdata, encode, tile_px=16, batch_size=2, key_added="image_p")
    again = _recording(second)
    again.__name__, again.__qualname__ = encode.__name__, encode.__qualname__
    spahgc.pp.image_embedding(sdata, again, tile_px=16, batch_size=2, key_added="image_p")
    assert len(list(second.iterdir())) < 30
    wanted = _expected(make_sdata(), project, tile_px=16, batch_size=2, key_added="image_p")
    np.testing.assert_array_equal(sdata["table"].obsm["image_p"], wanted.obsm["image_p"])
