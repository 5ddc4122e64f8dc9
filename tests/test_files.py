from __future__ import annotations

from pathlib import Path

import pytest

from spahgc._disk import _swap


def folder(path: Path, text: str) -> None:
    path.mkdir(parents=True)
    (path / "value").write_text(text)


def texts(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("value"))}


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, Path, Path]:
    new, place, aside = (tmp_path / name for name in ("new", "place", "aside"))
    for name in ("obsm/a", "uns/a", "uns/b"):
        folder(new / name, f"new {name}")
    for name in ("obsm/a", "uns/b", "uns/other"):
        folder(place / name, f"old {name}")
    (place / "uns").mkdir(exist_ok=True)
    return new, place, aside


def test_swap(three: tuple[Path, Path, Path]) -> None:
    new, place, aside = three
    _swap(new, place, ["obsm/a", "uns/a", "uns/b"], aside)
    expected = {f"{name}/value": f"new {name}" for name in ("obsm/a", "uns/a", "uns/b")}
    assert texts(place) == {**expected, "uns/other/value": "old uns/other"}
    assert texts(aside) == {"obsm/a/value": "old obsm/a", "uns/b/value": "old uns/b"}


@pytest.mark.parametrize("fails_at", range(5))
def test_a_swap_that_fails_leaves_all_as_it_was(
    three: tuple[Path, Path, Path], fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, place, aside = three
    before, rename, calls = texts(place), Path.rename, []

    def failing(path: Path, to: Path) -> Path:
        calls.append(path)
        if len(calls) == fails_at + 1:
            raise OSError("no room")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no room"):
        _swap(new, place, ["obsm/a", "uns/a", "uns/b"], aside)
    assert texts(place) == before
