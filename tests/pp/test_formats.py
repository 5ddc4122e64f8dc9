"""Slides as users have them: read by the real readers or built as these do, embedded, predicted, drawn."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

import spahgc
from spahgc._links import pick_table
from spahgc.pp import _embedding, _images
from spahgc.pp._embedding import add_pictures, picture
from spahgc.pp._images import LocatedSlide, locate

from . import layouts


def find(sdata: Any, table_key: str | None = None) -> list[LocatedSlide]:
    return locate(sdata, sdata[pick_table(sdata, table_key)])


def embed_predict_draw(reference: Any, target: Any) -> float:
    """Pearson correlation, over the target's spots, of the predicted and the measured share of the first gene."""
    for sdata in (reference, target):
        spahgc.pp.image_embedding(sdata, tile_px=32, fields_of_view=(1,))
        add_pictures(sdata, sdata["table"], find(sdata))
    table = target["table"]
    measured = table.X[:, [0]].toarray().ravel() / table.X.sum(axis=1).A1
    spahgc.tl.predict(reference["table"], table, method="ridge", patient_key="region")
    axes = np.ravel(spahgc.pl.expression(target, "EPCAM", show=False))
    assert any(len(ax.images) for ax in axes)  # the tissue
    plt.close("all")
    return float(np.corrcoef(table.obsm["spahgc"]["EPCAM"], measured)[0, 1])


# Visium


@pytest.fixture
def visium(tmp_path: Path) -> Any:
    """Function that builds a Space Ranger folder and reads it with spatialdata-io."""
    import spatialdata_io

    def read(name: str, *, full: str | None = "tissue.tif", **kwargs: Any) -> Any:
        folder = layouts.visium_folder(tmp_path / name, **kwargs)
        return spatialdata_io.visium(folder, dataset_id=name, fullres_image_file=full)

    return read


def test_visium(visium: Any, tmp_path: Path) -> None:
    """The reference unwritten, as the reader gives it; the target written, as it should be."""
    import spatialdata

    reference, target = visium("S1", seed=1), visium("S2", seed=2)
    target.write(tmp_path / "target.zarr")
    target = spatialdata.read_zarr(tmp_path / "target.zarr")
    assert embed_predict_draw(reference, target) > 0.9
    params = target["table"].uns["image_texture"]["params"]
    assert params["image"] == {"S2": "S2_full_image"}
    assert params["microns_per_pixel"]["S2"] == pytest.approx(1.25, rel=0.01)


def test_visium_is_found(visium: Any) -> None:
    """80 pixels from spot to spot are 100 um, on an array that lies turned; positions are whole pixels."""
    (slide,) = find(visium("S1", turned=7.0))
    assert slide.image == "S1_full_image"
    assert slide.microns_per_pixel == pytest.approx(1.25, rel=0.01)
    assert slide.mpp_source == "Visium's spots 100 um apart"
    assert slide.spot_diameter == pytest.approx(52)
    assert [round(level.microns_per_pixel, 1) for level in slide.levels] == [1.2, 2.5, 5.0, 10.0, 20.0]


def test_visium_without_the_full_image(visium: Any, caplog: pytest.LogCaptureFixture) -> None:
    (slide,) = find(visium("S1", full=None, pitch=40.0, shape=(600, 800)))
    assert slide.image == "S1_hires_image"
    assert slide.levels[0].microns_per_pixel == pytest.approx(5.0, rel=0.01)
    assert "'S1_hires_image' with 5 um per pixel, too coarse to see cells" in caplog.text
    assert "fullres_image_file" in caplog.text


def test_visium_with_another_spot_diameter(visium: Any, caplog: pytest.LogCaptureFixture) -> None:
    sdata = visium("S1")
    sdata["S1"]["radius"] *= 0.8
    (slide,) = find(sdata)
    assert slide.microns_per_pixel == pytest.approx(1.25, rel=0.01)
    assert "Visium's pitch of 100 um gives 1.25 um per pixel, spots of 65 um give 1.562" in caplog.text


def test_an_image_of_whole_pages_is_told(
    visium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import spatialdata

    sdata = visium("S1")
    find(sdata)
    assert "whole pages" not in caplog.text  # a small image does no harm
    monkeypatch.setattr(_images, "LARGE", 1000)
    find(sdata)
    assert "'S1_full_image' is read from a file of whole pages" in caplog.text
    caplog.clear()
    sdata.write(tmp_path / "S1.zarr")
    find(spatialdata.read_zarr(tmp_path / "S1.zarr"))
    assert "whole pages" not in caplog.text


def test_two_visium_slides_in_one(visium: Any) -> None:
    import spatialdata

    both = spatialdata.concatenate([visium("S1", seed=1), visium("S2", seed=2, pitch=64.0)], concatenate_tables=True)
    first, second = find(both)
    assert (first.name, first.image, second.name, second.image) == ("S1", "S1_full_image", "S2", "S2_full_image")
    assert second.microns_per_pixel / first.microns_per_pixel == pytest.approx(80 / 64, rel=0.01)


# Visium HD


@pytest.fixture
def visium_hd(tmp_path: Path) -> Any:
    """Function that builds a Space Ranger 3 folder and reads it with spatialdata-io."""
    import spatialdata_io

    def read(name: str, *, seed: int = 0, **kwargs: Any) -> Any:
        folder = layouts.visium_hd_folder(tmp_path / name, seed=seed)
        return spatialdata_io.visium_hd(folder, load_segmentations_only=False, **kwargs)

    return read


@pytest.mark.parametrize("squares", [True, False])
def test_visium_hd_is_found(visium_hd: Any, squares: bool) -> None:
    sdata = visium_hd("HD", bins_as_squares=squares)
    for size in (8, 16):
        (slide,) = find(sdata, f"square_{size:03}um")
        assert slide.image == "HD1_full_image"
        assert slide.microns_per_pixel == pytest.approx(0.5)
        assert slide.mpp_source == f"the bins of {size} um"
    with pytest.raises(KeyError, match=r"'square_008um': 1900 rows on 'HD1_square_008um'.*Pass table_key"):
        find(sdata)


def test_visium_hd(visium_hd: Any) -> None:
    reference, target = (
        spahgc.io.bin_to_spots(visium_hd(name, seed=seed), 56, table_key="square_008um", slide=name)
        for seed, name in enumerate(("H1", "H2"))
    )
    assert embed_predict_draw(reference, target) > 0.8


def test_sums_of_small_bins_are_those_of_large_ones(visium_hd: Any) -> None:
    """8 um bins in squares of 16 um, against looking the bins up by their place on the array."""
    sdata = visium_hd("HD")
    bins = sdata["square_008um"]
    spots = spahgc.io.bin_to_spots(sdata, 16, table_key="square_008um")["table"]
    of_bin = list(zip(bins.obs["array_row"] // 2, bins.obs["array_col"] // 2, strict=True))
    of_spot = {at: i for i, at in enumerate(zip(spots.obs["array_row"], spots.obs["array_col"], strict=True))}
    sums = np.zeros(spots.shape)
    np.add.at(sums, [of_spot[at] for at in of_bin], bins.X.toarray())
    np.testing.assert_array_equal(spots.X.toarray(), sums)


# Xenium


@pytest.mark.parametrize("circles", [True, False])
@pytest.mark.parametrize("real", [True, False])
def test_xenium_is_found(circles: bool, real: bool, tmp_path: Path) -> None:
    """Cells in um, and an H&E image that lies turned, at 0.5 um per pixel; read, or built as the reader does."""
    if real:
        from spatialdata_io import xenium

        folder = layouts.xenium_folder(tmp_path / "X", n=300)
        sdata = xenium(folder, transcripts=False, cells_as_circles=circles, cells_labels=not circles)
    else:
        sdata = layouts.xenium_object(circles=circles, n=300)
    (slide,) = find(sdata)
    assert slide.image == "he_image"
    assert slide.microns_per_pixel == 1.0
    assert slide.mpp_source == "Xenium's cell areas in um"
    assert slide.levels[0].microns_per_pixel == pytest.approx(0.5)
    x, y = slide.centers[0]
    # Turned by 90 degrees: x runs up the image, y to the right.
    np.testing.assert_allclose(slide.levels[0].affine[:2] @ [x, y, 1], [2 * y, 1200 - 2 * x], atol=1e-6)


def test_xenium_without_he() -> None:
    sdata = layouts.xenium_object(n=100)
    del sdata.images["he_image"]
    with pytest.raises(ValueError, match=r"'morphology_focus' has the channels 'DAPI', .* as fluorescence has"):
        find(sdata)


def test_xenium() -> None:
    """One slide's table annotates circles, the other's labels, as the reader has it by default."""
    reference, target = (
        spahgc.io.bin_to_spots(layouts.xenium_object(circles=circles, seed=seed), 55, slide=f"X{seed}", min_bins=5)
        for seed, circles in enumerate((True, False))
    )
    assert embed_predict_draw(reference, target) > 0.8


# Pictures for plots


def test_a_picture_lies_as_the_spots_do() -> None:
    """The H&E image stands; its picture lies, pale to the left and dark to the right, and ends where it ends."""
    sdata = layouts.xenium_object(n=300)
    (slide,) = find(sdata)
    image, scale = picture(sdata["he_image"], slide, longest=300)
    assert image.shape == (225, 300, 3)
    assert scale == pytest.approx(0.5)  # 600 um
    columns = image.mean(axis=(0, 2))
    assert columns[:30].mean() > columns[-30:].mean() + 50
    assert abs(image[:20].mean() - image[-20:].mean()) < 10
    # Pixel by pixel, against the image that was turned.
    flat = layouts.tissue(900, 1200).reshape(225, 4, 300, 4, 3).mean(axis=(1, 3))
    assert np.abs(image[5:-5, 5:-5] - flat[5:-5, 5:-5]).mean() < 4


def test_pictures_leave_what_is_there(caplog: pytest.LogCaptureFixture) -> None:
    sdata = layouts.xenium_object(n=100)
    table = sdata["table"]
    own = np.zeros((5, 6, 3), np.uint8)
    table.uns["spatial"] = {
        "cell_circles": {
            "images": {"lowres": own},
            "scalefactors": {"tissue_lowres_scalef": 0.01, "spot_diameter_fullres": 7.0},
            "metadata": {"a": 1},
        }
    }
    add_pictures(sdata, table, find(sdata))
    entry = table.uns["spatial"]["cell_circles"]
    assert list(entry["images"]) == ["lowres"]
    assert entry["metadata"] == {"a": 1}
    assert entry["scalefactors"] == {
        "tissue_lowres_scalef": 0.01,
        "spot_diameter_fullres": 7.0,
        "microns_per_pixel": 1.0,
    }


def test_no_picture_of_a_large_image_without_levels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "spahgc")
    monkeypatch.setattr(_embedding, "LARGE", 1000)
    sdata = layouts.xenium_object(n=100)
    add_pictures(sdata, sdata["table"], find(sdata))
    entry = sdata["table"].uns["spatial"]["cell_circles"]
    assert entry["images"] == {}
    assert entry["scalefactors"]["tissue_hires_scalef"] == 1.0
    assert "image 'he_image' has no resolution that is small enough" in caplog.text
