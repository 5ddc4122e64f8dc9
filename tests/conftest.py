"""Fixtures and settings for all tests."""

from __future__ import annotations

import inspect
import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from anndata import AnnData

# Before a test loads matplotlib, OpenMP or torch: no display, and no more threads than its share of the cores.
os.environ.setdefault("MPLBACKEND", "Agg")
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_THREADS = max(1, (os.cpu_count() or 1) // _WORKERS)
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, str(_THREADS))

ROOT = Path(__file__).parents[1]


def _mend_torchvision() -> None:
    """Declare the two operators whose absence keeps torchvision from being imported beside a torch without CUDA.

    The torchvision that pip finds beside CI's CPU build of torch is built for CUDA, so its compiled operators do not
    load. None of the models uses them.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(library)


_KEEP: list[Any] = []


@pytest.fixture(scope="session")
def torchvision() -> None:
    """Ask for this wherever timm, transformers, lazyslide-models or lazyslide are used."""
    _mend_torchvision()


@pytest.fixture(autouse=True)
def _default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts from the same settings: the CPU, no progress bars; changes to them are undone."""
    from spahgc import settings

    for name, value in {"device": "cpu", "progress": False, "n_jobs": _THREADS}.items():
        monkeypatch.setattr(settings, name, value)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real slides: ``SPAHGC_DATA_DIR``, or ``../shared/data`` beside the repository.

    On a developer's machine without it the test is skipped; in CI a missing folder is a failure.
    """
    folder = Path(os.environ.get("SPAHGC_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        message = f"The folder of real slides, {folder}, is missing. Set SPAHGC_DATA_DIR to where it is."
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def planted() -> Callable[..., AnnData]:
    """Maker of tables in the layout of the readers, with embeddings and a planted link from them to half of the genes.

    A slide is the same in every table it is part of: what is drawn depends on its name and the seed alone.
    """
    return _planted


def _planted(slides: Mapping[str, str], *, n_side: int = 6, n_genes: int = 24, seed: int = 0) -> AnnData:
    """Slides (name to patient) of ``n_side ** 2`` spots; the first half of the genes follows the embedding."""
    import anndata as ad
    import numpy as np
    import scipy.sparse as sp

    n_spots, n_latent, n_features = n_side**2, 3, 10
    shared = np.random.default_rng(seed)
    mixing = shared.normal(size=(n_latent, n_features))
    # Genes come in pairs, one up and one down, so that normalizing to the total carries no signal into the others.
    pair, sign = np.arange(n_genes) // 2, np.where(np.arange(n_genes) % 2, -1, 1)
    weights = (shared.normal(size=(n_latent, n_genes)) * (np.arange(n_genes) < n_genes // 2))[:, 2 * pair] * sign
    level = shared.normal(0, 0.5, n_genes)[pair]
    parts, images = [], {}
    for name, patient in slides.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        row, column = (grid.ravel() for grid in np.divmod(np.arange(n_spots), n_side))
        latent = rng.normal(size=(n_spots, n_latent))
        share = np.exp(level + 0.5 * latent @ weights + rng.normal(0, 0.1, n_genes))
        depth = 40 * n_genes * np.exp(rng.normal(0, 0.3, n_spots))
        counts = rng.poisson(share / share.sum(axis=1, keepdims=True) * depth[:, None])
        part = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)))
        part.var_names = [f"G{i:02d}" for i in range(n_genes)]
        part.obs_names = [f"{name}_{x}x{y}" for x, y in zip(column, row, strict=True)]
        part.obs["region"] = name
        part.obs["spot_id"] = part.obs_names.to_numpy()
        part.obs["patient"] = patient
        part.obsm["spatial"] = np.column_stack([column, row]) * 100.0 + 50.0
        noise = rng.normal(0, 0.2, (n_spots, n_features)) + rng.normal(0, 0.2, n_features)
        part.obs["cellularity"] = (0.1 + 0.01 * latent[:, 0]).astype(np.float32)
        part.obsm["image_toy"] = (latent @ mixing + noise).astype(np.float32)
        parts.append(part)
        images[name] = {
            "images": {"hires": rng.integers(150, 255, (60, 60, 3), dtype=np.uint8)},
            "scalefactors": {"tissue_hires_scalef": 0.1, "spot_diameter_fullres": 55.0, "microns_per_pixel": 1.0},
        }
    table = ad.concat(parts)
    for column in ("region", "patient"):
        table.obs[column] = table.obs[column].astype("category")
    table.uns["spatial"] = images
    table.uns["spatialdata_attrs"] = {"region": list(slides), "region_key": "region", "instance_key": "spot_id"}
    table.uns["image_toy"] = {"params": {"encoder": "toy", "tile_um": 100.0, "fields_of_view": [1.0, 2.0]}}
    return table


@pytest.fixture(scope="session")
def hest_sample() -> Callable[..., Any]:
    """Writer of a small sample in the layout of HEST-1k."""
    return _hest_sample


def _hest_sample(
    root: Path,
    name: str,
    *,
    technology: str = "Visium",
    genes: tuple[str, ...] = ("ERBB2", "KRT8", "CD3E", "CD3E"),
    patches: bool = False,
    **metadata: Any,
) -> tuple[AnnData, Any]:
    """81 spots, the first two of whose genes follow the image, and a slide of two levels at 2 um per pixel."""
    import json

    import anndata as ad
    import h5py
    import numpy as np
    import pandas as pd
    import tifffile
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for folder in ("st", "wsis", "metadata", "tissue_seg", "patches"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    row, column = (part.ravel() for part in np.divmod(np.arange(81), 9))
    printed = technology == "Visium"
    if printed:
        column = 2 * column + row % 2
        xy = np.column_stack([40 + column * 25.0, 40 + row * 25 * np.sqrt(3)])
        names = [f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in row]
    else:  # the squares of 100 um over which HEST sums
        xy = np.column_stack([40 + column * 50.0, 40 + row * 50.0])
        names = [f"{a:04d}x{b:04d}" for a, b in zip(row, column, strict=True)]
    darkness = rng.integers(0, 130, 81)
    means = np.column_stack([1 + darkness / 8, 18 - darkness / 8] + [np.full(81, 6)] * (len(genes) - 2))
    counts = rng.poisson(means)
    adata = ad.AnnData(csr_matrix(counts.astype(np.float32)) if printed else counts.astype(np.uint16))
    adata.obs = pd.DataFrame({"in_tissue": True, "array_row": row, "array_col": column, "n_counts": 1.0}, index=names)
    adata.var_names = list(genes)
    adata.obsm["spatial"] = xy
    scalefactors = {"spot_diameter_fullres": 27.5, "tissue_downscaled_fullres_scalef": 0.1}
    images = {"downscaled_fullres": np.zeros((50, 50, 3), np.uint8)}
    adata.uns["spatial"] = {"ST": {"images": images, "scalefactors": scalefactors}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Variable names are not unique")
        adata.write_h5ad(root / "st" / f"{name}.h5ad")
    image = rng.integers(220, 250, (512, 528, 3), dtype=np.uint8)
    for (x, y), dark in zip(xy.round().astype(int), darkness, strict=True):
        image[y - 25 : y + 25, x - 25 : x + 25, 1] -= np.uint8(dark)
    with tifffile.TiffWriter(root / "wsis" / f"{name}.tif") as tif:
        options: dict[str, Any] = {"photometric": "rgb", "tile": (256, 256), "resolutionunit": "CENTIMETER"}
        tif.write(image, subifds=0, resolution=(5000, 5000), **options)
        tif.write(image[::2, ::2], subfiletype=1, resolution=(2500, 2500), **options)
    nan = float("nan")  # what HEST writes where it knows nothing
    record = {
        "id": name,
        "dataset_title": "A study",
        "organ": "Pancreas",
        "species": "Homo sapiens",
        "patient": "Patient 1",
        "st_technology": technology,
        "inter_spot_dist": 100.0 if printed else nan,
        "spot_diameter": 55.0 if printed else nan,
        "pixel_size_um_embedded": nan,
        "pixel_size_um_estimated": 2.0,
        "fullres_px_width": 528,
        "fullres_px_height": 512,
        "license": "",
        "Reads/Spot": 7,
    } | metadata
    (root / "metadata" / f"{name}.json").write_text(json.dumps(record))
    outline = {"type": "Polygon", "coordinates": [[[30, 30], [480, 30], [480, 470], [30, 470], [30, 30]]]}
    features = [{"type": "Feature", "properties": {"tissue_id": 0}, "geometry": outline}]
    contours = {"type": "FeatureCollection", "features": features}
    (root / "tissue_seg" / f"{name}_contours.geojson").write_text(json.dumps(contours))
    if patches:
        with h5py.File(root / "patches" / f"{name}.h5", "w") as file:
            file["barcode"], file["coords"] = np.array(names, dtype="S"), xy.astype(int)
    return adata, image


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Any], Any]:
    """Maker of a deep, comparable image of all that a table holds: values, dtypes, order, names."""
    return _frozen


def _frozen(value: Any) -> Any:
    import anndata as ad
    import numpy as np
    import pandas as pd
    import scipy.sparse as sp

    if isinstance(value, ad.AnnData):
        slots = ("X", "obs", "var", "obsm", "varm", "layers", "obsp", "varp", "uns")
        return {slot: _frozen(getattr(value, slot)) for slot in slots}
    if isinstance(value, pd.DataFrame):
        columns = [(str(name), str(value[name].dtype), tuple(map(repr, value[name]))) for name in value.columns]
        return (tuple(value.index), columns)
    if isinstance(value, Mapping):
        return {str(key): _frozen(item) for key, item in value.items()}
    if sp.issparse(value):
        return (type(value).__name__, value.shape, *(_frozen(a) for a in (value.data, value.indices, value.indptr)))
    if isinstance(value, np.ndarray):
        content = tuple(map(repr, value.ravel())) if value.dtype == object else value.tobytes()
        return (str(value.dtype), value.shape, content)
    return (type(value).__name__, repr(value))


@pytest.fixture(scope="session")
def quick() -> Callable[[str], dict[str, Any]]:
    """Maker of `method_params` with which a method is fitted within a second."""
    from spahgc.methods import METHODS

    def params(method: str) -> dict[str, Any]:
        small = {"epochs": 2, "hidden": 16, "n_references": 5}
        if method == "spahgc":
            return {"network": small, "n_seeds": 1}
        return {"epochs": 2} if "epochs" in inspect.signature(METHODS[method]).parameters else {}

    return params
