"""What several commands take alike."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from .. import _keys as keys

Command = Callable[[str, Callable[[argparse.Namespace], None], str, str], argparse.ArgumentParser]
"""Adds a command: its name, what runs it, a summary and a description."""
TABLE_FILE = "an .h5ad file, or a zarr folder of AnnData or SpatialData"


def device(parser: argparse.ArgumentParser) -> None:
    """Which device computes."""
    parser.add_argument("--device", help="torch device: auto (the default), cpu, cuda, mps")


def table(parser: argparse.ArgumentParser) -> None:
    """Which table of a SpatialData."""
    parser.add_argument("--table-key", default=keys.TABLE, help="table of a SpatialData (%(default)s)")


def columns(parser: argparse.ArgumentParser) -> None:
    """Columns that name slide and patient."""
    parser.add_argument("--library-key", help="column of obs with the slide; otherwise the table's region key")
    parser.add_argument("--patient-key", default=keys.PATIENT, help="column of obs with the patient (%(default)s)")


def overwrite(parser: argparse.ArgumentParser) -> None:
    """Whether to replace what is there."""
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def genes(path: Path) -> list[str]:
    """Names in a text file, one a line."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
