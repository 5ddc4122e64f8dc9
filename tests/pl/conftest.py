"""A small slide with every slot the plots read: genes with a gradient or a stripe, and a smooth prediction."""

from __future__ import annotations

from collections.abc import Iterator

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.axes import Axes

from spahgc._tables._predictions import Trust
from spahgc.tl._trust import RULE

GENES = ["GRADIENT", "STRIPE", "FLAT", "HLA-DRA"]
PITCH, DIAMETER, MPP, SCALE = 100.0, 55.0, 1.0, 0.1
N_X, N_Y = 8, 6


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    mpl.rcdefaults()
    mpl.use("Agg")
    yield
    plt.close("all")


def make_slide(name: str = "S1", *, measured: bool = True, seed: int = 0) -> ad.AnnData:
    """Six rows of eight spots, counts of five genes, a prediction of four."""
    rng = np.random.default_rng(seed)
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(N_X), np.arange(N_Y)))
    n = len(x)
    gradient, stripe = 5 + 10 * x, np.where(y % 2 == 0, 40, 4)
    means = np.column_stack([gradient, stripe, np.full(n, 20), np.full(n, 8) + 3 * y, np.full(n, 200)])
    counts = rng.poisson(means).astype(np.float32)
    counts[:, 2] = counts[:, 4] * 0  # FLAT is never found
    obs = pd.DataFrame(
        {
            "region": pd.Categorical([name] * n),
            "spot_id": [f"{name}_{i}x{j}" for i, j in zip(x, y, strict=True)],
            "spahgc_support": np.linspace(0.2, 0.9, n),
        },
        index=[f"{name}_{i}x{j}" for i, j in zip(x, y, strict=True)],
    )
    names = [*GENES, "ONLY_MEASURED"]
    adata = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=names))
    if not measured:
        adata = ad.AnnData(obs=obs, var=pd.DataFrame(index=[]))
    adata.obsm["spatial"] = np.column_stack([x, y]).astype(np.float64) * PITCH + 150.0
    predicted = np.log1p(means[:, :4] * 1e4 / means.sum(axis=1, keepdims=True)) * 0.5 + 1
    predicted[:, 2] = 0.5
    adata.obsm["spahgc"] = pd.DataFrame(predicted.astype(np.float32), index=adata.obs_names, columns=GENES)
    adata.uns["spahgc"] = {
        "params": {"normalize": "log1p"},
        "genes": GENES,
        "units": "log1p counts per 10k",
        "training": {
            "loss": [3.0, 2.0, 1.5, 1.2],
            "mse": [2.0, 1.5, 1.0, 0.9],
            "pearson": [0.1, 0.2, 0.3, 0.35],
            "validation": [0.1, 0.2, 0.25, 0.22],
            "chosen_epoch": [3],
        },
    }
    picture = rng.integers(180, 255, (90, 120, 3), dtype=np.uint8)
    factors = {"tissue_hires_scalef": SCALE, "spot_diameter_fullres": DIAMETER, "microns_per_pixel": MPP}
    adata.uns["spatial"] = {name: {"images": {"hires": picture}, "scalefactors": factors}}
    adata.uns["spatialdata_attrs"] = {"region": [name], "region_key": "region", "instance_key": "spot_id"}
    return adata


@pytest.fixture
def slide() -> ad.AnnData:
    return make_slide()


@pytest.fixture
def target() -> ad.AnnData:
    """A slide with H&E only."""
    return make_slide("T", measured=False)


@pytest.fixture
def two_slides() -> ad.AnnData:
    """One table of two slides; the second has no counts, as an H&E-only slide in a common table."""
    a, b = make_slide("S1"), make_slide("S2", seed=1)
    b.X = sp.csr_matrix(b.shape, dtype=np.float32)
    both = ad.concat([a, b], uns_merge="first")
    both.uns["spatial"] = {**a.uns["spatial"], **b.uns["spatial"]}
    both.obs["region"] = both.obs["region"].astype("category")
    return both


@pytest.fixture
def scores() -> pd.DataFrame:
    """Ten genes on two slides; G0 is the best, G8 the worst, G9 has no score."""
    rows = []
    for slide, patient, shift in (("S1", "A", 0.0), ("S2", "B", 0.1)):
        for i in range(10):
            value = np.nan if i == 9 else (-0.4 if i == 8 else 0.8 - 0.1 * i) + shift
            of = (slide, patient, "spahgc", f"G{i}")
            rows += [(*of, "pearson", value), (*of, "rmse", 0.3 + 0.1 * i)]
    return pd.DataFrame(rows, columns=["slide", "patient", "method", "gene", "metric", "value"])


PARAMS = {
    "label": "ridge",
    "method": "ridge",
    "level": 0.9,
    "baseline": "ridge",
    "rule": RULE,
    "split_by": "slide",
    "same_patient": True,
    "slides": ["S2", "S3", "S4"],
    "patients": ["A"],
}


@pytest.fixture
def trust_frame() -> pd.DataFrame:
    """What is known of the panel: one gene of each verdict."""
    expected = np.array([0.5, 0.25, 0.05, np.nan])
    return pd.DataFrame(
        {
            "expected_pearson": expected,
            "low": expected - 0.2,
            "high": expected + 0.2,
            "expected_depth_removed": expected,
            "difference_to_ridge": expected * 0,
            "difference_to_depth": expected,
            "share_of_ceiling": expected,
            "n_slides": [3, 3, 3, 0],
            "verdict": ["trusted", "weak", "not predictable", "not assessed"],
        },
        index=["GRADIENT", "STRIPE", "HLA-DRA", "FLAT"],
    )


@pytest.fixture
def trusted(slide: ad.AnnData, trust_frame: pd.DataFrame) -> ad.AnnData:
    slide.uns["spahgc"]["trust"] = Trust(trust_frame, PARAMS).to_slots()
    return slide


def assert_nothing_cut_off(ax: Axes) -> None:
    """All that is drawn lies within the figure."""
    figure = ax.figure
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= -0.01


def legend(ax: Axes) -> list[str]:
    """Title and labels of the legend."""
    box = ax.get_legend()
    assert box is not None
    return [text.get_text() for text in (box.get_title(), *box.get_texts())]
