"""``spahgc train`` and ``spahgc cross-validate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import _keys as keys
from . import _options as options


def add(command: options.Command) -> None:
    """Add the commands."""
    _add_train(command)
    _add_cross_validate(command)


def _add_train(command: options.Command) -> None:
    parser = command(
        "train",
        _train,
        "train on reference slides and save a model",
        "Train on slides with H&E and measured expression, and save the model as a folder. The folder holds the "
        "reference's embeddings and expression.",
    )
    parser.add_argument("reference", metavar="REF", type=Path, help=f"reference table: {options.TABLE_FILE}")
    parser.add_argument("model", metavar="MODEL_FOLDER", type=Path, help="folder to make")
    panel = parser.add_mutually_exclusive_group()
    panel.add_argument("--panel", type=int, default=300, help="number of genes to predict (%(default)s)")
    panel.add_argument("--genes", type=Path, metavar="FILE", help="predict these genes: a text file, one name a line")
    parser.add_argument("--method", default="spahgc", help="method, such as spahgc, ridge, context_ridge, knn")
    parser.add_argument("--preset", choices=("default", "paper"), help="preset of method spahgc")
    parser.add_argument("--normalize", choices=("log1p", "log10", "none"), default="log1p", help="unit (%(default)s)")
    parser.add_argument("--use-rep", help="key of obsm with the embedding; otherwise the only image_*")
    parser.add_argument("--layer", help="layer with the raw counts; otherwise X")
    parser.add_argument(
        "--split-by",
        choices=("patient", "slide"),
        default="patient",
        help="held out while tuning: patient (for targets of new patients, the default) or slide",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    options.device(parser)
    options.table(parser)
    options.columns(parser)
    options.overwrite(parser)


def _add_cross_validate(command: options.Command) -> None:
    parser = command(
        "cross-validate",
        _cross_validate,
        "hold out each patient in turn and score",
        "Hold out the slides of each patient in turn, train on the others, predict from the H&E alone and score: which "
        "genes can be predicted, and by how much. OUT.csv holds a row per method, slide, gene, metric and seed.",
    )
    parser.add_argument("reference", metavar="REF", type=Path, help=f"reference table: {options.TABLE_FILE}")
    parser.add_argument("out", metavar="OUT.csv", type=Path, help="file to write")
    parser.add_argument("--table", metavar="OUT.h5ad", type=Path, help="also write the table, with scores and trust")
    parser.add_argument(
        "--methods", default="ridge,context_ridge,spahgc", help="names, with commas between (%(default)s)"
    )
    panel = parser.add_mutually_exclusive_group()
    panel.add_argument("--panel", type=int, help="number of genes; otherwise the protocol's, 300")
    panel.add_argument("--genes", type=Path, metavar="FILE", help="these genes: a text file, one name a line")
    parser.add_argument("--normalize", choices=("log1p", "log10", "none"), help="unit; otherwise the protocol's, log1p")
    parser.add_argument("--use-rep", help="key of obsm with the embedding; otherwise the only image_*")
    parser.add_argument("--layer", help="layer with the raw counts; otherwise X")
    parser.add_argument(
        "--split-by", choices=("patient", "slide"), default="patient", help="what is held out (%(default)s)"
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
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="first seed (%(default)s)")
    parser.add_argument(
        "--resume", metavar="FOLDER", type=Path, help="keep finished units here, and go on where a run was stopped"
    )
    parser.add_argument("--n-jobs", type=int, help="worker processes; otherwise all cores")
    parser.add_argument("--key-added", default=keys.PREDICTION, help="key of what is written (%(default)s)")
    options.device(parser)
    options.table(parser)
    options.columns(parser)
    options.overwrite(parser)


def _train(arguments: argparse.Namespace) -> None:
    from ..tl import train
    from ..tl._model import check_free
    from . import _files

    # Before the work, so that a name that is taken does not cost a training.
    check_free(arguments.model, overwrite=arguments.overwrite)
    model = train(
        _files.read_table(arguments.reference, table_key=arguments.table_key),
        panel=arguments.panel if arguments.genes is None else options.genes(arguments.genes),
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


def _cross_validate(arguments: argparse.Namespace) -> None:
    from ..tl import cross_validate
    from . import _files

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
        panel=arguments.panel if arguments.genes is None else options.genes(arguments.genes),
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
