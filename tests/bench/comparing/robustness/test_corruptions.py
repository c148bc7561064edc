"""Corruptions: scalar loops, other libraries and closed forms against the arrays of the code."""

import colorsys
import io
import math

import numpy as np
import pytest
from PIL import Image

from bench.comparing.robustness.corruptions import CORRUPTIONS
from bench.comparing.robustness.views import generator

GRAY = np.full((64, 64, 3), 128, np.uint8)


def corrupted(name, image, severity=3, constants="cifar", seed=0):
    return CORRUPTIONS[name](image, severity, constants, np.random.default_rng(seed))


@pytest.fixture
def photo():
    """32 x 32 with edges, gradients and all levels."""
    smooth = np.indices((32, 32)).sum(0)[..., None] * np.array([4, 3, 1])
    noise = np.random.default_rng(2).integers(0, 40, (32, 32, 3))
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_gives_an_image_and_hurts_more_than_a_lower_one(name, photo):
    before = photo.copy()
    for constants in ("cifar", "imagenet"):
        made = [corrupted(name, photo, severity, constants) for severity in (1, 5)]
        assert all(each.shape == (32, 32, 3) and each.dtype == np.uint8 for each in made)
        mild, strong = (np.abs(each.astype(int) - photo).mean() for each in made)
        assert mild > 0 and strong > 0
        if name != "elastic_transform":  # whose lower severities move farther, but together
            assert mild < strong
    assert np.array_equal(photo, before)


@pytest.mark.parametrize(
    ("constants", "deviations"),
    [("cifar", (0.04, 0.06, 0.08, 0.09, 0.10)), ("imagenet", (0.08, 0.12, 0.18, 0.26))],
)
def test_gaussian_noise_has_the_published_deviation(constants, deviations):
    for severity, deviation in enumerate(deviations, 1):
        made = corrupted("gaussian_noise", GRAY, severity, constants) / 255
        expected = deviation if deviation < 0.2 else 0.2436  # 0.26 cut at 0 and 1: by integration
        assert made.std() == pytest.approx(expected, rel=0.03)


def test_shot_noise_has_the_variance_of_its_photons():
    for severity, photons in enumerate((500, 250, 100, 75, 50), 1):
        made = corrupted("shot_noise", GRAY, severity) / 255
        assert made.std() == pytest.approx(math.sqrt(128 / 255 / photons), rel=0.04)
    assert (corrupted("shot_noise", 0 * GRAY, 5) == 0).all()  # no light, no noise


def test_impulse_noise_hits_the_published_share_half_white_half_black():
    for severity, share in enumerate((0.03, 0.06, 0.09, 0.17, 0.27), 1):
        made = corrupted("impulse_noise", GRAY, severity, "imagenet")
        assert set(np.unique(made)) == {0, 128, 255}
        assert (made != 128).mean() == pytest.approx(share, abs=0.012)
        assert (made == 255).sum() == pytest.approx((made == 0).sum(), rel=0.25)


def test_brightness_is_that_of_colorsys(photo):
    photo[0, 0] = 0
    made = corrupted("brightness", photo, 5, "imagenet")
    for y, x in ((0, 0), (0, 9), (17, 3), (31, 31), (8, 30)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(photo[y, x] / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.5, 1)))
        np.testing.assert_allclose(made[y, x], expected, atol=1.0001)  # a fraction is cut off


def test_contrast_by_hand():
    image = np.zeros((1, 2, 3), np.uint8)
    image[0, 1] = (200, 100, 40)
    made = corrupted("contrast", image, 2)  # means 100, 50, 20; half of the distance: 50 and 150 ...
    np.testing.assert_allclose(made, [[[50, 25, 10], [150, 75, 30]]], atol=1)


def test_defocus_blur_spreads_a_point_over_the_disk():
    image = np.zeros((32, 32, 3), np.uint8)
    image[16, 16] = 255
    made = corrupted("defocus_blur", image, 4)  # radius 1, rim 0.2: five pixels of 255 / 5
    assert made[16, 16].tolist() == [51, 51, 51] or made[16, 16].tolist() == [50, 50, 50]
    assert (made[..., 0] > 40).sum() == 5 and made[..., 1].sum() == pytest.approx(255, abs=10)


def test_zoom_blur_is_the_mean_of_scipys_zooms(photo):
    ndimage = pytest.importorskip("scipy.ndimage")
    total, count = photo / 255, 1
    for hundredths in range(100, 116):  # 1 to 1.15, severity 3
        kept = math.ceil(32 / (hundredths / 100))
        start = (32 - kept) // 2
        part = photo[start : start + kept, start : start + kept] / 255
        large = ndimage.zoom(part, (hundredths / 100, hundredths / 100, 1), order=1)
        off = (len(large) - 32) // 2
        total, count = total + large[off : off + 32, off : off + 32], count + 1
    expected = 255 * total / count
    np.testing.assert_allclose(corrupted("zoom_blur", photo, 3), expected, atol=1.01)


def test_elastic_transform_is_scipys_map_of_the_same_draws(photo):
    ndimage = pytest.importorskip("scipy.ndimage")
    strength, sigma, jitter = 32 * 0.08, 32 * 0.06, 32 * 0.06  # severity 3
    random = np.random.default_rng(0)
    corners = np.array([[26, 26], [26, 6], [6, 6]], float)  # the middle 16, and 32 // 3 around it
    moved = corners + random.uniform(-jitter, jitter, (3, 2))
    homogeneous = np.column_stack([corners, np.ones(3)]).T
    forward = moved.T @ np.linalg.inv(homogeneous)  # from corners to where they go
    back = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
    swapped = back[np.ix_([1, 0], [1, 0])]  # scipy counts rows first
    x = np.stack(
        [
            ndimage.affine_transform(photo[..., c] / 255, swapped, back[[1, 0], 2], order=1, mode="mirror")
            for c in range(3)
        ],
        -1,
    )
    dx, dy = (
        ndimage.gaussian_filter(random.uniform(-1, 1, (32, 32)), sigma, mode="reflect", truncate=3) * strength
        for _ in range(2)
    )
    rows, columns = np.indices((32, 32))
    expected = np.stack(
        [
            ndimage.map_coordinates(x[..., c], [rows + dy, columns + dx], order=1, mode="reflect")
            for c in range(3)
        ],
        -1,
    )
    np.testing.assert_allclose(corrupted("elastic_transform", photo, 3), 255 * expected, atol=1.01)


def test_elastic_lengths_grow_with_the_image():
    """At 224 pixels ImageNet-C's are 244 times 0.12, 0.01 and 0.02."""
    lengths = np.array(CORRUPTIONS["elastic_transform"].imagenet[4]) * 224
    np.testing.assert_allclose(lengths, 244 * np.array([0.12, 0.01, 0.02]))


def test_pixelate_by_hand():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, 2) * 4
    made = corrupted("pixelate", image, 2, "imagenet")[..., 0]  # half of each side: means of 2 x 2
    means = [[(0 + 4 + 16 + 20) / 4, (8 + 12 + 24 + 28) / 4], [(32 + 36 + 48 + 52) / 4, 50]]
    assert np.array_equal(made, np.kron(means, np.ones((2, 2))))


def test_jpeg_is_pillows_at_the_published_quality(photo):
    file = io.BytesIO()
    Image.fromarray(photo).save(file, format="JPEG", quality=58)
    expected = np.asarray(Image.open(file))
    assert np.array_equal(corrupted("jpeg_compression", photo, 3), expected)


def test_random_numbers_hang_on_pixels_and_words_alone(photo):
    one, again = generator(photo, "gaussian_noise", 3, 0), generator(photo.copy(), "gaussian_noise", 3, 0)
    first = one.random(4)
    assert np.array_equal(first, again.random(4))
    other_image = photo.copy()
    other_image[0, 0, 0] ^= 1
    for other in (
        generator(other_image, "gaussian_noise", 3, 0),
        generator(photo, "gaussian_noise", 4, 0),
        generator(photo, "shot_noise", 3, 0),
        generator(photo, "gaussian_noise", 3, 1),
        generator(photo.reshape(64, 16, 3), "gaussian_noise", 3, 0),
    ):
        assert not np.array_equal(first, other.random(4))
