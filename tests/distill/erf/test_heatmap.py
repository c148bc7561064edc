"""Heat maps: the largest value is brightest, squares are around the center, colors grow evenly lighter."""

import numpy as np
import pytest

from distill.erf.heatmap import COLUMN, GAP, LINE, MAP, OUTLINES, Column, Panel, Square, colors, figure

TOP = GAP + 4 * LINE
"""Where the first map begins, pixels from above; from the left it is GAP."""


def lightness(rgb):
    """CIE L* of sRGB, 0 to 100: another formula than the one the colors come from."""
    srgb = rgb / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def test_colors_grow_evenly_lighter():
    steps = np.diff(lightness(colors(np.linspace(0, 1, 21))))
    assert (steps > 1.5).all() and steps.max() < 3.5 * steps.min()
    assert lightness(colors(np.array([0.0, 1.0]))).round().tolist() == [
        pytest.approx(2, abs=3),
        pytest.approx(96, abs=4),
    ]


def test_values_outside_the_scale_take_its_ends():
    assert np.array_equal(colors(np.array([-1.0, 2.0])), colors(np.array([0.0, 1.0])))


def drawn(values, squares=(), columns=1, rows=1):
    panel = Panel("caption", values, squares)
    return np.asarray(figure([Column("title", "subtitle", [panel] * rows)] * columns))


@pytest.mark.parametrize("side", [5, 32, 210, 1024])
def test_every_pixel_of_the_matrix_is_where_it_belongs(side):
    values = np.zeros((side, side))
    values[: side // 2, : side // 2] = 1  # the upper left quarter
    picture = drawn(values)[TOP : TOP + MAP, GAP : GAP + MAP]
    bright, dark = colors(np.array([1.0, 0.0]))
    edge = MAP * (side // 2) // side
    assert (picture[: edge - 2, : edge - 2] == bright).all()
    assert (picture[edge + 2 :] == dark).all() and (picture[:, edge + 2 :] == dark).all()


def test_a_matrix_that_is_not_square_keeps_its_shape():
    picture = drawn(np.ones((10, 20)))[TOP : TOP + MAP, GAP : GAP + MAP]
    assert (picture[: MAP // 2] == colors(np.array(1.0))).all()
    assert (picture[MAP // 2 + 2 :] == 255).all()


@pytest.mark.parametrize("size", [21, 20])
def test_a_square_is_drawn_around_the_center(size):
    picture = drawn(np.zeros((size, size)), [Square(3, "three"), Square(None, "not reached")])[
        TOP : TOP + MAP, GAP : GAP + MAP
    ]
    rows, columns = np.nonzero((picture == OUTLINES[0]).all(-1))
    scale, first = MAP / size, size // 2 - 1  # pixels size // 2 - 1 .. size // 2 + 1
    for found in (rows, columns):
        assert abs(found.min() - first * scale) <= 1 and abs(found.max() + 1 - (first + 3) * scale) <= 1
    assert not (picture == OUTLINES[1]).all(-1).any()


def test_a_square_smaller_than_a_pixel_of_the_picture_is_drawn_all_the_same():
    picture = drawn(np.zeros((2048, 2048)), [Square(1, "one")])[TOP : TOP + MAP, GAP : GAP + MAP]
    rows, columns = np.nonzero((picture == OUTLINES[0]).all(-1))
    assert len(rows) >= 1 and abs(rows - MAP // 2).max() <= 2 and abs(columns - MAP // 2).max() <= 2


def test_networks_stand_side_by_side_and_maps_below_one_another():
    one, three, two_rows = (
        drawn(np.ones((8, 8))),
        drawn(np.ones((8, 8)), columns=3),
        drawn(np.ones((8, 8)), rows=2),
    )
    assert three.shape[1] - one.shape[1] == 2 * (COLUMN + GAP) and three.shape[0] == one.shape[0]
    assert two_rows.shape[0] > one.shape[0] + MAP
    assert np.array_equal(three[:, GAP : GAP + COLUMN], three[:, 2 * GAP + COLUMN : 2 * GAP + 2 * COLUMN])


def test_a_long_title_stays_in_its_column():
    long = Column(
        "a very long name " * 20, "another/long/path" * 20, [Panel("caption " * 40, np.ones((4, 4)))]
    )
    picture = np.asarray(figure([long, Column("", "", [Panel("", np.ones((4, 4)))])]))
    assert (picture[:, GAP + COLUMN : GAP + COLUMN + GAP] == 255).all()
    assert (picture[:TOP, GAP : GAP + COLUMN] < 255).any()
