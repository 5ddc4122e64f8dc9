"""``spahgc demo``."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from . import _options as options


def add(command: options.Command) -> None:
    """Add the command."""
    parser = command(
        "demo",
        _demo,
        "train and predict on example slides, score, write figures and a report",
        "Train on the HER2+ breast cancer slides B4, C2, C3 and C5, predict C4 as if it had H&E only, then score the "
        "prediction beside the controls. Without the slides it runs on a drawn cohort, and says so.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder to write to (%(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--data", type=Path, help="folder that holds her2st/; otherwise SPAHGC_DATA_DIR, then ../shared/data"
    )
    source.add_argument("--synthetic", action="store_true", help="use the drawn cohort")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    options.device(parser)


def _demo(arguments: argparse.Namespace) -> None:
    import matplotlib

    from ._run_demo import run

    matplotlib.use("Agg")  # no window, no screen
    options_of_run = {name: getattr(arguments, name) for name in ("data", "synthetic", "seed")}
    run(arguments.out, **options_of_run, say=partial(print, flush=True))
