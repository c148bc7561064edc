"""The decoder: every way of storing an image gives the pixels a person means, or is refused by name."""

import io
import re
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
import turned
from PIL import Image, ImageOps

from runtime import DataError, Preprocess, UsageError
from runtime.images import open_images
from runtime.images.decode import open_rgb, orientation, reduced_to, stored_orientation, upright
from runtime.images.sets import Subset
from runtime.preprocess import CROP_MODES

ORIENTATIONS = range(1, 9)
LARGE = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)


def plain(side=(3, 2)):
    """Preprocessing that gives the pixels themselves, divided by 255."""
    return {"input_size": (3, *side), "crop_pct": 1.0, "mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.mark.parametrize("number", ORIENTATIONS)
def test_every_orientation_is_turned_as_written_by_hand(number):
    for place in (False, True):
        image = open_rgb(turned.png(turned.STORED, turned.tiff(number), place))
        assert orientation(image) == number
        np.testing.assert_array_equal(upright(image), turned.UPRIGHT[number])
    image = open_rgb(turned.webp(turned.STORED, turned.tiff(number)))
    np.testing.assert_array_equal(upright(image), turned.UPRIGHT[number])


@pytest.mark.parametrize("number", ORIENTATIONS)
@pytest.mark.parametrize("kind", turned.FILES)
def test_every_orientation_equals_pillows(number, kind):
    for exif in (turned.tiff(number), turned.tiff(number, ">"), turned.tiff(number, ">", before=5)):
        content = turned.FILES[kind](LARGE, exif)
        theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(content)).convert("RGB"))
        np.testing.assert_array_equal(upright(open_rgb(content)), theirs)


@pytest.mark.parametrize("number", ORIENTATIONS)
def test_the_preprocessing_applies_what_it_says_and_nothing_by_default(number, tmp_path):
    by_hand = np.array(turned.UPRIGHT[number])
    path = tmp_path / "a.png"
    path.write_bytes(turned.png(turned.STORED, turned.tiff(number)))
    for form in (path, path.read_bytes(), Image.open(path)):
        pixels = Preprocess(**plain(by_hand.shape[:2]), exif="apply").pixels(form)
        np.testing.assert_array_equal(pixels, by_hand)
        np.testing.assert_array_equal(Preprocess(**plain((2, 3))).pixels(form), turned.STORED)
    assert stored_orientation(path) == number


def test_what_is_upright_is_not_turned_again():
    once = upright(open_rgb(turned.png(turned.STORED, turned.tiff(6))))
    assert orientation(once) == 1
    spec = Preprocess(**plain((3, 2)), exif="apply")
    np.testing.assert_array_equal(spec.pixels(once), turned.UPRIGHT[6])


def test_arrays_have_no_orientation():
    spec = Preprocess(**plain((2, 3)), exif="apply")
    np.testing.assert_array_equal(spec.pixels(turned.STORED), turned.STORED)


DAMAGED = {
    "nothing": b"",
    "junk": b"junk" * 9,
    "header only": turned.tiff(6)[:8],
    "cut in the count": turned.tiff(6)[:9],
    "cut in the tag": turned.tiff(6)[:14],
    "cut in the value": turned.tiff(6)[:19],
    "directory outside": b"II*\0" + b"\xff\xff\xff\xff" + turned.tiff(6)[8:],
    "directory in the header": b"II*\0" + bytes(4) + turned.tiff(6)[8:],
    "not 42": b"II+\0" + turned.tiff(6)[4:],
    "other order": b"XX" + turned.tiff(6)[2:],
    "zero": turned.tiff(0),
    "nine": turned.tiff(9),
    "large": turned.tiff(65535),
    "text": turned.tiff(6, kind=2),
    "two values": turned.tiff(6, count=2),
    "no values": turned.tiff(6, count=0),
    "many tags that are not there": b"II*\0" + b"\x08\0\0\0" + b"\xff\xff" + bytes(30),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("kind", turned.FILES)
def test_damaged_exif_leaves_the_image_as_it_is_stored(name, kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(turned.FILES[kind](LARGE, DAMAGED[name]))
    stored = np.asarray(Image.open(io.BytesIO(turned.FILES[kind](LARGE, b""))).convert("RGB"))
    assert stored_orientation(path) == 1
    np.testing.assert_array_equal(Preprocess(**plain((24, 40)), exif="apply").pixels(path), stored)


def test_nothing_is_printed_of_damaged_exif(tmp_path):
    for number, exif in enumerate(DAMAGED.values()):
        (tmp_path / f"{number}.jpg").write_bytes(turned.jpeg(LARGE, exif))
    code = (
        "import pathlib, sys; from runtime.images.decode import open_rgb;"
        " [open_rgb(path) for path in pathlib.Path(sys.argv[1]).iterdir()]"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_file_that_is_not_an_image_counts_as_upright(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"junk")
    assert stored_orientation(tmp_path / "a.png") == 1
    assert stored_orientation(tmp_path / "none.png") == 1
    assert stored_orientation(tmp_path) == 1


def test_a_set_of_files_tells_the_orientation_of_each(tmp_path):
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for number in (1, 6):
            (tmp_path / label / f"{number}.png").write_bytes(turned.png(LARGE, turned.tiff(number), True))
    images = open_images(str(tmp_path), "val")
    assert [images.orientation(i) for i in range(4)] == [1, 6, 1, 6]
    assert [Subset(images, np.array([3, 0])).orientation(i) for i in range(2)] == [6, 1]


def saved(image, kind="PNG", **settings):
    content = io.BytesIO()
    image.save(content, kind, **settings)
    return content.getvalue()


COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 99, 199]], np.uint8)


def palette(**settings):
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    image.putpalette(COLORS.tobytes())
    return saved(image, **settings)


@pytest.mark.parametrize(
    "settings",
    [{}, {"transparency": 1}, {"transparency": bytes([0, 128, 255, 7])}, {"bits": 2}],
    ids=["opaque", "one transparent", "alphas", "2 bits"],
)
def test_a_palette_gives_its_colors_whatever_is_transparent(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(open_rgb(palette(**settings)), COLORS.reshape(2, 2, 3))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_dropped_and_not_blended(mode):
    bands = len(mode)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, bands), np.uint8)
    expected = np.repeat(pixels[..., :1], 3, 2) if mode == "LA" else pixels[..., :3]
    np.testing.assert_array_equal(open_rgb(saved(Image.fromarray(pixels, mode))), expected)
    webp = open_rgb(saved(Image.fromarray(pixels, mode), "WEBP", lossless=True, exact=True))
    np.testing.assert_array_equal(webp, expected)


def test_one_bit_is_black_and_white():
    bits = np.array([[1, 0, 1], [0, 0, 1]], bool)
    for kind in ("PNG", "BMP"):
        image = open_rgb(saved(Image.fromarray(bits), kind))
        np.testing.assert_array_equal(image, np.repeat(bits[..., None] * np.uint8(255), 3, 2))


def test_cmyk_is_ink_on_white():
    """Flat areas, because JPEG is lossy: no ink is white, all black ink is black, cyan takes the red away."""
    for ink, color in (
        ((0, 0, 0, 0), (255, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((255, 0, 0, 0), (0, 255, 255)),
    ):
        image = np.asarray(open_rgb(saved(Image.new("CMYK", (8, 8), ink), "JPEG", quality=100)), int)
        assert np.abs(image - color).max() <= 2


def test_gray_of_16_bits_is_scaled_and_color_of_16_bits_loses_its_lower_byte():
    values = np.array([[0, 128, 129, 256], [32767, 32768, 65407, 65535]], np.uint16)
    by_hand = [[0, 0, 1, 1], [127, 128, 255, 255]]  # value / 257, to the nearest
    image = open_rgb(saved(Image.fromarray(values)))
    np.testing.assert_array_equal(image, np.repeat(np.array(by_hand)[..., None], 3, 2))
    for channels, kind in ((3, 2), (4, 6), (2, 4)):
        deep = np.random.default_rng(0).integers(0, 65536, (3, 5, channels), np.uint16)
        expected = deep[..., : 1 if channels == 2 else 3] >> 8
        found = open_rgb(turned.png_of_16_bits(deep, kind))
        np.testing.assert_array_equal(found, np.broadcast_to(expected, (3, 5, 3)))


def test_gray_of_16_bits_is_turned_too():
    values = np.array([[0, 257, 514], [771, 1028, 1285]], np.uint16)
    content = turned.png(values, turned.tiff(6))
    np.testing.assert_array_equal(np.asarray(upright(open_rgb(content)))[..., 0], [[3, 0], [4, 1], [5, 2]])


def test_a_picture_opened_elsewhere_is_taken_as_the_same_file():
    deep = np.array([[0, 257, 65535]], np.uint16)
    with Image.open(io.BytesIO(saved(Image.fromarray(deep)))) as opened:
        assert np.asarray(open_rgb(opened))[0, :, 0].tolist() == [0, 1, 255]
    swapped = Image.frombytes("I;16B", (3, 1), deep.astype(">u2").tobytes())
    assert np.asarray(open_rgb(swapped))[0, :, 0].tolist() == [0, 1, 255]


def test_of_a_camera_that_stores_two_pictures_in_a_jpeg_the_first_counts():
    both = [Image.fromarray(LARGE), Image.fromarray(255 - LARGE)]
    settings = {"quality": 95, "subsampling": 0, "exif": b"Exif\0\0" + turned.tiff(6)}
    content = saved(both[0], "MPO", save_all=True, append_images=both[1:], **settings)
    expected = np.asarray(Image.open(io.BytesIO(saved(both[0], "JPEG", quality=95, subsampling=0))))
    image = open_rgb(content)
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(upright(image), np.rot90(expected, -1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_a_film_the_first_picture_counts(kind):
    films = [Image.fromarray(LARGE), Image.fromarray(255 - LARGE)]
    settings = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    content = saved(films[0], kind, save_all=True, append_images=films[1:], duration=40, **settings)
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.n_frames == 2
    np.testing.assert_array_equal(open_rgb(content), LARGE)


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_other_formats_are_refused_by_name(kind, tmp_path):
    path = tmp_path / "a.png"
    image = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)) if kind == "TIFF" else None
    path.write_bytes(saved(image or Image.new("P", (4, 4)), kind))
    with pytest.raises(DataError, match=r"a\.png: not a readable image \(expected PNG, JPEG, WEBP, BMP\)"):
        open_rgb(path)


def test_floats_and_32_bits_of_gray_are_refused_by_name():
    with pytest.raises(DataError, match="floating point"):
        open_rgb(Image.fromarray(np.zeros((2, 2), np.float32)))
    for value in (70000, 255, 0, -1):  # small ones would be black if they were taken for 16 bits
        with pytest.raises(DataError, match="32 bits"):
            open_rgb(Image.fromarray(np.full((2, 2), value, np.int32)))


def huge(kind):
    """A file of a few bytes that says 20,000 x 20,000 pixels."""
    if kind == "png":
        return turned.png_header(20000, 20000)
    content = bytearray(saved(Image.new("RGB", (8, 8)), {"jpg": "JPEG", "bmp": "BMP"}[kind]))
    place = content.index(b"\xff\xc0") + 5 if kind == "jpg" else 18
    size = struct.pack(">HH" if kind == "jpg" else "<ii", 20000, 20000)
    content[place : place + len(size)] = size
    return bytes(content)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp"])
def test_an_image_of_more_pixels_than_memory_allows_is_refused_by_name(kind, tmp_path):
    path = tmp_path / f"huge.{kind}"
    path.write_bytes(huge(kind))
    with pytest.raises(DataError, match=rf"huge\.{kind}: .* pixels; expected an image of at most 67,108,864"):
        open_rgb(path)
    assert stored_orientation(path) == 1


SIX, EIGHT, MARK = turned.tiff(6), turned.tiff(8), b"Exif\0\0"


@pytest.mark.parametrize(
    ("before", "behind", "after_end", "expected"),
    [
        (SIX, b"", b"", 6),
        (MARK + SIX, b"", b"", 6),
        (b"", MARK + SIX, b"", 6),
        (MARK + MARK + SIX, b"", b"", 1),
        (SIX, EIGHT, b"", 8),
        (EIGHT, b"junk", b"", 1),
        (b"", b"", SIX, 1),
        (EIGHT, b"", SIX, 8),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_the_last_exif_chunk_of_a_png_before_its_end_counts(
    before, behind, after_end, expected, mode, tmp_path
):
    stored = np.asarray(Image.fromarray(LARGE).convert(mode))
    path = tmp_path / "a.png"
    path.write_bytes(turned.png_with(stored, before, behind, after_end))
    assert stored_orientation(path) == expected
    for source in (path, path.read_bytes(), Image.open(path)):
        assert orientation(open_rgb(source)) == expected
        assert orientation(open_rgb(open_rgb(source))) == expected
    assert orientation(upright(open_rgb(path))) == 1


def test_a_chunk_that_is_cut_short_is_none(tmp_path):
    whole = turned.png_with(LARGE, EIGHT, SIX)
    (tmp_path / "a.png").write_bytes(whole[: whole.rindex(b"eXIf") + 9])
    assert stored_orientation(tmp_path / "a.png") == 8


@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize("size", [(3, 8, 8), (3, 8, 16)])
@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (0, 0)])
def test_an_image_without_pixels_is_refused_by_name(mode, size, shape):
    with pytest.raises(UsageError, match=rf"array of uint8 {re.escape(str(shape))}: expected"):
        Preprocess(size, crop_mode=mode).pixels(np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=rf"{shape[1]} x {shape[0]} pixels"):
        Preprocess(size, crop_mode=mode).pixels(Image.new("RGB", (shape[1], shape[0])))


# training decodes large JPEGs smaller


@pytest.mark.parametrize(
    ("side", "size"),
    [(0, (160, 96)), (100, (160, 96)), (49, (160, 96)), (48, (80, 48)), (24, (40, 24)), (1, (20, 12))],
)
def test_a_jpeg_is_decoded_at_a_part_of_its_size_as_long_as_a_side_stays(side, size):
    jpeg = stored("JPEG")
    with reduced_to(side):
        assert open_rgb(jpeg).size == size
        assert open_rgb(Image.open(io.BytesIO(jpeg))).size == size
        assert open_rgb(stored("PNG")).size == (160, 96)
    assert open_rgb(jpeg).size == (160, 96)


def test_a_jpeg_that_is_decoded_smaller_is_the_same_picture():
    whole = open_rgb(stored("JPEG"))
    with reduced_to(48):
        half = open_rgb(stored("JPEG"))
    expected = np.asarray(whole, int).reshape(48, 2, 80, 2, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(half, int) - expected).mean() < 2


def stored(kind):
    smooth = Image.fromarray(LARGE[:6, :10]).resize((160, 96), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    smooth.save(file, kind)
    return file.getvalue()
