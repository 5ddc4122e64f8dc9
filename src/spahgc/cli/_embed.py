"""``spahgc embed``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from .. import _keys as keys
from . import _options as options


def add(command: options.Command) -> None:
    """Add the command."""
    parser = command(
        "embed",
        _embed,
        "write the embedding of every spot into a SpatialData",
        "Embed the H&E tile of every spot, and write obsm['image_<encoder>'] into the table of a SpatialData zarr. "
        "Nothing else in the zarr changes. After an interruption, the same call continues.",
    )
    parser.add_argument("sdata", metavar="SDATA.zarr", type=Path, help="SpatialData with images, shapes and a table")
    parser.add_argument("--encoder", default="texture", help="name of the encoder (%(default)s)")
    parser.add_argument("--tile-um", type=float, default=112.0, help="side of a tile in micrometers (%(default)s)")
    parser.add_argument("--microns-per-pixel", type=float, help="otherwise taken from the table")
    parser.add_argument("--key-added", help="key of obsm to write; otherwise image_<encoder>")
    parser.add_argument("--batch-size", type=int, help="tiles per call of the encoder (256)")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), help="of a network; otherwise the device's default"
    )
    parser.add_argument(
        "--no-resume", dest="resume", action="store_false", help="start again, and keep nothing if interrupted"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--n-jobs", type=int, help="threads; otherwise all cores")
    where.add_argument("--scheduler", metavar="ADDRESS", help="embed on the workers of this dask scheduler")
    options.device(parser)
    options.table(parser)


def _embed(arguments: argparse.Namespace) -> None:
    from .. import _disk
    from .._run import connect
    from ..pp import image_embedding
    from . import _files

    sdata = _files.read_slides(arguments.sdata)
    # Names of timm's networks may contain characters that a key may not.
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", arguments.encoder.removeprefix("timm:"))
    key = arguments.key_added or keys.image(name)
    names = ("table_key", "tile_um", "microns_per_pixel", "precision", "resume", "n_jobs", "batch_size")
    with connect(arguments.scheduler):
        image_embedding(sdata, arguments.encoder, key_added=key, **options.given(arguments, *names))
    table = sdata.tables[arguments.table_key]
    _disk.add_to_zarr(arguments.sdata, table, key, table_key=arguments.table_key)
    n_obs, width = table.obsm[key].shape
    print(f"Wrote obsm[{key!r}] ({n_obs} spots x {width}) into the table {arguments.table_key!r} of {arguments.sdata}")
