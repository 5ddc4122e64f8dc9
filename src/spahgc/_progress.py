"""Progress of work that is made of parts: each tells its share, and one bar shows the sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._slides import BLOCK, blocks

if TYPE_CHECKING:
    from tqdm import tqdm

Progress = Callable[[float], None]
"""Told the share of a piece of work that was done, each time some was; the shares sum to 1."""
DELAY = 2.0
"""Seconds after which a bar appears: work that takes less shows none."""


def silent(share: float) -> None:
    """Tell nobody."""


def weighted(progress: Progress, weight: float) -> Progress:
    """For a part that is `weight` of the whole work: hands its shares on to that of the whole."""
    return lambda share: progress(weight * share)


def told(n: int, progress: Progress, size: int = BLOCK) -> Iterator[slice]:
    """The rows of n spots, block by block; each is told when it is done."""
    for rows in blocks(n, size):
        yield rows
        progress((rows.stop - rows.start) / n)


class SpotBar:
    """A bar over spots, for work on several slides that is itself made of parts; see :func:`spot_bar`."""

    def __init__(self, bar: tqdm) -> None:
        self._bar, self._done = bar, 0.0

    def say(self, text: str) -> None:
        """Show what is done now."""
        shown = not self._bar.disable and self._bar.last_print_t > self._bar.start_t
        self._bar.set_description(text, refresh=shown)

    def over(self, n_spots: int) -> Progress:
        """Progress of the work on this many of the spots."""

        def advance(share: float) -> None:
            self._done += share * n_spots
            self._bar.update(round(self._done) - self._bar.n)

        return advance


@contextmanager
def spot_bar(n_spots: int, *, show: bool) -> Iterator[SpotBar]:
    """One bar for all the work on some spots, from the time on that it has taken two seconds."""
    from tqdm.auto import tqdm

    with tqdm(total=n_spots, unit="spot", delay=DELAY, disable=not show) as bar:
        yield SpotBar(bar)
