"""`distill erf`: the same numbers as the measure itself, every file it promises, and one line for what it
cannot do.
"""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from distill import checkpoint as checkpoints
from distill import models
from distill.__main__ import main
from distill.checkpoint import Checkpoint
from distill.erf import field
from distill.erf.report import unique_names
from runtime.preprocess import Preprocess

NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture
def save(tmp_path):
    """save(name, role, model, size=16, **arguments) -> path of a checkpoint with random weights."""

    def make(name="best.pth", role="student", model="resnet20", size=16, seed=0, spoil=None, **arguments):
        torch.manual_seed(seed)
        arguments = arguments or {"width": 0.25}
        network = models.build(model, 4, arguments)
        if spoil is not None:
            network.conv1.weight.data.fill_(spoil)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save(
            Checkpoint(
                model,
                arguments,
                network.state_dict(),
                Preprocess((3, size, size), "bilinear", 0.5),
                NAMES,
                role=role,
            ),
            path,
        )
        return str(path)

    return make


@pytest.fixture
def out(tmp_path, monkeypatch):
    """The folder the command writes to."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "found"


def test_the_numbers_are_those_of_the_measure(save, npz, out, made, capsys):
    path, data = save(), npz(val=12)
    assert (
        main(
            [
                "erf",
                path,
                "--data",
                data,
                "--output",
                str(out),
                "--num-images",
                "99",
                "--img-size",
                "20",
                "--json",
            ]
        )
        == 0
    )
    printed, err = capsys.readouterr()
    report = json.loads(printed)
    assert printed.count("\n") == 1 and err == ""
    assert report == json.loads((out / "erf.json").read_text())
    found = checkpoints.load(path)
    network = models.build("resnet20", 4, {"width": 0.25})
    checkpoints.load_weights(network, found)
    x, _ = made(12, seed=1)
    enlarged = np.stack(
        [np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR)) for image in x]
    )
    batch = (
        torch.from_numpy(enlarged).permute(0, 3, 1, 2) / 255
        - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    ) / torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    expected = field.measure(network, [batch], torch.device("cpu"))
    (entry,) = report["networks"]
    with np.load(out / "erf.npz", allow_pickle=False) as arrays:
        assert np.allclose(arrays["student"], expected.score, rtol=1e-3, atol=1e-7)
    assert entry["reference"]["sides"] == list(expected.reference.sides)
    assert entry["scale_free"]["area_ratios"] == list(expected.scale_free.ratios)
    assert (entry["label"], entry["file"], entry["role"], entry["model"]) == (
        "student",
        path,
        "student",
        "resnet20",
    )
    assert (entry["input_size"], entry["images"], entry["skipped_images"]) == ([20, 20], 12, 0)
    assert report["images"] == [f"val.npz[{i}]" for i in range(12)]


def test_teacher_control_and_student_side_by_side(save, npz, out, capsys):
    paths = [
        save("t.pth", "teacher", "convnext_atto", 32, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)),
        save("run/control/best.pth", "control"),
        save("run/best.pth", seed=1),
    ]
    assert main(["erf", *paths, "--data", npz(), "--output", str(out), "--num-images", "4"]) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    assert sorted(file.name for file in out.iterdir()) == [
        "control.png",
        "erf.json",
        "erf.npz",
        "erf.png",
        "student.png",
        "teacher.png",
    ]
    widths = [Image.open(out / f"{name}.png").width for name in ("teacher", "control", "student", "erf")]
    assert widths[3] > 2.5 * widths[0] and widths[0] == widths[1] == widths[2]
    assert all(
        word in printed
        for word in ("teacher", "control", "student", "reference", "scale-free", "99 %", "32 x 32")
    )
    assert "4 val images of npz:" in printed
    assert "input sizes differ, so shares of the area do not compare" in printed
    assert "Give a larger --img-size to see where it ends" in printed
    for line in printed.splitlines():
        assert len(line.rstrip()) <= 100 or "npz:" in line
    report = json.loads((out / "erf.json").read_text())
    assert [each["label"] for each in report["networks"]] == ["teacher", "control", "student"]
    assert len(report["images"]) == 4


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_what_is_not_reached_is_said_and_null(save, npz, out, capsys):
    path = save(spoil=0.0)  # nothing is seen through a first layer of zeros
    assert main(["erf", path, "--data", npz(), "--output", str(out), "--num-images", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("not reached") == 8 and "larger --img-size" not in printed
    (entry,) = json.loads((out / "erf.json").read_text())["networks"]
    assert entry["reference"]["area_ratios"] == entry["scale_free"]["sides"] == [None] * 4


def test_the_seed_chooses_the_images(save, npz, out, capsys):
    path, data = save(), npz()
    chosen = []
    for seed in ("0", "0", "1"):
        assert (
            main(
                [
                    "erf",
                    path,
                    "--data",
                    data,
                    "--output",
                    str(out),
                    "--overwrite",
                    "--num-images",
                    "3",
                    "--seed",
                    seed,
                    "--json",
                ]
            )
            == 0
        )
        chosen.append(json.loads(capsys.readouterr().out)["images"])
    assert chosen[0] == chosen[1] != chosen[2]


def test_files_are_replaced_only_when_asked(save, npz, out, capsys):
    path, data = save(), npz()
    arguments = ["erf", path, "--data", data, "--output", str(out), "--num-images", "1"]
    out.mkdir()
    (out / "student.png").write_text("mine")
    assert main(arguments) == 2
    assert "student.png exists already. Add --overwrite" in capsys.readouterr().err
    assert (out / "student.png").read_text() == "mine" and len(list(out.iterdir())) == 1
    assert main([*arguments, "--overwrite"]) == 0
    assert Image.open(out / "student.png").format == "PNG"


def test_labels_name_rows_and_files(save, npz, out, capsys):
    paths = [save("a.pth"), save("b.pth"), save("c.pth")]
    assert (
        main(
            [
                "erf",
                *paths,
                "--labels",
                "SLaK-T",
                "SLaK-T",
                "../x y",
                "--data",
                npz(),
                "--output",
                str(out),
                "--num-images",
                "1",
            ]
        )
        == 0
    )
    assert "../x y" in capsys.readouterr().out
    with np.load(out / "erf.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["SLaK-T", "SLaK-T_2", "x_y"]
    assert (out / "x_y.png").is_file()


def test_file_names_never_meet():
    assert unique_names(["a", "a", "a_2", "erf", "...", "é"]) == [
        "a",
        "a_2",
        "a_2_2",
        "erf_2",
        "network",
        "é",
    ]


def test_equal_roles_are_told_apart_by_their_folder(save, npz, out, capsys):
    paths = [save("one/best.pth"), save("two/best.pth")]
    assert main(["erf", *paths, "--data", npz(), "--output", str(out), "--num-images", "1", "--json"]) == 0
    labels = [each["label"] for each in json.loads(capsys.readouterr().out)["networks"]]
    assert labels == ["one student", "two student"]


def test_a_foreign_file_needs_its_architecture(tmp_path, save, npz, out, capsys):
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in models.build("resnet20", 7).state_dict().items()}},
        tmp_path / "published.th",
    )
    arguments = [
        "erf",
        save(),
        str(tmp_path / "published.th"),
        "--data",
        npz(),
        "--output",
        str(out),
        "--num-images",
        "1",
        "--img-size",
        "16",
    ]
    assert main(arguments) == 2
    assert (
        "published.th: weights without a description. Say which architecture: --model NAME"
        in capsys.readouterr().err
    )
    assert main([*arguments, "--model", "resnet20"]) == 2
    assert "--model has 1 words for 2 checkpoints" in capsys.readouterr().err
    assert main([*arguments, "--model", "auto", "resnet20"]) == 0  # of 7 classes, where the data has 4
    assert "prefix 'module.' removed" in capsys.readouterr().out
    report = json.loads((out / "erf.json").read_text())
    assert [(each["label"], each["role"]) for each in report["networks"]] == [
        ("student", "student"),
        ("published", "plain"),
    ]


def test_a_network_of_fixed_size_is_measured_at_it(save, npz, out, capsys):
    path = save("vit.pth", "teacher", "vit_tiny_patch16_224", 32, img_size=32, depth=1)
    arguments = ["erf", path, "--data", npz(), "--output", str(out), "--num-images", "1"]
    assert main([*arguments, "--img-size", "64"]) == 2
    assert "vit_tiny_patch16_224 is built for 32 x 32 pixels and takes no others" in capsys.readouterr().err
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["networks"][0]["input_size"] == [32, 32]


def test_weights_that_are_not_numbers_make_the_file_unusable(save, npz, out, capsys):
    path = save(spoil=float("nan"))
    assert main(["erf", path, "--data", npz(), "--output", str(out), "--num-images", "2"]) == 4
    assert re.search(rf"{path}: its weight \S+ holds NaN or inf", capsys.readouterr().err)
    assert not out.exists()


def test_the_data_of_the_training_is_the_default(save, npz, out, capsys):
    path = save()
    found = checkpoints.load(path)
    found.lineage = {"data": {"val_spec": npz()}}
    checkpoints.save(found, path)
    assert main(["erf", path, "--output", str(out), "--num-images", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == found.lineage["data"]["val_spec"]


def test_an_unreadable_image_can_be_left_out(save, broken, out, capsys):
    root, _ = broken
    arguments = ["erf", save(), "--data", str(root), "--split", "train", "--output", str(out)]
    assert main(arguments) == 2
    assert "--skip-bad-images" in capsys.readouterr().err
    assert main([*arguments, "--skip-bad-images", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["networks"][0]["images"] == 15


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "no checkpoint given"),
        (["x.pth", "--num-images", "0"], "--num-images 0: expected 1 or more"),
        (["x.pth", "--labels", "a", "b"], "--labels has 2 words for 1 checkpoints"),
        (["none.pth"], "none.pth: no such checkpoint"),
        (["x.pth", "--image-size", "3"], "did you mean --img-size?"),
    ],
)
def test_what_cannot_be_meant_is_one_line(argv, words, capsys):
    assert main(["erf", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words in err
