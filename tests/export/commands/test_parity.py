"""`distill parity`: equal roads pass, and a difference put into any one of them is named with its step and
its image.
"""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from distill import __main__ as cli
from distill import checkpoint
from distill.data import loaders
from export.checks import samples
from export.graph import from_torch
from export.int8 import calibrate, quantize
from runtime.artifact import Metadata
from runtime.images import FolderSet, decode, open_images

NAMES = [str(i) for i in range(10)]


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Thirty colored images of several sizes in ten class folders, so that every setting of the
    preprocessing matters.
    """
    chance, root = np.random.default_rng(0), tmp_path_factory.mktemp("photos")
    for i in range(30):
        coarse = chance.integers(0, 256, (6, 7, 3), np.uint8)
        folder = root / NAMES[i % 10]
        folder.mkdir(exist_ok=True)
        image = Image.fromarray(coarse).resize((37 + i, 41), Image.Resampling.BICUBIC)
        image.save(folder / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


@pytest.fixture
def artifact(student_onnx, student_file, preprocess, tmp_path):
    """Write an .onnx file of the student; settings of its metadata may be others than the checkpoint's."""

    def write(model=None, **changes):
        made = onnx.ModelProto()
        made.CopyFrom(model or student_onnx)
        meta = Metadata(**{"model": "resnet20", "preprocess": preprocess, "class_names": NAMES} | changes)
        path = tmp_path / f"{meta.precision}.onnx"
        path.write_bytes(from_torch.write_metadata(made, meta))
        return path

    return write


@pytest.fixture
def run(student_file, photos, capsys):
    """Exit code, output and error line of `distill parity` on the photos."""

    def start(file, *words, data=photos):
        code = cli.main(["parity", str(student_file), str(file), "--data", str(data), *map(str, words)])
        return code, *capsys.readouterr()

    return start


def first(photos, position=0):
    """The image at a position of the choice: with --size 0 all of them, in the order of the set."""
    return FolderSet(photos).item_name(position)


def test_equal_roads_pass_with_the_numbers(run, artifact, student, preprocess, photos):
    code, out, err = run(artifact(), "--size", 0, "--json")
    values = json.loads(out)
    assert (code, err) == (0, "")
    assert (values["images"], values["classes"], values["agreement_percent"], values["precision"]) == (
        30,
        10,
        100.0,
        "fp32",
    )
    images = FolderSet(photos)
    with torch.inference_mode():  # by hand: the checkpoint's own top-1 on all thirty
        logits = student(torch.from_numpy(np.stack([preprocess(path) for path in images.files])))
    by_hand = 100 * float((logits.argmax(1).numpy() == images.labels).mean())
    assert values["checkpoint_top1_percent"] == values["file_top1_percent"] == pytest.approx(by_hand)
    assert values["logit_scale"] == pytest.approx(max(1.0, float(logits.abs().max())), rel=1e-5)
    assert values["allowed_logit_difference"] == pytest.approx(1e-4 * values["logit_scale"])
    assert 0 <= values["max_abs_logit_difference"] <= values["allowed_logit_difference"]
    assert values["made_from_this_checkpoint"] is None


def test_a_file_of_fixed_batch_size_is_compared_like_any_other(run, artifact, student_onnx):
    fixed = onnx.ModelProto()
    fixed.CopyFrom(student_onnx)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    code, out, err = run(artifact(fixed), "--size", 30, "--json")
    assert (code, err) == (0, "") and json.loads(out)["images"] == 30


def test_a_person_gets_a_line_per_step(run, artifact):
    code, out, _ = run(
        artifact(lineage={"checkpoint": {"file": "other.pth", "sha256": "00" * 32}}), "--size", 20
    )
    assert code == 0
    for words in (
        "preprocessing",
        "class names",
        "labels",
        "pixels",
        "logits",
        "decisions",
        "bit for bit on 20 images",
        "equal on 100.00 % of 20 images",
        "made from another checkpoint",
    ):
        assert words in out


def test_arrays_without_files_go_the_same_roads(run, artifact, tmp_path):
    digits = open_images("digits", "val")
    np.savez(tmp_path / "val.npz", x=digits.x[:40], y=digits.labels[:40], class_names=np.array(NAMES))
    code, out, _ = run(artifact(), "--size", 0, "--json", data=f"npz:{tmp_path / 'val.npz'}")
    assert code == 0 and json.loads(out)["images"] == 40


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("interpolation", "bicubic"),
        ("crop_pct", 0.9),
        ("mean", (0.4, 0.5, 0.5)),
        ("std", (0.5, 0.5, 0.6)),
        ("crop_mode", "squash"),
    ],
)
def test_another_preprocessing_in_the_file_is_named_by_its_setting(run, artifact, preprocess, name, value):
    code, _, err = run(artifact(preprocess=dataclasses.replace(preprocess, **{name: value})))
    assert code == 1 and err.startswith(f"error: step preprocessing: {name} is ") and err.count("\n") == 1


def test_another_input_size_is_allowed_when_it_is_said(run, artifact, preprocess, student_onnx):
    other = dataclasses.replace(preprocess, input_size=(3, 24, 24))
    code, _, err = run(artifact(preprocess=other))
    assert code == 4 and "24" in err and "32" in err and err.count("\n") == 1, err
    assert "step preprocessing: input_size" in run(artifact(), "--img-size", 24)[2]


def test_another_class_order_in_the_file_is_named(run, artifact):
    code, _, err = run(artifact(class_names=["1", "0", *NAMES[2:]]))
    assert code == 1 and "step class names: class 0 is '0' here and '1' there (checkpoint against" in err


# One road changed, the others as they are


@pytest.fixture
def evaluation_road(monkeypatch):
    """Change the images (C, H, W) of training's evaluation."""

    def change(function):
        monkeypatch.setattr(
            loaders.EvalSet,
            "__getitem__",
            lambda self, i, get=loaders.EvalSet.__getitem__: (
                function(*(found := get(self, i))[:1], i),
                *found[1:],
            ),
        )

    return change


@pytest.fixture
def calibration_road(monkeypatch):
    def change(function):
        def batches(*arguments, made=samples.batches, **more):
            for images, labels in made(*arguments, **more):
                yield (
                    np.stack(
                        [function(torch.from_numpy(image), k).numpy() for k, image in enumerate(images)]
                    ),
                    labels,
                )

        monkeypatch.setattr(samples, "batches", batches)

    return change


def test_another_interpolation_in_evaluation_is_named(run, artifact, monkeypatch, preprocess, photos):
    class Other(loaders.EvalSet):
        def __init__(self, images, spec):
            super().__init__(images, dataclasses.replace(spec, interpolation="bicubic"))

    monkeypatch.setattr(loaders, "EvalSet", Other)
    code, _, err = run(artifact(), "--size", 0)
    assert code == 1
    assert (
        f"step pixels: image 1 of 30, {first(photos)}: training's evaluation differs from calibration and the"
        " runtime" in err
    )
    one, other = (
        preprocess.pixels(first(photos)),
        dataclasses.replace(preprocess, interpolation="bicubic").pixels(first(photos)),
    )
    levels = int(np.abs(one.astype(int) - other).max())  # by hand, in the bytes of the image
    row, column, channel = np.unravel_index(int(np.abs(one.astype(int) - other).argmax()), one.shape)
    assert f"most by {levels} of 255 levels at " in err
    assert np.abs(one.astype(int) - other)[row, column, channel] == levels


def test_exchanged_colors_in_the_runtime_are_named_as_such(run, artifact, monkeypatch, photos):
    def as_opencv_reads(image, opened=decode.open_rgb):
        found = opened(image)
        return (
            Image.fromarray(np.ascontiguousarray(np.asarray(found)[:, :, ::-1]))
            if isinstance(image, str)
            else found
        )

    monkeypatch.setattr(decode, "open_rgb", as_opencv_reads)
    code, _, err = run(artifact(), "--size", 0)
    assert (
        code == 1
        and f"image 1 of 30, {first(photos)}: the runtime differs from training's evaluation and calibration"
        in err
    )
    assert err.endswith("red and blue are exchanged\n")


@pytest.mark.parametrize("position", [0, 7, 29])
def test_one_changed_value_in_calibration_is_named_by_image_and_place(
    run, artifact, calibration_road, photos, position
):
    seen = []

    def change(image, _):
        if len(seen) == position:
            image = image.clone()
            image[1, 5, 9] += 8 / 255 / 0.5  # eight levels, at a std of 0.5
        seen.append(1)
        return image

    calibration_road(change)
    code, _, err = run(artifact(), "--size", 0)
    assert (
        code == 1
        and f"step pixels: image {position + 1} of 30, {first(photos, position)}: calibration differs from"
        in err
    )
    assert "most by 8 of 255 levels at green, row 5, column 9" in err and "exchanged" not in err


def test_the_last_bit_of_one_value_counts(run, artifact, evaluation_road):
    def change(image, index):
        image = image.clone()
        if index == 17:
            image[0, 0, 0] = torch.nextafter(image[0, 0, 0], torch.tensor(9.0))
        return image

    evaluation_road(change)
    code, _, err = run(artifact(), "--size", 0)
    assert code == 1 and "image 18 of 30" in err and "red, row 0, column 0" in err


def test_another_mean_in_calibration_is_named(run, artifact, calibration_road):
    calibration_road(lambda image, _: image + 0.1)
    code, _, err = run(artifact(), "--size", 0)
    assert code == 1 and "image 1 of 30" in err and "calibration differs from" in err
    assert "most by 12.8 of 255 levels" in err  # 0.1 x 0.5 x 255


def test_three_roads_that_all_differ(run, artifact, calibration_road, evaluation_road):
    calibration_road(lambda image, _: image + 1)
    evaluation_road(lambda image, _: image - 1)
    assert "all three roads differ" in run(artifact())[2]


def test_shuffled_labels_are_named_by_the_image_they_are_wrong_for(run, artifact, monkeypatch, photos):
    def shuffled(*arguments, made=FolderSet.__init__):
        made(*arguments)
        arguments[0].labels = np.roll(arguments[0].labels, 1)

    names = [FolderSet(photos).item_name(i) for i in range(30)]
    monkeypatch.setattr(FolderSet, "__init__", shuffled)
    code, _, err = run(artifact(), "--size", 0)
    assert (
        code == 1
        and f"step labels: image 1 of 30, {names[0]}: training's evaluation calls it '9'; it is '0'" in err
    )


def test_labels_of_calibration_alone_in_another_order_are_named(run, artifact, monkeypatch):
    def batches(*arguments, made=samples.batches, **more):
        for images, labels in made(*arguments, **more):
            yield images, np.concatenate([labels[:4], labels[:3:-1]])

    monkeypatch.setattr(samples, "batches", batches)
    code, _, err = run(artifact(), "--size", 0)
    assert code == 1 and "step labels: image 5 of 30" in err and "calibration calls it" in err


# Logits and decisions


def with_bias(model, change):
    made = onnx.ModelProto()
    made.CopyFrom(model)
    bias = next(tensor for tensor in made.graph.initializer if tensor.name == "linear.bias")
    bias.CopyFrom(
        onnx.numpy_helper.from_array(
            (onnx.numpy_helper.to_array(bias) + change).astype(np.float32), "linear.bias"
        )
    )
    return made


def test_fp32_logits_may_differ_by_atol_and_no_more(run, artifact, student_onnx):
    path = artifact(with_bias(student_onnx, 0.01))
    code, _, err = run(path, "--size", 20)
    assert code == 1 and "step logits: image 1 of 20" in err and "its logits differ by 0.01, allowed" in err
    assert run(path, "--size", 20, "--atol", 0.1)[0] == 0


def test_another_network_in_the_file_is_named_by_the_first_decision(run, artifact, student_onnx):
    code, _, err = run(
        artifact(with_bias(student_onnx, 1000 * (np.arange(10) == 3))), "--size", 20, "--atol", 1e6
    )
    assert code == 1 and "step decisions: image 1 of 20" in err and "3; its logits differ by 1e+03" in err


@pytest.fixture
def int8(student_onnx, digits_batch):
    made = quantize.lay_out(student_onnx)
    return quantize.quantize(
        student_onnx, made, calibrate.calibrate(student_onnx, made.tensors, [digits_batch], "minmax")
    )


def test_int8_is_held_to_its_share_of_equal_decisions(run, artifact, int8):
    path = artifact(int8, precision="int8")
    code, out, _ = run(path, "--size", 0, "--min-agreement", 0, "--json")
    found = json.loads(out)
    assert (
        code == 0 and found["allowed_logit_difference"] is None and found["max_abs_logit_difference"] > 1e-3
    )
    share = found["agreement_percent"]
    assert run(path, "--size", 0, "--min-agreement", share)[0] == 0
    if share < 100:
        code, _, err = run(path, "--size", 0, "--min-agreement", share + 0.1)
        assert (
            code == 1
            and f"decisions agree on {share:.2f} % of 30 images, at least {share + 0.1:g} % expected" in err
        )


def test_an_int8_file_of_another_network_is_found(run, artifact, int8):
    code, _, err = run(artifact(with_bias(int8, 1000 * (np.arange(10) == 3)), precision="int8"), "--size", 0)
    assert (
        code == 1
        and "step decisions: image " in err
        and "decisions agree on " in err
        and "at least 95 %" in err
    )


def test_logits_that_are_not_numbers_are_found(run, artifact, student_onnx):
    code, _, err = run(artifact(with_bias(student_onnx, np.nan)), "--size", 20)
    assert code == 1 and "step logits" in err and "not finite" in err


# Bad input


def test_a_damaged_file_a_missing_one_and_other_kinds_are_refused(run, artifact, tmp_path, student_file):
    path = artifact()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    cases = [
        (path, 4, "changed since it was written"),
        (tmp_path / "no.onnx", 2, "no such file"),
        (student_file, 2, "distill export onnx"),
    ]
    for file, code, words in cases:
        found = run(file)
        assert found[0] == code and words in found[2] and found[2].count("\n") == 1


def test_a_foreign_file_has_nothing_to_compare(run, student_onnx, tmp_path):
    onnx.save(student_onnx, str(tmp_path / "foreign.onnx"))
    code, _, err = run(tmp_path / "foreign.onnx")
    assert code == 4 and "carries no preprocess and no class_names" in err


def test_data_of_other_classes_and_an_unreadable_image_are_refused(run, artifact, tmp_path, photos):
    for i, name in enumerate([*NAMES[:9], "nine"]):
        (tmp_path / "other" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "other" / name / f"{i}.png")
    code, _, err = run(artifact(), data=tmp_path / "other")
    assert code == 4 and "classes differ: 9 only in " in err and ", nine only in " in err
    (tmp_path / "other" / "nine").rename(tmp_path / "other" / "9")
    (tmp_path / "other" / "4" / "bad.png").write_bytes(b"junk")
    code, _, err = run(artifact(), data=tmp_path / "other")
    assert code == 2 and "bad.png" in err


@pytest.mark.parametrize(
    "words", [("--size", "-1"), ("--atol", "0"), ("--min-agreement", "101"), ("--img-size", "0")]
)
def test_settings_out_of_range_are_refused(run, artifact, words):
    code, _, err = run(artifact(), *words)
    assert code == 2 and "expected" in err


def test_help_needs_no_torch(capsys):
    assert cli.main(["parity", "--help"]) == 0
    out = capsys.readouterr().out
    assert "distill parity best.pth best.onnx" in out and "--min-agreement" in out


def test_the_checkpoints_own_images_are_the_default(student_file, artifact, monkeypatch, capsys):
    assert cli.main(["parity", str(student_file), str(artifact()), "--size", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == "digits:val"
    assert checkpoint.load(student_file).lineage["data"]["val_spec"] == "digits"
