"""examples/cpp, built with OpenVINO: it must see the pixels of `runtime`, give its answers, and refuse what
it refuses.
"""

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import PIL
import pytest
import turned
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import runtime
from runtime import Preprocess
from runtime.artifact import KEY, Metadata, read_map, seal, sidecar_bytes, sidecar_of
from runtime.errors import ArtifactError
from runtime.preprocess import CROP_MODES, INTERPOLATIONS
from runtime.records import EngineRecord

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"
VERSIONS = {"pillow": PIL.__version__}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

pytestmark = pytest.mark.slow


class Classify:
    """The built program."""

    def __init__(self, binary: Path, log: str) -> None:
        self.binary = binary
        self.reads = {kind for kind in ("JPEG", "PNG") if f"{kind} TRUE" in log}

    def __call__(self, *words) -> subprocess.CompletedProcess:
        return subprocess.run([self.binary, *map(str, words)], capture_output=True, text=True, timeout=60)

    def guesses(self, *words) -> dict[str, list[dict]]:
        done = self(*words, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        return {line["image"]: line["predictions"] for line in map(json.loads, done.stdout.splitlines())}

    def refuses(self, code: int, *words) -> str:
        """The one line of error; before it may stand what OpenVINO's libraries print by themselves."""
        done = self(*words)
        assert done.returncode == code, done
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.stderr.endswith(line + "\n")
        return line


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    openvino = pytest.importorskip("openvino.utils")
    for tool in ("cmake", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    build = tmp_path_factory.mktemp("build")
    words = [
        "cmake",
        "-S",
        SOURCE,
        "-B",
        build,
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1",
        "-DCMAKE_CXX_COMPILER=g++",
        f"-DOpenVINO_DIR={openvino.get_cmake_path()}",
    ]
    log = ""
    for step in (words, ["cmake", "--build", build]):
        done = subprocess.run(step, capture_output=True, text=True)
        log += done.stdout
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return Classify(build / "classify", log)


def picture(size, mode="RGB", seed=0):
    """Structure at every scale, so that a wrong weight or place shows."""
    rng = np.random.default_rng(seed)
    planes = [
        Image.fromarray(rng.integers(0, 256, (9, 7), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for _ in Image.new(mode, (1, 1)).getbands()
    ]
    return planes[0] if len(planes) == 1 else Image.merge(mode, planes)


@pytest.fixture(scope="module")
def images(tmp_path_factory, classify) -> list[Path]:
    """Wide, tall, small, gray, transparent, with palettes; JPEG of several kinds; PPM always."""
    folder = tmp_path_factory.mktemp("images")
    made = {
        "wide.ppm": picture((301, 133)),
        "tall.ppm": picture((57, 240), seed=1),
        "small.ppm": picture((31, 17), seed=2),
        "gray.pgm": picture((41, 30), "L"),
        "low.ppm": picture((64, 16), seed=3),
    }
    if "PNG" in classify.reads:
        made |= {
            "alpha.png": picture((123, 77), "RGBA"),
            "gray_alpha.png": picture((50, 77), "LA"),
            "gray.png": picture((33, 50), "L"),
            "palette.png": picture((60, 40)).quantize(200),
            "nibbles.png": picture((60, 40)).quantize(9),
            "bits.png": picture((60, 40), "L").convert("1"),
            "gray_key.png": picture((33, 50), "L"),
            "color_key.png": picture((33, 50)),
            "palette_key.png": picture((60, 40)).quantize(200),
        }
    if "JPEG" in classify.reads:
        made |= {
            "photo.jpg": picture((201, 133), seed=4),
            "fine.jpeg": picture((97, 140), seed=5),
            "gray.jpg": picture((90, 64), "L"),
            "progressive.jpg": picture((64, 90), seed=6),
        }
    settings = {
        "fine.jpeg": {"subsampling": 0, "quality": 98},
        "progressive.jpg": {"progressive": True, "quality": 40},
        "gray_key.png": {"transparency": 77},
        "color_key.png": {"transparency": (7, 77, 177)},
        "palette_key.png": {"transparency": bytes(range(200))},
    }
    for name, image in made.items():
        image.save(folder / name, **settings.get(name, {}))
    return [folder / name for name in made]


def of_the_runtime(path: Path) -> Path | Image.Image:
    """The same picture in a form that the runtime takes: it opens no PPM files, which hold plain pixels."""
    if path.suffix not in (".ppm", ".pgm"):
        return path
    with Image.open(path) as opened:
        return opened.copy()


def metadata_only(path: Path, text: str) -> Path:
    """An ONNX file that holds nothing but our entry: enough for --dump-tensor, which runs no network."""
    model = onnx.ModelProto()
    helper.set_model_props(model, {"other": "x" * 300, KEY: text})
    path.write_bytes(model.SerializeToString())
    return path


def spec_file(path: Path, spec: Preprocess, versions=VERSIONS) -> Path:
    return metadata_only(path, Metadata(preprocess=spec, versions=versions).to_map()[KEY])


def pixels(classify, artifact: Path, images: list[Path], spec: Preprocess) -> np.ndarray:
    out = artifact.with_suffix(".bin")
    done = classify(artifact, "--dump-tensor", out, *images)
    assert (done.returncode, done.stderr) == (0, "")
    return np.fromfile(out, np.float32).reshape(len(images), *spec.input_size)


SIZES = ((3, 224, 224), (3, 32, 32), (3, 33, 50), (3, 160, 97))


def all_specs():
    """Every filter with every crop mode; sizes and crop ratios go round."""
    sizes, crops = itertools.cycle(SIZES), itertools.cycle((0.875, 1.0, 0.95, 1.1, 0.9))
    for interpolation, mode in itertools.product(INTERPOLATIONS, CROP_MODES):
        yield Preprocess(next(sizes), interpolation, next(crops), mode, MEAN, STD)


@pytest.mark.parametrize(
    "spec", list(all_specs()), ids=lambda s: f"{s.interpolation}-{s.crop_mode}-{s.input_size[1]}"
)
def test_pixels_equal_those_of_the_runtime_bit_for_bit(classify, images, spec, tmp_path):
    found = pixels(classify, spec_file(tmp_path / "a.onnx", spec), images, spec)
    for image, ours in zip(images, found, strict=True):
        np.testing.assert_array_equal(ours, spec(of_the_runtime(image)), err_msg=image.name)


def orientations() -> dict[str, bytes]:
    """Name -> EXIF: all orientations in both byte orders, and damaged ones."""
    made = {
        "none": b"",
        "junk": b"junk" * 9,
        "type": turned.tiff(6, kind=2),
        "count": turned.tiff(6, count=2),
        "mark": b"Exif\0\0" + turned.tiff(6),
        "two marks": b"Exif\0\0" * 2 + turned.tiff(6),
    }
    whole = turned.tiff(8, ">", before=2)
    made |= {f"cut {length}": whole[:length] for length in range(0, len(whole), 5)}
    for number, order, kind in itertools.product(range(10), "<>", (3, 4)):
        made[f"{number}{order}{kind}"] = turned.tiff(number, order, kind, before=number % 3)
    return made


@pytest.mark.parametrize("exif", ["apply", "ignore", None])
def test_images_are_turned_as_the_artifact_says(classify, tmp_path, exif):
    """Python's and by hand; of a JPEG the pixels are those of the decoder."""
    spec = Preprocess((3, 24, 40), "bilinear", 1.0, "squash", MEAN, STD, exif or "ignore")
    values = json.loads(Metadata(preprocess=spec, versions=VERSIONS).to_map()[KEY])
    if exif:
        values["preprocess"]["exif"] = exif
    artifact = metadata_only(tmp_path / "a.onnx", json.dumps(values))
    files = []
    stored = np.asarray(picture((40, 24)))
    for number, (kind, content) in enumerate(itertools.product(("png", "jpg"), orientations().values())):
        if {"png": "PNG", "jpg": "JPEG"}[kind] not in classify.reads:
            continue
        files.append(tmp_path / f"{number}.{kind}")
        files[-1].write_bytes(turned.FILES[kind](stored, content))
        if kind == "png":
            files.append(tmp_path / f"{number}.last.png")
            files[-1].write_bytes(turned.png(stored, content, True))
            for name, other in {"both": (turned.tiff(8), content), "behind": (b"", b"", content)}.items():
                files.append(tmp_path / f"{number}.{name}.png")
                files[-1].write_bytes(turned.png_with(stored, *other))
    for file, found in zip(files, pixels(classify, artifact, files, spec), strict=True):
        np.testing.assert_array_equal(found, spec(file), err_msg=file.name)


@pytest.mark.parametrize("number", range(1, 9))
def test_a_turned_image_is_the_one_written_by_hand(classify, tmp_path, number):
    if "PNG" not in classify.reads:
        pytest.skip("built without libpng")
    by_hand = np.array(turned.UPRIGHT[number], np.uint8)
    spec = Preprocess((3, *by_hand.shape[:2]), "bilinear", 1.0, exif="apply")
    (tmp_path / "a.png").write_bytes(turned.png(turned.STORED, turned.tiff(number)))
    found = pixels(classify, spec_file(tmp_path / "a.onnx", spec), [tmp_path / "a.png"], spec)
    np.testing.assert_array_equal(found[0], spec.normalize(by_hand))


def test_16_bits_become_8_as_in_the_runtime(classify, tmp_path):
    """All values of gray, each level of 0 to 255 by hand: value / 257 to the nearest."""
    if "PNG" not in classify.reads:
        pytest.skip("built without libpng")
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(every).save(tmp_path / "gray.png")
    dice = np.random.default_rng(0)
    for name, channels, kind, key in (
        ("color", 3, 2, b""),
        ("alpha", 4, 6, b""),
        ("gray_alpha", 2, 4, b""),
        ("gray_key", 1, 0, b"\1\2"),
        ("color_key", 3, 2, b"\1\2\3\4\5\6"),
    ):
        content = turned.png_of_16_bits(dice.integers(0, 65536, (256, 256, channels), np.uint16), kind, key)
        (tmp_path / f"{name}.png").write_bytes(content)
    files = sorted(tmp_path.glob("gray.png")) + sorted(tmp_path.glob("*_*.png"))
    files += [tmp_path / f"{name}.png" for name in ("color", "alpha")]
    spec = Preprocess((3, 256, 256), crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    found = pixels(classify, spec_file(tmp_path / "a.onnx", spec), files, spec)
    for file, ours in zip(files, found, strict=True):
        np.testing.assert_array_equal(ours, spec(file), err_msg=file.name)
    by_hand = np.round(every / 257).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(found[0], np.stack([by_hand] * 3))


def test_an_artifact_of_an_older_pillow_gets_that_ones_order_of_passes(classify, tmp_path):
    """Across first, always: what Pillow 12 does in one call is two calls here, one for each direction."""
    image = picture((57, 240), seed=1)
    image.save(tmp_path / "tall.ppm")
    spec = Preprocess((3, 50, 50), "lanczos", 1.0, "squash", (0, 0, 0), (1, 1, 1))
    lanczos = Image.Resampling.LANCZOS
    across_first = np.asarray(image.resize((50, 240), lanczos).resize((50, 50), lanczos))
    down_first = np.asarray(image.resize((57, 50), lanczos).resize((50, 50), lanczos))
    assert not np.array_equal(across_first, down_first)
    for version, expected in (("12.2.0", across_first), ("13.0.0", down_first)):
        artifact = spec_file(tmp_path / f"{version[:2]}.onnx", spec, {"pillow": version})
        (found,) = pixels(classify, artifact, [tmp_path / "tall.ppm"], spec)
        np.testing.assert_array_equal(found, spec.normalize(expected), err_msg=version)


def convnet(classes=7, batch="batch", size=32):
    """Two convolutions, mean, a matrix: wide enough for the rules of quantization."""
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (16, 3, 3, 3),
        "b1": (16,),
        "w2": (32, 16, 3, 3),
        "b2": (32,),
        "w3": (classes, 32),
        "b3": (classes,),
    }
    gain = {"w1": 0.4, "w2": 0.15, "w3": 0.6}
    weights = {
        name: (rng.normal(size=shape) * gain.get(name, 0.1)).astype(np.float32)
        for name, shape in shapes.items()
    }
    steps = [
        ("Conv", "image w1 b1", "c1", {"strides": [2, 2]}),
        ("Relu", "c1", "r1", {}),
        ("Conv", "r1 w2 b2", "c2", {"strides": [2, 2]}),
        ("Relu", "c2", "r2", {}),
        ("GlobalAveragePool", "r2", "p", {}),
        ("Flatten", "p", "f", {}),
        ("Gemm", "f w3 b3", "logits", {"transB": 1}),
    ]
    graph = helper.make_graph(
        [helper.make_node(op, reads.split(), [makes], makes, **more) for op, reads, makes, more in steps],
        "convnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


NAMES = ["ångström", 'say "hi"', "back\\slash", "tab\there", "猫", "😀", "plain"]


def write(path: Path, model, spec: Preprocess, **changes) -> Path:
    helper.set_model_props(
        model, Metadata(preprocess=spec, class_names=NAMES, versions=VERSIONS, **changes).to_map()
    )
    path.write_bytes(seal(model.SerializeToString()))
    return path


SPEC = Preprocess((3, 32, 32), "bicubic", 0.875, "center", MEAN, STD)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory):
    return write(tmp_path_factory.mktemp("fp32") / "student.onnx", convnet(), SPEC)


@pytest.fixture(scope="module")
def int8(tmp_path_factory, images):
    """The same network as export quantizes it for engines that read Q/DQ as it stands."""
    pytest.importorskip("onnxslim")
    from export.int8 import quantize, rules
    from export.int8.calibrate import calibrate

    model = convnet()
    plan = rules.lay_out(model, "tensorrt")
    assert "c2" in plan.layers
    ranges = calibrate(model, plan.tensors, [SPEC.batch(map(of_the_runtime, images))], "minmax")
    path = tmp_path_factory.mktemp("int8") / "student.int8.onnx"
    return write(path, quantize.quantize(model, plan, ranges), SPEC, precision="int8")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_labels_and_probabilities_are_those_of_the_runtime(classify, images, precision, backend, request):
    artifact = request.getfixturevalue(precision)
    found = classify.guesses(artifact, "--top", 7, "--batch", 4, *images)
    assert list(found) == list(map(str, images))
    with runtime.load(artifact, backend=backend, threads=1) as student:
        expected = student.classify([of_the_runtime(image) for image in images], top=7)
    assert len({guesses[0].label for guesses in expected}) > 1  # one answer for all would prove little
    for image, guesses in zip(images, expected, strict=True):
        ours = found[str(image)]
        assert ours[0]["label"] == guesses[0].label
        assert sum(guess["probability"] for guess in ours) == pytest.approx(1)
        probabilities = {guess["label"]: guess["probability"] for guess in ours}
        for guess in guesses:
            assert probabilities[guess.label] == pytest.approx(guess.probability, abs=1e-3)
            assert NAMES[guess.index] == guess.label
        assert [guess["index"] for guess in ours] == sorted(range(7), key=lambda i: -probabilities[NAMES[i]])


def test_a_fixed_batch_is_filled_up_and_a_free_one_is_not(classify, images, tmp_path):
    free = classify.guesses(write(tmp_path / "free.onnx", convnet(), SPEC), *images)
    fixed = write(tmp_path / "fixed.onnx", convnet(batch=4), SPEC)
    for batch in (1, 3, 9):
        found = classify.guesses(fixed, "--batch", batch, *images)
        assert list(found) == list(free)
        for name, (guess,) in found.items():
            assert guess["label"] == free[name][0]["label"]
            assert guess["probability"] == pytest.approx(free[name][0]["probability"], abs=1e-5)


def test_the_lines_for_people_hold_path_label_and_four_digits(classify, images, fp32):
    (guess,) = classify.guesses(fp32, images[0])[str(images[0])]
    done = classify(fp32, images[0])
    assert done.stdout == f"{images[0]}\t{guess['label']} {guess['probability']:.4f}\n"


def test_without_class_names_the_labels_are_numbers(classify, images, tiny, tmp_path):
    artifact = tiny.write(tmp_path / "a.onnx", meta=tiny.metadata(class_names=None))
    (guess,) = classify.guesses(artifact, images[0])[str(images[0])]
    assert guess["label"] == f"class {guess['index']}"


def test_an_unreadable_image_is_named_and_the_others_are_labeled(classify, images, fp32, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"junk")
    (tmp_path / "folder").mkdir()
    done = classify(
        fp32, images[0], tmp_path / "bad.jpg", tmp_path / "no.ppm", tmp_path / "folder", images[1]
    )
    assert done.returncode == 2
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [str(images[0]), str(images[1])]
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        str(tmp_path / name) for name in ("bad.jpg", "no.ppm", "folder")
    ]


def damaged_exif() -> bytes:
    """A PNG file whose EXIF does not fit to its checksum, which Pillow refuses as well."""
    content = bytearray(turned.png(np.asarray(picture((8, 8))), turned.tiff(6)))
    content[content.index(b"eXIf") + 9] ^= 1
    with pytest.raises(runtime.DataError):
        SPEC(bytes(content))
    return bytes(content)


def broken_images(folder: Path, reads: set[str]) -> list[Path]:
    """Every file that must be refused; those that Pillow opens are refused in so many words."""
    made = {
        "header.ppm": b"P6\n1",
        "cut.ppm": b"P6 4 4 255\n" + bytes(47),
        "levels.ppm": b"P6 1 1 65535\n" + bytes(6),
        "zero.ppm": b"P6 0 4 255\n",
        "bomb.ppm": b"P6 99999999 99999999 255\n",
        "empty.ppm": b"",
        "webp.webp": b"RIFF0000WEBP",
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    if "JPEG" in reads:
        picture((64, 64)).save(folder / "whole.jpg")
        whole = (folder / "whole.jpg").read_bytes()
        (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
        (folder / "head.jpg").write_bytes(whole[:30])
        picture((16, 16), "CMYK").save(folder / "cmyk.jpg")
        made |= dict.fromkeys(["cut.jpg", "head.jpg", "cmyk.jpg"], b"")
    if "PNG" in reads:
        picture((64, 64)).save(folder / "whole.png")
        whole = bytearray((folder / "whole.png").read_bytes())
        (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
        whole[len(whole) // 2] ^= 1
        (folder / "crc.png").write_bytes(whole)
        (folder / "exif.png").write_bytes(damaged_exif())
        made |= dict.fromkeys(["cut.png", "crc.png", "exif.png"], b"")
    return [folder / name for name in made]


def test_broken_images_are_refused_on_one_line_each(classify, tmp_path):
    artifact = spec_file(tmp_path / "a.onnx", SPEC)
    for image in broken_images(tmp_path, classify.reads):
        assert str(image) in classify.refuses(2, artifact, "--dump-tensor", tmp_path / "t.bin", image)


def test_wrong_usage_is_refused_with_code_2(classify, fp32, images, tmp_path):
    image = images[0]
    for words in (
        [],
        [fp32],
        [fp32, "--tpo", "1", image],
        [fp32, image, "--top"],
        [fp32, image, "--top", "0"],
        [fp32, image, "--batch", "x"],
        [fp32, image, "--threads", "-1"],
        [tmp_path / "no.onnx", image],
        [tmp_path / "best.pth", image],
        [fp32, image, "--dump-tensor", tmp_path],
    ):
        classify.refuses(2, *words)
    assert "usage: classify" in classify("--help").stdout


def test_an_artifact_that_cannot_be_used_is_refused_with_code_4(classify, fp32, images, tmp_path, tiny):
    whole = fp32.read_bytes()
    good = json.loads(Metadata(preprocess=SPEC, class_names=NAMES).to_map()[KEY])
    spec = good["preprocess"]
    cases = {
        "empty": b"",
        "junk": b"junk" * 100,
        "half": whole[: len(whole) // 2],
        "one": whole[:1],
        "foreign": tiny.write(tmp_path / "foreign.onnx").read_bytes(),
    }
    for name, values in {
        "schema": good | {"schema": 99},
        "none": good | {"preprocess": None},
        "list": [good],
        "key": good | {"preprocess": spec | {"gamma": 2.2}},
        "missing": good | {"preprocess": {k: v for k, v in spec.items() if k != "mean"}},
        "filter": good | {"preprocess": spec | {"interpolation": "mitchell"}},
        "crop": good | {"preprocess": spec | {"crop_mode": "random"}},
        "std": good | {"preprocess": spec | {"std": [1, 0, 1]}},
        "exif": good | {"preprocess": spec | {"exif": "rotate"}},
        "exif type": good | {"preprocess": spec | {"exif": 6}},
        "size": good | {"preprocess": spec | {"input_size": [3, 0, 8]}},
        "huge": good | {"preprocess": spec | {"input_size": [3, 10**9, 10**9]}},
        "around": good | {"preprocess": spec | {"input_size": [3, 2**32 + 8, 8]}},
        "names": good | {"class_names": [1, 2]},
    }.items():
        cases[name] = metadata_only(tmp_path / "x.onnx", json.dumps(values)).read_bytes()
    for number, change in enumerate(
        (
            *({"crop_pct": value} for value in (1e308, 1e-310, 0.001, 101, min(spec["input_size"][1:]) + 1)),
            *({"mean": [0, 0, value]} for value in (1e308, -1001)),
            *({"std": [value, 1, 1]} for value in (1e308, 1e-310)),
        )
    ):
        changed = json.dumps(good | {"preprocess": spec | change})
        cases[f"range {number}"] = metadata_only(tmp_path / "x.onnx", changed).read_bytes()
        with pytest.raises(ArtifactError, match="its preprocessing cannot be used here"):
            read_map({KEY: changed}, "x.onnx")
    model = convnet()
    helper.set_model_props(model, Metadata(preprocess=Preprocess((3, 48, 48)), class_names=NAMES).to_map())
    cases["another size"] = model.SerializeToString()
    helper.set_model_props(model, Metadata(preprocess=SPEC, class_names=NAMES[:3]).to_map())
    cases["class count"] = model.SerializeToString()
    cases["no network"] = metadata_only(tmp_path / "x.onnx", json.dumps(good)).read_bytes()
    for name, content in cases.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        assert str(path) in classify.refuses(4, path, images[0])


def test_a_file_cut_anywhere_ends_in_an_error_never_in_a_crash(classify, tmp_path, images):
    whole = spec_file(tmp_path / "a.onnx", SPEC).read_bytes()
    for length in range(0, len(whole), 23):
        (tmp_path / "cut.onnx").write_bytes(whole[:length])
        classify.refuses(4, tmp_path / "cut.onnx", "--dump-tensor", tmp_path / "t.bin", images[0])


def test_a_plan_needs_its_metadata_and_tensorrt(classify, tmp_path, images):
    plan = tmp_path / "student.plan"
    plan.write_bytes(b"ftrt" + bytes(100))
    engine = {"flavor": "tensorrt", "plan_bytes": 104}

    def beside(**changes) -> None:
        sidecar_of(plan).write_bytes(
            sidecar_bytes(
                Metadata(
                    preprocess=SPEC,
                    class_names=NAMES,
                    engine=EngineRecord.from_dict(engine | changes, "test"),
                )
            )
        )

    assert "student.plan.json is not beside it" in classify.refuses(4, plan, images[0])
    beside(plan_bytes=105)
    assert "has 104 bytes" in classify.refuses(4, plan, images[0])
    beside(flavor="rtx")
    assert "TensorRT for RTX" in classify.refuses(4, plan, images[0])
    beside(flags={"strip_weights": True, "version_compat": False})
    assert "built without its weights" in classify.refuses(4, plan, images[0])
    beside()
    words = classify.refuses(3, plan, images[0])  # built without it, or no GPU in this machine
    assert "TensorRT" in words or "GPU" in words
    np.testing.assert_array_equal(
        pixels(classify, plan, images[:1], SPEC)[0], SPEC(of_the_runtime(images[0]))
    )
    sidecar_of(plan).write_text("{}")
    assert "metadata is damaged" in classify.refuses(4, plan, images[0])


GOOD_JSON = [
    '{"a": [1, -2.5e-3, 0, 1E+2, true, false, null, {}, []]}',
    '\t{ "a" : "\\u00e9\\ud83d\\ude00\\n\\/" }\r\n',
    '"é"',
    "[[[]]]",
    "0.5",
    "-0",
]
BAD_JSON = [
    "",
    "{",
    "[1,]",
    '{"a":1,}',
    "{a:1}",
    "'a'",
    "[1 2]",
    "01",
    "1.",
    ".5",
    "+1",
    "1e",
    "-",
    "NaN",
    "Infinity",
    "-Infinity",
    "tru",
    "nul",
    '"a',
    '"\\x"',
    '"\\u12g4"',
    '"\\ud800"',
    '"\\ud800\\u0041"',
    '"\\udc00"',
    '"tab\there"',
    '"\x00"',
    "[] []",
    "/**/1",
    '{"a":1,"a":2}',
    '{"a" 1}',
    "{1:2}",
    "[" * 100000,
    "1e999",
    "\ufeff1",
]


@pytest.mark.parametrize(
    ("text", "good"),
    [(text, True) for text in GOOD_JSON] + [(text, False) for text in BAD_JSON],
    ids=lambda value: None if isinstance(value, bool) else ascii(value)[:20],
)
def test_the_json_reader_takes_json_and_nothing_else(classify, tmp_path, images, text, good):
    """Tried inside of otherwise good metadata, in a field that this program does not read."""
    whole = json.dumps(json.loads(Metadata(preprocess=SPEC).to_map()[KEY]) | {"training": "HERE"}).replace(
        '"HERE"', text
    )
    artifact = metadata_only(tmp_path / "a.onnx", whole)
    words = [artifact, "--dump-tensor", tmp_path / "t.bin", images[0]]
    if good:
        json.loads(whole)
        assert classify(*words).returncode == 0
    else:
        assert "metadata is damaged" in classify.refuses(4, *words)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff",
        b"\xc3",
        b"\xc3(",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\x80",
        b"\xe2\x82\xac",
        b"\xf0\x9f\x98\x80",
        b"\xc2\x80",
    ],
    ids=lambda raw: raw.hex(),
)
def test_the_json_reader_takes_utf8_and_no_other_encoding(classify, tmp_path, images, raw):
    placeholder = "~" * len(raw)
    artifact = spec_file(tmp_path / "a.onnx", SPEC, {"pillow": "13", "other": placeholder})
    artifact.write_bytes(artifact.read_bytes().replace(placeholder.encode(), raw))
    words = [artifact, "--dump-tensor", tmp_path / "t.bin", images[0]]
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        assert "not UTF-8" in classify.refuses(4, *words)
    else:
        assert classify(*words).returncode == 0


def test_every_documented_flag_exists(classify):
    usage = classify("--help").stdout
    pages = [SOURCE.parent / "README.md", SOURCE.parents[1] / "docs" / "jetson.md"]
    commands = [
        line
        for page in pages
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("build/classify/classify ")
    ]
    assert len(commands) >= 2
    for flag in {word for line in commands for word in line.split() if word.startswith("--")}:
        assert f"  {flag} " in usage


def test_the_build_needs_no_network_and_tells_what_it_found(classify):
    text = "\n".join(file.read_text(encoding="utf-8") for file in SOURCE.iterdir())
    assert "FetchContent" not in text and "ExternalProject" not in text
    assert os.access(classify.binary, os.X_OK)
