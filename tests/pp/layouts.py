"""Small slides in the layouts that users have: real folders for the real readers, and objects as the readers make them.

Every slide shows the same: a tissue whose color changes from left to right, and two of eight genes that follow it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

GENES = ["EPCAM", "COL1A1", "PTPRC", "ACTA2", "KRT8", "VIM", "PECAM1", "MS4A1"]


def tissue(height: int, width: int, seed: int = 0) -> np.ndarray:
    """H&E-like (height, width, 3) uint8: pink to the left, purple and rougher to the right."""
    rng = np.random.default_rng(seed)
    share = np.linspace(0, 1, width)[None, :, None]
    color = (1 - share) * np.array([235.0, 180, 205]) + share * np.array([120.0, 70, 150])
    rough = rng.normal(0, 1, (height // 4 + 1, width // 4 + 1, 1)).repeat(4, 0).repeat(4, 1)[:height, :width]
    return np.clip(color + rough * (5 + 25 * share), 0, 255).astype(np.uint8)


def counts(x: np.ndarray, depth: float = 400, seed: int = 0) -> Any:
    """Raw counts (n, 8), CSR: the first gene rises from left to right, the second falls."""
    import scipy.sparse as sp

    share = (x - x.min()) / np.ptp(x)
    rate = np.full((len(x), len(GENES)), 1.0)
    rate[:, 0] += 6 * share
    rate[:, 1] += 6 * (1 - share)
    rate *= depth / rate.sum(axis=1, keepdims=True)
    return sp.csr_matrix(np.random.default_rng(seed).poisson(rate).astype(np.float32))


def write_10x_h5(path: Path, matrix: Any, barcodes: list[str], *, library: str = "lib", features: Any = None) -> None:
    """A count matrix as Space Ranger writes it: HDF5, features x barcodes, CSC."""
    import h5py
    import scipy.sparse as sp

    csc = sp.csc_matrix(matrix.T)
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array([library.encode()])
        file.attrs["chemistry_description"] = b"Spatial 3' v1"
        file.attrs["software_version"] = b"spaceranger-2.1.0"
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"] = csc.data.astype(np.int32)
        group["indices"] = csc.indices.astype(np.int64)
        group["indptr"] = csc.indptr.astype(np.int64)
        group["shape"] = np.array(csc.shape, dtype=np.int32)
        what = group.create_group("features")
        what["id"] = np.array([f"ENSG{i:011d}" for i in range(len(GENES))], dtype="S")
        what["name"] = np.array(GENES, dtype="S")
        what["feature_type"] = np.array(["Gene Expression"] * len(GENES), dtype="S")
        what["genome"] = np.array(["GRCh38"] * len(GENES), dtype="S")


def write_images(spatial: Path, full: np.ndarray, hires: float, lowres: float) -> None:
    """Space Ranger's two smaller images."""
    from PIL import Image

    height, width = full.shape[:2]
    for name, scale in (("hires", hires), ("lowres", lowres)):
        size = (round(width * scale), round(height * scale))
        Image.fromarray(full).resize(size, Image.Resampling.BOX).save(spatial / f"tissue_{name}_image.png")


def visium_folder(
    folder: Path, *, pitch: float = 80.0, shape: tuple[int, int] = (900, 1200), turned: float = 0.0, seed: int = 0
) -> Path:
    """A Space Ranger 2 output of a small Visium slide, and the full image as ``tissue.tif``; 1.25 um per pixel."""
    import tifffile

    height, width = shape
    spatial = folder / "spatial"
    spatial.mkdir(parents=True)
    row, column = (part.ravel() for part in np.meshgrid(np.arange(78), np.arange(128), indexing="ij"))
    even = (row + column) % 2 == 0
    row, column = row[even], column[even]
    angle = np.deg2rad(turned)
    along = np.column_stack([column * pitch / 2, row * pitch * np.sqrt(3) / 2])
    xy = along @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + [60.0, 70.0]
    barcodes = [f"{''.join('ACGT'[(i >> 2 * k) & 3] for k in range(16))}-1" for i in range(len(row))]
    seen = (xy[:, 0] > 50) & (xy[:, 0] < width - 50) & (xy[:, 1] > 50) & (xy[:, 1] < height - 50)
    positions = pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": seen.astype(int),
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": xy[:, 1].round().astype(int),
            "pxl_col_in_fullres": xy[:, 0].round().astype(int),
        }
    )
    positions.to_csv(spatial / "tissue_positions.csv", index=False)
    scales = {
        "spot_diameter_fullres": 0.65 * pitch,
        "tissue_hires_scalef": 0.5,
        "fiducial_diameter_fullres": 1.05 * pitch,
        "tissue_lowres_scalef": 0.15,
    }
    (spatial / "scalefactors_json.json").write_text(json.dumps(scales))
    full = tissue(height, width, seed)
    tifffile.imwrite(folder / "tissue.tif", full, photometric="rgb")
    write_images(spatial, full, 0.5, 0.15)
    kept = np.flatnonzero(seen)
    write_10x_h5(folder / "filtered_feature_bc_matrix.h5", counts(xy[kept, 0], seed=seed), [barcodes[i] for i in kept])
    return folder


def visium_hd_folder(
    folder: Path, *, name: str = "HD1", um: tuple[int, ...] = (8, 16), mpp: float = 0.5, seed: int = 0
) -> Path:
    """A Space Ranger 3 output of a small Visium HD slide, and the full image as ``{name}_tissue_image.tif``."""
    import h5py
    import tifffile

    height, width = 800, 1000
    folder.mkdir(parents=True)
    scales = {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.15, "microns_per_pixel": mpp}
    full = tissue(height, width, seed)
    for size in um:
        spatial = folder / "binned_outputs" / f"square_{size:03}um" / "spatial"
        spatial.mkdir(parents=True)
        side = size / mpp
        n = round(600 / side), round(800 / side)
        row, column = (part.ravel() for part in np.meshgrid(np.arange(n[0]), np.arange(n[1]), indexing="ij"))
        xy = np.column_stack([100 + (column + 0.5) * side, 100 + (row + 0.5) * side])
        barcodes = [f"s_{size:03}um_{r:05}_{c:05}-1" for r, c in zip(row, column, strict=True)]
        positions = pd.DataFrame(
            {
                "barcode": barcodes,
                "in_tissue": 1,
                "array_row": row,
                "array_col": column,
                "pxl_row_in_fullres": xy[:, 1],
                "pxl_col_in_fullres": xy[:, 0],
            }
        )
        positions.to_parquet(spatial / "tissue_positions.parquet", index=False)
        own = {**scales, "bin_size_um": float(size), "spot_diameter_fullres": side}
        (spatial / "scalefactors_json.json").write_text(json.dumps(own))
        write_images(spatial, full, 0.5, 0.15)
        write_10x_h5(
            spatial.parent / "filtered_feature_bc_matrix.h5", counts(xy[:, 0], depth=size**2 / 4, seed=seed), barcodes
        )
    tifffile.imwrite(folder / f"{name}_tissue_image.tif", full, photometric="rgb")
    matrix = np.eye(3).ravel().tolist()
    names = ("cytassist_colrow_to_spot_colrow", "spot_colrow_to_cytassist_colrow")
    names += ("microscope_colrow_to_spot_colrow", "spot_colrow_to_microscope_colrow")
    with h5py.File(folder / f"{name}_feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps(
            {
                "hd_layout_json": json.dumps({"file_format": "1.0", "transform": matrix}),
                "transform_matrices": dict.fromkeys(names, matrix),
            }
        )
    return folder


def xenium_object(*, circles: bool = True, pixel: float = 0.2125, n: int = 1500, seed: int = 0) -> Any:
    """What `spatialdata_io.xenium` 0.7 makes of a Xenium folder with an aligned H&E image.

    Cells in micrometers, their transformation to ``global`` 1 over the pixel size; the table on ``cell_circles``, or on
    the labels ``cell_labels`` (the reader's default). The H&E image has 0.5 um per pixel and lies turned by 90 degrees.
    """
    from geopandas import GeoDataFrame
    from shapely import Polygon
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity, Scale

    rng = np.random.default_rng(seed)
    wide, high = 600.0, 450.0  # um
    xy = rng.uniform([30, 30], [wide - 30, high - 30], (n, 2))
    area = rng.uniform(20, 120, n)
    radius = np.sqrt(area / np.pi)
    ids = np.array([f"{''.join('abcdefgh'[(i >> 3 * k) & 7] for k in range(8))}-1" for i in range(n)])
    to_global = {"global": Scale([1 / pixel, 1 / pixel], axes=("x", "y"))}
    turn = np.linspace(0, 2 * np.pi, 13)[:-1]
    ring = np.column_stack([np.cos(turn), np.sin(turn)])
    outlines = [Polygon(center + r * ring) for center, r in zip(xy, radius, strict=True)]
    boundaries = GeoDataFrame({"geometry": outlines}, index=pd.Index(ids, name="cell_id"))
    shapes = {"cell_boundaries": ShapesModel.parse(boundaries, transformations=to_global)}
    if circles:
        shapes["cell_circles"] = ShapesModel.parse(
            xy, geometry=0, radius=radius, index=pd.Index(ids), transformations=to_global
        )
    region = "cell_circles" if circles else "cell_labels"
    obs = pd.DataFrame(
        {
            "cell_id": ids,
            "transcript_counts": rng.integers(20, 200, n),
            "cell_area": area,
            "nucleus_area": area / 3,
            "region": pd.Categorical([region] * n),
            "cell_labels": np.arange(1, n + 1),
        },
        index=pd.Index(ids),
    )
    table = ad.AnnData(
        counts(xy[:, 0], depth=60, seed=seed), obs=obs, var=pd.DataFrame(index=GENES), obsm={"spatial": xy}
    )
    table = TableModel.parse(
        table, region=region, region_key="region", instance_key="cell_id" if circles else "cell_labels"
    )
    size = (round(high / pixel), round(wide / pixel))
    focus = rng.integers(0, 4000, (4, *size), dtype=np.uint16)
    names = ["DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin"]
    he = np.rot90(tissue(round(high / 0.5), round(wide / 0.5), seed)).copy()  # stands, as scanned
    # Row and column of the picture that lies are (x, width - y) of the one that stands.
    back = np.array([[0, -1, wide / 0.5], [1, 0, 0], [0, 0, 1]], dtype=float)
    scale = np.diag([0.5 / pixel, 0.5 / pixel, 1])
    images = {
        "morphology_focus": Image2DModel.parse(
            focus, dims=("c", "y", "x"), c_coords=names, transformations={"global": Identity()}, chunks=(1, 512, 512)
        ),
        "he_image": Image2DModel.parse(
            he,
            dims=("y", "x", "c"),
            c_coords=["r", "g", "b"],
            scale_factors=[2],
            chunks=(3, 256, 256),
            transformations={"global": Affine(scale @ back, input_axes=("x", "y"), output_axes=("x", "y"))},
        ),
    }
    labels = {}
    if not circles:
        raster = np.zeros(size, np.int32)
        column, row = (xy / pixel).astype(int).T
        raster[row, column] = np.arange(1, n + 1)
        labels["cell_labels"] = Labels2DModel.parse(raster, dims=("y", "x"), transformations={"global": Identity()})
    return SpatialData(
        images=images, labels=labels, shapes=shapes, tables={"table": table}, attrs={"spatialdata_io_reader": "xenium"}
    )


def xenium_folder(folder: Path, *, pixel: float = 0.2125, n: int = 800, seed: int = 0) -> Path:
    """A Xenium Onboard Analysis 2 output with an aligned H&E image; what it shows is that of `xenium_object`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import tifffile
    import zarr
    from spatialdata.transformations import get_transformation

    made = xenium_object(pixel=pixel, n=n, seed=seed)
    folder.mkdir(parents=True)
    specs = {"analysis_sw_version": "xenium-2.0.0.6-35-ga7e17149a", "pixel_size": pixel}
    (folder / "experiment.xenium").write_text(json.dumps(specs))
    letters = "abcdefghijklmnop"  # 0 to f
    prefixes = [sum(letters.index(c) << 4 * k for k, c in enumerate(reversed(i[:8]))) for i in made["table"].obs_names]
    size = made["morphology_focus"].shape[1:]
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
        group = zarr.open_group(store, mode="w", zarr_format=2)
        group["cell_id"] = np.column_stack([prefixes, np.ones(n)]).astype(np.uint32)
        for k in (0, 1):
            raster = np.zeros(size, np.uint32)
            column, row = (made["table"].obsm["spatial"] / pixel).astype(int).T
            raster[row, column] = np.arange(1, n + 1)
            group[f"masks/{k}"] = raster
            group[f"polygon_sets/{k}/cell_index"] = np.arange(n, dtype=np.uint32)
        names = ["cell_centroid_x", "cell_centroid_y", "cell_area", "z_level", "nucleus_count"]
        summary = group.create_array("cell_summary", data=np.ones((n, len(names))))
        summary.attrs["column_names"] = names
    table = made["table"]
    cells = table.obs[["cell_id", "transcript_counts", "cell_area", "nucleus_area"]].reset_index(drop=True)
    cells["x_centroid"], cells["y_centroid"] = table.obsm["spatial"].T
    cells.to_parquet(folder / "cells.parquet", index=False)
    write_10x_h5(folder / "cell_feature_matrix.h5", table.X, list(table.obs_names))
    vertices = [np.array(polygon.exterior.coords) for polygon in made["cell_boundaries"].geometry]
    of = np.repeat(np.arange(n), [len(part) for part in vertices])
    x, y = np.concatenate(vertices).T
    outlines = pa.table({"cell_id": table.obs_names[of], "vertex_x": x, "vertex_y": y, "label_id": of + 1})
    for name in ("cell", "nucleus"):
        pq.write_table(outlines, folder / f"{name}_boundaries.parquet")
    (folder / "morphology_focus").mkdir()
    dapi = np.asarray(made["morphology_focus"].data[0])
    tifffile.imwrite(folder / "morphology_focus" / "morphology_focus_0000.ome.tif", dapi)
    he = np.asarray(made["he_image"]["scale0"]["image"].transpose("y", "x", "c").data)
    tifffile.imwrite(folder / "S_he_image.ome.tif", he, photometric="rgb", ome=False)
    matrix = get_transformation(made["he_image"], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    pd.DataFrame(matrix).to_csv(folder / "S_he_imagealignment.csv", header=False, index=False)
    return folder
