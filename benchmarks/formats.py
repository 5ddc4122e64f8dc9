"""Slides in the formats that users have: read, embedded (texture), predicted (ridge), drawn; a row each.

her2st, mob_st and colon_visium are the real slides. The others are small slides in the exact layouts, written by the
builders of the tests and read by the real readers (spatialdata-io, openslide, wsidata): of each, one is the reference
and another the target, whose expression the prediction does not see. Prints the table, writes results/formats.json.

    python benchmarks/formats.py
    python benchmarks/formats.py --only visium xenium --pictures /tmp/formats
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _common import RESULTS, data_dir, machine, write_json
from _tables import markdown

TESTS = Path(__file__).parents[1] / "tests"


def _from_tests(file: str) -> Any:
    """A module of the tests, by path: the layouts are built in one place."""
    name = Path(file).stem
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, TESTS / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Pair:
    """A reference and a target, as they were read."""

    reference: Any
    target: Any
    reader: str
    mpp_from: str
    """Where the micrometres per pixel come from."""
    gene: str
    embedding: dict[str, Any] = field(default_factory=dict)
    """Arguments of `pp.image_embedding`, other than the encoder."""


def her2st(_: Path) -> Pair:
    import spahgc

    one, two = (spahgc.datasets.her2st(data_dir() / "her2st", slides=[name]) for name in ("C2", "C3"))
    return Pair(one, two, "datasets.her2st", "pitch of 200 um", "ERBB2")


def mob_st(_: Path) -> Pair:
    import spahgc

    def read(name: str) -> Any:
        files = [data_dir() / "mob_st" / name / file for file in ("counts.tsv.gz", "spots.tsv", "he.jpg")]
        return spahgc.io.read_st(*files, slide=f"mob_{name}", patient="A")

    return Pair(read("01"), read("02"), "io.read_st", "pitch of 200 um", "Penk")


def colon_visium(_: Path) -> Pair:
    import anndata

    import spahgc

    def read(name: str) -> Any:
        table = anndata.read_h5ad(data_dir() / "colon_visium" / f"{name}.h5ad")
        image = data_dir() / "colon_visium" / f"{name}.jpg"
        return spahgc.io.from_anndata(table, image, slide=name, microns_per_pixel=0.97, spot_diameter_um=55)

    return Pair(read("section1"), read("section2"), "io.from_anndata", "given", "Tagln")


def visium(folder: Path) -> Pair:
    import spatialdata_io

    layouts = _from_tests("pp/layouts.py")

    def read(name: str, seed: int) -> Any:
        made = layouts.visium_folder(folder / name, seed=seed)
        return spatialdata_io.visium(made, dataset_id=name, fullres_image_file="tissue.tif")

    return Pair(read("S1", 1), read("S2", 2), "spatialdata_io.visium", "pitch of 100 um", "EPCAM")


def visium_hd(folder: Path) -> Pair:
    import spatialdata_io

    import spahgc

    layouts = _from_tests("pp/layouts.py")

    def read(name: str, seed: int) -> Any:
        made = layouts.visium_hd_folder(folder / name, seed=seed)
        sdata = spatialdata_io.visium_hd(made, load_segmentations_only=False)
        return spahgc.io.bin_to_spots(sdata, 56, table_key="square_008um", slide=name)

    return Pair(read("HD1", 1), read("HD2", 2), "spatialdata_io.visium_hd, io.bin_to_spots", "bins of 8 um", "EPCAM")


def xenium(folder: Path) -> Pair:
    import spatialdata_io

    import spahgc

    layouts = _from_tests("pp/layouts.py")

    def read(name: str, seed: int) -> Any:
        made = layouts.xenium_folder(folder / name, n=1500, seed=seed)
        sdata = spatialdata_io.xenium(made, transcripts=False, cells_as_circles=True)
        return spahgc.io.bin_to_spots(sdata, 55, slide=name, min_bins=5)

    return Pair(read("X1", 1), read("X2", 2), "spatialdata_io.xenium, io.bin_to_spots", "areas of the cells", "EPCAM")


def hest(folder: Path) -> Pair:
    import spahgc

    write = _from_tests("conftest.py")._hest_sample
    for name in ("NCBI681", "NCBI682"):
        write(folder, name, genes=("ERBB2", "KRT8", "CD3E", "MALAT1"))
    one, two = (spahgc.io.read_hest(folder, name) for name in ("NCBI681", "NCBI682"))
    return Pair(one, two, "io.read_hest", "metadata of HEST", "ERBB2")


def pyramid(folder: Path) -> Pair:
    """A bare slide: virtual spots at the pitch of the Visium slide above, which is the reference."""
    import spahgc

    slides, layouts = _from_tests("slide_files.py"), _from_tests("pp/layouts.py")
    reference = visium(folder).reference
    slides.pyramid_tiff(folder / "biopsy.tif", layouts.tissue(1800, 2400, 3), mpp=1.25)
    target = spahgc.io.read_wsi(folder / "biopsy.tif")
    spahgc.pp.tissue_grid(target, pitch_um=100, spot_diameter_um=55)
    return Pair(reference, target, "io.read_wsi, pp.tissue_grid", "resolution of the TIFF", "EPCAM")


def lazyslide(folder: Path) -> Pair:
    """Tiled and embedded by LazySlide; here the tiles get spahgc's own embedding as well."""
    import anndata
    import lazyslide as zs
    import torch
    import wsidata

    import spahgc

    slides, layouts = _from_tests("slide_files.py"), _from_tests("pp/layouts.py")

    def read(name: str, seed: int) -> Any:
        slides.pyramid_tiff(folder / f"{name}.tif", slides.scene(1400, 1400, seed), mpp=0.5)
        wsi = wsidata.open_wsi(folder / f"{name}.tif")
        zs.pp.find_tissues(wsi)
        zs.pp.tile_tissues(wsi, 96, mpp=0.5)
        zs.tl.feature_extraction(wsi, _Means(), model_name="means", transform=_to_tensor, pbar=False)
        wsi.write()
        sdata = spahgc.io.from_wsidata(folder / f"{name}.zarr")
        brightness = sdata["table"].obsm["image_means"][:, 0]
        expression = anndata.AnnData(layouts.counts(brightness, seed=seed))
        expression.var_names = layouts.GENES
        expression.obs["tile_id"] = sdata["table"].obs["tile_id"].to_numpy()
        return spahgc.io.from_wsidata(folder / f"{name}.zarr", expression=expression)

    class _Means(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            return torch.cat([tiles.mean((2, 3)), tiles.std((2, 3))], dim=1)

    def _to_tensor(tile: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(tile, -1, 0))).float() / 255

    return Pair(read("A", 1), read("B", 2), "io.from_wsidata", "store of wsidata", "EPCAM", {"tile_um": 48.0})


ROWS: dict[str, tuple[str, Callable[[Path], Pair]]] = {
    "her2st": ("her2st C2, C3 (real)", her2st),
    "mob_st": ("mob_st 01, 02 (real)", mob_st),
    "colon_visium": ("colon_visium 1, 2 (real)", colon_visium),
    "visium": ("Visium folder (Space Ranger 2)", visium),
    "visium_hd": ("Visium HD folder (Space Ranger 3), 8 um bins", visium_hd),
    "xenium": ("Xenium folder with H&E", xenium),
    "hest": ("HEST-1k sample", hest),
    "pyramid": ("pyramidal tif, no spots", pyramid),
    "lazyslide": ("LazySlide's WSIData", lazyslide),
}


@dataclass
class Row:
    """What came of one format."""

    format: str
    reader: str = ""
    spots: int | None = None
    genes: int | None = None
    mpp: float | None = None
    mpp_from: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    gene: str = ""
    pearson: float | None = None
    """Of the gene, predicted and measured, over the target's spots; `None` where nothing was measured."""
    result: str = "ok"


def run(name: str, folder: Path, pictures: Path | None) -> Row:
    """Read, embed, predict, draw."""
    import matplotlib.pyplot as plt

    import spahgc

    title, read = ROWS[name]
    row = Row(title)

    def timed(step: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        done = call()
        row.seconds[step] = round(time.perf_counter() - start, 2)
        return done

    try:
        pair = timed("read", lambda: read(folder))
        row.reader, row.mpp_from = pair.reader, pair.mpp_from
        target, reference = pair.target["table"], pair.reference["table"]
        row.spots, row.genes = target.n_obs, reference.n_vars
        (slide,) = _located(pair.target)
        row.mpp = round(slide.levels[0].microns_per_pixel, 3)
        embed = {"encoder": "texture", "progress": False, **pair.embedding}
        timed("embed", lambda: [spahgc.pp.image_embedding(part, **embed) for part in (pair.reference, pair.target)])
        options = {"method": "ridge", "patient_key": "region", "use_rep": "image_texture", "panel": [pair.gene]}
        timed("predict", lambda: spahgc.tl.predict(reference, target, **options))
        row.gene = pair.gene
        timed("plot", lambda: _draw(pair, pictures and pictures / f"{name}.png"))
        if target.n_vars:
            spahgc.tl.evaluate(target)
            row.pearson = round(float(target.var.at[pair.gene, "spahgc_pearson"]), 3)
    except Exception as error:  # noqa: BLE001  a format that fails is a row as well
        row.result = f"{type(error).__name__}: {error}"
    plt.close("all")
    return row


def _located(sdata: Any) -> list[Any]:
    from spahgc.pp._images import locate

    return locate(sdata, sdata["table"], microns_per_pixel=None)


def _draw(pair: Pair, path: Path | None) -> None:
    import matplotlib.pyplot as plt

    import spahgc

    axes = spahgc.pl.expression(pair.target, pair.gene, show=False)
    figure = axes[0].figure
    figure.canvas.draw()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)
    plt.close(figure)


def table(rows: list[Row]) -> str:
    """As Markdown."""
    steps = ("read", "embed", "predict", "plot")
    head = ["format", "read with", "spots", "um per pixel", "from", *(f"{step}, s" for step in steps)]
    lines = [
        [
            row.format,
            row.reader,
            "" if row.spots is None else str(row.spots),
            "" if row.mpp is None else f"{row.mpp:g}",
            row.mpp_from,
            *(f"{row.seconds[step]:.1f}" if step in row.seconds else "" for step in steps),
            row.gene + ("" if row.pearson is None else f" {row.pearson:.2f}"),
            row.result,
        ]
        for row in rows
    ]
    return markdown([*head, "gene, Pearson", "result"], lines)


def main() -> None:
    import matplotlib as mpl

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--pictures", type=Path, help="folder to save the plots in")
    arguments = parser.parse_args()
    mpl.use("Agg")
    warnings.simplefilter("ignore")
    _from_tests("conftest.py")._mend_torchvision()
    rows = []
    for name in arguments.only or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(run(name, Path(folder), arguments.pictures))
        print(f"{rows[-1].format}: {rows[-1].result}", file=sys.stderr, flush=True)
    print(table(rows))
    if not arguments.only:
        write_json(RESULTS / "formats.json", {"machine": machine(), "rows": [asdict(row) for row in rows]})
    if any(row.result != "ok" for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
