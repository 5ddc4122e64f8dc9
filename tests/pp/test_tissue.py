"""The tissue mask: on drawn slides with what disturbs it, and on real ones."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spahgc.pp._tiles import Level
from spahgc.pp._tissue import tissue_level, tissue_mask

from ..slide_files import scene

MPP = 4.0
SIZE = 700  # 2.8 mm


def mask_of(picture: np.ndarray, mpp: float = MPP) -> np.ndarray:
    return tissue_mask(np.moveaxis(picture, -1, 0), mpp)[0]


def agreement(found: np.ndarray, picture_size: int = SIZE, radius: float = 0.35) -> float:
    """Intersection over union with the disc that was drawn."""
    y, x = (np.mgrid[: found.shape[0], : found.shape[1]] + 0.5) * picture_size / found.shape[0]
    disc = np.hypot(y - picture_size / 2, x - picture_size / 2) < radius * picture_size
    return float((found & disc).sum() / (found | disc).sum())


def test_disc() -> None:
    picture = scene(SIZE, SIZE)
    mask, mpp = tissue_mask(np.moveaxis(picture, -1, 0), MPP)
    assert mask.shape == (350, 350)
    assert mpp == 8.0
    assert agreement(mask) > 0.97
    # whatever holds the pixels, and however they are cut
    lazy = da.from_array(np.moveaxis(picture, -1, 0), chunks=(3, 97, 130))
    np.testing.assert_array_equal(tissue_mask(lazy, MPP)[0], mask)


def test_scale() -> None:
    """The mask has at most 8 um a pixel, and covers a rest."""
    picture = np.moveaxis(scene(701, 655), -1, 0)
    for mpp, factor in ((0.5, 16), (3.0, 2), (5.0, 1), (8.0, 1), (15.0, 1)):
        mask, found = tissue_mask(picture, mpp)
        assert found == pytest.approx(mpp * factor)
        assert mask.shape == (-(-701 // factor), -(-655 // factor))


def test_level() -> None:
    levels = [Level(None, np.eye(3), mpp) for mpp in (0.5, 2.0, 8.0, 32.0)]
    assert tissue_level(levels).microns_per_pixel == 8.0
    assert tissue_level(levels[3:]).microns_per_pixel == 32.0


def test_no_glass_is_all_tissue() -> None:
    """Otsu's threshold would cut it in two."""
    assert mask_of(scene(SIZE, SIZE, radius=2)).all()


def test_glass_alone_is_no_tissue() -> None:
    assert not mask_of(scene(SIZE, SIZE, radius=0)).any()
    assert not mask_of(np.full((SIZE, SIZE, 3), 255, np.uint8)).any()
    assert not mask_of(np.zeros((SIZE, SIZE, 3), np.uint8)).any()
    vignette = np.linspace(225, 245, SIZE).astype(np.uint8)[:, None, None] * np.ones((1, SIZE, 3), np.uint8)
    assert not mask_of(vignette).any()


@pytest.mark.parametrize("glass", [(250, 250, 250), (205, 200, 208), (235, 218, 235), (170, 168, 171)])
def test_colour_of_the_glass(glass: tuple[int, int, int]) -> None:
    """White, gray, pinkish from eosin, and a dim lamp."""
    picture = scene(SIZE, SIZE)
    picture[picture[..., 1] > 200] = glass
    if glass[1] < 190:
        picture[picture[..., 1] < 160] -= 40
    assert agreement(mask_of(picture)) > 0.95


def test_black_border_and_white_padding() -> None:
    picture = scene(SIZE, SIZE)
    picture[:40] = 0
    picture[:, -40:] = (12, 12, 14)
    picture[-40:] = 255
    assert agreement(mask_of(picture)) > 0.97


@pytest.mark.parametrize("ink", [(20, 140, 60), (20, 60, 190), (25, 25, 30), (0, 150, 170)])
def test_pens(ink: tuple[int, int, int]) -> None:
    """Green, blue, black and turquoise, beside the tissue and across it."""
    picture = scene(SIZE, SIZE)
    picture[30:60, 30:600] = ink
    assert agreement(mask_of(picture)) > 0.97
    picture[340:360, 200:500] = ink
    assert not mask_of(picture)[172:178, 105:245].any()


def test_specks_are_left_out_and_holes_filled() -> None:
    picture = scene(SIZE, SIZE)
    tissue = picture[340:360, 340:360].copy()
    picture[340:360, 340:360] = 240  # a vessel of 80 um
    picture[20:40, 20:40] = tissue  # a fiducial mark of 80 um
    mask = mask_of(picture)
    assert mask[170:180, 170:180].all()
    assert not mask[:30, :30].any()
    picture[300:400, 300:400] = 240  # a lumen of 400 um
    assert not mask_of(picture)[160:190, 160:190].any()


@pytest.mark.parametrize(
    ("slide", "least"),
    [("her2st C4", 0.97), ("her2st B4", 0.94), ("mob 02", 0.98), ("mob 11", 0.98), ("colon 2", 0.98)],
)
def test_measured_spots_lie_on_it(data_dir: Path, slide: str, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spots of these slides were chosen under the tissue; B4 is half fat."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    study, name = slide.split()
    if study == "her2st":
        root = data_dir / "her2st" / "data"
        frame = pd.read_csv(root / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t").query("selected == 1")
        xy, mpp = frame[["pixel_x", "pixel_y"]].to_numpy(), 0.69
        file = next((root / "ST-imgs" / name[0] / name).glob("*.jpg"))
    elif study == "mob":
        xy = pd.read_csv(data_dir / "mob_st" / name / "spots.tsv", sep="\t")[["pixel_x", "pixel_y"]].to_numpy()
        mpp, file = 2.76, data_dir / "mob_st" / name / "he.jpg"
    else:
        import anndata as ad

        xy = ad.read_h5ad(data_dir / "colon_visium" / f"section{name}.h5ad").obsm["spatial"]
        mpp, file = 0.97, data_dir / "colon_visium" / f"section{name}.jpg"
    with Image.open(file) as image:
        factor = max(1, int(8 / mpp))
        image.draft("RGB", (image.width // 8, image.height // 8) if factor >= 8 else image.size)
        picture = np.asarray(image)
    coarse = mpp * 8 if factor >= 8 else mpp
    mask, mask_mpp = tissue_mask(np.moveaxis(picture, -1, 0), coarse)
    x, y = np.minimum((xy * mpp / mask_mpp).astype(int), np.array(mask.shape)[::-1] - 1).T
    assert mask[y, x].mean() >= least
    assert mask.mean() < 0.65
