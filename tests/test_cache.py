"""The cache of a run: named by content, written atomically, bounded, never trusted when damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spahgc import _disk as cache
from spahgc._slides import Rows


def maker(value: float = 1.0) -> tuple[Callable[[], cache.Arrays], list[int]]:
    calls: list[int] = []

    def make() -> cache.Arrays:
        calls.append(1)
        return {"a": np.full((3, 2), value, np.float32), "b": np.arange(5)}

    return make, calls


def test_digest_tells_content_apart() -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    different = [
        (x,), (x.astype(np.float64),), (x.reshape(3, 4),), (x + 1,), (x, 3), (x, "3"), (3, x), (x, x), (x[:2], x[2:]),
    ]  # fmt: skip
    names = {cache.digest(*parts) for parts in different}
    assert len(names) == len(different)
    assert cache.digest(x) == cache.digest(Rows(x)) == cache.digest(np.asfortranarray(x)) == cache.digest(x.copy())
    assert all(len(name) == 64 for name in names)


def test_digest_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    whole, blocks = cache.digest(x), cache.blocks
    monkeypatch.setattr(cache, "blocks", lambda n: blocks(n, 7))
    assert cache.digest(x) == whole


def test_nothing_is_kept_or_named_outside(tmp_path: Path) -> None:
    make, calls = maker()

    def name() -> str:
        raise AssertionError("no name is needed")

    for folder in (None, tmp_path / "not there"):
        with cache.keeping(folder):
            np.testing.assert_array_equal(cache.cached(name, make)["b"], np.arange(5))
    assert len(calls) == 2
    assert not (tmp_path / "not there").exists()


def test_kept_once(tmp_path: Path) -> None:
    make, calls = maker()
    with cache.keeping(tmp_path):
        first, second = cache.cached(lambda: "x", make), cache.cached(lambda: "x", make)
        cache.cached(lambda: "y", make)
    assert len(calls) == 2
    assert first.keys() == second.keys()
    for key, array in first.items():
        np.testing.assert_array_equal(array, second[key])
        assert array.dtype == second[key].dtype
    with cache.keeping(tmp_path):  # another block, as in another process
        cache.cached(lambda: "x", make)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "first", "head", "middle", "last"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, damage: str) -> None:
    make, calls = maker()
    with cache.keeping(tmp_path):
        cache.cached(lambda: "x", make)
        path = tmp_path / "x.npz"
        content = bytearray(path.read_bytes())
        place = {"first": 0, "head": 40, "middle": len(content) // 2, "last": -1}
        if damage in place:
            content[place[damage]] ^= 1
        path.write_bytes({"truncated": content[:-7], "empty": b""}.get(damage, content))
        np.testing.assert_array_equal(cache.cached(lambda: "x", make)["a"], np.ones((3, 2)))
        # These two bytes belong to padding and a comment of the archive, not to its content.
        assert len(calls) == (1 if damage in {"head", "last"} else 2)
        cache.cached(lambda: "x", make)
        assert len(calls) == (1 if damage in {"head", "last"} else 2)


def test_a_full_folder_takes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_BYTES", 20_000)
    with cache.keeping(tmp_path):
        for name in "abcd":
            assert len(cache.cached(lambda name=name: name, lambda: {"a": np.zeros(1000)})["a"]) == 1000
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_that_goes_away_or_is_full_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, calls = maker()
    folder = tmp_path / "cache"
    folder.mkdir()
    with cache.keeping(folder):
        folder.rmdir()
        assert cache.cached(lambda: "x", make)["a"].shape == (3, 2)
    folder.mkdir()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with cache.keeping(folder):
        assert cache.cached(lambda: "x", make)["a"].shape == (3, 2)
    assert len(calls) == 2
    assert list(folder.iterdir()) == []


RACE = """
import sys
from pathlib import Path
import numpy as np
from spahgc import _disk
_disk.MAX_BYTES, rng = 200_000, np.random.default_rng(int(sys.argv[2]))
with _disk.keeping(Path(sys.argv[1])):
    for name in rng.integers(0, 20, 600):
        found = _disk.cached(lambda: str(name), lambda: {"a": np.full(2000, name)})["a"]
        if found.shape != (2000,) or (found != name).any():
            raise SystemExit(f"{name} was given {found}")
"""


def test_processes_may_race(tmp_path: Path) -> None:
    """Two processes read and write the same files at once."""
    both = [subprocess.Popen([sys.executable, "-c", RACE, tmp_path, str(seed)]) for seed in (0, 1)]
    assert [process.wait(60) for process in both] == [0, 0]
    there = list(tmp_path.iterdir())
    assert there
    assert all(path.suffix == ".npz" for path in there)
    assert sum(path.stat().st_size for path in there) <= 200_000 + 2 * 16_500  # each may be ahead by what it writes


def test_the_folder_of_a_run_goes_away(tmp_path: Path) -> None:
    with cache.shared_folder(None) as folder:
        (folder / "x.npz").write_bytes(b"1")
    assert not folder.exists()
    (tmp_path / cache._FOLDER).mkdir()
    (tmp_path / cache._FOLDER / "left.npz").write_bytes(b"1")
    seen = []

    def fail() -> None:
        with cache.shared_folder(tmp_path) as folder:
            seen.extend(folder.iterdir())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [tmp_path / cache._FOLDER / "left.npz"]
    assert list(tmp_path.iterdir()) == []
