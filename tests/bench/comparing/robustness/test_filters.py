"""Filters, against scipy and by hand."""

import math

import numpy as np
import pytest

from bench.comparing.robustness import filters

ndimage = pytest.importorskip("scipy.ndimage")


@pytest.fixture
def image():
    return np.random.default_rng(3).random((13, 17, 3))


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.09, 1.25, 1.3])
def test_zoomed_is_scipys_zoom_of_the_middle(factor):
    square = np.random.default_rng(1).random((32, 32, 3))
    kept = math.ceil(32 / factor)
    start = (32 - kept) // 2
    part = square[start : start + kept, start : start + kept]
    large = ndimage.zoom(part, (factor, factor, 1), order=1)
    off = (len(large) - 32) // 2
    expected = large[off : off + 32, off : off + 32]
    np.testing.assert_allclose(filters.zoomed(square, factor), expected, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 1.92, 9.0])
def test_smooth_is_scipys_gaussian_cut_at_three_sigma(image, sigma):
    expected = ndimage.gaussian_filter(image[..., 0], sigma, mode="reflect", truncate=3)
    np.testing.assert_allclose(filters.smooth(image[..., 0], sigma), expected, atol=1e-12)


@pytest.mark.parametrize(("at", "mode"), [("pixel", "mirror"), ("edge", "reflect")])
def test_sample_is_scipys_map_coordinates(image, at, mode):
    random = np.random.default_rng(5)
    rows, columns = random.uniform(-9, 22, (40,)), random.uniform(-9, 26, (40,))
    expected = np.stack(
        [ndimage.map_coordinates(image[..., c], [rows, columns], order=1, mode=mode) for c in range(3)], -1
    )
    np.testing.assert_allclose(filters.sample(image, rows, columns, at), expected, atol=1e-12)


def test_correlate_is_scipys_with_a_mirrored_border(image):
    kernel = np.random.default_rng(7).random((5, 5))
    expected = ndimage.correlate(image, kernel[..., None], mode="mirror")
    np.testing.assert_allclose(filters.correlate(image, kernel), expected, atol=1e-12)


def test_a_disk_of_radius_one_is_five_pixels_and_its_rim_is_smoothed():
    sharp = filters.disk(1, 0.01)
    assert sharp.shape == (17, 17) and np.count_nonzero(sharp) == 5 and sharp[8, 8] == np.float32(0.2)
    w = math.exp(-0.5 / 0.5**2)  # weight of a neighbor beside 1 in the middle, sigma 0.5
    middle, side = 1 / (1 + 2 * w), w / (1 + 2 * w)
    smoothed = filters.disk(1, 0.5)
    assert smoothed[8, 8] == pytest.approx((middle**2 + 4 * middle * side) / 5, rel=1e-6)
    assert smoothed[9, 9] == pytest.approx((2 * middle * side + side**2) / 5, rel=1e-6)


def test_a_disk_that_touches_its_border_is_smoothed_with_a_mirror_as_in_imagenet_c():
    y, x = np.indices((21, 21)) - 10
    inside = (x * x + y * y <= 100) / (x * x + y * y <= 100).sum()
    taps = np.exp(-0.5 * (np.arange(-2, 3) / 0.5) ** 2)
    for axis in (0, 1):
        inside = ndimage.correlate1d(inside, taps / taps.sum(), axis, mode="mirror")
    np.testing.assert_allclose(filters.disk(10, 0.5), inside, atol=1e-8)
