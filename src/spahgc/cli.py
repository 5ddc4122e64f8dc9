"""The command ``spahgc``: the functions of the package for scripts and clusters.

What takes long to import is imported by the handlers, so that ``spahgc --help`` answers at once.
"""

from __future__ import annotations

import argparse
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from . import __version__, settings
from . import _keys as keys

USER_ERRORS = (KeyError, ValueError, TypeError, OSError, ImportError)
"""What the library raises where the user can help; anything else is a defect and ends with its traceback."""

_TABLE_FILE = "an .h5ad file, or a zarr folder of AnnData or SpatialData"


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
    if Path(filename).parent == Path(__file__).parent:
        print(f"spahgc: warning: {' '.join(str(message).split())}", file=sys.stderr)
    else:
        otherwise(message, category, filename, lineno, file, line)


def _demo(arguments: argparse.Namespace) -> None:
    import matplotlib

    from ._demo import run

    # Figures go to files; no window is opened, and no screen is needed.
    matplotlib.use("Agg")
    run(
        arguments.out,
        data=arguments.data,
        synthetic=arguments.synthetic,
        seed=arguments.seed,
        say=partial(print, flush=True),
    )


def _embed(arguments: argparse.Namespace) -> None:
    from . import _files
    from ._parallel import connect
    from .pp import image_embedding

    sdata = _files.read_slides(arguments.sdata)
    # Names of timm's networks may hold what no key may.
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", arguments.encoder.removeprefix("timm:"))
    key = arguments.key_added or keys.image(name)
    with connect(arguments.scheduler):
        image_embedding(
            sdata,
            arguments.encoder,
            table_key=arguments.table_key,
            tile_um=arguments.tile_um,
            microns_per_pixel=arguments.microns_per_pixel,
            key_added=key,
            precision=arguments.precision,
            resume=arguments.resume,
            n_jobs=arguments.n_jobs,
            batch_size=arguments.batch_size,
        )
    table = sdata.tables[arguments.table_key]
    _files.add_to_zarr(arguments.sdata, table, key, table_key=arguments.table_key)
    n_obs, width = table.obsm[key].shape
    print(f"Wrote obsm[{key!r}] ({n_obs} spots x {width}) into the table {arguments.table_key!r} of {arguments.sdata}")


def _train(arguments: argparse.Namespace) -> None:
    from . import _files
    from .tl import train
    from .tl._model import check_free

    # Before the work, so that a name that is taken does not cost a training.
    check_free(arguments.model, overwrite=arguments.overwrite)
    model = train(
        _files.read_table(arguments.reference, table_key=arguments.table_key),
        panel=arguments.panel if arguments.genes is None else _genes(arguments.genes),
        method=arguments.method,
        preset=arguments.preset,
        normalize=arguments.normalize,
        use_rep=arguments.use_rep,
        library_key=arguments.library_key,
        patient_key=arguments.patient_key,
        layer=arguments.layer,
        split_by=arguments.split_by,
        rng=arguments.seed,
    )
    model.save(arguments.model, overwrite=arguments.overwrite)
    slides = ", ".join(slide.name for slide in model.reference)
    print(f"Wrote {arguments.model}: {arguments.method}, {len(model.genes)} genes, trained on {slides}")


def _predict(arguments: argparse.Namespace) -> None:
    from . import _files
    from .get import predicted
    from .tl import Model, predict

    _files.check_free(arguments.out, overwrite=arguments.overwrite)
    model = Model.load(arguments.model)
    target = _files.read_table(arguments.target, table_key=arguments.table_key)
    predict(
        model,
        target,
        library_key=arguments.library_key,
        patient_key=arguments.patient_key,
        key_added=arguments.key_added,
    )
    support = target.obs[keys.support(arguments.key_added)]
    out = predicted(target, key=arguments.key_added) if arguments.as_x else target
    _files.write_table(out, arguments.out, overwrite=arguments.overwrite)
    where = "X" if arguments.as_x else f"obsm[{arguments.key_added!r}]"
    print(
        f"Wrote {arguments.out}: {len(model.genes)} genes of {target.n_obs} spots in {where}; "
        f"median support {support.median():.2f}"
    )


def _cross_validate(arguments: argparse.Namespace) -> None:
    from . import _files
    from .tl import cross_validate

    if arguments.out.exists() and not arguments.overwrite:
        raise FileExistsError(
            f"{arguments.out} exists already. Pass --overwrite to replace it, or choose another name."
        )
    if arguments.table is not None:
        _files.check_free(arguments.table, overwrite=arguments.overwrite)
    reference = _files.read_table(arguments.reference, table_key=arguments.table_key)
    table = cross_validate(
        reference,
        methods=arguments.methods.split(","),
        panel=arguments.panel if arguments.genes is None else _genes(arguments.genes),
        normalize=arguments.normalize,
        use_rep=arguments.use_rep,
        library_key=arguments.library_key,
        patient_key=arguments.patient_key,
        layer=arguments.layer,
        split_by=arguments.split_by,
        allow_shared_patients=arguments.allow_shared_patients,
        protocol=arguments.protocol,
        seeds=arguments.seeds,
        rng=arguments.seed,
        resume=arguments.resume,
        n_jobs=arguments.n_jobs,
        key_added=arguments.key_added,
    )
    with _files.replacing(arguments.out) as temporary:
        table.to_csv(temporary, index=False)
    if arguments.table is not None:
        _files.write_table(reference, arguments.table, overwrite=arguments.overwrite)
    print(f"Wrote {arguments.out}; {table.attrs['label']}. Mean Pearson over genes, then slides:")
    scores = table[table["metric"] == "pearson"].groupby(["method", "slide"], sort=False)["value"].mean()
    for method, value in scores.groupby("method", sort=False).mean().items():
        print(f"  {method:16}{value:8.3f}")


def _genes(path: Path) -> list[str]:
    """Names in a text file, one a line."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


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

    def command(name: str, run: Any, summary: str, details: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=summary, description=details)
        added.set_defaults(run=run)
        return added

    demo = command(
        "demo",
        _demo,
        "train and predict on example slides, score, write figures and a report",
        "Train on the HER2+ breast cancer slides B4, C2, C3 and C5, predict C4 as if it had H&E only, then score the "
        "prediction beside the controls. Without the slides it runs on a drawn cohort, and says so.",
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), help="folder to write to (%(default)s)")
    source = demo.add_mutually_exclusive_group()
    source.add_argument(
        "--data",
        type=Path,
        help="folder that holds her2st/; otherwise SPAHGC_DATA_DIR, then ../shared/data",
    )
    source.add_argument("--synthetic", action="store_true", help="use the drawn cohort")
    demo.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    _device(demo)

    embed = command(
        "embed",
        _embed,
        "write the embedding of every spot into a SpatialData",
        "Embed the H&E tile of every spot, and write obsm['image_<encoder>'] into the table of a SpatialData zarr. "
        "Nothing else in the zarr is touched. If it is stopped, the same call goes on from there.",
    )
    embed.add_argument("sdata", metavar="SDATA.zarr", type=Path, help="SpatialData with images, shapes and a table")
    embed.add_argument("--encoder", default="texture", help="name of the encoder (%(default)s)")
    embed.add_argument("--tile-um", type=float, default=112.0, help="side of a tile in micrometres (%(default)s)")
    embed.add_argument("--microns-per-pixel", type=float, help="otherwise what the table says")
    embed.add_argument("--key-added", help="key of obsm to write; otherwise image_<encoder>")
    embed.add_argument("--batch-size", type=int, help="tiles that the encoder gets at a time (256)")
    embed.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), help="of a network; otherwise the device's default"
    )
    embed.add_argument(
        "--no-resume", dest="resume", action="store_false", help="start anew, and keep nothing if it is stopped"
    )
    where = embed.add_mutually_exclusive_group()
    where.add_argument("--n-jobs", type=int, help="threads; otherwise all cores")
    where.add_argument("--scheduler", metavar="ADDRESS", help="embed on the workers of this dask scheduler")
    _device(embed)
    _table(embed)

    train = command(
        "train",
        _train,
        "train on reference slides and save a model",
        "Train on slides with H&E and measured expression, and save the model as a folder. The folder holds the "
        "reference's embeddings and expression.",
    )
    train.add_argument("reference", metavar="REF", type=Path, help=f"reference table: {_TABLE_FILE}")
    train.add_argument("model", metavar="MODEL_FOLDER", type=Path, help="folder to make")
    panel = train.add_mutually_exclusive_group()
    panel.add_argument("--panel", type=int, default=300, help="number of genes to predict (%(default)s)")
    panel.add_argument("--genes", type=Path, metavar="FILE", help="predict these genes: a text file, one name a line")
    train.add_argument("--method", default="spahgc", help="method, such as spahgc, ridge, context_ridge, knn")
    train.add_argument("--preset", choices=("default", "paper"), help="preset of method spahgc")
    train.add_argument("--normalize", choices=("log1p", "log10", "none"), default="log1p", help="unit (%(default)s)")
    train.add_argument("--use-rep", help="key of obsm with the embedding; otherwise the only image_*")
    train.add_argument("--layer", help="layer with the raw counts; otherwise X")
    train.add_argument(
        "--split-by",
        choices=("patient", "slide"),
        default="patient",
        help="held out while tuning: patient (for targets of new patients, the default) or slide",
    )
    train.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    _device(train)
    _table(train)
    _columns(train)
    _overwrite(train)

    validate = command(
        "cross-validate",
        _cross_validate,
        "hold out each patient in turn and score",
        "Hold out the slides of each patient in turn, train on the others, predict from the H&E alone and score: which "
        "genes can be predicted, and by how much. OUT.csv holds a row per method, slide, gene, metric and seed.",
    )
    validate.add_argument("reference", metavar="REF", type=Path, help=f"reference table: {_TABLE_FILE}")
    validate.add_argument("out", metavar="OUT.csv", type=Path, help="file to write")
    validate.add_argument("--table", metavar="OUT.h5ad", type=Path, help="also write the table, with scores and trust")
    validate.add_argument(
        "--methods", default="ridge,context_ridge,spahgc", help="names, with commas between (%(default)s)"
    )
    panel = validate.add_mutually_exclusive_group()
    panel.add_argument("--panel", type=int, help="number of genes; otherwise the protocol's, 300")
    panel.add_argument("--genes", type=Path, metavar="FILE", help="these genes: a text file, one name a line")
    validate.add_argument(
        "--normalize", choices=("log1p", "log10", "none"), help="unit; otherwise the protocol's, log1p"
    )
    validate.add_argument("--use-rep", help="key of obsm with the embedding; otherwise the only image_*")
    validate.add_argument("--layer", help="layer with the raw counts; otherwise X")
    validate.add_argument(
        "--split-by", choices=("patient", "slide"), default="patient", help="what is held out (%(default)s)"
    )
    validate.add_argument(
        "--allow-shared-patients", action="store_true", help="train on other slides of the held-out slide's patient"
    )
    validate.add_argument(
        "--protocol",
        choices=("honest", "paper", "hest"),
        default="honest",
        help="paper and hest are optimistic, and only for comparison with published scores (%(default)s)",
    )
    validate.add_argument("--seeds", type=int, default=3, help="number of seeds (%(default)s)")
    validate.add_argument("--seed", type=int, default=0, help="first seed (%(default)s)")
    validate.add_argument(
        "--resume", metavar="FOLDER", type=Path, help="keep finished units here, and go on where a run was stopped"
    )
    validate.add_argument("--n-jobs", type=int, help="worker processes; otherwise all cores")
    validate.add_argument("--key-added", default=keys.PREDICTION, help="key of what is written (%(default)s)")
    _device(validate)
    _table(validate)
    _columns(validate)
    _overwrite(validate)

    predict = command(
        "predict",
        _predict,
        "predict target slides with a saved model",
        "Predict the expression of slides from their H&E embeddings. OUT.h5ad is the target table with the prediction "
        "in obsm['spahgc'], and in obs['spahgc_support'] how well the reference covers each spot. "
        "Measured expression of the target is not read.",
    )
    predict.add_argument("model", metavar="MODEL_FOLDER", type=Path, help="folder that `spahgc train` made")
    predict.add_argument("target", metavar="TARGET", type=Path, help=f"target table: {_TABLE_FILE}")
    predict.add_argument("out", metavar="OUT.h5ad", type=Path, help="file to write")
    predict.add_argument(
        "--as-x", action="store_true", help="write the prediction as a table of its own, in X, for scanpy and squidpy"
    )
    predict.add_argument("--key-added", default=keys.PREDICTION, help="key of what is written (%(default)s)")
    _device(predict)
    _table(predict)
    _columns(predict)
    _overwrite(predict)
    return parser


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="torch device: auto (the default), cpu, cuda, mps")


def _table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table-key", default=keys.TABLE, help="table of a SpatialData (%(default)s)")


def _columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--library-key", help="column of obs with the slide; otherwise the table's region key")
    parser.add_argument("--patient-key", default=keys.PATIENT, help="column of obs with the patient (%(default)s)")


def _overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
