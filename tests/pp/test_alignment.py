"""The alignment check on a drawn slide: faults that are put in are found, named and undone; nothing else is touched."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import geopandas
import numpy as np
import pandas as pd
import pytest
from shapely import Point, box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation, set_transformation

from spahgc import get, pp
from spahgc._geometry import lattice as lattice_of
from spahgc.pp import _alignment as kernel
from spahgc.pp._images import locate, warn_left_behind
from spahgc.pp._tissue import check_spots, on_glass

WIDTH, HEIGHT, MPP = 460, 560, 8.0
PITCH = 100 / MPP
FAULTS = {
    "x and y swapped": ("y", "x"),
    "x flipped": ("w - x", "y"),
    "y flipped": ("x", "h - y"),
    "turned by 180 degrees": ("w - x", "h - y"),
    "turned by 90 degrees counter-clockwise": ("y", "w - x"),
    "turned by 90 degrees clockwise": ("h - y", "x"),
    "x and y swapped, both flipped": ("h - y", "w - x"),
}


def spoil(xy: np.ndarray, fault: str) -> np.ndarray:
    x, y = xy.T
    values = {"x": x, "y": y, "w - x": WIDTH - x, "h - y": HEIGHT - y}
    return np.column_stack([values[part] for part in FAULTS[fault]])


def wedge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A lopsided piece of tissue."""
    return (x > 60) & (y > 80) & (1.6 * (x - 60) + (y - 80) < 430)


def disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x - WIDTH / 2) ** 2 + (y - HEIGHT / 2) ** 2 < 150**2


def arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same when flipped in x, and in nothing else."""
    return (y > 60) & (y < 400) & (np.abs(x - WIDTH / 2) < 0.5 * (y - 60))


def blobs(seed: int = 0) -> np.ndarray:
    """Smooth random field with values around 0, (HEIGHT, WIDTH)."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH)), 12)
    return field / field.std()


def picture(shape: Callable[..., np.ndarray] = wedge) -> np.ndarray:
    """Tissue on glass, dark where :func:`blobs` is high, (HEIGHT, WIDTH, 3) uint8."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    dark = np.clip(0.5 + 0.25 * blobs(), 0, 1)[..., None]
    color = (1 - dark) * np.array([215, 150, 195]) + dark * np.array([105, 60, 140])
    image = np.where(shape(x, y)[..., None], color, np.array([235, 232, 236]))
    noise = np.random.default_rng(1).normal(0, 3, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def lattice(shape: Callable[..., np.ndarray] = wedge, *, whole: bool = False) -> tuple[np.ndarray, pd.DataFrame]:
    """Visium's spots 100 um apart: centers, and array_row, array_col, in_tissue; those on tissue, or all."""
    row, column = (part.ravel() for part in np.mgrid[:48, :68])
    keep = (row + column) % 2 == 0
    row, column = row[keep], column[keep]
    x, y = 20 + column * PITCH / 2, 20 + row * PITCH * np.sqrt(0.75)
    on = shape(x, y)
    obs = pd.DataFrame({"array_row": row, "array_col": column, "in_tissue": on.astype(int)})
    xy = np.column_stack([x, y])
    return (xy, obs) if whole else (xy[on], obs[on])


def slide(
    coordinates: np.ndarray,
    obs: pd.DataFrame,
    *,
    at: np.ndarray | None = None,
    image: np.ndarray | None = None,
    counts: bool = True,
    mpp: float | None = MPP,
    name: str = "S",
    drop: tuple[str, ...] = ("array_row", "array_col"),
    transformation: Any = None,
) -> SpatialData:
    """One slide: genes follow the darkness of the image at `at`, which is where the spots really are."""
    at = coordinates if at is None else at
    obs = obs.drop(columns=list(drop)).set_index(pd.Index([f"{name}_{i}" for i in range(len(obs))]))
    obs["region"], obs["spot_id"] = pd.Categorical([name] * len(obs)), obs.index.to_numpy()
    x, y = (np.clip(part.astype(int), 0, None) for part in at.T)
    field = blobs()[np.minimum(y, HEIGHT - 1), np.minimum(x, WIDTH - 1)][:, None]
    effect = np.linspace(-0.8, 0.8, 30)
    values = np.random.default_rng(2).poisson(20 * np.exp(field * effect)).astype(np.float32)
    table = ad.AnnData(values if counts else None, obs=obs, obsm={"spatial": coordinates.copy()})
    factors = {"tissue_hires_scalef": 0.125} | ({} if mpp is None else {"microns_per_pixel": mpp})
    table.uns["spatial"] = {name: {"images": {}, "scalefactors": factors}}
    element = Image2DModel.parse(
        picture() if image is None else image, dims=("y", "x", "c"), transformations={name: Identity()}
    )
    shapes = ShapesModel.parse(
        coordinates,
        geometry=0,
        radius=27.5 / MPP,
        index=obs.index,
        transformations={name: Identity() if transformation is None else transformation},
    )
    table = TableModel.parse(table, region=name, region_key="region", instance_key="spot_id")
    return SpatialData(images={f"{name}_image": element}, shapes={name: shapes}, tables={"table": table})


def positions(sdata: SpatialData, name: str = "S") -> np.ndarray:
    points = sdata[name].geometry
    return np.column_stack([points.x, points.y])


@pytest.fixture(scope="module")
def spots() -> tuple[np.ndarray, pd.DataFrame]:
    return lattice()


def checked(sdata: SpatialData, **options: Any) -> pd.DataFrame:
    """What the check wrote."""
    assert pp.check_alignment(sdata, **options) is None
    return get.alignment(sdata["table"])


# What is right stays.


@pytest.mark.parametrize("counts", [True, False])
def test_a_slide_that_is_right(
    spots: tuple[np.ndarray, pd.DataFrame], snapshot: Callable[[Any], Any], counts: bool
) -> None:
    sdata = slide(*spots, counts=counts)
    before, image, shapes = snapshot(sdata["table"]), np.asarray(sdata["S_image"]).copy(), sdata["S"].copy()
    report = checked(sdata, fix=True)
    row = report.loc["S"]
    assert (row["verdict"], row["fix"], row["fixed"], row["image"]) == ("ok", "", False, "S_image")
    assert row["given_inside"] == row["given_on_tissue"] == 1
    assert row["given_outline"] > 0.9
    assert row["given_score"] > row["candidate_score"] + kernel.MARGIN
    assert (row["given_expression"] > 0.2) == counts
    assert row["pitch_um"] == pytest.approx(100, rel=0.01)
    assert np.isnan(row["platform_um"])  # without array_row and array_col
    after = snapshot(sdata["table"])
    after["uns"].pop("alignment")
    assert after == before
    assert (np.asarray(sdata["S_image"]) == image).all()
    assert sdata["S"].equals(shapes)


def test_the_report_survives_a_file(spots: tuple[np.ndarray, pd.DataFrame], tmp_path: Path) -> None:
    sdata = slide(spoil(spots[0], "x flipped"), spots[1], at=spots[0])
    report = checked(sdata, fix=True)
    sdata["table"].write_h5ad(tmp_path / "table.h5ad")
    stored = ad.read_h5ad(tmp_path / "table.h5ad")
    pd.testing.assert_frame_equal(get.alignment(stored), report, check_dtype=False)
    entry = stored.uns["alignment"]
    assert entry["params"]["margin"] == kernel.MARGIN
    for name, value in report.loc["S"].items():
        assert entry["slides"]["S"][name] == value or np.isnan(value)
    assert entry["fixes"]["S"]["fault"] == "x flipped"
    assert entry["fixes"]["S"]["affine"].tolist() == [[-1, 0, WIDTH], [0, 1, 0], [0, 0, 1]]


# What is put in is found, and undone.


@pytest.mark.parametrize(
    ("fault", "factor"),
    [
        *((fault, 1.0) for fault in FAULTS),
        ("x and y swapped", 0.125),
        ("y flipped", 0.5),
        ("turned by 90 degrees clockwise", 4.0),
    ],
)
def test_faults_are_named_and_undone(spots: tuple[np.ndarray, pd.DataFrame], fault: str, factor: float) -> None:
    sdata = slide(factor * spoil(spots[0], fault), spots[1], at=spots[0])
    others = {key: value.copy() for key, value in sdata["table"].obs.items()}
    transformation = get_transformation(sdata["S"], "S").to_affine_matrix(("x", "y"), ("x", "y"))
    row = checked(sdata, fix=True).loc["S"]
    scale = {1.0: "", 0.125: "; in pixels of the hires image", 0.5: "; 2 times too small", 4.0: "; 4 times too large"}
    assert row["verdict"] == fault + scale[factor]
    assert row["fixed"]
    np.testing.assert_allclose(positions(sdata), spots[0], atol=1e-6)
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], spots[0], atol=1e-6)
    assert sdata["S"]["radius"].iloc[0] == pytest.approx(27.5 / MPP)  # it was right, and is half a pitch wide
    assert (get_transformation(sdata["S"], "S").to_affine_matrix(("x", "y"), ("x", "y")) == transformation).all()
    assert all((sdata["table"].obs[key] == value).all() for key, value in others.items())
    if factor == 0.125:  # what was mended is right, and stays on record
        again = checked(sdata, fix=True).loc["S"]
        assert (again["verdict"], again["fixed"]) == ("ok", False)
        np.testing.assert_allclose(positions(sdata), spots[0], atol=1e-6)
        assert sdata["table"].uns["alignment"]["fixes"]["S"]["fault"] == row["verdict"]


def test_without_fix_nothing_moves_and_a_copy_is_a_copy(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    wrong = spoil(spots[0], "y flipped")
    sdata = slide(wrong, spots[1], at=spots[0])
    made = pp.check_alignment(sdata, fix=True, copy=True)
    assert made is not None
    assert get.alignment(made["table"]).loc["S", "fixed"]
    np.testing.assert_allclose(positions(made), spots[0])
    np.testing.assert_allclose(made["table"].obsm["spatial"], spots[0])
    with pytest.raises(KeyError, match="Run spahgc.pp.check_alignment"):
        get.alignment(sdata["table"])
    row = checked(sdata).loc["S"]
    assert (row["verdict"], row["fix"], row["fixed"]) == ("y flipped", f"y = {HEIGHT} - y", False)
    assert (positions(sdata) == wrong).all()
    assert (sdata["table"].obsm["spatial"] == wrong).all()
    assert sdata["table"].uns["alignment"]["fixes"] == {}


def test_without_counts_the_outline_is_enough_for_lopsided_tissue(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    sdata = slide(spoil(spots[0], "x and y swapped"), spots[1], counts=False)
    assert checked(sdata, fix=True).loc["S", "verdict"] == "x and y swapped"
    np.testing.assert_allclose(positions(sdata), spots[0])


@pytest.mark.parametrize("fault", ["x and y swapped", "turned by 180 degrees"])
def test_a_disc_is_told_by_its_counts_only(fault: str) -> None:
    xy, obs = lattice(disc)
    image = picture(disc)
    sdata = slide(spoil(xy, fault), obs, at=xy, image=image)
    assert checked(sdata).loc["S", "verdict"] == fault
    blind = slide(spoil(xy, fault), obs, image=image, counts=False)
    before = positions(blind)
    with pytest.warns(UserWarning, match="Slide 'S' is left as it is: cannot be told apart by score"):
        report = checked(blind, fix=True)
    assert report.loc["S", "verdict"] == "unclear"
    assert not report.loc["S", "fixed"]
    assert (positions(blind) == before).all()
    assert (blind["table"].obsm["spatial"] == before).all()


def test_handedness_speaks_for_coordinates_as_given_and_never_against_them() -> None:
    xy, obs = lattice(arrow)
    build = {"image": picture(arrow), "counts": False}
    assert checked(slide(xy, obs, **build)).loc["S", "verdict"] == "unclear"
    assert checked(slide(xy, obs, drop=(), **build)).loc["S", "verdict"] == "ok"
    # Exchanged columns of the array make the right coordinates look mirrored: no alarm.
    exchanged = obs.rename(columns={"array_row": "array_col", "array_col": "array_row"})
    assert checked(slide(xy, exchanged, drop=(), **build)).loc["S", "verdict"] == "unclear"
    # Where the coordinates as given are no rival, it settles between the mirrored fix and the other.
    turned = slide(spoil(xy, "turned by 180 degrees"), obs, drop=(), **build)
    assert checked(turned).loc["S", "verdict"] == "turned by 180 degrees"


def test_spots_off_tissue_show_where_the_array_was() -> None:
    def small(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return wedge(x, y) & (x < 250)

    xy, obs = lattice(small, whole=True)
    array = xy[:, 0] < 300
    xy, obs = xy[array], obs[array]
    image = picture(lambda x, y: small(x, y) | (x > 320))  # a second section beside the array
    report = checked(slide(xy, obs, image=image, counts=False))
    assert report.loc["S", "verdict"] == "ok"
    assert report.loc["S", "given_outline"] > 0.9
    on = obs["in_tissue"].to_numpy() == 1
    few = checked(slide(xy[on], obs[on], image=image, counts=False))
    assert few.loc["S", "given_outline"] < 0.8
    wrong = slide(spoil(xy, "y flipped"), obs, at=xy, image=image)
    assert checked(wrong).loc["S", "verdict"] == "y flipped"


def test_pixels_of_another_image(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    """A second image, registered by a turn of 30 degrees, in whose pixels the coordinates are."""
    angle = np.deg2rad(30)
    matrix = np.array(
        [[2 * np.cos(angle), -2 * np.sin(angle), 150.0], [2 * np.sin(angle), 2 * np.cos(angle), -80.0], [0, 0, 1.0]]
    )
    back = np.linalg.inv(matrix)
    sdata = slide(spots[0] @ back[:2, :2].T + back[:2, 2], spots[1], at=spots[0])
    sdata["cytassist"] = Image2DModel.parse(
        picture()[::2, ::2],
        dims=("y", "x", "c"),
        transformations={"S": Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))},
    )
    report = checked(sdata, image_key="S_image", fix=True)
    assert report.loc["S", "verdict"] == "in pixels of image 'cytassist'"
    np.testing.assert_allclose(positions(sdata), spots[0], atol=1e-6)


@pytest.mark.parametrize("counts", [True, False])
def test_the_image_of_another_slide(counts: bool) -> None:
    """Some candidate always fits best; that it does not fit well is seen, and nothing is moved by it."""
    xy, obs = lattice(lambda x, y: (x > 150) & (x < 420) & (y > 330) & (y < 420))
    sdata = slide(xy, obs, counts=counts)
    sdata["table"].X = None if not counts else np.random.default_rng(0).permutation(sdata["table"].X)
    with pytest.warns(UserWarning, match="Slide 'S' is left as it is: nothing fits well: best is '.*; is 'S_image'"):
        row = checked(sdata, fix=True).loc["S"]
    assert (row["verdict"], row["fixed"]) == ("unclear", False)
    assert (positions(sdata) == xy).all()


def test_a_shift_is_told_and_not_guessed(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    """An image that was cropped, and a flip by the wrong side of the image."""
    cropped = slide(spots[0] + [32, 24], spots[1], at=spots[0])
    with pytest.warns(UserWarning, match="Slide 'S': left to you: add about"):
        row = checked(cropped, fix=True).loc["S"]
    assert (row["verdict"], row["fixed"]) == ("shifted", False)
    dx, dy = (float(word) for word in row["fix"].replace(",", "").split() if word.lstrip("-").isdigit())
    assert (dx, dy) == (pytest.approx(-32, abs=PITCH), pytest.approx(-24, abs=PITCH))
    assert (positions(cropped) == spots[0] + [32, 24]).all()
    wrong = np.column_stack([spots[0][:, 0], WIDTH - spots[0][:, 1]])  # the height is meant
    row = checked(slide(wrong, spots[1], at=spots[0])).loc["S"]
    assert row["verdict"] == "y flipped; shifted"
    assert not row["fixed"]


def test_shapes_in_micrometers(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    """Coordinates in micrometers that a transformation takes to pixels; obsm in pixels."""
    to_pixels = Scale([1 / MPP, 1 / MPP], axes=("x", "y"))
    sdata = slide(spoil(spots[0], "x flipped") * MPP, spots[1], at=spots[0], mpp=1.0, transformation=to_pixels)
    sdata["table"].obsm["spatial"] = spoil(spots[0], "x flipped")
    report = checked(sdata, fix=True)
    assert report.loc["S", "verdict"] == "x flipped"
    assert report.loc["S", "pitch_um"] == pytest.approx(100, rel=0.01)
    np.testing.assert_allclose(positions(sdata), spots[0] * MPP, atol=1e-6)
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], spots[0], atol=1e-6)


def test_polygons_move_as_a_whole(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    sdata = slide(spoil(spots[0], "x and y swapped"), spots[1], at=spots[0])
    squares = [box(x - 2, y - 4, x + 2, y + 4) for x, y in positions(sdata)]
    frame = geopandas.GeoDataFrame(geometry=squares, index=sdata["S"].index)
    sdata.shapes["S"] = ShapesModel.parse(frame, transformations={"S": Identity()})
    assert checked(sdata, fix=True).loc["S", "verdict"] == "x and y swapped"
    bounds = sdata["S"].geometry.bounds
    np.testing.assert_allclose((bounds["maxx"] - bounds["minx"]), 8)
    np.testing.assert_allclose((bounds["maxy"] - bounds["miny"]), 4)


def test_only_the_table_is_wrong(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    sdata = slide(*spots)
    sdata["table"].obsm["spatial"] = spots[0][:, ::-1].copy()
    row = checked(sdata, fix=True).loc["S"]
    assert row["verdict"] == "obsm['spatial'] is not where the shapes are"
    assert row["fixed"]
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], spots[0])
    np.testing.assert_allclose(positions(sdata), spots[0])


@pytest.mark.parametrize("wrong", [0.8, 80.0 / 4.0])
def test_micrometers_per_pixel_against_the_platform(spots: tuple[np.ndarray, pd.DataFrame], wrong: float) -> None:
    sdata = slide(*spots, drop=(), mpp=wrong)
    with pytest.warns(UserWarning, match="Slide 'S': left to you: set microns_per_pixel to 8"):
        row = checked(sdata, fix=True).loc["S"]
    assert (row["verdict"], row["platform_um"], row["fixed"]) == ("microns_per_pixel wrong", 100.0, False)
    assert row["fix"].startswith("set microns_per_pixel to 8:")
    assert row["pitch_um"] == pytest.approx(12.5 * wrong, rel=0.01)


def test_a_scale_that_only_the_pitch_tells(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    sdata = slide(0.3 * spots[0], spots[1], at=spots[0], drop=())
    row = checked(sdata, fix=True).loc["S"]
    assert row["verdict"] == "3.33 times too small, by the pitch"
    assert np.abs(positions(sdata) - spots[0]).max() < 0.2 * PITCH


@pytest.mark.parametrize(
    ("pitch_um", "spot_um", "mpp", "names", "platform"),
    [
        (100, 55, 8, "x{}", "unknown"),
        (100, 55, 8, "{}x{}", "unknown"),
        (100, 100, 8, "{}x{}", "unknown"),
        (150, 75, 8, "{}x{}", "unknown"),
        (200, 100, 8, "x{}", "unknown"),
        (200, 100, 8, "S_{}x{}", "legacy"),
        (320, 100, 8, "S_{}x{}", "legacy"),  # a legacy array whose scale is wrong
    ],
)
def test_which_square_arrays_are_legacy(pitch_um: float, spot_um: float, mpp: float, names: str, platform: str) -> None:
    step = pitch_um / mpp
    column, row = (part.ravel() for part in np.mgrid[:18, :18])
    xy = 20 + step * np.column_stack([column, row])
    keep = wedge(*xy.T)
    obs = pd.DataFrame({"array_row": row, "array_col": column})[keep]
    sdata = slide(xy[keep], obs, drop=(), mpp=mpp)
    sdata["S"]["radius"] = spot_um / mpp / 2
    table = sdata["table"]
    table.obs_names = [
        names.format(x, y) if names.count("{}") == 2 else names.format(i)
        for i, (x, y) in enumerate(obs[["array_col", "array_row"]].to_numpy())
    ]
    row_ = checked(sdata).loc["S"]
    assert np.isnan(row_["platform_um"]) == (platform == "unknown")
    assert ("microns_per_pixel" in row_["fix"]) == (pitch_um == 320)


@pytest.mark.parametrize("fault", ["", "x flipped"])
def test_positions_in_micrometers(spots: tuple[np.ndarray, pd.DataFrame], fault: str) -> None:
    given = (spoil(spots[0], fault) if fault else spots[0]) * 3.1
    sdata = slide(given, spots[1], at=spots[0], mpp=3.1)
    row = checked(sdata, fix=True).loc["S"]
    assert row["verdict"] == "; ".join(filter(None, (fault, "in micrometers")))
    np.testing.assert_allclose(positions(sdata), spots[0], atol=1e-6)


@pytest.mark.parametrize("spread", [0.1, 4.0, 60.0])
def test_the_search_is_bounded(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells that are dense, or piled up as fields of view are, cost no more candidates than an array."""
    calls = 0
    judge = kernel.judge

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return judge(*args)

    monkeypatch.setattr(kernel, "judge", counted)
    xy = np.random.default_rng(0).normal((150, 180), spread, (6000, 2)).clip(1, 400)
    image = np.where(wedge(*(np.mgrid[:WIDTH, :HEIGHT] + 0.5)).T[..., None], [150, 90, 160], [235, 232, 236])
    sums = kernel.summed_image((image / 255).astype(np.float32), image[..., 0] < 200)
    scene = kernel.Scene(sums, np.eye(3), xy, spread**2 / 1000, np.ones(6000, dtype=bool), 6000)
    kernel.shift(scene, np.eye(3))
    assert calls <= (2 * kernel.MAX_STEPS + 1) ** 2 + 9 * 12


def test_positions_on_one_point() -> None:
    obs = pd.DataFrame({"in_tissue": np.ones(30, dtype=int)})
    with pytest.raises(ValueError, match=r"one point or one line"):
        pp.check_alignment(slide(np.full((30, 2), 200.0), obs, drop=()))


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_positions_that_stay_behind_are_named(
    spots: tuple[np.ndarray, pd.DataFrame], factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    sdata = slide(*spots)
    warn_left_behind(sdata, sdata["table"])
    assert not caplog.records
    for element in (sdata["S"], sdata["S_image"]):
        set_transformation(element, Scale([factor, factor], axes=("x", "y")), "moved")
    moved = sdata.transform_to_coordinate_system("moved")
    table = moved["table"] if "table" in moved.tables else sdata["table"]
    warn_left_behind(moved, table)
    assert "obsm['spatial'] of slide 'S' is neither where its shapes are" in caplog.text


def test_slides_are_judged_one_by_one(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    from spatialdata import concatenate

    right = slide(*spots, name="A")
    wrong = slide(spoil(spots[0], "x flipped"), spots[1], at=spots[0], name="B")
    both = concatenate([right, wrong], concatenate_tables=True)
    report = checked(both, microns_per_pixel=MPP, fix=True)
    assert report["verdict"].to_dict() == {"A": "ok", "B": "x flipped"}
    for name in ("A", "B"):
        np.testing.assert_allclose(positions(both, name), spots[0])
        rows = (both["table"].obs["region"] == name).to_numpy()
        np.testing.assert_allclose(both["table"].obsm["spatial"][rows], spots[0])


def test_many_spots_are_sampled(spots: tuple[np.ndarray, pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = checked(slide(*spots)).loc["S"]
    monkeypatch.setattr(kernel, "MAX_SPOTS", 120)
    part = checked(slide(*spots)).loc["S"]
    assert part["verdict"] == whole["verdict"] == "ok"
    assert part["given_outline"] != whole["given_outline"]
    assert part["given_outline"] == pytest.approx(whole["given_outline"], abs=0.05)


# The evidence is what it says.


def test_outline_is_dice_of_the_areas() -> None:
    rng = np.random.default_rng(0)
    tissue = blobs()[:300, :300] > 0.3
    sums = kernel.summed_image(np.zeros((300, 300, 3), np.float32), tissue)
    x, y = (part.ravel() for part in np.meshgrid(np.arange(30, 270, 10), np.arange(50, 200, 10)))
    keep = rng.random(len(x)) < 0.7
    pixels = np.column_stack([x, y])[keep].astype(float)
    area = np.zeros((300, 300), bool)
    for column, row in pixels.astype(int):
        area[row - 5 : row + 5, column - 5 : column + 5] = True
    covered = np.ones(len(pixels), bool)
    found = kernel.judge(kernel.Scene(sums, np.eye(3), pixels, 100.0, covered, len(pixels)), np.eye(3))
    assert found.outline == pytest.approx(2 * (area & tissue).sum() / (area.sum() + tissue.sum()))
    share = [tissue[row - 5 : row + 5, column - 5 : column + 5].mean() for column, row in pixels.astype(int)]
    assert found.on_tissue == pytest.approx(np.mean(np.array(share) >= 0.5))
    assert found.expression == 0


def test_expression_is_an_adjusted_r2() -> None:
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(0)
    places = rng.uniform(0, 100, (200, 2))
    surface = kernel.trend(places)
    colors = rng.normal(size=(200, 3)) + surface[:, 1:4]
    y = colors @ rng.normal(size=(3, 4)) + rng.normal(size=(200, 4)) + 5 * surface[:, 2:]
    both, alone = np.column_stack([colors, surface[:, 1:]]), surface[:, 1:]
    full, trend = (((y - LinearRegression().fit(x, y).predict(x)) ** 2).sum() for x in (both, alone))
    expected = 1 - full / trend * (200 - 6) / (200 - 6 - 3)
    assert kernel.explained_variance(y, colors, places) == pytest.approx(expected)
    # Colours that have nothing to do with it explain nothing, on average.
    noise = [kernel.explained_variance(y, rng.normal(size=(200, 3)), places) for _ in range(100)]
    assert abs(np.mean(noise)) < 0.005


def test_candidates_undo_faults_and_are_no_two_alike(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    scales = {"too small": ("multiply by 4", kernel.scaling(4.0)), "again": ("multiply by 4.1", kernel.scaling(4.1))}
    tried = kernel.placements(WIDTH, HEIGHT, scales)
    assert len(tried) == 16  # 4.1 is the same as 4
    assert tried[0].fault == kernel.UNCHANGED
    assert (tried[0].affine == np.eye(3)).all()
    for candidate in tried[1:8]:
        given = np.column_stack([spoil(spots[0], candidate.fault), np.ones(len(spots[0]))])
        np.testing.assert_allclose((given @ candidate.affine.T)[:, :2], spots[0])


@pytest.mark.parametrize(("rows", "pitch"), [(np.sqrt(0.75), 10.0), (1.0, 10.0)])
def test_pitch_of_hexagonal_and_square_lattices(rows: float, pitch: float) -> None:
    row, column = (part.ravel() for part in np.mgrid[:20, :20])
    xy = np.column_stack([column + (row % 2 / 2 if rows < 1 else 0), row * rows]) * pitch
    area, found = lattice_of(xy[np.random.default_rng(0).random(400) < 0.9])
    assert area == pytest.approx(rows * pitch**2, rel=0.01)
    assert found == pytest.approx(pitch, rel=0.01)


# What cannot be judged is told, and nothing is written.


def untouched(sdata: SpatialData) -> bool:
    return "alignment" not in sdata["table"].uns


def test_no_image(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    sdata = slide(*spots)
    del sdata.images["S_image"]
    with pytest.raises(ValueError, match="No image for slide 'S'. There are no images"):
        pp.check_alignment(sdata)
    sdata = slide(*spots)
    set_transformation(sdata["S_image"], {"elsewhere": Identity()}, set_all=True)
    with pytest.raises(ValueError, match="'S_image' shares no coordinate system with the spots"):
        pp.check_alignment(sdata)
    with pytest.raises(KeyError, match=r"no image 'x'. Available: 'S_image'"):
        pp.check_alignment(sdata, image_key="x")
    assert untouched(sdata)


def test_no_tissue(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    for color in (235, 120):
        sdata = slide(*spots, image=np.full((HEIGHT, WIDTH, 3), color, np.uint8))
        with pytest.raises(ValueError, match="Image 'S_image' of slide 'S' .*it has one color only"):
            pp.check_alignment(sdata)
        assert untouched(sdata)
    far = slide(spots[0] + 1e5, spots[1])
    with pytest.raises(ValueError, match=r"None of the \d+ candidates puts spots of slide 'S' on tissue"):
        pp.check_alignment(far, fix=True)
    assert untouched(far)
    assert (positions(far) == spots[0] + 1e5).all()


def test_nothing_is_written_where_a_later_slide_fails(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    from spatialdata import concatenate

    parts = [slide(spoil(spots[0], "x flipped"), spots[1], at=spots[0], name="A"), slide(*spots, name="B")]
    both = concatenate(parts, concatenate_tables=True)
    both["B_image"] = Image2DModel.parse(
        np.full((HEIGHT, WIDTH, 3), 240, np.uint8), dims=("y", "x", "c"), transformations={"B": Identity()}
    )
    before = positions(both, "A")
    with pytest.raises(ValueError, match="slide 'B'"):
        pp.check_alignment(both, fix=True)
    assert untouched(both)
    assert (positions(both, "A") == before).all()


def test_other_bad_input(spots: tuple[np.ndarray, pd.DataFrame]) -> None:
    sdata = slide(*spots)
    with pytest.raises(TypeError, match="`sdata` must be a SpatialData"):
        pp.check_alignment(sdata["table"])
    with pytest.raises(ValueError, match="`microns_per_pixel` must be .* between 0.05 and 20"):
        pp.check_alignment(sdata, microns_per_pixel=500.0)
    with pytest.raises(KeyError, match="no 'raw'"):
        pp.check_alignment(sdata, layer="raw")
    with pytest.raises(ValueError, match="Slide 'S' has 5 spots"):
        pp.check_alignment(slide(spots[0][:5], spots[1][:5]))
    assert untouched(sdata)
    # Unknown micrometers per pixel are no error: all but the pitch is judged without.
    row = checked(slide(*spots, mpp=None)).loc["S"]
    assert row["verdict"] == "ok"
    assert np.isnan(row["pitch_um"])


# The cheap part.


def quick(sdata: SpatialData) -> None:
    (located,) = locate(sdata, sdata["table"], image_key="S_image")
    check_spots(sdata["table"], located)


def test_spots_on_glass_stop_or_warn(spots: tuple[np.ndarray, pd.DataFrame], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "spahgc")
    quick(slide(*spots))
    assert not caplog.records
    off = spots[0] + [90, 60]
    assert 0.5 < 1 - wedge(*off.T).mean() < 0.9
    quick(slide(off, spots[1]))
    assert "48 sampled spots of slide 'S' lie on glass" in caplog.text
    assert "spahgc.pp.check_alignment(sdata)" in caplog.text
    far = spots[0] * 0.1 + [400, 500]
    with pytest.raises(ValueError, match="All 48 of 48 sampled spots of slide 'S' .* none is on tissue"):
        quick(slide(far, spots[1]))


def test_spots_that_should_be_on_glass_are_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "spahgc")
    xy, obs = lattice(whole=True)
    assert obs["in_tissue"].mean() < 0.5
    quick(slide(xy, obs))
    assert not caplog.records
    quick(slide(xy, obs, drop=("array_row", "array_col", "in_tissue")))
    assert "lie on glass" in caplog.text


def test_glass_is_bright_and_even() -> None:
    glass = np.full((3, 14, 14), 230, np.uint8)
    tissue = np.moveaxis(picture()[200:214, 100:114], -1, 0)
    dark = np.full((3, 14, 14), 60, np.uint8)
    assert on_glass(np.stack([glass, tissue, dark])).tolist() == [True, False, False]


# A real slide.


def test_her2st(data_dir: Path) -> None:
    """A turned slide is put right by outline and counts, and is then right by its outline alone."""
    from spahgc.datasets import her2st

    sdata = her2st(data_dir / "her2st", slides=["C2"])
    right = positions(sdata, "C2")
    width = sdata["C2_image"]["scale0"].sizes["x"]
    wrong = right[:, ::-1] * [1, -1] + [0, width]
    sdata["C2"]["geometry"] = [Point(*place) for place in wrong]
    sdata["table"].obsm["spatial"] = wrong
    assert checked(sdata, fix=True)["verdict"].tolist() == ["turned by 90 degrees counter-clockwise"]
    np.testing.assert_allclose(positions(sdata, "C2"), right, atol=1e-6)
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], right, atol=1e-6)
    sdata.tables["table"] = sdata["table"][:, :0].copy()
    report = checked(sdata)
    assert report["verdict"].tolist() == ["ok"]
    assert report["given_expression"].tolist() == [0]


def test_scalings_are_affine() -> None:
    np.testing.assert_array_equal(kernel.scaling(2.5), [[2.5, 0, 0], [0, 2.5, 0], [0, 0, 1]])
