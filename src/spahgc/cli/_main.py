"""What the command does whatever it is asked for: arguments, errors, warnings."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from .. import __version__, settings
from . import _demo, _embed, _predict, _train

USER_ERRORS = (KeyError, ValueError, TypeError, OSError, ImportError)
"""What the library raises where the user can help; anything else is a defect and ends with its traceback."""
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
    Exit status: 0, 2 for an error that the user can help, 130 if interrupted. Wrong arguments, ``--help`` and
    ``--version`` raise `SystemExit`, as argparse does.
    """
    arguments = _parser().parse_args(argv)
    debug = getattr(arguments, "debug", False)
    before = settings.progress, settings.device
    settings.progress = settings.progress and sys.stderr.isatty()
    settings.device = getattr(arguments, "device", None) or settings.device
    try:
        with warnings.catch_warnings():
            # The library's warnings for its user; what dependencies warn of keeps the form that Python gives it.
            warnings.filterwarnings("always", category=UserWarning, module=r"spahgc\.")
            warnings.showwarning = partial(_show_warning, otherwise=warnings.showwarning)
            arguments.run(arguments)
    except USER_ERRORS as error:
        if debug:
            traceback.print_exc()
        print(f"spahgc: error: {_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("spahgc: interrupted", file=sys.stderr)
        return 130
    finally:
        settings.progress, settings.device = before
    return 0


def _message(error: BaseException) -> str:
    """What went wrong, on one line."""
    # The text of a KeyError is its message in quotes.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.replace("overwrite=True", "--overwrite").split()) or type(error).__name__


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
    *,
    otherwise: Any,
) -> None:
    if Path(filename).parent in _OWN:
        print(f"spahgc: warning: {' '.join(str(message).split())}", file=sys.stderr)
    else:
        otherwise(message, category, filename, lineno, file, line)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
    )
    parser = argparse.ArgumentParser(
        prog="spahgc",
        description="Predict spatial gene expression from H&E slides, and say which genes and spots to believe.",
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

    for group in (_demo, _embed, _train, _predict):
        group.add(command)
    return parser
