"""Downloads against a server on this machine: whole, broken off, changed, wrong, absent."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from spahgc import settings
from spahgc.datasets._fetch import fetch, unpack

from ..refusals import refused
from .conftest import Server

BODY = np.random.default_rng(0).bytes(3_000_000)
SHA = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture
def server(tmp_path: Path, serve: Callable[..., Server]) -> Server:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.bin").write_bytes(BODY)
    return serve(tmp_path / "web")


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Path]:
    def run(**kwargs: str) -> Path:
        return fetch(f"{server.url}a.bin?download=1", tmp_path / "home", "sub/a.bin", by_hand="put it there", **kwargs)

    return run


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("[!.]*") if path.is_file())


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*") if path.name != ".lock")


def test_whole(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    path = get(checksum=SHA)
    assert path == tmp_path / "home" / "sub" / "a.bin"
    assert path.read_bytes() == BODY
    assert get(checksum=SHA) == get(checksum=f"md5:{hashlib.md5(BODY).hexdigest()}") == path
    assert len(server.asked) == 1
    assert visible(tmp_path / "home") == ["a.bin"]
    assert hidden(tmp_path / "home") == []
    path.write_bytes(b"damaged")
    assert get(checksum=SHA).read_bytes() == BODY


def test_jobs_that_start_together_fetch_once(get: Callable[..., Path], server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = [job.result() for job in [pool.submit(get, checksum=SHA) for _ in range(4)]]
    assert [path.read_bytes() == BODY for path in paths] == [True] * 4
    assert len(server.asked) == 1


def test_broken_off(get: Callable[..., Path], server: Server, tmp_path: Path) -> None:
    server.cut = "a.bin?download=1"
    refused(ConnectionError, r"Could not download .*Try again, or put it there", get, checksum=SHA)
    assert visible(tmp_path / "home") == hidden(tmp_path / "home") == []
    server.cut = ""
    assert get(checksum=SHA).read_bytes() == BODY


def test_wrong_checksum_keeps_nothing(get: Callable[..., Path], tmp_path: Path) -> None:
    wrong = f"sha256:{'0' * 64}"
    with pytest.raises(ValueError, match=r"is not the file that spahgc knows \(expected sha256:000.*nothing was kept"):
        get(checksum=wrong)
    assert visible(tmp_path / "home") == hidden(tmp_path / "home") == []


def test_not_found_and_no_network(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"Could not download .*nowhere: 404.*Try again, or put it there"):
        fetch(f"{server.url}nowhere", tmp_path / "home", "nowhere", by_hand="put it there")
    with pytest.raises(ConnectionError, match=r"Could not download http://127\.0\.0\.1:9/.*or put it there\."):
        fetch("http://127.0.0.1:9/x", tmp_path / "home", "x", by_hand="put it there")
    assert visible(tmp_path / "home") == hidden(tmp_path / "home") == []


def test_progress(
    get: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "progress", True)
    get()
    told = capsys.readouterr().err
    assert "3.00M/3.00M" in told


def test_unpack(tmp_path: Path) -> None:
    (tmp_path / "in" / "spatial" / "s1").mkdir(parents=True)
    (tmp_path / "in" / "spatial" / "s1" / "x.txt").write_text("new")
    home = tmp_path / "home"
    (home / "spatial" / "s0").mkdir(parents=True)
    (home / "spatial" / "s0" / "x.txt").write_text("old")
    with tarfile.open(home / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "in" / "spatial", "spatial")
    unpack(home / "a.tar.gz", home)
    assert sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()) == [
        "spatial/s0/x.txt",
        "spatial/s1/x.txt",
    ]


def test_archive_that_is_damaged_or_leads_out_of_the_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "a.tar.gz").write_bytes(b"no archive")
    refused(ValueError, r"a\.tar\.gz cannot be unpacked: .*Delete it and call again", unpack, home / "a.tar.gz", home)
    assert [path.name for path in home.iterdir()] == ["a.tar.gz"]
    (tmp_path / "x.txt").write_text("x")
    with tarfile.open(home / "a.tar", "w") as tar:
        tar.add(tmp_path / "x.txt", "../evil.txt")
    refused(ValueError, "cannot be unpacked", unpack, home / "a.tar", home)
    assert not (tmp_path / "evil.txt").exists()
