"""``spahgc train``."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import _options as options


def add(command: options.Command) -> None:
    """Add the command."""
    parser = command(
        "train",
        _train,
        "train on reference slides and save a model",
        "Train on slides with H&E and measured expression, and save the model to a folder, which contains the "
        "embeddings and expression of the reference.",
    )
    options.training(parser)
    parser.add_argument("model", metavar="MODEL_FOLDER", type=Path, help="folder to write")
    parser.add_argument("--method", default="spahgc", help="method, such as spahgc, ridge, context_ridge, knn")
    parser.add_argument("--preset", choices=("default", "paper"), help="preset of method spahgc")
    options.output(parser)


def _train(arguments: argparse.Namespace) -> None:
    from ..tl import train
    from ..tl._model_folder import check_free
    from . import _files

    check_free(arguments.model, overwrite=arguments.overwrite)  # fail before the training
    model = train(
        _files.read_table(arguments.reference, table_key=arguments.table_key),
        **options.training_parameters(arguments),
        **options.given(arguments, "method", "preset"),
    )
    model.save(arguments.model, overwrite=arguments.overwrite)
    slides = ", ".join(slide.name for slide in model.reference)
    print(f"Wrote {arguments.model}: {arguments.method}, {len(model.genes)} genes, trained on {slides}")
