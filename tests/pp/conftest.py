"""Two small slides in one SpatialData, built without spahgc's reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import spahgc

HEIGHT, WIDTH = 240, 300
Make = Callable[..., Any]  # what the fixture make_sdata is


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Random 4 x 4 squares, (height, width, 3) uint8: every place looks different."""
    squares = np.random.default_rng(seed).integers(40, 250, (height // 4, width // 4, 3), dtype=np.uint8)
    return squares.repeat(4, axis=0).repeat(4, axis=1)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test resumes what another one left."""
    monkeypatch.setattr(spahgc.settings, "cache_dir", tmp_path / "cache")


@pytest.fixture
def make_sdata() -> Callable[..., Any]:
    """Function that builds the SpatialData; its arguments change what a test is about."""

    def make(
        slides: tuple[str, ...] = ("A", "B"),
        *,
        image: Callable[[int], np.ndarray] = picture,
        dims: tuple[str, ...] = ("y", "x", "c"),
        scale_factors: list[int] | None = None,
        to_image: Any = None,
        mpp: float | None = 2.0,
    ) -> Any:
        from spatialdata import SpatialData
        from spatialdata.models import Image2DModel, ShapesModel, TableModel
        from spatialdata.transformations import Identity

        images, shapes, tables = {}, {}, []
        for k, name in enumerate(slides):
            images[f"{name}_image"] = Image2DModel.parse(
                image(k),
                dims=dims,
                scale_factors=scale_factors,
                chunks=(3, 64, 64),
                transformations={name: Identity() if to_image is None else to_image},
            )
            x, y = (part.ravel() for part in np.meshgrid(np.arange(60, 241, 30), np.arange(60, 181, 30)))
            xy = np.column_stack([x, y]) + np.random.default_rng(k).uniform(-3, 3, (len(x), 2))
            names = [f"{name}_{i}" for i in range(len(xy))]
            shapes[name] = ShapesModel.parse(
                xy, geometry=0, radius=9.0, index=pd.Index(names), transformations={name: Identity()}
            )
            obs = pd.DataFrame({"region": name, "spot_id": names}, index=names)
            tables.append(ad.AnnData(np.ones((len(xy), 2), np.float32), obs=obs, obsm={"spatial": xy}))
        table = ad.concat(tables)
        table.obs["region"] = table.obs["region"].astype("category")
        # Rows in an order of their own, slides mixed.
        table = table[np.random.default_rng(9).permutation(table.n_obs)].copy()
        if mpp is not None:
            scale = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 18.0, "microns_per_pixel": mpp}
            table.uns["spatial"] = {name: {"images": {}, "scalefactors": dict(scale)} for name in slides}
        table = TableModel.parse(table, region=list(slides), region_key="region", instance_key="spot_id")
        return SpatialData(images=images, shapes=shapes, tables={"table": table})

    return make
