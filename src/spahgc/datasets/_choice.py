"""What all datasets ask of a list of slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from .._checks import format_names

T = TypeVar("T")


def check_names(names: Sequence[str] | None, parameter: str) -> None:
    """Refuse a string and an empty list."""
    if isinstance(names, str):
        raise TypeError(f"{parameter} is a list of names: {parameter}=[{names!r}].")
    if names is not None and not len(names):
        raise ValueError(f"{parameter} is empty; None takes all slides.")


def choose(
    slides: Sequence[str] | None,
    *,
    local: Sequence[str],
    remote: Sequence[str],
    dataset: str,
    folder: Path,
    by_hand: str,
) -> list[str]:
    """Names of the slides to read: those asked for, else those that are there, else all that can be downloaded.

    Parameters
    ----------
    slides
        What the user asks for.
    local, remote
        Slides in `folder`, and slides that can be downloaded.
    dataset, folder, by_hand
        For the message: the function, where it looked, and what a user does to get more.
    """
    check_names(slides, "slides")
    known = sorted({*local, *remote})
    wanted = list(dict.fromkeys(slides)) if slides is not None else (list(local) or known)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ValueError(
            (
                f"No slide {format_names(unknown)} in {dataset}."
                if wanted
                else f"No slides of {dataset} in {str(folder)!r}."
            )
            + f" There are, in {str(folder)!r}: {format_names(local, most=40)}"
            + (f"; to download: {format_names(remote, most=40)}. Otherwise {by_hand}." if remote else f". {by_hand}.")
        )
    return wanted


def locate_all(slides: Sequence[str], locate: Callable[[str], tuple[T | None, str]], *, dataset: str) -> dict[str, T]:
    """The files of all slides, before any of them is read.

    `locate` gives those of a slide, or what is missing.
    """
    located = {}
    for name in slides:
        files, missing = locate(name)
        if files is None:
            raise FileNotFoundError(f"Slide {name!r} of {dataset} is incomplete: {missing}.")
        located[name] = files
    return located


def first_file(paths: Sequence[Path]) -> Path | None:
    """The first of some paths that is a file."""
    return next((path for path in paths if path.is_file()), None)
