"""Shares of the work, and the one bar that shows them."""

from __future__ import annotations

import pytest

from spahgc import _run
from spahgc._run import spot_bar, weighted, with_progress


def test_rows_are_told_when_they_are_done() -> None:
    shares: list[float] = []
    seen = []
    for rows in with_progress(7, shares.append, 3):
        assert sum(shares) == pytest.approx(rows.start / 7)
        seen += list(range(7))[rows]
    assert seen == list(range(7))
    assert sum(shares) == pytest.approx(1)


def test_a_part_counts_as_its_weight() -> None:
    shares: list[float] = []
    for _ in with_progress(10, weighted(weighted(shares.append, 0.5), 0.2), 4):
        pass
    assert shares == pytest.approx([0.04, 0.04, 0.02])


def test_the_bar_counts_whole_spots(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_run, "DELAY", 0.0)
    with spot_bar(10, show=True) as bar:
        bar.describe("first")
        for _ in range(3):
            bar.over(4)(1 / 3)
        assert (bar._bar.n, isinstance(bar._bar.n, int)) == (4, True)
        bar.describe("second")
        for _ in with_progress(6, bar.over(6), 1):
            pass
        assert bar._bar.n == 10
    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("second: 100%")
    assert "10/10" in last


def test_no_bar_where_none_is_wanted_or_the_work_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    for show in (False, True):
        with spot_bar(10, show=show) as bar:
            bar.describe("first")
            bar.over(10)(1.0)
    assert not capsys.readouterr().err
