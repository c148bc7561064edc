"""docs/format.md, followed by a reader of its own: numpy, hashlib, json, ONNX Runtime, nothing of `runtime`.

The functions of the first half are written from that page alone; the tests compare them with `runtime`.
"""

import hashlib
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import onnxruntime
import PIL.Image
import pytest
import turned

ROOT = Path(__file__).parents[1]
ZEROS = b"0" * 64

# ---- the reader ----


def varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
        if byte < 0x80:
            return value, place


def fields(content: bytes):
    """(number, bytes) of each length-delimited field of a protobuf message; other fields are passed over."""
    place = 0
    while place < len(content):
        tag, place = varint(content, place)
        if tag & 7 == 2:
            length, place = varint(content, place)
            yield tag >> 3, content[place : place + length]
            place += length
        elif tag & 7 == 0:
            _, place = varint(content, place)
        else:
            place += {1: 8, 5: 4}[tag & 7]


def metadata_of_onnx(content: bytes) -> dict:
    entries = [dict(fields(entry)) for number, entry in fields(content) if number == 14]
    return json.loads({entry[1]: entry[2] for entry in entries}[b"large2small"])


def seal_holds(content: bytes) -> bool:
    head = b"\x72\x54\x0a\x10large2small.seal\x12\x40"
    if content.startswith(b"{"):
        head = b'{"large2small.seal": "'
    assert content.startswith(head)
    start = len(head)
    zeroed = content[:start] + ZEROS + content[start + 64 :]
    return hashlib.sha256(zeroed).hexdigest().encode() == content[start : start + 64]


def sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


def bicubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def hamming(x: float) -> float:
    x = abs(x)
    if x >= 1:
        return 0.0
    return sinc(x) * (float(np.float32(0.54)) + float(np.float32(0.46)) * math.cos(math.pi * x)) if x else 1.0


FILTERS = {
    "box": (0.5, lambda x: float(-0.5 < x <= 0.5)),
    "bilinear": (1.0, lambda x: max(1 - abs(x), 0.0)),
    "hamming": (1.0, hamming),
    "bicubic": (2.0, bicubic),
    "lanczos": (3.0, lambda x: sinc(x) * sinc(x / 3) if -3 <= x < 3 else 0.0),
}


def one_pass(pixels: np.ndarray, m: int, name: str) -> np.ndarray:
    """The first axis from n to m pixels."""
    reach, f = FILTERS[name]
    n = len(pixels)
    scale = n / m
    stretch = max(scale, 1)
    out = np.empty((m, *pixels.shape[1:]), np.uint8)
    for i in range(m):
        center = (i + 0.5) * scale
        first = max(int(center - reach * stretch + 0.5), 0)
        end = min(int(center + reach * stretch + 0.5), n)
        weights = [f((j - center + 0.5) * (1 / stretch)) for j in range(first, end)]
        total = sum(weights)
        whole = [int(w / total * 2**22 + (-0.5 if w < 0 else 0.5)) for w in weights]
        sums = 2**21 + np.tensordot(np.int64(whole), pixels[first:end].astype(np.int64), axes=1)
        out[i] = np.clip(sums >> 22, 0, 255)
    return out


def places(n: int, m: int) -> list[int]:
    place, found = 0.5 * (n / m), []
    for _ in range(m):
        found.append(min(int(place), n - 1))
        place += n / m
    return found


def resize(pixels: np.ndarray, height: int, width: int, name: str, pillow: str) -> np.ndarray:
    h, w = pixels.shape[:2]
    if name == "nearest":
        return pixels[places(h, height)][:, places(w, width)]

    def along_width(image):
        return image if w == width else one_pass(image.swapaxes(0, 1), width, name).swapaxes(0, 1)

    def along_height(image):
        return image if h == height else one_pass(image, height, name)

    if int(pillow.split(".")[0]) >= 13 and h - height > 0 and h - height > 2 * (w - width):
        return along_width(along_height(pixels))
    return along_height(along_width(pixels))


def exif_of(content: bytes) -> bytes:
    """The TIFF header in a JPEG, PNG or WebP file."""
    found, place = b"", 2
    if content.startswith(b"\xff\xd8"):
        while content[place + 1] != 0xDA:  # the image begins
            length = int.from_bytes(content[place + 2 : place + 4], "big")
            if content[place + 1] == 0xE1 and content[place + 4 : place + 10] == b"Exif\0\0":
                found += content[place + 10 : place + 2 + length]
            place += 2 + length
        return found
    is_png = content.startswith(b"\x89PNG")
    place = 8 if is_png else 12
    while place + 8 <= len(content):
        if is_png:
            length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        else:
            length, kind = (
                int.from_bytes(content[place + 4 : place + 8], "little"),
                content[place : place + 4],
            )
        if kind in (b"eXIf", b"EXIF"):
            return content[place + 8 : place + 8 + length].removeprefix(b"Exif\0\0")
        place += 12 + length if is_png else 8 + length + length % 2
    return b""


def orientation_of(content: bytes) -> int:
    tiff = exif_of(content)
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])

    def number(place: int, count: int) -> int:
        return int.from_bytes(tiff[place : place + count], order)

    if order is None or number(2, 2) != 42:
        return 1
    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == 274 and number(entry + 2, 2) in (3, 4) and number(entry + 4, 4) == 1:
            return number(entry + 8, 4 if number(entry + 2, 2) == 4 else 2)
    return 1


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    exchanged = pixels.swapaxes(0, 1)
    return {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: exchanged,
        6: exchanged[:, ::-1],
        7: exchanged[::-1, ::-1],
        8: exchanged[::-1],
    }.get(orientation, pixels)


def prepare(pixels: np.ndarray, spec: dict, pillow: str) -> np.ndarray:
    """(h, w, 3) uint8 -> (3, H, W) float32."""
    _, H, W = spec["input_size"]
    target_h, target_w = math.floor(H / spec["crop_pct"]), math.floor(W / spec["crop_pct"])
    h, w = pixels.shape[:2]
    if spec["crop_mode"] == "squash":
        size = target_h, target_w
    elif spec["crop_mode"] == "border" or target_h != target_w:
        choose = max if spec["crop_mode"] == "border" else min
        r = choose(h / target_h, w / target_w)
        size = round(h / r), round(w / r)
    elif w <= h:
        size = int(target_h * h / w), target_h
    else:
        size = target_h, int(target_h * w / h)
    if size != (h, w):
        pixels = resize(pixels, *size, spec["interpolation"], pillow)
    h, w = pixels.shape[:2]
    if w < W or h < H:
        border = spec["crop_mode"] == "border"
        canvas = np.zeros((max(H, h), max(W, w), 3), np.uint8)
        canvas[:] = [round(255 * v) for v in spec["mean"]] if border else 0
        top, left = max(H - h, 0) // 2, max(W - w, 0) // 2
        canvas[top : top + h, left : left + w] = pixels
        pixels = canvas
        h, w = pixels.shape[:2]
    top, left = round((h - H) / 2), round((w - W) / 2)
    pixels = pixels[top : top + H, left : left + W]
    mean, std = np.float32(spec["mean"]), np.float32(spec["std"])
    return ((pixels.astype(np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1)


# ---- the comparison ----


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """Smooth images of many shapes with noise on them, uint8 (h, w, 3)."""
    random = np.random.default_rng(3)
    made = []
    for h, w in ((64, 48), (37, 90), (150, 41), (32, 32), (20, 25), (200, 201)):
        waves = np.sin(np.linspace(0, 9, h))[:, None, None] + np.cos(np.linspace(0, 7, w))[None, :, None]
        made.append(
            np.clip(128 + 50 * waves + random.normal(0, 30, (h, w, 3)), 0, 255).round().astype(np.uint8)
        )
    return made


@pytest.fixture(scope="module")
def artifact(tmp_path_factory, photographs) -> Path:
    """A small ResNet for four classes through the code of `distill export onnx`; untrained, with its biases
    set so that the photographs fall into several classes.
    """
    import torch

    from distill import models
    from export.graph import from_torch
    from runtime.artifact import Metadata, seal
    from runtime.preprocess import Preprocess

    torch.manual_seed(0)
    network = from_torch.merge(models.build("resnet20", 4, {"width": 0.25}))
    spec = Preprocess((3, 32, 40), "bicubic", 0.875, "center")
    with torch.inference_mode():
        network.linear.bias -= network(torch.from_numpy(spec.batch(photographs))).mean(0)
    meta = Metadata(
        model="resnet20",
        role="plain",
        class_names=["ant", "bee", "cat", "dog"],
        preprocess=spec,
        versions={"pillow": __import__("PIL").__version__},
    )
    model = from_torch.to_onnx(network, (3, 32, 40))
    for key, value in meta.to_map().items():
        model.metadata_props.add(key=key, value=value)
    path = tmp_path_factory.mktemp("format") / "student.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    return path


@pytest.mark.slow
def test_the_reader_of_the_page_chooses_the_classes_of_the_runtime(artifact, photographs):
    import runtime

    content = artifact.read_bytes()
    assert seal_holds(content)
    meta = metadata_of_onnx(content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    batch = np.stack(
        [prepare(image, meta["preprocess"], meta["versions"]["pillow"]) for image in photographs]
    )
    (logits,) = session.run(["logits"], {"images": batch})
    with runtime.load(artifact) as predictor:
        expected = predictor.classify(photographs, top=1)
    assert len({guess[0].label for guess in expected}) > 1  # else any reader would be right
    assert [meta["class_names"][row.argmax()] for row in logits] == [guess[0].label for guess in expected]
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = exponents.max(axis=1) / exponents.sum(axis=1)
    assert probabilities == pytest.approx([guess[0].probability for guess in expected], abs=1e-5)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", [*FILTERS, "nearest"])
@pytest.mark.parametrize(
    ("size", "crop_pct"), [((3, 32, 32), 0.875), ((3, 33, 50), 0.95), ((3, 64, 64), 1.0)]
)
def test_the_pixels_of_the_page_are_those_of_the_runtime_to_the_bit(
    photographs, crop_mode, interpolation, size, crop_pct
):
    import PIL

    from runtime.preprocess import Preprocess

    spec = Preprocess(size, interpolation, crop_pct, crop_mode)
    for image in photographs:
        found = prepare(image, spec.to_dict(), PIL.__version__)
        np.testing.assert_array_equal(found, spec(image))


@pytest.mark.parametrize("kind", turned.FILES)
@pytest.mark.parametrize("number", [0, *range(1, 9), 9])
def test_images_are_turned_as_the_page_says(photographs, kind, number):
    from runtime.preprocess import Preprocess

    spec = Preprocess((3, 33, 50), exif="apply")
    for exif in (turned.tiff(number), turned.tiff(number, ">", 4, before=3), turned.tiff(number, kind=2)):
        content = turned.FILES[kind](photographs[1], exif)
        with PIL.Image.open(io.BytesIO(content)) as opened:
            stored = np.asarray(opened.convert("RGB"))
        found = prepare(turn(stored, orientation_of(content)), spec.to_dict(), PIL.__version__)
        np.testing.assert_array_equal(found, spec(content))


def test_a_changed_byte_breaks_the_seal_of_either_kind():
    from runtime.artifact import Metadata, seal, sidecar_bytes

    for content in (seal(b"\x08\x0a" * 500), sidecar_bytes(Metadata(model="resnet20"))):
        assert seal_holds(content)
        middle = len(content) // 2
        assert not seal_holds(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert not seal_holds(content[:-1])


def test_the_metadata_beside_a_plan_is_one_json_object():
    from runtime.artifact import Metadata, sidecar_bytes

    content = sidecar_bytes(Metadata(model="resnet20", class_names=["a", "b"]))
    assert content.endswith(b', "large2small.sealed": "sha256"}\n')
    assert json.loads(content)["large2small"]["class_names"] == ["a", "b"]


def documented() -> dict[str, str]:
    """Key -> JSON type, of the page's table of metadata."""
    table = (ROOT / "docs" / "format.md").read_text(encoding="utf-8").partition("<!-- schema -->")[2]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table.partition("\n\n")[0], flags=re.MULTILINE))


def test_the_page_lists_every_key_of_the_metadata_and_no_other():
    from runtime.artifact import SCHEMA, Metadata, sidecar_bytes

    assert set(documented()) == set(json.loads(sidecar_bytes(Metadata()))["large2small"])
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    assert f"| `schema` | integer | {SCHEMA}" in page


def test_the_page_lists_every_key_of_the_preprocessing():
    from runtime.preprocess import EXIF, INTERPOLATIONS, Preprocess

    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8").partition("### `preprocess`")[2]
    page = page.partition("## From an image")[0]
    assert all(f"`{name}`" in page for name in [*Preprocess(exif="apply").to_dict(), *INTERPOLATIONS, *EXIF])


@pytest.mark.slow
def test_the_values_of_a_real_file_have_the_types_of_the_page(artifact):
    meta = metadata_of_onnx(artifact.read_bytes())
    kinds = {"integer": int, "string": str, "object": dict, "array": list}
    for key, kind in documented().items():
        allowed = tuple(type_ for word, type_ in kinds.items() if kind.startswith(word))
        assert isinstance(meta[key], allowed) or (meta[key] is None and "or null" in kind), key


def test_the_page_lists_what_a_plan_must_record():
    from runtime.backends.tensorrt import plan

    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8").partition("## A plan")[2]
    assert all(f"`{key}`" in page for key in plan.RECORDED)
