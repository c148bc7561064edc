"""Occlusion, shuffled patches, shifts and crops: what moved, and that nothing else did."""

from collections import Counter

import numpy as np

from bench.comparing.robustness import patches


def random():
    return np.random.default_rng(4)


def numbered(high=16, wide=16):
    """Every pixel another color."""
    return np.arange(high * wide * 3, dtype=np.uint16).reshape(high, wide, 3).astype(np.uint8)


def test_occlusion_fills_whole_cells_and_a_larger_share_more_of_them():
    image, color = np.full((16, 20, 3), 9, np.uint8), np.array([1, 2, 3], np.uint8)
    before = np.zeros((4, 4), bool)
    for share, cells in ((0.1, 2), (0.5, 8), (1.0, 16)):
        made = patches.occluded(image, share, 4, color, random())
        gone = (made == color).all(2).reshape(4, 4, 4, 5).swapaxes(1, 2).reshape(4, 4, 20)
        assert (gone.all(2) == gone.any(2)).all() and gone.all(2).sum() == cells
        assert gone.all(2)[before].all()
        before = gone.all(2)


def test_shuffling_moves_whole_cells_and_keeps_every_pixel():
    image = numbered(17, 18)  # what 4 x 4 cells leave over stays
    made = patches.shuffled(image, 4, random())
    assert np.array_equal(made[16:], image[16:]) and np.array_equal(made[:, 16:], image[:, 16:])

    def cells(picture):
        return Counter(
            picture[y : y + 4, x : x + 4].tobytes() for y in range(0, 16, 4) for x in range(0, 16, 4)
        )

    assert cells(made) == cells(image) and not np.array_equal(made, image)


def test_a_shift_moves_by_its_pixels_and_mirrors_the_border():
    image = numbered()
    seen = set()
    for seed in range(60):
        made = patches.shifted(image, 2, np.random.default_rng(seed))
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
        fits = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if np.array_equal(made, padded[2 - dy : 18 - dy, 2 - dx : 18 - dx])
        ]
        assert len(fits) == 1 and max(map(abs, fits[0])) == 2
        seen.add(fits[0])
    assert len(seen) > 10  # of 16 ways


def test_a_crop_shows_a_part_and_a_whole_crop_everything():
    image = numbered()
    assert np.array_equal(patches.cropped(image, 1.0, random()), image)
    flat = np.full((16, 16, 3), 77, np.uint8)
    flat[0] = flat[:, 0] = flat[-1] = flat[:, -1] = 0  # a frame of one pixel
    made = [patches.cropped(flat, 0.8, np.random.default_rng(seed)) for seed in range(20)]
    shown = {tuple(bool((edge > 70).all()) for edge in (p[0], p[-1], p[:, 0], p[:, -1])) for p in made}
    assert len(shown) > 3  # the part is cut from different places
