"""What `read_st` refuses, and what it says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from spahgc.io import read_st

Args = dict[str, Any]


def refuses(slide: Args, error: type[Exception], *said: str) -> None:
    """The call fails with all of `said` in its message, and leaves what it was given as it was."""
    before = {name: value.copy() for name, value in slide.items() if isinstance(value, pd.DataFrame | np.ndarray)}
    with pytest.raises(error) as caught:
        read_st(**slide)
    for part in said:
        assert part in str(caught.value)
    for name, value in before.items():
        same = np.array_equal(value, slide[name]) if isinstance(value, np.ndarray) else value.equals(slide[name])
        assert same, f"{name} was changed"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-2, "holds 1 negative values, the first -2 at spot '3x1', gene 'G4'. Raw counts are required"),
        (1.5, "holds 1 non-integer values, the first 1.5 at spot '3x1', gene 'G4'. Raw counts are required"),
        (np.nan, "holds 1 missing or infinite values, the first nan at spot '3x1', gene 'G4'"),
        (np.inf, "holds 1 missing or infinite values, the first inf"),
    ],
)
def test_counts_are_whole_numbers(slide: Args, value: float, said: str) -> None:
    slide["counts"] = slide["counts"].astype(float)
    slide["counts"].loc["3x1", "G4"] = value
    refuses(slide, ValueError, "counts (data frame)", said, "neither normalized nor log-transformed")


def test_counts_are_numbers(slide: Args, tmp_path: Path) -> None:
    slide["counts"] = slide["counts"].astype(object)
    slide["counts"].loc["3x1", "G4"] = "many"
    refuses(slide, ValueError, "counts (data frame) holds non-numeric values in the columns 'G4'")
    slide["counts"].to_csv(tmp_path / "counts.tsv", sep="\t")
    refuses(
        {**slide, "counts": tmp_path / "counts.tsv"},
        ValueError,
        "counts (counts.tsv) holds non-numeric values in the columns 'G4'",
    )


def test_empty(slide: Args, tmp_path: Path) -> None:
    refuses(
        {**slide, "counts": slide["counts"].iloc[:0]}, ValueError, "is empty: 0 spots x 6 genes", "Pass counts=None"
    )
    refuses({**slide, "counts": slide["counts"].iloc[:, :0]}, ValueError, "is empty: 20 spots x 0 genes")
    refuses(
        {**slide, "spots": slide["spots"].iloc[:0]},
        ValueError,
        "spots (data frame) has no spots, or none that are selected",
    )
    refuses({**slide, "spots": slide["spots"].assign(selected=0)}, ValueError, "or none that are selected")
    (tmp_path / "counts.tsv").write_text("")
    refuses({**slide, "counts": tmp_path / "counts.tsv"}, ValueError, "counts (counts.tsv) is empty")
    refuses({**slide, "image": np.zeros((0, 5, 3), np.uint8)}, ValueError, "shape (0, 5, 3): no pixels")


def test_duplicate_names(slide: Args, tmp_path: Path) -> None:
    twice = slide["counts"].rename(columns={"G5": "G1"})
    refuses(
        {**slide, "counts": twice},
        ValueError,
        "has 1 duplicate gene names, for instance 'G1'. Sum or rename them first.",
    )
    twice.to_csv(tmp_path / "counts.tsv", sep="\t")
    refuses({**slide, "counts": tmp_path / "counts.tsv"}, ValueError, "has 1 duplicate gene names, for instance 'G1'")
    twice = slide["counts"].rename(index={"5x4": "1x1"})
    refuses({**slide, "counts": twice}, ValueError, "has 1 duplicate spot names, for instance '1x1'")
    twice = pd.concat([slide["spots"], slide["spots"].iloc[[3]]])
    refuses({**slide, "spots": twice}, ValueError, "spots (data frame) has 1 duplicate spots, for instance '4x1'")


def test_transposed(slide: Args) -> None:
    refuses(
        {**slide, "counts": slide["counts"].T}, ValueError,
        "is genes x spots: rows are named 'G0', 'G1', 'G2'", "columns '1x1'", "transpose it (counts.T)",
    )  # fmt: skip


def test_names_of_spots(slide: Args) -> None:
    counts = slide["counts"].set_axis([f"AACT{i}-1" for i in range(20)])
    refuses(
        {**slide, "counts": counts},
        ValueError,
        "20 of 20 rows are not named '{x}x{y}'",
        "instance 'AACT0-1'",
    )
    counts = slide["counts"].rename(index={"2x2": "total"})
    refuses(
        {**slide, "counts": counts},
        ValueError,
        "1 of 20 rows are not named '{x}x{y}'",
        "instance 'total'",
    )


def test_no_common_spot(slide: Args) -> None:
    slide["counts"].index = [f"{30 + i}x{40 + i}" for i in range(20)]
    refuses(
        slide, ValueError,
        "no spot in common (matched of 20: 0 by x, y; 0 by new_x, new_y; 0 by rounded x, y)",
        "Spots of the counts: '30x40'", "of the spot table: '1x1'", "Do they belong to the same slide?",
    )  # fmt: skip


def test_columns_missing(slide: Args) -> None:
    spots = slide["spots"].rename(columns={"pixel_x": "imagecol", "pixel_y": "imagerow"})
    refuses({**slide, "spots": spots}, KeyError, "lacks the columns pixel_x, pixel_y; it has x, y, imagecol, imagerow")


def test_coordinates_missing(slide: Args) -> None:
    slide["spots"].loc[2, "pixel_x"] = np.nan
    refuses(slide, ValueError, "spots (pixel_x, pixel_y) is missing or infinite for 1 spots, for instance '3x1'")


def test_coordinates_are_numbers(slide: Args) -> None:
    refuses(
        {**slide, "spots": slide["spots"].assign(pixel_y="left")},
        ValueError,
        "pixel_x and pixel_y must be numbers",
    )
    spots = slide["spots"].assign(x=slide["spots"]["new_x"])
    refuses({**slide, "spots": spots}, ValueError, "x and y must be integer positions on the array")


def test_coordinates_outside(slide: Args) -> None:
    spots = slide["spots"].assign(pixel_x=slide["spots"]["pixel_x"] + 150)
    refuses(
        {**slide, "spots": spots}, ValueError,
        "8 of 20 spots lie outside the image of 500 x 400 pixels (width x height)",
        "In spots (pixel_x, pixel_y), x ranges from 330 to 570 and y from 80 to 260", "at its full resolution?",
    )  # fmt: skip


def test_coordinates_swapped(slide: Args) -> None:
    spots = slide["spots"].rename(columns={"pixel_x": "pixel_y", "pixel_y": "pixel_x"})
    refuses(
        {**slide, "spots": spots},
        ValueError,
        "4 of 20 spots lie outside",
        "With x and y swapped all of them lie inside: swap the two columns.",
    )


def test_coordinates_swapped_inside(slide: Args, caplog: pytest.LogCaptureFixture) -> None:
    """In a square image a swap leaves all spots inside; the array still tells."""
    slide["image"] = np.zeros((500, 500, 3), np.uint8)
    read_st(**slide)
    assert caplog.text == ""
    slide["spots"] = slide["spots"].rename(columns={"pixel_x": "pixel_y", "pixel_y": "pixel_x"})
    read_st(**slide)
    assert "pixel_x follows the array's y and pixel_y its x: x and y may be swapped" in caplog.text


def test_positions_that_do_not_follow_the_array(slide: Args) -> None:
    slide["spots"][["pixel_x", "pixel_y"]] = (
        slide["spots"][["pixel_x", "pixel_y"]].sample(frac=1, random_state=0).to_numpy()
    )
    refuses(slide, ValueError, "The pixel positions do not follow the array", "pass `microns_per_pixel`.")
    read_st(**slide, microns_per_pixel=1.0)


def test_scale(slide: Args) -> None:
    row = slide["spots"][slide["spots"]["y"] == 1]
    refuses(
        {**slide, "spots": row},
        ValueError,
        "The spot pitch cannot be measured: 5 spots do not span rows and columns",
    )
    refuses(
        {**slide, "microns_per_pixel": 0.01},
        ValueError,
        "`microns_per_pixel` must be",
        "0.05 and 20 or None, got 0.01",
    )
    refuses(
        {**slide, "microns_per_pixel": float("nan")},
        ValueError,
        "`microns_per_pixel` must be",
        "got nan",
    )
    refuses({**slide, "pitch_um": 0}, ValueError, "`pitch_um` must be a finite number greater than 0, got 0.")
    refuses(
        {**slide, "spot_diameter_um": -1},
        ValueError,
        "`spot_diameter_um` must be",
        "greater than 0, got -1.",
    )
    spots = slide["spots"].assign(pixel_x=slide["spots"]["pixel_x"] / 10, pixel_y=slide["spots"]["pixel_y"] / 10)
    refuses(
        {**slide, "spots": spots},
        ValueError,
        "The spot pitch (6.0 pixels for 200 um) implies 33.3 um per pixel",
    )


@pytest.mark.parametrize("name", ["", "a b", "a/b", ".a", "_x"])
def test_slide_name(slide: Args, name: str) -> None:
    refuses({**slide, "slide": name}, ValueError, f"slide={name!r} is not a valid name: use letters")


def image_gray(image: np.ndarray) -> np.ndarray:
    return image[..., 0]


def image_16_bit(image: np.ndarray) -> np.ndarray:
    return image.astype(np.uint16) * 257


def image_rgba(image: np.ndarray) -> np.ndarray:
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    alpha[:5] = 0
    return np.concatenate([image, alpha], axis=2)


BAD_IMAGES = [
    (image_gray, "is grayscale", "an H&E image has three channels (RGB)"),
    (image_16_bit, "is a 16-bit image; expected 8 bits", "(image // 257).astype('uint8')"),
    (image_rgba, "is RGBA and partly transparent", "PIL.Image.alpha_composite"),
]


@pytest.mark.parametrize(("change", "what", "advice"), BAD_IMAGES)
@pytest.mark.parametrize("source", ["array", "tif", "png"])
def test_image(
    slide: Args, tmp_path: Path, change: Callable[..., np.ndarray], what: str, advice: str, source: str
) -> None:
    image = change(slide["image"])
    if source == "png":
        path = tmp_path / "he.png"
        if image.dtype == np.uint16:
            write_png_16(path, image)
        else:
            Image.fromarray(image).save(path)
        slide["image"], name = path, "image (he.png)"
    elif source == "tif":
        tifffile.imwrite(tmp_path / "he.tif", image)
        slide["image"], name = tmp_path / "he.tif", "image (he.tif)"
    else:
        slide["image"], name = image, "image (array)"
    refuses(slide, ValueError, f"{name} {what}", advice)


def write_png_16(path: Path, image: np.ndarray) -> None:
    """A 16-bit RGB PNG; Pillow cannot write one."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def test_opaque_alpha_is_dropped(slide: Args, caplog: pytest.LogCaptureFixture) -> None:
    expected = read_st(**slide)["A1_image"]["scale0"]["image"].values
    slide["image"] = np.concatenate([slide["image"], np.full((400, 500, 1), 255, np.uint8)], axis=2)
    with caplog.at_level(logging.WARNING, logger="spahgc"):
        found = read_st(**slide)["A1_image"]["scale0"]["image"].values
    np.testing.assert_array_equal(found, expected)
    assert "is RGBA and opaque everywhere: the alpha channel is dropped" in caplog.text


def test_other_images(slide: Args, tmp_path: Path) -> None:
    refuses(
        {**slide, "image": slide["image"] / 255},
        ValueError,
        "image (array) has dtype float64; expected uint8",
        "image * 255",
    )
    first = np.moveaxis(slide["image"], -1, 0)
    refuses({**slide, "image": first}, ValueError, "has shape (3, 400, 500)", "numpy.moveaxis(image, 0, -1)")
    refuses(
        {**slide, "image": slide["image"][..., :2]},
        ValueError,
        "has shape (400, 500, 2); expected (height, width, 3)",
    )
    Image.fromarray(slide["image"]).convert("CMYK").save(tmp_path / "he.jpg")
    refuses({**slide, "image": tmp_path / "he.jpg"}, ValueError, "is a CMYK image, not RGB. Convert it")
    (tmp_path / "not.png").write_text("text")
    refuses(
        {**slide, "image": tmp_path / "not.png"},
        ValueError,
        "image (not.png) is not an image in a supported format",
    )


def test_missing_files(slide: Args, tmp_path: Path) -> None:
    for name in ("counts", "spots", "image"):
        path = tmp_path / "none.tsv"
        refuses({**slide, name: path}, FileNotFoundError, f"{name}: no file {str(path)!r}")


def test_types(slide: Args) -> None:
    refuses(
        {**slide, "counts": slide["counts"].to_numpy()},
        TypeError,
        "`counts` must be a string or a path or a DataFrame or None, got",
    )
    refuses({**slide, "spots": [1, 2]}, TypeError, "`spots` must be a string or a path or a DataFrame, got [1, 2]")
    refuses(
        {**slide, "image": None},
        TypeError,
        "`image` must be a path or an array (height, width, 3) of dtype uint8, got NoneType",
    )
    refuses({**slide, "slide": 4}, TypeError, "`slide` must be a string, got 4.")


def test_header_of_another_length(slide: Args, tmp_path: Path) -> None:
    text = slide["counts"].to_csv(sep="\t")
    (tmp_path / "counts.tsv").write_text(text.replace("\tG0", "\tG0\textra\tmore", 1))
    refuses(
        {**slide, "counts": tmp_path / "counts.tsv"}, ValueError,
        "the header names 8 genes, but row '1x1' has 6 values", "separated by a tab",
    )  # fmt: skip


def test_truncated_file(slide: Args, tmp_path: Path) -> None:
    slide["counts"].to_csv(tmp_path / "counts.tsv.gz", sep="\t")
    whole = (tmp_path / "counts.tsv.gz").read_bytes()
    (tmp_path / "counts.tsv.gz").write_bytes(whole[: len(whole) // 2])
    refuses(
        {**slide, "counts": tmp_path / "counts.tsv.gz"}, ValueError, "is truncated: the compressed file ends too early"
    )
