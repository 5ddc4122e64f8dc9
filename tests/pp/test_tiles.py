"""The tile reader against slices and means of the whole image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

from spahgc.pp._tiles import Level, TileReader, axis_weights, resample


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, 200, 260), dtype=np.uint8)


def _reader(array: object, centers: list[tuple[float, float]], pixels: int, mpp: float = 1.0) -> TileReader:
    return TileReader([Level(array, np.eye(3), mpp)], np.array(centers, dtype=float), pixels)


def _resized(line: NDArray[np.uint8], center: float, width: float, pixels: int) -> NDArray[np.float64]:
    """One axis by integration of the step function, on a fine grid."""
    start, stop, first, weights = axis_weights(center, width, pixels)
    patch = np.broadcast_to(line[start:stop], (3, 1, stop - start)).astype(np.uint8).copy()
    one = np.zeros(1, np.int64), np.ones((1, 1), np.float32)
    return resample(patch, *one, first, weights)[0, 0].astype(float)


def test_a_tile_at_scale_one_is_a_slice(image: NDArray[np.uint8]) -> None:
    """Pixel i covers [i, i + 1): a tile of 32 around 64 is pixels 48 to 79."""
    tile, padded = _reader(image, [(64, 100)], 32).read(0, 32)
    np.testing.assert_array_equal(tile, image[:, 84:116, 48:80])
    assert not padded


def test_area_averaging(image: NDArray[np.uint8]) -> None:
    tile, _ = _reader(image, [(64, 100)], 16).read(0, 64)
    expected = image[:, 68:132, 32:96].reshape(3, 16, 4, 16, 4).mean(axis=(2, 4))
    assert np.abs(tile - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("center", "width", "pixels"), [(100.3, 57.7, 20), (80.5, 33.1, 32), (60, 50, 7)])
def test_area_averaging_of_parts_of_pixels(image: NDArray[np.uint8], center: float, width: float, pixels: int) -> None:
    line = image[0, 0]
    edges = center - width / 2 + width / pixels * np.arange(pixels + 1)
    integral = np.interp(edges, np.arange(len(line) + 1), np.concatenate([[0], np.cumsum(line.astype(float))]))
    expected = np.diff(integral) / (width / pixels)
    assert np.abs(_resized(line, center, width, pixels) - expected).max() <= 0.5 + 1e-3


def test_enlarging_is_linear() -> None:
    line = (np.arange(60) * 4).astype(np.uint8)
    got = _resized(line, 30.2, 10, 40)
    at = 30.2 - 5 + 0.25 * (np.arange(40) + 0.5)
    assert np.abs(got - 4 * (at - 0.5)).max() <= 0.5 + 1e-3


def test_a_flat_image_stays_flat() -> None:
    for value in (0, 17, 255):
        flat = np.full((3, 90, 90), value, np.uint8)
        for width in (7.3, 31.9, 60.0):
            tile, _ = _reader(flat, [(41.7, 44.1)], 24).read(0, width)
            assert (tile == value).all()


@pytest.mark.parametrize("center", [(3, 5), (259, 199), (130, 2), (0, 199.9), (130, 100)])
@pytest.mark.parametrize("chunks", [None, (3, 64, 64), ((1, 2), (70, 70, 60), (100, 100, 60))])
def test_beyond_the_border_the_image_is_mirrored(
    image: NDArray[np.uint8], center: tuple[float, float], chunks: Any
) -> None:
    """Also for a tile larger than the image, and whatever the blocks."""
    array = image if chunks is None else da.from_array(image, chunks=chunks)
    around = np.pad(image, ((0, 0), (300, 300), (300, 300)), mode="symmetric")
    for width in (40, 480):
        tile, padded = _reader(array, [center], 40).read(0, width)
        expected, _ = _reader(around, [(center[0] + 300, center[1] + 300)], 40).read(0, width)
        np.testing.assert_array_equal(tile, expected)
        assert padded == (center != (130, 100) or width == 480)


def test_a_tile_that_ends_at_the_border_is_not_padded(image: NDArray[np.uint8]) -> None:
    for side in (32, 64):
        assert not _reader(image, [(side / 2, side / 2)], 32).read(0, side)[1]
        assert not _reader(image, [(260 - side / 2, 200 - side / 2)], 32).read(0, side)[1]
        assert _reader(image, [(side / 2 - 0.01, side / 2)], 32).read(0, side)[1]


def _counting(side: int, block: tuple[int, int]) -> tuple[da.Array, list[Any]]:
    """A lazy image, and the list of the blocks that were decoded."""
    calls: list[Any] = []

    def decode(block_info: dict) -> NDArray[np.uint8]:
        calls.append(block_info[None]["chunk-location"])
        return np.zeros(block_info[None]["chunk-shape"], np.uint8)

    sizes = [(size,) * (side // size) + ((side % size,) if side % size else ()) for size in block]
    return da.map_blocks(decode, chunks=((3,), *sizes), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)), calls


def test_a_block_is_decoded_once_and_the_image_never_as_a_whole() -> None:
    """300 tiles of a lazy image of 36 blocks, from four threads, with room for 16 blocks."""
    lazy, calls = _counting(384, (64, 64))
    centers = np.random.default_rng(0).uniform(0, 384, (300, 2))
    reader = TileReader([Level(lazy, np.eye(3), 1.0)], centers, 16, cache_bytes=16 * 3 * 64 * 64)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda spot: reader.read(spot, 16), reader.order([16])))
    assert len(set(calls)) == 36
    assert len(calls) <= 1.5 * 36


def test_a_block_that_cannot_be_decoded_is_an_error_for_all_who_wait() -> None:
    def decode(block_info: dict) -> NDArray[np.uint8]:
        raise OSError("truncated")

    lazy = da.map_blocks(decode, chunks=((3,), (64,), (64,)), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    reader = TileReader([Level(lazy, np.eye(3), 1.0)], np.array([[30.0, 30.0]]), 8, image="he")
    for _ in range(2):
        with pytest.raises(OSError, match=r"row 0, column 0 of the blocks of image 'he', level 0 .*OSError: truncated"):
            reader.read(0, 8)


def test_the_level_that_fits() -> None:
    levels = [Level(np.zeros((3, 8, 8), np.uint8), np.eye(3), mpp) for mpp in (0.25, 0.5, 1.0, 2.0)]
    reader = TileReader(levels, np.zeros((1, 2)), 112)
    assert [reader.level_for(width) for width in (28, 56, 112, 224, 448, 896)] == [0, 0, 1, 2, 3, 3]


def test_a_coarser_level_gives_almost_the_same_tile() -> None:
    rng = np.random.default_rng(1)
    smooth = np.repeat(np.repeat(rng.integers(60, 200, (3, 32, 32)), 16, axis=1), 16, axis=2).astype(np.uint8)
    coarse = smooth.reshape(3, 256, 2, 256, 2).mean(axis=(2, 4)).round().astype(np.uint8)
    centers = np.array([[250.0, 260.0]])
    fine, half = Level(smooth, np.eye(3), 1.0), Level(coarse, np.diag([0.5, 0.5, 1]), 2.0)
    one = TileReader([fine], centers, 64)
    two = TileReader([fine, half], centers, 64)
    assert two.level_for(300) == 1
    assert np.abs(one.read(0, 300)[0].astype(int) - two.read(0, 300)[0]).max() <= 1


@pytest.mark.parametrize(("block", "reach"), [((64, 64), 50), ((64, 64), 200), ((512, 64), 50), ((100, 200), 90)])
def test_in_reading_order_hardly_a_block_is_decoded_twice(block: tuple[int, int], reach: int) -> None:
    """Whatever the blocks and the tiles, if the cache holds a few rows of a narrow strip; at random, most are."""
    side, most = 1600, 60
    rng = np.random.default_rng(2)
    centers = rng.uniform(0, side, (600, 2))

    def decoded(shuffled: bool) -> float:
        lazy, calls = _counting(side, block)
        cache_bytes = most * 3 * block[0] * block[1]
        reader = TileReader([Level(lazy, np.eye(3), 1.0)], centers, reach // 2, cache_bytes=cache_bytes)
        order = reader.order([reach])
        assert sorted(order) == list(range(600))
        for spot in rng.permutation(600) if shuffled else order:
            reader.read(spot, reach)
        return len(calls) / lazy.npartitions

    assert decoded(False) <= 1.7
    assert decoded(True) >= 2
