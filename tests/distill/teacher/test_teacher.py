"""The teacher: frozen, on its own preprocessing and precision, refused when its classes are not
the data's.
"""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill import checkpoint as checkpoints
from distill import models
from distill import teacher as teachers
from distill.checkpoint import Checkpoint
from distill.models.depthwise import network_format
from distill.recipe import Recipe, key_values
from distill.teacher import Teacher
from runtime.errors import ArtifactError, MissingError, UsageError
from runtime.preprocess import Preprocess

CPU = torch.device("cpu")
OURS = Preprocess((3, 16, 16), "bilinear", 1.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALVES = Preprocess((3, 16, 16), "bilinear", 1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.125))
NAMES = ["ant", "bee", "cat", "dog"]


class Echo(nn.Module):
    """Gives back what it was fed."""

    def forward(self, x):
        self.fed = x
        return x.flatten(1)


def test_pixels_are_normalized_again_as_the_teachers_own_preprocessing_would():
    pixels = [np.random.default_rng(i).integers(0, 256, (16, 16, 3)).astype(np.uint8) for i in range(3)]
    echo = Echo()
    Teacher(echo, HALVES, OURS, CPU)(torch.from_numpy(OURS.batch(pixels)))
    assert np.abs(echo.fed.numpy() - HALVES.batch(pixels)).max() < 1e-5


def test_the_same_preprocessing_changes_nothing():
    echo, images = Echo(), torch.randn(2, 3, 16, 16)
    teacher = Teacher(echo, OURS, OURS, CPU)
    assert torch.equal(teacher(images).logits, images.flatten(1))
    assert teachers.renormalization(OURS, OURS, CPU) == (None, None)


@pytest.mark.parametrize("size", [(3, 32, 32), (3, 8, 8), (3, 24, 12)])
def test_a_teacher_of_another_size_is_fed_its_own(size):
    echo = Echo()
    images = torch.randn(2, 3, 16, 16)
    Teacher(echo, Preprocess(size, mean=OURS.mean, std=OURS.std), OURS, CPU)(images)
    assert tuple(echo.fed.shape[1:]) == size
    assert torch.allclose(
        echo.fed, F.interpolate(images, size[1:], mode="bicubic", antialias=True, align_corners=False)
    )


def test_a_constant_image_stays_constant_at_another_size():
    echo = Echo()
    white = np.full((16, 16, 3), 255, np.uint8)
    bigger = Preprocess((3, 24, 24), mean=HALVES.mean, std=HALVES.std)
    Teacher(echo, bigger, OURS, CPU)(torch.from_numpy(OURS.batch([white])))
    assert torch.allclose(
        echo.fed, torch.from_numpy(bigger.batch([np.full((24, 24, 3), 255, np.uint8)])), atol=1e-4
    )


def test_carries_no_gradient_and_leaves_no_trace(teacher):
    frozen = teacher()
    assert not any(p.requires_grad for p in frozen.model.parameters())
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    logits = frozen(images).logits
    assert not logits.requires_grad and not logits.is_inference()
    weight = torch.ones(4, requires_grad=True)
    (logits * weight).sum().backward()  # may stand in a loss
    assert torch.allclose(weight.grad, logits.sum(0))
    assert images.grad is None


def test_stays_in_evaluation_and_its_statistics_stand_still(teacher, same_weights):
    frozen = teacher()
    before = {key: value.clone() for key, value in frozen.model.state_dict().items()}
    for _ in range(3):
        frozen(torch.randn(4, 3, 16, 16) + 5)
    assert not any(module.training for module in frozen.model.modules())
    same_weights(frozen.model.state_dict(), before)


def test_an_image_gets_the_same_logits_in_any_batch(teacher):
    frozen, images = teacher(), torch.randn(4, 3, 16, 16)
    assert torch.allclose(frozen(images).logits[1:2], frozen(images[1:2]).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_computes_in_its_own_precision_and_answers_in_float32(dtype, expected):
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            y = super().forward(x.flatten(1))
            seen.append(y.dtype)
            return y

    answer = Teacher(Watched(3 * 16 * 16, 4), OURS, OURS, CPU, dtype)(torch.randn(2, 3, 16, 16)).logits
    assert seen == [expected]
    assert answer.dtype == torch.float32


@pytest.fixture
def file(tmp_path):
    """file(names, **more) -> a teacher's best.pth."""

    def make(names=NAMES, preprocess=HALVES):
        torch.manual_seed(3)
        model = models.build("resnet20", len(names), {"width": 0.25})
        path = tmp_path / "teacher.pth"
        checkpoints.save(
            Checkpoint("resnet20", {"width": 0.25}, model.state_dict(), preprocess, list(names)), path
        )
        return str(path)

    return make


def load(path, names=NAMES, **settings):
    return teachers.load(Recipe(teacher_ckpt=path, **settings), list(names), OURS, CPU)


def test_is_built_from_what_its_file_says(file):
    import hashlib

    path = file()
    found = load(path)
    plain = models.build("resnet20", len(NAMES), {"width": 0.25}).eval()
    plain.load_state_dict(checkpoints.load(path).state_dict)
    images = torch.randn(2, 3, 16, 16)
    assert torch.allclose(found.model(images), plain(images), atol=1e-5)
    assert found.preprocess == HALVES
    with open(path, "rb") as content:
        assert found.origin.sha256 == hashlib.sha256(content.read()).hexdigest()
    assert (found.origin.model, found.origin.file, found.origin.dtype) == ("resnet20", path, "fp32")


def test_its_batch_norms_are_merged_and_it_says_so(file):
    found = load(file())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.model.modules())
    assert found.origin.merged.startswith("merged for inference; its outputs change by at most ")


def test_a_teacher_that_merges_into_another_network_stays_as_it_is(file, monkeypatch):
    def wrong(model):
        merged = copy.deepcopy(model)
        merged.conv1.weight.data[0] += 1
        return merged

    monkeypatch.setattr(teachers, "reparameterize", wrong)
    found = load(file())
    assert any(isinstance(module, nn.BatchNorm2d) for module in found.model.modules())
    assert found.origin.merged.startswith("not merged: merged CifarResNet is not the same network")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "fp32"),
        ({"amp": True}, "bf16"),
        ({"amp": True, "amp_dtype": "fp16"}, "fp16"),
        ({"amp": True, "teacher_dtype": "fp32"}, "fp32"),
        ({"teacher_dtype": "bf16"}, "bf16"),
    ],
)
def test_its_precision_is_the_students_unless_given(file, settings, expected):
    assert load(file(), **settings).origin.dtype == expected


@pytest.mark.parametrize(
    ("capability", "settings", "expected"),
    [
        ((9, 0), {}, "bf16"),
        ((8, 0), {"amp": True, "amp_dtype": "fp16"}, "bf16"),
        ((8, 6), {"teacher_dtype": "fp32"}, "fp32"),
        ((7, 5), {}, "fp32"),
        ((7, 5), {"amp": True, "amp_dtype": "fp16"}, "fp16"),
    ],
)
def test_on_a_gpu_with_units_for_it_its_precision_is_bf16(
    capability, settings, expected, recipe, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert teachers.precision(recipe(**settings), torch.device("cuda")) == expected


def test_its_layout_is_the_faster_one_for_its_network():
    large = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 31, padding=15, groups=4))
    small = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 7, padding=3, groups=4))
    made = {
        (kind, asked): Teacher(network, OURS, OURS, CPU, channels_last=asked).layout
        for kind, network in (("large", large), ("small", small))
        for asked in (True, False)
    }
    assert {asked: layout for (_, asked), layout in made.items()} == {
        True: "channels-last",
        False: "contiguous maps",
    }
    assert len(set(made.values())) == 2  # on a CPU it is what was asked for
    on_a_gpu = {
        name: network_format(net, torch.device("cuda"), True)
        for name, net in (("large", large), ("small", small))
    }
    assert on_a_gpu == {"large": torch.contiguous_format, "small": torch.channels_last}


def test_another_class_order_is_refused_with_the_first_difference(file):
    with pytest.raises(ArtifactError, match=r"class order differs.*'?bee'?.*'?cat'?"):
        load(file(), names=["ant", "cat", "bee", "dog"])


def test_another_number_of_classes_is_refused(file):
    with pytest.raises(ArtifactError, match="class"):
        load(file(), names=NAMES[:3])


def test_another_architecture_than_its_file_is_refused(file):
    with pytest.raises(ArtifactError, match="holds resnet20, not resnet32"):
        load(file(), teacher="resnet32")


def test_foreign_weights_need_the_architectures_name(tmp_path):
    torch.save(models.build("resnet20", 4).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="which architecture") as caught:
        load(str(tmp_path / "w.pth"))
    assert "--teacher" in str(caught.value)
    assert load(str(tmp_path / "w.pth"), teacher="resnet20").origin.file == str(tmp_path / "w.pth")


def test_foreign_weights_of_another_number_of_classes_are_refused(tmp_path):
    torch.save(models.build("resnet20", 10).state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ArtifactError, match="classifier linear: 10 classes -> new, 4 classes, and --teacher-fit is none"
    ):
        load(str(tmp_path / "w.pth"), teacher="resnet20")


def test_no_teacher_is_none():
    assert teachers.load(Recipe(teacher="none"), NAMES, OURS, CPU) is None
    assert teachers.load(Recipe(), NAMES, OURS, CPU) is None


def test_a_teacher_without_published_weights_asks_for_a_file():
    with pytest.raises((MissingError, UsageError)) as caught:
        teachers.load(Recipe(teacher="resnet20"), NAMES, OURS, CPU)
    assert "file" in str(caught.value) or "--teacher-ckpt" in str(caught.value)


@pytest.mark.parametrize("size", ["32", "[32,48]"])
def test_foreign_weights_built_for_a_size_are_fed_it(tmp_path, size):
    arguments = ("patch_size=8", "embed_dim=24", "depth=1", "num_heads=3", f"img_size={size}")
    sides = json.loads(size)
    torch.save(
        models.build("vit_tiny_patch16_224", 4, key_values(arguments)).state_dict(), tmp_path / "w.pth"
    )
    found = load(str(tmp_path / "w.pth"), teacher="vit_tiny_patch16_224", teacher_args=arguments)
    assert found.preprocess.input_size == (3, *(sides if isinstance(sides, list) else (sides, sides)))
    assert found(torch.randn(2, 3, 16, 16)).logits.shape == (2, 4)
    with pytest.raises(UsageError, match="img_size 'big': expected a side in pixels"):
        load(str(tmp_path / "w.pth"), teacher="vit_tiny_patch16_224", teacher_args=("img_size=big",))


def test_what_is_said_to_be_assumed_is_what_is_used(tmp_path):
    torch.save(models.build("resnet20", 4).state_dict(), tmp_path / "w.pth")
    given = {"teacher": "resnet20", "teacher_ckpt": str(tmp_path / "w.pth"), "teacher_fit": "none"}

    def assumed(**said):
        source = teachers.open_source(Recipe(**given, **said), NAMES)
        return next((note for note in source.notes if "assumed" in note), ""), source.preprocess

    line, _ = assumed()
    assert line == (
        "preprocessing assumed: mean 0.485 0.456 0.406, std 0.229 0.224 0.225, 32 x 32, bilinear; if it was"
        " trained with another: --teacher-mean R G B --teacher-std R G B --teacher-input-size H W"
        " --teacher-interpolation FILTER"
    )
    line, preprocess = assumed(teacher_input_size=(24, 40), teacher_mean=(0.5, 0.5, 0.5))
    assert "assumed: std 0.229 0.224 0.225, bilinear;" in line and "--teacher-mean" not in line
    assert preprocess.input_size == (3, 24, 40) and preprocess.mean == (0.5, 0.5, 0.5)
    line, preprocess = assumed(
        teacher_input_size=(24, 40),
        teacher_mean=(0.5, 0.5, 0.5),
        teacher_std=(0.2, 0.2, 0.2),
        teacher_interpolation="nearest",
    )
    assert line == ""
    source = teachers.open_source(Recipe(**given, teacher_input_size=(24, 40)), NAMES)
    recorded = teachers.ready(source, Recipe(**given), OURS, CPU).origin.to_dict()["preprocess"]
    assert recorded["input_size"] == [3, 24, 40] and recorded["crop_pct"] == 1.0
