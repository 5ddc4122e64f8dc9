"""The texture encoder against scikit-image and SciPy, and its invariances."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import rgb2gray, rgb2hed, rgb2hsv
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops

from spahgc.encoders import _texture, texture, texture_names


def _nuclei_tile(seed: int = 0, size: int = 64, n: int = 12) -> NDArray[np.uint8]:
    """A pink ground with purple discs and a little noise, (3, size, size)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    tile = np.empty((size, size, 3))
    tile[:] = (225, 170, 205)
    for cy, cx in rng.uniform(4, size - 4, (n, 2)):
        tile[(y - cy) ** 2 + (x - cx) ** 2 <= 9] = (95, 60, 140)
    tile += rng.normal(0, 6, tile.shape)
    return np.moveaxis(np.clip(tile, 0, 255).astype(np.uint8), -1, 0).copy()


@pytest.fixture(scope="module")
def tile() -> NDArray[np.uint8]:
    return _nuclei_tile()


@pytest.fixture(scope="module")
def planes(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _texture.planes(tile)


def test_one_row_a_tile_one_column_a_name(tile: NDArray[np.uint8]) -> None:
    values = texture(np.stack([tile, tile, _nuclei_tile(1)]))
    assert values.shape == (3, len(texture_names()))
    assert values.dtype == np.float32
    assert len(set(texture_names())) == len(texture_names())
    np.testing.assert_array_equal(values[0], values[1])
    assert (values[0] != values[2]).mean() > 0.9
    assert texture(np.empty((0, 3, 64, 64), np.uint8)).shape == (0, len(texture_names()))
    last = np.ascontiguousarray(np.moveaxis(tile, 0, -1))  # tiles that are not contiguous
    np.testing.assert_array_equal(texture(np.moveaxis(last, -1, 0)[None]), values[:1])


def test_every_feature_is_written(tile: NDArray[np.uint8], planes: NDArray[np.float32]) -> None:
    """Each kernel fills its part of the row, and no more."""
    for names, run in [
        (_texture.COLOR_NAMES, lambda out: _texture.color(tile, planes, out)),
        (_texture.PATTERN_NAMES, lambda out: _texture.patterns(planes, out)),
        (_texture.SCALE_NAMES, lambda out: _texture.scales(planes, out)),
    ]:
        n = len(names)
        out = np.full(n + 9, np.nan)
        run(out)
        assert np.isfinite(out[:n]).all(), names
        assert np.isnan(out[n:]).all(), names


def test_planes_are_those_of_skimage(tile: NDArray[np.uint8]) -> None:
    edge = tile.copy()
    edge[:, 0, 0], edge[:, 0, 1] = 0, 255
    for rgb in (edge, np.random.default_rng(3).integers(0, 256, (3, 40, 48), dtype=np.uint8)):
        last = np.moveaxis(rgb, 0, -1)
        gray, saturation, hematoxylin, eosin = _texture.planes(rgb)
        np.testing.assert_allclose(gray, rgb2gray(last), atol=1e-6)
        np.testing.assert_allclose(saturation, rgb2hsv(last)[..., 1], atol=1e-6)
        np.testing.assert_allclose(hematoxylin, rgb2hed(last)[..., 0], atol=1e-5)
        np.testing.assert_allclose(eosin, rgb2hed(last)[..., 1], atol=1e-5)


def test_moments(planes: NDArray[np.float32]) -> None:
    from scipy.stats import skew

    out = np.empty(6)
    _texture.moments(planes[2], _texture.STAIN_TOP, out)
    values = planes[2].astype(np.float64)
    np.testing.assert_allclose(out[:3], [values.mean(), values.std(), skew(values, axis=None)], rtol=1e-5)
    step = _texture.STAIN_TOP / _texture.N_BINS
    np.testing.assert_allclose(out[3:], np.quantile(values, _texture.QUANTILES), atol=2 * step)


def test_correlation(planes: NDArray[np.float32]) -> None:
    expected = np.corrcoef(planes[0].ravel(), planes[2].ravel())[0, 1]
    assert _texture.correlation(planes[0], planes[2], 1e-3) == pytest.approx(expected, abs=1e-5)
    assert _texture.correlation(planes[0], np.zeros_like(planes[0]), 1e-3) == 0


@pytest.mark.filterwarnings("ignore:Applying `local_binary_pattern` to floating-point images")
def test_lbp_is_that_of_skimage(planes: NDArray[np.float32]) -> None:
    patterns = local_binary_pattern(planes[0].astype(np.float64), P=8, R=1, method="uniform")[1:-1, 1:-1]
    expected = np.bincount(patterns.astype(int).ravel(), minlength=10) / patterns.size
    out = np.empty(10)
    _texture.lbp(planes[0], out)
    # Single and double precision may part on a tie.
    np.testing.assert_allclose(out, expected, atol=2 / patterns.size)
    assert (expected > 0).all()


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_cooccurrence_is_that_of_skimage(planes: NDArray[np.float32], distance: int) -> None:
    levels = np.minimum(planes[2] * (_texture.LEVELS / 0.3), _texture.LEVELS - 1).astype(np.uint8)
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    each = graycomatrix(levels, [distance], angles, levels=_texture.LEVELS, symmetric=True, normed=True)
    expected = each.mean(axis=3, keepdims=True)
    matrix = _texture.cooccurrence(levels, distance)
    np.testing.assert_allclose(matrix, expected[:, :, 0, 0], atol=1e-12)
    out = np.empty(len(_texture.PROPERTIES))
    _texture.properties(matrix, out)
    for value, name in zip(out, _texture.PROPERTIES, strict=True):
        if name == "entropy":
            positive = expected[expected > 0]
            assert value == pytest.approx(-(positive * np.log2(positive)).sum())
        else:
            assert value == pytest.approx(graycoprops(expected, name)[0, 0]), name


@pytest.mark.parametrize("sigma", _texture.SIGMAS)
def test_blur_is_that_of_scipy(planes: NDArray[np.float32], sigma: int) -> None:
    expected = ndimage.gaussian_filter(planes[2].astype(np.float64), sigma, truncate=3.0, mode="reflect")
    np.testing.assert_allclose(_texture.blur(planes[2], _texture._taps(sigma)), expected, atol=1e-6)


def test_blobs_and_threshold_are_those_of_skimage(planes: NDArray[np.float32]) -> None:
    smooth = _texture.blur(planes[2], _texture._TAPS1)
    step = _texture.STAIN_TOP / 256
    threshold = _texture.otsu(smooth)
    assert threshold == pytest.approx(threshold_otsu(smooth, nbins=256), abs=3 * step)
    mask = smooth > threshold
    areas = [region.area for region in regionprops(label(mask, connectivity=1))]
    expected = sorted(area for area in areas if area >= _texture.SMALLEST)
    assert sorted(_texture.blob_areas(mask)) == expected
    assert len(expected) > 5


def test_blobs_of_a_difficult_shape() -> None:
    """A spiral and a comb: labels that meet late have to be joined."""
    spiral = np.zeros((9, 9), bool)
    spiral[0, :] = spiral[:, 8] = spiral[8, :] = spiral[2:, 0] = spiral[2, :7] = spiral[2:7, 6] = spiral[6, 2:7] = True
    comb = np.zeros((9, 9), bool)
    comb[:, ::2] = True
    comb[8] = True
    for mask in (spiral, comb):
        assert _texture.blob_areas(mask).tolist() == [mask.sum()]


def test_peaks() -> None:
    band = np.zeros((20, 20), np.float32)
    band[5, 5], band[5, 12], band[14, 3], band[0, 0] = 0.03, 0.05, 0.001, 1.0
    band[15, 15] = band[15, 16] = 0.015  # a plateau is one peak
    out = np.empty(4)
    _texture.count_peaks(band, out)
    assert out.tolist() == [3, 3, 2, 1]


def test_gradient_of_a_ramp() -> None:
    ramp = np.tile(np.arange(30, dtype=np.float32) * 0.01, (30, 1))
    out = np.empty(3)
    _texture.gradient_statistics(ramp, out)
    np.testing.assert_allclose(out, [0.01, 0, 1], atol=1e-4)


def test_counts_nuclei() -> None:
    """Four discs apart from each other are four nuclei of the right size."""
    y, x = np.mgrid[:64, :64]
    tile = np.empty((3, 64, 64), np.uint8)
    tile[:] = np.array([225, 170, 205], np.uint8)[:, None, None]
    disc = np.zeros((64, 64), bool)
    for cy, cx in [(12, 12), (12, 45), (45, 14), (50, 50)]:
        disc |= (y - cy) ** 2 + (x - cx) ** 2 <= 25
    tile[:, disc] = np.array([95, 60, 140], np.uint8)[:, None]
    values = dict(zip(texture_names(), texture(tile[None])[0], strict=True))
    assert values["nuclei_count"] == 4
    assert values["nuclei_area_mean"] == pytest.approx(disc.sum() / 4, rel=0.25)
    assert values["nuclei_contrast"] > 0.03
    assert values["peaks_hematoxylin_4_above_0.005"] == 4


@pytest.mark.parametrize("turn", ["rot90", "fliplr", "transpose"])
def test_turning_a_tile_changes_little(tile: NDArray[np.uint8], turn: str) -> None:
    turned = {
        "rot90": np.rot90(tile, axes=(1, 2)),
        "fliplr": tile[:, :, ::-1],
        "transpose": tile.transpose(0, 2, 1),
    }[turn]
    before, after = texture(np.stack([tile, np.ascontiguousarray(turned)]))
    # Ties between a pixel and an interpolated neighbor may break the other way.
    lbp = np.array([name.startswith("lbp") for name in texture_names()])
    np.testing.assert_allclose(after[~lbp], before[~lbp], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(after[lbp], before[lbp], atol=5e-3)


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_flat_tiles_are_finite(value: int) -> None:
    flat = np.full((1, 3, 32, 40), value, np.uint8)
    assert np.isfinite(texture(flat)).all()


def test_noise_of_a_white_tile_has_no_shape() -> None:
    """One count of noise on white must not give large skewness, coherence or nuclei contrast."""
    white = np.full((1, 3, 64, 64), 255, np.uint8)
    white[0, :, 10, 10] = 254
    values = dict(zip(texture_names(), texture(white)[0], strict=True))
    assert values["white_share"] == 1
    for name, value in values.items():
        if "skew" in name or "coherence" in name or "contrast" in name:
            assert abs(value) < 1e-2, name


def test_needs_no_torch() -> None:
    code = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import numpy as np
from spahgc.encoders import load
assert load("texture").encode(np.zeros((2, 3, 64, 64), np.uint8)).shape == (2, 126)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_is_compiled() -> None:
    """A spot (three tiles of 112 pixels) takes about 10 ms of one core; 250 ms leave room for any machine."""
    tiles = np.stack([_nuclei_tile(seed, size=112, n=30) for seed in range(6)])
    texture(tiles[:1])
    start = time.process_time()
    texture(tiles)
    assert time.process_time() - start < 2 * 0.25


@pytest.mark.parametrize(
    ("tiles", "error", "message"),
    [
        (np.zeros((1, 3, 64, 64)), TypeError, "uint8.*float64"),
        ([[1, 2]], TypeError, "uint8.*list"),
        (np.zeros((3, 64, 64), np.uint8), ValueError, r"\(3, 64, 64\)"),
        (np.zeros((1, 64, 64, 3), np.uint8), ValueError, r"\(n, 3, h, w\)"),
        (np.zeros((1, 4, 64, 64), np.uint8), ValueError, r"\(n, 3, h, w\)"),
        (np.zeros((1, 3, 16, 64), np.uint8), ValueError, "at least 32"),
    ],
)
def test_bad_tiles(tiles: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        texture(tiles)  # type: ignore[arg-type]
