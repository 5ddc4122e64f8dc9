"""Tiles that show no sharp, clean tissue: drawn slides with faults, and real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import spahgc

from .conftest import Make

KEY = "tile_quality"
FAULTY = 90  # columns of the image, from the left: a fifth of the spots lie in them


def tissue(seed: int) -> np.ndarray:
    """Pink to purple, (y, x, 3) uint8 at 1 um per pixel, with detail of all sizes as tissue has."""
    rng = np.random.default_rng(seed)
    layers = [gaussian_filter(rng.normal(size=(240, 300)), sigma) for sigma in (0.7, 1.5, 3.0)]
    detail = sum(layer / layer.std() for layer in layers)[..., None]
    return (np.array([190, 120, 175]) + detail * (12, 14, 8)).clip(0, 255).astype(np.uint8)


def spoil(pixels: np.ndarray, fault: str) -> np.ndarray:
    part = pixels.astype(float)
    how = {
        "blur 3": lambda: gaussian_filter(part, (3, 3, 0)),
        "blur 8": lambda: gaussian_filter(part, (8, 8, 0)),
        "blue": lambda: part * (40 / 255, 70 / 255, 190 / 255),
        "green": lambda: part * (30 / 255, 150 / 255, 70 / 255),
        "turquoise": lambda: part * 0.3 + np.array([0, 105, 119]),
        "black": lambda: part * 0.15 + 25,
        "smear": lambda: part * 0.17,
        "fold": lambda: part * part[:, ::-1] / 240,
        "three layers": lambda: part**3 / 240**2,
    }
    return np.concatenate([how[fault]()[:, :FAULTY], part[:, FAULTY:]], axis=1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("fault", "verdict"),
    [
        ("blur 3", "out of focus"),
        ("blur 8", "out of focus"),
        ("blue", "ink"),
        ("green", "ink"),
        ("turquoise", "ink"),
        ("black", "ink"),
        ("smear", "ink"),
        ("fold", "fold"),
        ("three layers", "fold"),
    ],
)
def test_faults(make_sdata: Make, fault: str, verdict: str) -> None:
    sdata = make_sdata(("A",), image=lambda seed: spoil(tissue(seed), fault), mpp=1.0)
    spahgc.pp.tile_quality(sdata, tile_um=50)
    table = sdata["table"]
    x = table.obsm["spatial"][:, 0]
    assert set(table.obs[KEY][x < FAULTY - 25]) == {verdict}
    assert set(table.obs[KEY][x > FAULTY + 30]) == {"ok"}


def test_what_is_written(make_sdata: Make) -> None:
    sdata = make_sdata(("A", "B"), image=tissue, mpp=1.0)
    copied = spahgc.pp.tile_quality(sdata, tile_um=50, n_jobs=2, copy=True)
    assert KEY not in sdata["table"].obs
    table = copied["table"]
    assert set(table.obs[KEY]) == {"ok"}
    assert list(table.obs[KEY].cat.categories) == ["ok", "ink", "no tissue", "out of focus", "fold"]
    assert list(table.obsm[KEY].columns) == ["focus", "ink", "tissue", "fold"]
    assert (table.obsm[KEY].dtypes == np.float32).all()
    assert np.isfinite(table.obsm[KEY].to_numpy()).all()
    assert table.uns[KEY]["params"]["tile_um"] == 50.0
    spahgc.pp.tile_quality(copied, tile_um=60)  # its own result is written anew
    assert table.uns[KEY]["params"]["tile_um"] == 60.0


def test_what_others_wrote_is_never_overwritten(make_sdata: Make) -> None:
    sdata = make_sdata(("A",), image=tissue, mpp=1.0)
    sdata["table"].obs[KEY] = "fine"
    with pytest.raises(ValueError, match="'tile_quality' that spahgc did not write: rename it, or delete it"):
        spahgc.pp.tile_quality(sdata)
    assert set(sdata["table"].obs[KEY]) == {"fine"}


def test_glass(make_sdata: Make) -> None:
    def half(seed: int) -> np.ndarray:
        pixels = np.full((1200, 1500, 3), 240, np.uint8)
        pixels[:, 600:] = np.tile(tissue(seed), (5, 5, 1))[:, 600:]
        return pixels

    sdata = make_sdata(("A",), image=half, mpp=1.0)
    centers = sdata["table"].obsm["spatial"][:, 0]
    spahgc.pp.tile_quality(sdata)
    assert set(sdata["table"].obs[KEY][centers < 500]) == {"no tissue"}


def test_good_slide(data_dir: Path) -> None:
    sdata = spahgc.datasets.her2st(data_dir / "her2st", slides=["C4"])
    spahgc.pp.tile_quality(sdata)
    assert (sdata["table"].obs[KEY] == "ok").mean() >= 0.98
