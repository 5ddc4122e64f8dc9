"""`pp.image_embedding` on what it cannot use: the message says what, where and what to do, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import spahgc

from .conftest import Make, picture


def mean(tiles: np.ndarray) -> np.ndarray:
    return tiles.mean(axis=(2, 3))


def _fails(
    sdata: Any, error: type[Exception] | tuple[type[Exception], ...], message: str, encoder: Any = mean, **kwargs: Any
) -> None:
    before = {name: (set(table.obsm), set(table.uns)) for name, table in sdata.tables.items()}
    with pytest.raises(error, match=message):
        spahgc.pp.image_embedding(sdata, encoder, **{"tile_px": 32, **kwargs})
    assert before == {name: (set(table.obsm), set(table.uns)) for name, table in sdata.tables.items()}


def test_not_a_spatialdata(make_sdata: Make) -> None:
    for given, shown in ((make_sdata()["table"], "an object of type AnnData"), ("slide.zarr", "'slide.zarr'")):
        with pytest.raises(TypeError, match=f"`sdata` must be a SpatialData or a sequence of values, got {shown}"):
            spahgc.pp.image_embedding(given)


def test_empty_table(make_sdata: Make) -> None:
    sdata = make_sdata(("A",))
    table = sdata["table"][:0].copy()
    del table.uns["spatialdata_attrs"]
    sdata.tables["none"] = table
    _fails(sdata, ValueError, "no spots", table_key="none")
    _fails(sdata, KeyError, "no table 'spots'.*Available: .*'table'", table_key="spots")


def _without_coordinates(sdata: Any) -> None:
    from shapely import Point

    sdata.shapes["A"].loc["A_3", "geometry"] = Point()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda s: s["table"].uns.pop("spatialdata_attrs"), KeyError, "not linked to shapes.*TableModel.parse"),
        (lambda s: s["table"].obs.pop("region"), KeyError, "no column 'region', its region_key"),
        (lambda s: s["table"].obs.pop("spot_id"), KeyError, "no column 'spot_id', its instance_key"),
        (
            lambda s: s["table"].uns["spatialdata_attrs"].update(region=["A"]),
            ValueError,
            r"35 spots have a 'region' that is not among the table's regions \('A'\): 'B'",
        ),
        (
            lambda s: s.shapes.pop("B"),
            KeyError,
            "annotates 'B', which is not among the shapes. Available shapes: 'A'",
        ),
        (
            lambda s: s["table"].obs.__setitem__("spot_id", np.arange(70)),
            KeyError,
            "35 of 35 spots of slide 'A' are not in the index of their shapes, e.g. .*begins with 'A_0'",
        ),
        (_without_coordinates, ValueError, "1 spots of slide 'A' have no coordinates, e.g. 'A_3'"),
        (lambda s: s.images.clear(), ValueError, "No image for slide 'A'. There are no images"),
        (
            lambda s: s.images.pop("B_image"),
            ValueError,
            "No image for slide 'B'. 'A_image' shares no coordinate system",
        ),
    ],
)
def test_missing_links_shapes_and_images(
    make_sdata: Make, spoil: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    sdata = make_sdata()
    spoil(sdata)
    _fails(sdata, error, message)


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda image: image[..., :1], "has 1 channels, and H&E has three"),
        (lambda image: np.concatenate([image, image[..., :1]], axis=2), "has a fourth channel that is not named alpha"),
        (lambda image: image.astype(np.uint16) * 257, r"is uint16: convert it to 8-bit, e.g. with \(image // 257\)"),
        (lambda image: image / 255, r"is float64: convert it to 8-bit, e.g. with \(image \* 255\)"),
    ],
)
def test_images_that_are_not_8_bit_rgb(
    make_sdata: Make, convert: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    sdata = make_sdata(("A",), image=lambda k: convert(picture(k)))
    _fails(sdata, ValueError, f"No image for slide 'A'. 'A_image' {message}")


def test_two_images_that_fit(make_sdata: Make) -> None:
    sdata = make_sdata(("A",))
    sdata.images["stain2"] = sdata.images["A_image"]
    _fails(sdata, ValueError, "Several images fit slide 'A'.*'A_image', 'stain2'. Pass image_key")
    _fails(sdata, KeyError, "no image 'he'. Available: 'A_image', 'stain2'", image_key="he")
    spahgc.pp.image_embedding(sdata, mean, tile_px=32, image_key={"A": "stain2"})


def test_spots_outside_the_image(make_sdata: Make) -> None:
    sdata = make_sdata(("A",))
    geometry = sdata.shapes["A"].geometry
    sdata.shapes["A"].geometry = geometry.translate(100, 0)
    _fails(sdata, ValueError, r"of 35 spots of slide 'A' lie outside its image 'A_image' \(300 x 240 pixels\).*swapped")
    sdata.shapes["A"].geometry = geometry.translate(5000, 0)
    _fails(sdata, ValueError, r"35 of 35 spots .* outside its image 'A_image' \(300 x 240 pixels\).*x 5060 to 5243")


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ([1.0, 1.3], "stretches x and y differently"),
        ([50, 50], r"'A_image' \(from .* and the transformations\) is 100.*Pass microns_per_pixel"),
    ],
)
def test_an_absurd_transformation(make_sdata: Make, scale: list[float], message: str) -> None:
    from spatialdata.transformations import Scale

    _fails(make_sdata(("A",), to_image=Scale(scale, ("x", "y"))), ValueError, message)


def test_microns_per_pixel_unknown(make_sdata: Make) -> None:
    sdata = make_sdata(mpp=None)
    _fails(sdata, ValueError, "pixel of slide 'A' are not known.*Pass microns_per_pixel=<number>, or a dict")
    _fails(sdata, ValueError, "pixel of slide 'B' are not known", microns_per_pixel={"A": 0.5})


@pytest.mark.parametrize("value", [0, -0.5, np.nan, np.inf, 1000, 1e-4, "0.5", True])
def test_microns_per_pixel_absurd(make_sdata: Make, value: Any) -> None:
    _fails(
        make_sdata(), (TypeError, ValueError), "`microns_per_pixel` must be .* between 0.05", microns_per_pixel=value
    )
    sdata = make_sdata(mpp=value)
    _fails(sdata, ValueError, r"uns\['spatial'\]\['A'\]\['scalefactors'\].*between 0.05 and 20")


def test_unknown_encoder(make_sdata: Make, torchvision: None) -> None:
    _fails(make_sdata(), ValueError, r"No encoder 'uni22'. Available: .*'uni2'.*encoders.table", encoder="uni22")
    _fails(make_sdata(), TypeError, "`encoder` must be a string or .*, got None", encoder=None)


def test_callable_without_a_usable_name(make_sdata: Make) -> None:
    sdata = make_sdata(("A",))
    _fails(sdata, ValueError, "key_added", encoder=lambda tiles: mean(tiles))
    spahgc.pp.image_embedding(sdata, lambda tiles: mean(tiles), tile_px=32, key_added="image_mean")


@pytest.mark.parametrize(
    ("encoder", "error", "message"),
    [
        (lambda tiles: mean(tiles)[:-1], ValueError, r"was given 20 tiles.*returned shape \(19, 3\)"),
        (lambda tiles: mean(tiles) * np.nan, ValueError, "20 of its rows have NaN"),
        (lambda tiles: [str(tile.mean()) for tile in tiles], TypeError, "returned list of <U"),
        (lambda tiles: 1 / 0, ZeroDivisionError, "division"),
        (lambda tiles: mean(tiles)[:, : 2 + (len(tiles) == 20)], ValueError, r"different widths: \[3, 2\]"),
    ],
)
def test_encoders_that_return_something_else(
    make_sdata: Make, encoder: Any, error: type[Exception], message: str
) -> None:
    _fails(make_sdata(), error, message, encoder=encoder, key_added="image_mine", batch_size=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile_px": 0}, "`tile_px` must be an integer of at least 1"),
        ({"tile_px": 32.5}, "`tile_px` must be an integer of at least 1"),
        ({"tile_um": 0}, "`tile_um` must be a finite number between 2 and 5000"),
        ({"tile_um": np.nan}, "`tile_um` must be a finite number"),
        ({"fields_of_view": ()}, "`fields_of_view` is empty"),
        ({"fields_of_view": (1, -2)}, "`fields_of_view` must be a sequence of finite numbers greater"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"key_added": "a/b"}, "`key_added` must consist of letters.*'a/b'"),
        ({"encoder": "texture", "tile_px": 16}, "at least 32"),
    ],
)
def test_bad_arguments(make_sdata: Make, arguments: dict[str, Any], message: str) -> None:
    _fails(make_sdata(("A",)), (TypeError, ValueError), message, **arguments)
