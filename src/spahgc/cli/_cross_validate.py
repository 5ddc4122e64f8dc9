"""``spahgc cross-validate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import _keys as keys
from . import _options as options


def add(command: options.Command) -> None:
    """Add the command."""
    parser = command(
        "cross-validate",
        _cross_validate,
        "hold out each patient in turn and score",
        "Hold out the slides of each patient in turn, train on the others, predict from H&E alone and score: which "
        "genes can be predicted, and how well. OUT.csv holds one row per method, slide, gene, metric and seed.",
    )
    options.training(parser)
    parser.add_argument("out", metavar="OUT.csv", type=Path, help="file to write")
    parser.add_argument("--table", metavar="OUT.h5ad", type=Path, help="also write the table, with scores and trust")
    parser.add_argument(
        "--methods", default="ridge,context_ridge,spahgc", help="names separated by commas (%(default)s)"
    )
    parser.add_argument(
        "--allow-shared-patients", action="store_true", help="train on other slides of the held-out slide's patient"
    )
    parser.add_argument(
        "--protocol",
        choices=("honest", "paper", "hest"),
        default="honest",
        help="paper and hest are optimistic, and only for comparison with published scores (%(default)s)",
    )
    parser.add_argument("--n-seeds", type=int, default=3, help="number of seeds, from --seed on (%(default)s)")
    parser.add_argument(
        "--resume", metavar="FOLDER", type=Path, help="keep finished units in this folder and continue a stopped run"
    )
    parser.add_argument("--n-jobs", type=int, help="worker processes; otherwise all cores")
    parser.add_argument("--key-added", default=keys.PREDICTION, help="key of what is written (%(default)s)")
    options.output(parser)


def _cross_validate(arguments: argparse.Namespace) -> None:
    from ..get import cross_validation
    from ..tl import cross_validate
    from . import _files

    _files.check_free(arguments.out, ".csv", overwrite=arguments.overwrite)
    if arguments.table is not None:
        _files.check_free(arguments.table, ".h5ad", overwrite=arguments.overwrite)
    reference = _files.read_table(arguments.reference, table_key=arguments.table_key)
    names = ("allow_shared_patients", "protocol", "resume", "n_jobs", "key_added")
    cross_validate(
        reference,
        methods=arguments.methods.split(","),
        n_seeds=arguments.n_seeds,
        **options.training_parameters(arguments),
        **options.given(arguments, *names),
    )
    scores = cross_validation(reference, key=arguments.key_added)
    with _files.replacing(arguments.out) as temporary:
        scores.to_csv(temporary, index=False)
    if arguments.table is not None:
        _files.write_table(reference, arguments.table)
    print(f"Wrote {arguments.out}; {scores.attrs['label']}. Mean Pearson over genes, then slides:")
    of_slides = scores[scores["metric"] == "pearson"].groupby(["method", "slide"], sort=False)["value"].mean()
    for method, value in of_slides.groupby("method", sort=False).mean().items():
        print(f"  {method:16}{value:8.3f}")
