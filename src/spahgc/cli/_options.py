"""Options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import _keys as keys

Command = Callable[[str, Callable[[argparse.Namespace], None], str, str], argparse.ArgumentParser]
"""Adds a command: its name, its function, a summary and a description."""
TABLE_FILE = "an .h5ad file, or a zarr folder of AnnData or SpatialData"


def device(parser: argparse.ArgumentParser) -> None:
    """Add the device."""
    parser.add_argument("--device", help="torch device: auto (the default), cpu, cuda, mps")


def table(parser: argparse.ArgumentParser) -> None:
    """Add the name of the table in a SpatialData."""
    parser.add_argument("--table-key", default=keys.TABLE, help="table of a SpatialData (%(default)s)")


def output(parser: argparse.ArgumentParser) -> None:
    """Add the device, the table, the columns with slide and patient, and whether to overwrite."""
    device(parser)
    table(parser)
    parser.add_argument("--library-key", help="column of obs with the slide; otherwise the table's region key")
    parser.add_argument("--patient-key", default=keys.PATIENT, help="column of obs with the patient (%(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output")


def training(parser: argparse.ArgumentParser) -> None:
    """Add the reference, and what is trained on it."""
    parser.add_argument("reference", metavar="REF", type=Path, help=f"reference table: {TABLE_FILE}")
    panel = parser.add_mutually_exclusive_group()
    panel.add_argument("--panel", type=int, help="number of genes to predict (300)")
    panel.add_argument("--genes", type=Path, metavar="FILE", help="predict these genes: a text file, one name per line")
    parser.add_argument("--normalize", choices=("log1p", "log10", "none"), help="unit of expression (log1p)")
    parser.add_argument("--use-rep", help="key of obsm with the embedding; otherwise the only image_*")
    parser.add_argument("--layer", help="layer with the raw counts; otherwise X")
    parser.add_argument(
        "--split-by",
        choices=("patient", "slide"),
        default="patient",
        help="unit that is held out: patient (to predict new patients, the default) or slide",
    )
    parser.add_argument("--seed", dest="rng", type=int, default=0, help="seed of everything random (%(default)s)")


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The arguments with these names that have a value; the library has defaults for the others."""
    return {name: value for name, value in vars(arguments).items() if name in names and value is not None}


def training_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parameters of :func:`training` as the library takes them."""
    names = ("panel", "normalize", "use_rep", "layer", "split_by", "rng", "library_key", "patient_key")
    parameters = given(arguments, *names)
    if arguments.genes is not None:
        lines = arguments.genes.read_text(encoding="utf-8").splitlines()
        parameters["panel"] = [line.strip() for line in lines if line.strip()]
    return parameters
