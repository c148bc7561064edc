"""`runtime.preprocess` against timm's evaluation transform, bit for bit, and its errors."""

import io
import itertools
import threading

import numpy as np
import outside
import pytest
from PIL import Image

from runtime import DataError, Preprocess, UsageError

SAMPLES = ("data", "imagenet_samples", "images")
SIZES = ((3, 224, 224), (3, 32, 32), (3, 299, 299), (3, 160, 224), (3, 225, 97), (3, 384, 384))
CROPS = (0.875, 1.0, 0.95, 0.9, 1.1)
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
MODES = ("center", "squash", "border")


def spec_name(spec: Preprocess) -> str:
    return f"{spec.input_size[1]}x{spec.input_size[2]}-{spec.crop_pct}-{spec.interpolation}-{spec.crop_mode}"


def all_specs():
    """Every size with every crop ratio and mode; interpolations and statistics go round."""
    filters = itertools.cycle(INTERPOLATIONS)
    statistics = itertools.cycle(
        [
            ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
        ]
    )
    for size, crop, mode in itertools.product(SIZES, CROPS, MODES):
        mean, std = next(statistics)
        yield Preprocess(size, next(filters), crop, mode, mean, std)


def timms(spec: Preprocess, data: bytes) -> np.ndarray:
    from timm.data import create_transform
    from timm.data.transforms import str_to_interp_mode

    transform = create_transform(
        spec.input_size,
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
    )
    for step in transform.transforms:  # timm before 1.0.31 forgets the filter where the sides differ
        if type(step).__name__ == "ResizeKeepRatio":
            step.interpolation = str_to_interp_mode(spec.interpolation)
    return transform(Image.open(io.BytesIO(data)).convert("RGB")).numpy()


def encoded(size: tuple[int, int], mode: str = "RGB", kind: str = "JPEG", seed: int = 0) -> bytes:
    """An image of (width, height) with structure at every scale."""
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = rng.integers(0, 256, (7, 9, bands), np.uint8)
    planes = [Image.fromarray(coarse[..., i]).resize(size, Image.Resampling.BICUBIC) for i in range(bands)]
    image = planes[0] if bands == 1 else Image.merge(mode, planes)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


GENERATED = {
    "landscape": encoded((501, 333)),
    "portrait": encoded((97, 640), seed=1),
    "smaller_than_the_crop": encoded((31, 17), seed=2),
    "grayscale": encoded((300, 256), "L"),
    "cmyk": encoded((256, 300), "CMYK"),
    "one_pixel_high": encoded((64, 1), seed=3),
    "png_with_alpha": encoded((123, 77), "RGBA", "PNG"),
}


@pytest.fixture(scope="module")
def photographs() -> dict[str, bytes]:
    """Real JPEGs of different shapes where they are; the generated ones otherwise."""
    if not outside.path(*SAMPLES).is_dir():
        return GENERATED
    files = sorted(outside.path(*SAMPLES).glob("*.jpg"))
    return {file.name: file.read_bytes() for file in files[:: len(files) // 6]}


@pytest.mark.parametrize("spec", list(all_specs()), ids=spec_name)
def test_equals_timms_transform_bit_for_bit_on_photographs(spec, photographs):
    pytest.importorskip("timm")
    # two images each, another two for the next spec: all pairs of image and spec would take minutes
    start = list(all_specs()).index(spec)
    for name in [list(photographs)[(start + i) % len(photographs)] for i in range(2)]:
        ours = spec(photographs[name])
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, timms(spec, photographs[name]), err_msg=name)


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(3, 224, 224), (3, 33, 50)], ids=lambda s: f"{s[1]}x{s[2]}")
def test_equals_timms_transform_bit_for_bit_on_odd_images(name, mode, size):
    pytest.importorskip("timm")
    for crop, interpolation in ((0.875, "bicubic"), (1.0, "bilinear")):
        spec = Preprocess(size, interpolation, crop, mode)
        np.testing.assert_array_equal(spec(GENERATED[name]), timms(spec, GENERATED[name]))


def test_every_photograph_equals_timms_default_transform():
    pytest.importorskip("timm")
    spec = Preprocess()
    for file in sorted(outside.needed(*SAMPLES).glob("*.jpg"))[::40]:
        data = file.read_bytes()
        np.testing.assert_array_equal(spec(data), timms(spec, data), err_msg=file.name)


def test_normalization_equals_torchvisions_for_every_pixel_value():
    pytest.importorskip("torchvision")
    from torchvision.transforms.functional import normalize, to_tensor

    spec = Preprocess()
    every = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    np.testing.assert_array_equal(
        spec.normalize(every), normalize(to_tensor(every), spec.mean, spec.std).numpy()
    )


def test_every_accepted_form_of_an_image_gives_the_same_pixels(tmp_path):
    spec = Preprocess((3, 64, 64))
    data = encoded((100, 80), kind="PNG")
    (tmp_path / "a.png").write_bytes(data)
    image = Image.open(io.BytesIO(data))
    expected = spec(data)
    for form in (
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        bytearray(data),
        memoryview(data),
        image,
        np.asarray(image),
    ):
        np.testing.assert_array_equal(spec(form), expected)


def test_gray_arrays_count_as_three_equal_channels():
    spec = Preprocess((3, 8, 8), crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    gray = np.full((8, 8), 51, np.uint8)
    for form in (gray, gray[..., None]):
        np.testing.assert_array_equal(spec(form), np.full((3, 8, 8), np.float32(51) / np.float32(255)))


def test_a_batch_is_its_images_stacked():
    spec = Preprocess((3, 40, 56))
    images = [GENERATED["landscape"], GENERATED["cmyk"]]
    np.testing.assert_array_equal(spec.batch(images), np.stack([spec(image) for image in images]))
    assert spec.batch(images).flags.c_contiguous


def test_threads_get_the_same_pixels():
    spec, found = Preprocess((3, 64, 64)), {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: spec(GENERATED["landscape"])})) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for pixels in found.values():
        np.testing.assert_array_equal(pixels, spec(GENERATED["landscape"]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        GENERATED["landscape"][:200],
        GENERATED["landscape"][:-500],
        GENERATED["png_with_alpha"][:100],
    ],
    ids=["empty", "junk", "header only", "truncated", "truncated png"],
)
def test_a_broken_image_is_named(tmp_path, data):
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"broken\.jpg: not a readable image"):
        Preprocess()(path)
    with pytest.raises(DataError, match=f"{len(data)} bytes: not a readable image"):
        Preprocess()(data)


@pytest.mark.parametrize(
    "error", [RuntimeError("Failed to decode"), NotImplementedError("pixel format"), MemoryError()]
)
def test_whatever_a_decoder_raises_is_a_broken_image(tmp_path, monkeypatch, error):
    """Pillow's AVIF, DDS and other plugins raise their own errors."""

    def fails(*_):
        raise error

    path = tmp_path / "broken.jpg"
    path.write_bytes(GENERATED["landscape"])
    monkeypatch.setattr(Image.Image, "convert", fails)
    with pytest.raises(
        DataError, match=rf"broken\.jpg: not a readable image \({str(error) or 'MemoryError'}\)"
    ):
        Preprocess()(path)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3)], ids=["gray, to be converted", "color"])
def test_a_truncated_image_that_was_only_opened_is_named(tmp_path, shape):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with Image.open(path) as opened, pytest.raises(DataError, match=r"cut\.png: not a readable image"):
        Preprocess()(opened)


def test_no_images_and_no_mapping_are_named():
    for call, words in (
        (lambda: Preprocess().batch([]), "no images to make a batch of"),
        (lambda: Preprocess.from_dict(5), "preprocessing is a int: expected a mapping"),
    ):
        with pytest.raises(UsageError, match=words):
            call()


def test_a_strip_that_would_become_gigantic_is_refused(tmp_path):
    path = tmp_path / "strip.png"
    Image.new("L", (1, 3000000)).save(path)
    with pytest.raises(
        DataError, match=r"strip\.png: 1 x 3000000 pixels are too narrow .* more than 67,108,864 pixels"
    ):
        Preprocess((3, 32, 32))(path)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no\.jpg: no such image"):
        Preprocess()(tmp_path / "no.jpg")


@pytest.mark.parametrize(
    "array", [np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 8), np.uint8), np.zeros(8, np.uint8)]
)
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(UsageError, match="expected uint8"):
        Preprocess()(array)


def test_something_that_is_not_an_image_is_refused():
    with pytest.raises(UsageError, match="image of type int"):
        Preprocess()(7)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_size": (1, 8, 8)},
        {"input_size": (3, 8)},
        {"input_size": (3, 0, 8)},
        {"input_size": (3, 8, 2**14 + 1)},
        {"input_size": (3, 2**13, 2**12)},
        {"interpolation": "cubic"},
        {"crop_mode": "middle"},
        {"crop_pct": 0},
        {"crop_pct": float("nan")},
        {"mean": (0, 0)},
        {"std": (1, 1, 0)},
    ],
)
def test_a_spec_out_of_range_is_refused(changes):
    with pytest.raises(UsageError, match="expected"):
        Preprocess(**changes)


def test_a_spec_survives_json():
    import json

    spec = Preprocess((3, 160, 224), "lanczos", 0.9, "border", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    again = Preprocess.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    assert isinstance(again.mean, tuple)


def test_an_unknown_key_of_a_spec_is_refused():
    with pytest.raises(UsageError, match="crop_percent"):
        Preprocess.from_dict({"crop_percent": 0.9})


def test_image_too_narrow_for_its_border_is_named(tmp_path):
    path = tmp_path / "narrow.png"
    Image.fromarray(np.zeros((64, 2, 3), np.uint8)).save(path)
    spec = Preprocess((3, 8, 8), crop_pct=1, crop_mode="border")
    with pytest.raises(
        DataError, match=r"narrow\.png: 2 x 64 pixels are too narrow for crop mode border, .* to 0 x 8"
    ):
        spec(path)
    assert spec(np.zeros((20, 2, 3), np.uint8)).shape == (3, 8, 8)


def test_gray_of_16_bits_keeps_its_shades(tmp_path):
    """0, a half and the whole of 16 bits are 0, 128 and 255 of 8; Pillow alone would give 0, 255, 255."""
    Image.fromarray(np.array([[0, 32896, 65535, 257]], np.uint16)).save(tmp_path / "deep.png")
    expected = [0, 128, 255, 1]
    spec = Preprocess((3, 1, 4), crop_pct=1, crop_mode="squash")
    for image in (
        tmp_path / "deep.png",
        (tmp_path / "deep.png").read_bytes(),
        Image.open(tmp_path / "deep.png"),
    ):
        assert spec.pixels(image)[0].tolist() == [[v, v, v] for v in expected]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.fromarray(np.full((2, 2), 0.5, np.float32)), "gray of floating point"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "gray of 32 bits"),
    ],
)
def test_gray_of_an_unknown_range_is_refused(image, words):
    with pytest.raises(DataError, match=words):
        Preprocess((3, 2, 2)).pixels(image)
