"""What `read_st` refuses, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from spahgc.io import read_st

Args = dict[str, Any]
Change = Callable[[Args], Args]


def refuses(slide: Args, error: type[Exception], /, *said: str, **changes: Any) -> None:
    """The call fails with all of `said` in its message, and leaves what it was given as it was."""
    given = {**slide, **changes}
    before = {name: value.copy() for name, value in given.items() if isinstance(value, pd.DataFrame | np.ndarray)}
    with pytest.raises(error) as caught:
        read_st(**given)
    for part in said:
        assert part in str(caught.value)
    for name, value in before.items():
        same = np.array_equal(value, given[name]) if isinstance(value, np.ndarray) else value.equals(given[name])
        assert same, f"{name} was changed"


def with_value(slide: Args, table: str, row: Any, column: str, value: Any) -> Args:
    """The tables of a slide, one of them with another value in one place."""
    changed = slide[table].astype(object if isinstance(value, str) else float)
    changed.loc[row, column] = value
    return {table: changed}


COUNTS: dict[str, tuple[Change, str]] = {
    **{
        str(value): (
            lambda s, value=value: with_value(s, "counts", "3x1", "G4", value),
            f"(data frame) holds 1 values that are not raw counts, the first {value:g} at spot '3x1', gene 'G4'. Raw "
            "counts are required: integers of at least 0, neither normalized nor log-transformed",
        )
        for value in (-2, 1.5, np.nan, np.inf)
    },
    "text": (
        lambda s: with_value(s, "counts", "3x1", "G4", "many"),
        "non-numeric values: could not convert string",
    ),
    "no spots": (lambda s: {"counts": s["counts"].iloc[:0]}, "no spot in common"),
    "genes twice": (
        lambda s: {"counts": s["counts"].rename(columns={"G5": "G1"})},
        "1 duplicate gene names, for instance 'G1'",
    ),
    "spots twice": (
        lambda s: {"counts": s["counts"].rename(index={"5x4": "1x1"})},
        "1 duplicate spot names, for instance '1x1'",
    ),
    "transposed": (
        lambda s: {"counts": s["counts"].T},
        "6 of 6 rows are not named '{x}x{y}' (such as '10x14'), for instance 'G0', 'G1', 'G2', ... (6 in all). "
        "Expected spots x genes: transpose genes x spots (counts.T)",
    ),
    "barcodes": (
        lambda s: {"counts": s["counts"].set_axis([f"AACT{i}-1" for i in range(20)])},
        "20 of 20 rows are not named",
    ),
    "another slide": (
        lambda s: {"counts": s["counts"].set_axis([f"{30 + i}x{40 + i}" for i in range(20)])},
        "no spot in common (matched of 20: 0 by x, y; 0 by new_x, new_y; 0 by rounded x, y). Spots of the counts: "
        "'30x40', '31x41', '32x42', ... (20 in all); of the spot table: '1x1', '2x1', '3x1', ... (20 in all).",
    ),
}


@pytest.mark.parametrize("case", COUNTS)
def test_counts(slide: Args, case: str) -> None:
    change, said = COUNTS[case]
    refuses(slide, ValueError, said, **change(slide))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "counts (counts.tsv) is empty"),
        ("\tG0\tG0\n1x1\t3\t2\n", "has 1 duplicate gene names, for instance 'G0'"),
        ("\tG0\tG1\tG2\n1x1\t3\t2\n", "the header names 3 genes, but row '1x1' has 2 values. Expected"),
    ],
    ids=["empty", "genes twice", "header"],
)
def test_count_files(slide: Args, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "counts.tsv").write_text(text)
    refuses(slide, ValueError, said, counts=tmp_path / "counts.tsv")


def test_truncated_file(slide: Args, tmp_path: Path) -> None:
    path = tmp_path / "counts.tsv.gz"
    slide["counts"].to_csv(path, sep="\t")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refuses(slide, ValueError, "is truncated or damaged: Compressed file ended", counts=path)


def scaled(slide: Args, factor: float, shift: float = 0) -> Args:
    """Spots at other places in the image."""
    spots = slide["spots"]
    return {"spots": spots.assign(pixel_x=spots["pixel_x"] * factor + shift, pixel_y=spots["pixel_y"] * factor)}


def shuffled(slide: Args) -> Args:
    spots = slide["spots"].copy()
    spots[["pixel_x", "pixel_y"]] = spots[["pixel_x", "pixel_y"]].sample(frac=1, random_state=0).to_numpy()
    return {"spots": spots}


SPOTS: dict[str, tuple[Change, str]] = {
    "none selected": (
        lambda s: {"spots": s["spots"].assign(selected=0)},
        "spots (data frame) has no spots, or none that are selected",
    ),
    "twice": (
        lambda s: {"spots": pd.concat([s["spots"], s["spots"].iloc[[3]]])},
        "1 duplicate spots, for instance '4x1'",
    ),
    "missing": (lambda s: with_value(s, "spots", 2, "pixel_x", np.nan), "infinite for 1 spots, for instance '3x1'"),
    "text": (lambda s: {"spots": s["spots"].assign(pixel_y="left")}, "Error while type casting for column 'pixel_y'"),
    "adjusted": (lambda s: {"spots": s["spots"].assign(x=s["spots"]["new_x"])}, "x and y must be integer positions"),
    "outside": (
        lambda s: scaled(s, 1, 150),
        "8 of 20 spots lie outside the image of 500 x 400 pixels (width x height), for instance '4x1', '5x1', '4x2', "
        "... (8 in all). In spots (pixel_x, pixel_y), x ranges from 330 to 570 and y from 80 to 260. Are the positions "
        "those of this image at its full resolution, or x and y swapped?",
    ),
    "shuffled": (shuffled, "The pixel positions do not follow the array"),
    "one row": (lambda s: {"spots": s["spots"][s["spots"]["y"] == 1]}, "5 spots do not span rows and columns"),
    "thumbnail": (lambda s: scaled(s, 0.1), "The spot pitch (6.0 pixels for 200 um) implies 33.3 um per pixel"),
}


@pytest.mark.parametrize("case", SPOTS)
def test_spots(slide: Args, case: str) -> None:
    change, said = SPOTS[case]
    refuses(slide, ValueError, said, **change(slide))


def test_columns_missing(slide: Args) -> None:
    spots = slide["spots"].rename(columns={"pixel_x": "imagecol", "pixel_y": "imagerow"})
    refuses(slide, KeyError, "lacks the columns pixel_x, pixel_y; it has x, y, imagecol, imagerow", spots=spots)


def test_coordinates_swapped_inside(slide: Args, caplog: pytest.LogCaptureFixture) -> None:
    """In a square image a swap leaves all spots inside; the array still tells."""
    slide["image"] = np.zeros((500, 500, 3), np.uint8)
    read_st(**slide)
    assert caplog.text == ""
    slide["spots"] = slide["spots"].rename(columns={"pixel_x": "pixel_y", "pixel_y": "pixel_x"})
    read_st(**slide)
    assert "pixel_x follows the array's y and pixel_y its x: x and y may be swapped" in caplog.text
    read_st(**slide | shuffled(slide), microns_per_pixel=1.0)
    assert "The pixel positions do not follow the array" in caplog.text


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"microns_per_pixel": 0.01}, ValueError, "must be a finite number between 0.05 and 20 or None, got 0.01"),
        ({"pitch_um": 0}, ValueError, "`pitch_um` must be a finite number greater than 0, got 0."),
        ({"spot_diameter_um": -1}, ValueError, "`spot_diameter_um` must be a finite number greater than 0, got -1."),
        *[({"slide": name}, ValueError, f"slide={name!r} is not a") for name in ("", "a b", "a/b", ".a", "_x")],
        ({"counts": np.ones(3)}, TypeError, "`counts` must be a string or a path or a DataFrame or None, got"),
        ({"spots": [1, 2]}, TypeError, "`spots` must be a string or a path or a DataFrame, got [1, 2]"),
        ({"image": None}, TypeError, "os.PathLike object"),
        *[({key: "no.tsv"}, FileNotFoundError, "no.tsv'") for key in ("counts", "spots", "image")]
    ]
)  # fmt: skip
def test_arguments(slide: Args, changes: Args, error: type[Exception], said: str) -> None:
    refuses(slide, error, said, **changes)


@pytest.mark.parametrize("source", ["array", "he.tif", "he.png"])
def test_image(slide: Args, tmp_path: Path, source: str) -> None:
    path = tmp_path / source
    gray, deep = slide["image"][..., 0], slide["image"].astype(np.uint16) * 257
    for image, problem in ((gray, "has shape (400, 500); expected"), (deep, "has dtype uint16; expected uint8")):
        if source == "he.tif":
            tifffile.imwrite(path, image)
            problem = "has 1 channels; expected 3" if image is gray else problem
        elif source == "he.png" and image is deep:
            path.write_bytes(imagecodecs.png_encode(image))  # Pillow cannot write it
        elif source == "he.png":
            Image.fromarray(image).save(path)
            problem = "is a L image, not RGB"
        refuses(slide, ValueError, f"image ({source}) {problem}", image=image if source == "array" else path)


def test_transparent_pixels_are_white(slide: Args) -> None:
    expected = read_st(**slide)["A1_image"]["scale0"]["image"].values
    alpha = np.full((400, 500, 1), 255, np.uint8)
    alpha[:5] = 0
    slide["image"] = np.concatenate([slide["image"], alpha], axis=2)
    found = read_st(**slide)["A1_image"]["scale0"]["image"].values
    assert (found[:, :5] == 255).all()
    np.testing.assert_array_equal(found[:, 5:], expected[:, 5:])


def test_other_images(slide: Args, tmp_path: Path) -> None:
    image = slide["image"]
    refuses(slide, ValueError, "has dtype float64; expected uint8", "(image * 255)", image=image / 255)
    refuses(slide, ValueError, "(3, 400, 500)", "numpy.moveaxis(image, 0, -1)", image=np.moveaxis(image, -1, 0))
    refuses(slide, ValueError, "has shape (400, 500, 2); expected (height, width, 3)", image=image[..., :2])
    refuses(slide, ValueError, "shape (0, 5, 3); expected", image=np.zeros((0, 5, 3), np.uint8))
    (tmp_path / "not.png").write_text("text")
    refuses(slide, ValueError, "(not.png) is not an image in a supported format", image=tmp_path / "not.png")
