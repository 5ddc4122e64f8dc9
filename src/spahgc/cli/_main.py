"""Parser, errors and warnings of all commands."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__, settings
from . import _cross_validate, _embed, _predict, _run_demo, _train

USER_ERRORS = (KeyError, ValueError, TypeError, OSError, ImportError)
"""Errors that users can resolve; any other is a defect and ends with its traceback."""
_OWN = (Path(__file__).parent, Path(__file__).parents[1])
"""Folders of the code that calls the library for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv
        Arguments after the command's name; `None` takes those of the process.

    Returns
    -------
    Exit status: 0, 2 for an error that the user can resolve, 130 if interrupted. Wrong arguments, ``--help`` and
    ``--version`` raise `SystemExit`, as in argparse.
    """
    arguments = _parser().parse_args(argv)
    before = settings.progress, settings.device
    try:
        settings.progress = settings.progress and sys.stderr.isatty()
        settings.device = getattr(arguments, "device", None) or settings.device
        with warnings.catch_warnings():
            # Warnings of the library become one line each; those of dependencies keep Python's form.
            warnings.filterwarnings("always", category=UserWarning, module=r"spahgc\.")
            show = warnings.showwarning

            def show_warning(message: Any, category: Any, filename: str, *rest: Any, **options: Any) -> None:
                if Path(filename).parent in _OWN:
                    print(f"spahgc: warning: {' '.join(str(message).split())}", file=sys.stderr)
                else:
                    show(message, category, filename, *rest, **options)

            warnings.showwarning = show_warning
            arguments.run(arguments)
    except USER_ERRORS as error:
        if getattr(arguments, "debug", False):
            traceback.print_exc()
        # The text of a KeyError is its message in quotes.
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        text = " ".join(text.replace("overwrite=True", "--overwrite").split()) or type(error).__name__
        print(f"spahgc: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("spahgc: interrupted", file=sys.stderr)
        return 130
    finally:
        settings.progress, settings.device = before
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser = argparse.ArgumentParser(
        prog="spahgc",
        description="Predict spatial gene expression from H&E slides, and say which genes and spots to trust.",
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"spahgc {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], summary: str, details: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=summary, description=details)
        added.set_defaults(run=run)
        return added

    for module in (_run_demo, _embed, _train, _predict, _cross_validate):
        module.add(command)
    return parser
