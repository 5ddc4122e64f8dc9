"""Reading tiles: speed and peak memory on a large image, against a query per spot, and beside a ViT-L.

    python benchmarks/tiles.py            # 50,000 x 50,000 pixels; takes 9 GB of disk for as long as it runs
    python benchmarks/tiles.py --quick    # 8,000 x 8,000 pixels, fewer tiles

Images are random bytes, which do not compress, in a SpatialData zarr with blocks of 512 pixels. Each measurement is a
process of its own; its peak memory is all that the process held at once, packages included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _common import RESULTS, machine, write_json

TILE_PX, TILE_UM, MPP = 224, 112.0, 0.5
CORES = len(os.sched_getaffinity(0))
BLOCK = 512
PROTOCOL = (
    "uint8 RGB images of random bytes, one scale, zarr blocks of 512 x 512 pixels, zstd as spatialdata writes it; "
    "spots drawn uniformly, tiles of 224 x 224 pixels (112 um) at scale 1. Each row is a process of its own, peak "
    "memory is its ru_maxrss, cpu_seconds are those of the whole process. read: spahgc's tile reader alone, a thread "
    "for each core. embed: pp.image_embedding with an encoder that takes one pixel of each tile: reading, stain "
    "density, padding, parts for resuming. texture: the same with the weight-free encoder, three fields of view. "
    "query: a loop of spatialdata.bounding_box_query over some of the spots; all of them are taken to need as much "
    "each. Files were written just before, and are in the page cache. resume: the texture statistics as a callable, "
    "the process killed with SIGKILL at 80 %, and run again. vit: timm's vit_large_patch16_224 with random weights in "
    "float32; the bare model gets the same tiles, in the same batches, from memory."
)


def make(path: Path, side: int, n_spots: int) -> None:
    """A SpatialData zarr with one image, its spots and a table."""
    import anndata as ad
    import dask.array as da
    import pandas as pd
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    def noise(block_info: Any) -> np.ndarray:
        where = block_info[None]
        rng = np.random.default_rng(list(where["chunk-location"]))
        return np.frombuffer(rng.bytes(int(np.prod(where["chunk-shape"]))), np.uint8).reshape(where["chunk-shape"])

    sizes = tuple(min(BLOCK, side - at) for at in range(0, side, BLOCK))
    pixels = da.map_blocks(noise, chunks=((3,), sizes, sizes), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), chunks=(3, BLOCK, BLOCK), c_coords=["r", "g", "b"])
    xy = np.random.default_rng(1).uniform(TILE_PX, side - TILE_PX, (n_spots, 2))
    names = [f"spot_{k}" for k in range(n_spots)]
    shapes = ShapesModel.parse(
        xy, geometry=0, radius=55.0, index=pd.Index(names), transformations={"global": Identity()}
    )
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * n_spots), "spot_id": names}, index=names)
    table = ad.AnnData(obs=obs, obsm={"spatial": xy})
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot_id")
    SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table}).write(path)


def one_pixel(tiles: np.ndarray) -> np.ndarray:
    return tiles[:, :, 0, 0].astype(np.float32)


def slides(path: Path, n_tiles: int) -> Any:
    """The SpatialData with its first spots only."""
    from spatialdata import read_zarr
    from spatialdata.models import TableModel

    sdata = read_zarr(path)
    table = sdata.tables["table"][:n_tiles].copy()
    del sdata.tables["table"]
    sdata.tables["table"] = TableModel.parse(table)
    return sdata


def read(path: Path, n_tiles: int) -> dict[str, Any]:
    from spahgc.pp._images import locate
    from spahgc.pp._tiles import TileReader

    sdata = slides(path, n_tiles)
    (slide,) = locate(sdata, sdata["table"], microns_per_pixel=MPP)
    TileReader(slide.levels, slide.centers, TILE_PX).read(0, TILE_UM)  # compiled kernels are loaded
    start = time.perf_counter()
    reader = TileReader(slide.levels, slide.centers, TILE_PX)
    order = reader.order([TILE_UM])

    def some(at: int) -> None:
        for spot in order[at : at + 16]:
            reader.read(int(spot), TILE_UM)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(some, range(0, len(order), 16)))
    seconds = time.perf_counter() - start
    decoded = sum(blocks.decoded for blocks in reader.blocks)
    return {"seconds": seconds, "blocks_decoded": decoded, "blocks": int(slide.levels[0].array.npartitions)}


def embed(path: Path, n_tiles: int) -> dict[str, Any]:
    import spahgc

    sdata = slides(path, n_tiles)
    spahgc.pp.image_embedding(slides(path, 2), one_pixel, microns_per_pixel=MPP, progress=False)
    start = time.perf_counter()
    spahgc.pp.image_embedding(sdata, one_pixel, microns_per_pixel=MPP, progress=False)
    return {"seconds": time.perf_counter() - start}


def texture(path: Path, n_tiles: int) -> dict[str, Any]:
    import spahgc

    sdata = slides(path, n_tiles)
    spahgc.pp.image_embedding(slides(path, 2), microns_per_pixel=MPP, progress=False)
    start = time.perf_counter()
    spahgc.pp.image_embedding(sdata, microns_per_pixel=MPP, progress=False)
    return {"seconds": time.perf_counter() - start}


def query(path: Path, n_tiles: int) -> dict[str, Any]:
    from spatialdata import bounding_box_query

    sdata = slides(path, n_tiles)
    half = TILE_PX / 2
    centres = np.round(sdata["table"].obsm["spatial"])
    start = None
    for k, centre in enumerate([centres[0], *centres]):
        if k == 1:  # the first one warms up
            start = time.perf_counter()
        tile = bounding_box_query(
            sdata["he"],
            axes=("x", "y"),
            min_coordinate=centre - half,
            max_coordinate=centre + half,
            target_coordinate_system="global",
        )
        if tile.data.compute().shape != (3, TILE_PX, TILE_PX):
            raise RuntimeError("A tile has another shape.")
    return {"seconds": time.perf_counter() - (start or 0.0)}


def counted(path: Path, n_tiles: int) -> dict[str, Any]:
    """The texture encoder as a callable that writes down how many tiles it has done."""
    import spahgc

    count = Path(os.environ["COUNT"])

    def texture(tiles: np.ndarray) -> np.ndarray:
        out = spahgc.encoders.texture(tiles)
        with count.open("a") as file:
            file.write(f"{len(tiles)}\n")
        return out

    sdata = slides(path, n_tiles)
    start = time.perf_counter()
    spahgc.pp.image_embedding(sdata, texture, microns_per_pixel=MPP, batch_size=32, progress=False)
    seconds = time.perf_counter() - start
    embedding = sdata["table"].obsm["image_texture"]
    return {"seconds": seconds, "sha256": hashlib.sha256(embedding.tobytes()).hexdigest(), "encoded": _done(count)}


def _done(count: Path) -> int:
    return sum(map(int, count.read_text().split())) if count.exists() else 0


def resume(path: Path, n_tiles: int, folder: Path) -> dict[str, Any]:
    """A run that is killed with SIGKILL at 80 %, and the next: what it has still to do, and whether it is the same."""
    command = [sys.executable, __file__, "--one", "counted", "--image", str(path), "--tiles", str(n_tiles)]

    def start(name: str, cache: str) -> tuple[subprocess.Popen[str], Path]:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "SPAHGC_CACHE_DIR": str(folder / cache),
            "COUNT": str(folder / name),
        }
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True), folder / name

    def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
        out = process.communicate()[0]
        if process.returncode:
            raise SystemExit("An embedding failed.")
        return dict(json.loads(out.splitlines()[-1]))

    whole = finished(start("whole", "elsewhere")[0])
    process, count = start("killed", "cache")
    while process.poll() is None and _done(count) < 0.8 * n_tiles:
        time.sleep(0.02)
    process.kill()
    process.wait()
    rest = finished(start("rest", "cache")[0])
    row = {
        "what": "resume",
        "tiles": n_tiles,
        "encoded_before_the_kill": _done(count),
        "encoded_after": rest["encoded"],
        "seconds_whole": whole["seconds"],
        "seconds_after": rest["seconds"],
        "identical": whole["sha256"] == rest["sha256"],
        "left_in_the_cache": sum(file.is_file() for file in (folder / "cache").rglob("*")),
    }
    print(
        f"kill -9 at {_done(count):,} of {n_tiles:,} tiles; the next run embeds {rest['encoded']:,} in "
        f"{rest['seconds']:.1f} s (whole: {whole['seconds']:.1f} s), identical: {row['identical']}"
    )
    return row


def vit(path: Path, n_tiles: int) -> dict[str, Any]:
    """A ViT-L on some tiles: bare, and through `image_embedding`; and reading the same tiles alone."""
    import torch

    _declare_operators()
    import timm

    import spahgc
    from spahgc.encoders._table import resolve
    from spahgc.pp._images import locate
    from spahgc.pp._tiles import TileReader

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    batch = 8
    torch.manual_seed(0)
    encoder = resolve(timm.create_model("vit_large_patch16_224", num_classes=0).eval())
    pixels = encoder.tile_px
    sdata = slides(path, n_tiles)
    (slide,) = locate(sdata, sdata["table"], microns_per_pixel=MPP)
    start = time.perf_counter()
    reader = TileReader(slide.levels, slide.centers, pixels)
    order = reader.order([TILE_UM])
    tiles = np.stack([reader.read(int(spot), TILE_UM)[0] for spot in order])
    reading = time.perf_counter() - start
    bare, whole = [], []
    for _ in range(3):  # in turns: what else runs on the machine slows both
        start = time.perf_counter()
        expected = np.concatenate([encoder.encode(tiles[at : at + batch]) for at in range(0, n_tiles, batch)])
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        spahgc.pp.image_embedding(
            sdata, encoder, microns_per_pixel=MPP, batch_size=batch, progress=False, key_added="image_vit"
        )
        whole.append(time.perf_counter() - start)
    np.testing.assert_array_equal(sdata["table"].obsm["image_vit"][order], expected)
    device = str(spahgc.settings.torch_device())
    return {
        "seconds": min(whole),
        "device": device,
        "torch_threads": threads,
        "batch_size": batch,
        "bare_seconds": bare,
        "embed_seconds": whole,
        "read_seconds": reading,
        "parameters": sum(p.numel() for p in encoder.encode.forward.parameters()),
    }


def _declare_operators() -> None:
    """torchvision, which timm imports, may be built for another torch than the CPU's; see tests/conftest.py."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        globals()["_library"] = library


MEASURES = {function.__name__: function for function in (read, embed, texture, query, counted, vit)}


def measure(name: str, path: Path, side: int, n_tiles: int, threads: int = 1) -> dict[str, Any]:
    """A row, from a process of its own."""
    arguments = [sys.executable, __file__, "--one", name, "--image", str(path), "--tiles", str(n_tiles)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    row = {"what": name, "side": side, "tiles": n_tiles, **json.loads(done.stdout.splitlines()[-1])}
    row["tiles_per_second"] = n_tiles / row["seconds"]
    print(
        f"{name:10}{side:8,} px{n_tiles:9,} tiles{row['seconds']:9.1f} s{row['tiles_per_second']:10.1f} tiles/s"
        f"{row['peak_mb']:8.0f} MB peak, {row['base_mb']:.0f} MB after imports",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images, fewer tiles; writes tiles_quick.json")
    parser.add_argument("--folder", type=Path, help="where the images are made; otherwise the system's")
    parser.add_argument("--no-vit", action="store_true", help="without the ViT-L")
    parser.add_argument("--one", choices=MEASURES, help=argparse.SUPPRESS)
    parser.add_argument("--image", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tiles", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        import spatialdata

        import spahgc.pp

        _ = spahgc.pp.image_embedding, spatialdata.SpatialData, spatialdata.bounding_box_query
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = MEASURES[arguments.one](arguments.image, arguments.tiles)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        row |= {"peak_mb": usage.ru_maxrss / 1024, "base_mb": base, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        print(json.dumps(row))
        return

    large, small, n_tiles, n_texture, n_query, n_vit = (
        (8_000, 4_000, 2_000, 500, 10, 16) if arguments.quick else (50_000, 10_000, 20_000, 2_000, 50, 32)
    )
    need = 3.2 * (large**2 + small**2)
    free = shutil.disk_usage(arguments.folder or tempfile.gettempdir()).free
    if free < 1.2 * need:
        raise SystemExit(
            f"The images take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Pass another --folder."
        )
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for side in (small, large):
            path = Path(folder) / f"{side}.zarr"
            start = time.perf_counter()
            make(path, side, n_tiles)
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            print(f"made {side:,} x {side:,} pixels, {size / 1e9:.2f} GB, in {time.perf_counter() - start:.0f} s")
            of = {"read": n_tiles, "embed": n_tiles, "texture": n_texture}
            rows += [measure(name, path, side, n) for name, n in of.items()]
            rows[-3]["image_gb"] = size / 1e9
            if side == small:
                rows.append(resume(path, 600 if arguments.quick else 4_000, Path(folder)))
        rows.append(measure("query", path, large, n_query))
        if not arguments.no_vit:
            rows.append(measure("vit", path, large, n_vit, threads=CORES))
    by = {(row["what"], row.get("side")): row for row in rows}
    ratios = {
        f"{name}_over_query": by[name, large]["tiles_per_second"] / by["query", large]["tiles_per_second"]
        for name in ("read", "embed")
    }
    peaks = {
        f"peak_{name}_large_over_small": by[name, large]["peak_mb"] / by[name, small]["peak_mb"]
        for name in ("read", "embed", "texture")
    }
    summary = {
        **ratios,
        **peaks,
        "peak_mb": max(row["peak_mb"] for row in rows if row["what"] in {"read", "embed", "texture"}),
    }
    if not arguments.no_vit:
        row = by["vit", large]
        summary |= {
            "vit_seconds_per_tile": min(row["bare_seconds"]) / n_vit,
            "read_seconds_per_tile": 1 / by["read", large]["tiles_per_second"],
            "read_share_of_vit": n_vit / by["read", large]["tiles_per_second"] / min(row["bare_seconds"]),
            "embed_over_bare_vit": min(row["embed_seconds"]) / min(row["bare_seconds"]),
        }
    print()
    for name, value in summary.items():
        print(f"{name:32}{value:10.4g}")
    result = {"machine": machine(), "protocol": PROTOCOL, "summary": summary, "rows": rows}
    write_json(RESULTS / ("tiles_quick.json" if arguments.quick else "tiles.json"), result)


if __name__ == "__main__":
    main()
