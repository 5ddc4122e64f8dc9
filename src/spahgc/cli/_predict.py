"""``spahgc predict``."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import _keys as keys
from . import _options as options


def add(command: options.Command) -> None:
    """Add the command."""
    parser = command(
        "predict",
        _predict,
        "predict target slides with a saved model",
        "Predict the expression of slides from their H&E embeddings. OUT.h5ad is the target table with the prediction "
        "in obsm['spahgc'], and in obs['spahgc_support'] how well the reference covers each spot. OUT.zarr is what "
        "--as-x writes, block by block, for predictions larger than memory. Measured expression of the target is not "
        "read.",
    )
    parser.add_argument("model", metavar="MODEL_FOLDER", type=Path, help="folder that `spahgc train` wrote")
    parser.add_argument("target", metavar="TARGET", type=Path, help=f"target table: {options.TABLE_FILE}")
    parser.add_argument("out", metavar="OUT.h5ad", type=Path, help="file to write, or OUT.zarr")
    parser.add_argument(
        "--as-x", action="store_true", help="write the prediction as a table of its own, in X, for scanpy and squidpy"
    )
    parser.add_argument("--key-added", default=keys.PREDICTION, help="key of what is written (%(default)s)")
    options.output(parser)


def _predict(arguments: argparse.Namespace) -> None:
    from .. import _disk
    from ..get import predicted
    from ..tl import Model, predict
    from . import _files

    out, key = arguments.out, arguments.key_added
    store = out if out.suffix == ".zarr" else None
    # Fail before the prediction.
    if store is None:
        _files.check_free(out, ".h5ad", overwrite=arguments.overwrite)
    else:
        _disk.check_free(out, overwrite=arguments.overwrite)
    model = Model.load(arguments.model)
    target = _files.read_table(arguments.target, table_key=arguments.table_key)
    parameters = options.given(arguments, "library_key", "patient_key", "key_added", "overwrite")
    predict(model, target, store=store, **parameters)
    in_x = arguments.as_x or store is not None
    if store is None:
        _files.write_table(predicted(target, key=key) if in_x else target, out)
    print(
        f"Wrote {out}: {len(model.genes)} genes of {target.n_obs} spots in "
        f"{'X' if in_x else f'obsm[{key!r}]'}; median support {target.obs[keys.support(key)].median():.2f}"
    )
