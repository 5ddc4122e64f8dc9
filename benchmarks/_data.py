"""The real slides as tables with both embeddings, and who is predicted from whom; embeddings are kept in a cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from _common import data_dir

CACHE = Path(os.environ.get("SPAHGC_BENCHMARK_CACHE", Path(__file__).parent / ".cache"))
MPP_COLON = 0.97
GAP_UM = 300.0
"""Reference spots of a colon block that are nearer than this to the held-out block are left out."""


@dataclass(frozen=True)
class Task:
    """One slide (or several of one patient) predicted from others."""

    name: str
    dataset: str
    targets: tuple[str, ...]
    references: tuple[str, ...]
    kind: str
    """``"same patient"``, ``"new patient"`` or ``"same section"``."""


C_SLIDES = ("C2", "C3", "C4", "C5")
HER2ST = ("B4", *C_SLIDES)
MOB = ("mob_01", "mob_02", "mob_11")
BLOCKS = ("q0", "q1", "q2", "q3")


def _others(all_slides: tuple[str, ...], target: str) -> tuple[str, ...]:
    return tuple(name for name in all_slides if name != target)


TASKS = (
    *(Task(s, "her2st", (s,), _others(HER2ST, s), "same patient") for s in C_SLIDES),
    Task("B4", "her2st", ("B4",), C_SLIDES, "new patient"),
    Task("C from B4", "her2st", C_SLIDES, ("B4",), "new patient"),
    Task("mob_01", "mob_st", ("mob_01",), _others(MOB, "mob_01"), "same patient"),
    Task("mob_02", "mob_st", ("mob_02",), _others(MOB, "mob_02"), "same patient"),
    Task("mob_11", "mob_st", ("mob_11",), _others(MOB, "mob_11"), "new patient"),
    *(Task(f"colon {q}", "colon", (q,), _others(BLOCKS, q), "same section") for q in BLOCKS),
)


def case(name: str) -> Task:
    """The case of a name."""
    return next(task for task in TASKS if task.name == name)


def table(dataset: str) -> Any:
    """Counts, positions, patient, cellularity and the embeddings ``image_texture`` and ``image_mobilenet``."""
    import anndata

    path = CACHE / f"{dataset}.h5ad"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = _MAKERS[dataset]()
        made.uns.pop("spatial", None)
        made.uns.pop("spatialdata_attrs", None)
        temporary = path.with_suffix(".part")
        made.write_h5ad(temporary)
        temporary.replace(path)
    return anndata.read_h5ad(path)


@lru_cache(maxsize=4)
def split(task: Task) -> tuple[Any, Any]:
    """The reference and the target of a task, for colon blocks with a gap between them. Not to be changed."""
    adata = table(task.dataset)
    slide = adata.obs["region"].astype(str)
    target = adata[slide.isin(task.targets)].copy()
    reference = adata[slide.isin(task.references)].copy()
    if task.kind == "same section":
        from scipy.spatial import cKDTree

        distance, _ = cKDTree(target.obsm["spatial"]).query(reference.obsm["spatial"])
        reference = reference[distance * MPP_COLON > GAP_UM].copy()
    return reference, target


def _embedded(sdata: Any, mobilenet: dict[str, str], renamed: dict[str, dict[str, str]] | None = None) -> Any:
    """The table with both embeddings; `renamed` maps, by slide, spots as stored to spots as the reader names them."""
    import spahgc

    spahgc.pp.image_embedding(sdata, encoder="texture", progress=False)
    adata = sdata["table"]
    width = 1024
    values = np.full((adata.n_obs, width), np.nan, dtype=np.float32)
    for slide, file in mobilenet.items():
        names = (renamed or {}).get(slide, {})
        with np.load(data_dir() / "embeddings" / "mobilenet_v1" / file) as stored:
            of = {
                f"{slide}_{names.get(name, name)}": row
                for name, row in zip(stored["obs_names"].tolist(), stored["X"], strict=True)
            }
        for i in np.flatnonzero(adata.obs["region"].astype(str) == slide):
            values[i] = of[adata.obs_names[i]]
    adata.obsm["image_mobilenet"] = values
    return adata


def _her2st() -> Any:
    import spahgc

    sdata = spahgc.datasets.her2st(data_dir() / "her2st", slides=list(HER2ST))
    return _embedded(sdata, {name: f"her2st_{name}.npz" for name in HER2ST})


def _mob() -> Any:
    import pandas as pd

    import spahgc

    folder, slides, renamed = data_dir() / "mob_st", {}, {}
    for name, animal in (("01", "A"), ("02", "A"), ("11", "E")):
        files = [folder / name / file for file in ("counts.tsv.gz", "spots.tsv", "he.jpg")]
        slides[f"mob_{name}"] = spahgc.io.read_st(*files, slide=f"mob_{name}", patient=animal)
        spots = pd.read_csv(folder / name / "spots.tsv", sep="\t", dtype=str)
        renamed[f"mob_{name}"] = dict(zip(spots.new_x + "x" + spots.new_y, spots.x + "x" + spots.y, strict=True))
    return _embedded(spahgc.io.concat(list(slides.values())), {name: f"{name}.npz" for name in slides}, renamed)


def _colon() -> Any:
    import anndata
    import geopandas
    import shapely
    import skimage.io
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    stored = anndata.read_h5ad(data_dir() / "colon_visium" / "section1.h5ad")
    xy = np.asarray(stored.obsm["spatial"], dtype=np.float64)
    pixels = skimage.io.imread(data_dir() / "colon_visium" / "section1.jpg")[..., :3]
    image = Image2DModel.parse(
        pixels, dims=("y", "x", "c"), scale_factors=[2, 2, 2], transformations={"colon": Identity()}
    )
    circles = geopandas.GeoDataFrame(
        {"radius": np.full(len(xy), 27.5 / MPP_COLON)}, geometry=shapely.points(xy), index=np.arange(len(xy))
    )
    shapes = ShapesModel.parse(circles, transformations={"colon": Identity()})
    adata = anndata.AnnData(X=stored.X, obs={"spot_id": np.arange(len(xy))}, var=stored.var, obsm={"spatial": xy})
    adata.obs_names = [f"colon_{name}" for name in stored.obs_names]
    adata.obs["region"] = "colon"
    adata.obs["region"] = adata.obs["region"].astype("category")
    link = TableModel.parse(adata, region="colon", region_key="region", instance_key="spot_id")
    link.uns["spatial"] = {"colon": {"scalefactors": {"microns_per_pixel": MPP_COLON}}}
    sdata = SpatialData(images={"colon_image": image}, shapes={"colon": shapes}, tables={"table": link})
    made = _embedded(sdata, {"colon": "colon_section1.npz"})
    # Four blocks by the angle around the middle of the section: "slides" of one animal.
    angle = np.arctan2(*(xy - np.median(xy, axis=0)).T[::-1])
    made.obs["region"] = [f"q{int(block) % 4}" for block in np.floor((angle + np.pi) / (np.pi / 2))]
    made.obs["region"] = made.obs["region"].astype("category")
    made.obs["patient"] = "day 0"
    return made


_MAKERS: dict[str, Callable[[], Any]] = {"her2st": _her2st, "mob_st": _mob, "colon": _colon}
