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
from . import _commands

# Errors that users can resolve; any other is a defect and ends with its traceback.
USER_ERRORS = (KeyError, ValueError, TypeError, OSError, ImportError)
# Folders of the code that calls the library for the user.
_OWN = (Path(__file__).parent, Path(__file__).parents[1])
_TABLE_FILE = "an .h5ad file, or a zarr folder of AnnData or SpatialData"


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
    before, debug = (settings.progress, settings.device), False
    try:
        options = vars(_parser().parse_args(argv))
        run, debug, device = options.pop("run"), options.pop("debug", False), options.pop("device", None)
        settings.progress = settings.progress and sys.stderr.isatty()
        settings.device = device or settings.device
        with warnings.catch_warnings():
            # Warnings of the library become one line each; those of dependencies keep Python's form.
            warnings.filterwarnings("always", category=UserWarning, module=r"spahgc\.")
            show = warnings.showwarning

            def show_warning(message: Any, category: Any, filename: str, *rest: Any, **more: Any) -> None:
                if Path(filename).parent in _OWN:
                    print(f"spahgc: warning: {' '.join(str(message).split())}", file=sys.stderr)
                else:
                    show(message, category, filename, *rest, **more)

            warnings.showwarning = show_warning
            run(**options)
    except USER_ERRORS as error:
        if debug:
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
    """Parser whose result holds only the options that are given; the library has defaults for the others."""
    debug, device, table, output, training = (
        argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS) for _ in range(5)
    )
    debug.add_argument("--debug", action="store_true", help="show the traceback of an error")
    device.add_argument("--device", help="torch device: auto (the default), cpu, cuda, mps")
    table.add_argument("--table-key", help="table of a SpatialData (table)")
    output.add_argument("--library-key", help="column of obs with the slide; otherwise the table's region key")
    output.add_argument("--patient-key", help="column of obs with the patient (patient)")
    output.add_argument("--overwrite", action="store_true", help="replace existing output")
    training.add_argument("reference", metavar="REF", type=Path, help=f"reference table: {_TABLE_FILE}")
    panel = training.add_mutually_exclusive_group()
    panel.add_argument("--panel", type=int, help="number of genes to predict (300)")
    panel.add_argument("--genes", dest="panel", type=_names, metavar="FILE", help="predict the genes of a text file")
    training.add_argument("--normalize", choices=("log1p", "log10", "none"), help="unit of expression (log1p)")
    training.add_argument("--use-rep", help="key of obsm with the embedding; otherwise the only image_*")
    training.add_argument("--layer", help="layer with the raw counts; otherwise X")
    held_out = "unit that is held out: patient (to predict new patients, the default) or slide"
    training.add_argument("--split-by", choices=("patient", "slide"), help=held_out)
    training.add_argument("--seed", dest="rng", type=int, help="seed of everything random (0)")

    parser = argparse.ArgumentParser(
        prog="spahgc",
        description="Predict spatial gene expression from H&E slides, and say which genes and spots to trust.",
        parents=[debug],
    )
    parser.add_argument("--version", action="version", version=f"spahgc {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run: Callable[..., None], summary: str, details: str, *parents: Any) -> argparse.ArgumentParser:
        options: Any = {"parents": [debug, device, *parents], "argument_default": argparse.SUPPRESS}
        added = commands.add_parser(run.__name__.replace("_", "-"), help=summary, description=details, **options)
        added.set_defaults(run=run)
        return added

    demo = command(
        _commands.demo,
        "train and predict on example slides, score, write figures and a report",
        "Train on the HER2+ breast cancer slides B4, C2, C3 and C5, predict C4 as if it had H&E only, then score the "
        "prediction beside the controls. Without the slides it runs on a drawn cohort, and says so.",
    )
    demo.add_argument("--out", type=Path, help="folder to write to (demo_output)")
    source = demo.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="folder with her2st/ (SPAHGC_DATA_DIR, then ../shared/data)")
    source.add_argument("--synthetic", action="store_true", help="use the drawn cohort")
    demo.add_argument("--seed", type=int, help="seed of everything random (0)")

    embed = command(
        _commands.embed,
        "write the embedding of every spot into a SpatialData",
        "Embed the H&E tile of every spot, and write obsm['image_<encoder>'] into the table of a SpatialData zarr. "
        "Nothing else in the zarr changes. After an interruption, the same call continues.",
        table,
    )
    embed.add_argument("sdata", metavar="SDATA.zarr", type=Path, help="SpatialData with images, shapes and a table")
    embed.add_argument("--encoder", help="name of the encoder (texture)")
    embed.add_argument("--tile-um", type=float, help="side of a tile in micrometers (112)")
    embed.add_argument("--microns-per-pixel", type=float, help="otherwise taken from the table")
    embed.add_argument("--key-added", help="key of obsm to write; otherwise image_<encoder>")
    embed.add_argument("--batch-size", type=int, help="tiles per call of the encoder (256)")
    precisions = ("float32", "bfloat16", "float16")
    embed.add_argument("--precision", choices=precisions, help="of a network; otherwise the device's default")
    embed.add_argument("--no-resume", dest="resume", action="store_false", help="do not continue an interrupted run")
    where = embed.add_mutually_exclusive_group()
    where.add_argument("--n-jobs", type=int, help="threads; otherwise all cores")
    where.add_argument("--scheduler", metavar="ADDRESS", help="embed on the workers of this dask scheduler")

    train = command(
        _commands.train,
        "train on reference slides and save a model",
        "Train on slides with H&E and measured expression, and save the model to a folder, which contains the "
        "embeddings and expression of the reference.",
        *(table, output, training),
    )
    train.add_argument("model", metavar="MODEL_FOLDER", type=Path, help="folder to write")
    train.add_argument("--method", help="method: spahgc (the default), ridge, context_ridge, knn, ...")
    train.add_argument("--preset", choices=("default", "fast", "paper"), help="preset of method spahgc")

    predict = command(
        _commands.predict,
        "predict target slides with a saved model",
        "Predict the expression of slides from their H&E embeddings. OUT.h5ad is the target table with the prediction "
        "in obsm['spahgc'], and in obs['spahgc_support'] how well the reference covers each spot. OUT.zarr is what "
        "--as-x writes, block by block, for predictions larger than memory. Measured expression of the target is not "
        "read.",
        *(table, output),
    )
    predict.add_argument("model", metavar="MODEL_FOLDER", type=Path, help="folder that `spahgc train` wrote")
    predict.add_argument("target", metavar="TARGET", type=Path, help=f"target table: {_TABLE_FILE}")
    predict.add_argument("out", metavar="OUT.h5ad", type=Path, help="file to write, or OUT.zarr")
    predict.add_argument("--as-x", action="store_true", help="write a table with the prediction in X, for scanpy")
    predict.add_argument("--key-added", help="key of what is written (spahgc)")

    validate = command(
        _commands.cross_validate,
        "hold out each patient in turn and score",
        "Hold out the slides of each patient in turn, train on the others, predict from H&E alone and score: which "
        "genes can be predicted, and how well. OUT.csv holds one row per method, slide, gene, metric and seed.",
        *(table, output, training),
    )
    validate.add_argument("out", metavar="OUT.csv", type=Path, help="file to write")
    validate.add_argument("--table", metavar="OUT.h5ad", type=Path, help="also write the table, with scores and trust")
    validate.add_argument("--methods", help="names separated by commas (ridge,low_rank_ridge,context_ridge,spahgc)")
    same_patient = "train on other slides of the held-out slide's patient"
    validate.add_argument("--allow-shared-patients", action="store_true", help=same_patient)
    protocol = "paper and hest are optimistic, and only for comparison with published scores (honest)"
    validate.add_argument("--protocol", choices=("honest", "paper", "hest"), help=protocol)
    validate.add_argument("--n-seeds", type=int, help="number of seeds, from --seed on (3)")
    validate.add_argument("--resume", metavar="FOLDER", type=Path, help="keep finished units here, and continue")
    validate.add_argument("--n-jobs", type=int, help="worker processes; otherwise all cores")
    validate.add_argument("--key-added", help="key of what is written (spahgc)")
    return parser


def _names(path: str) -> list[str]:
    """Read names from a text file, one per line."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
