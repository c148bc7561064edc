"""What the tests of `distill` share: small image sets, tiny trainings. Helpers are fixtures giving
functions.
"""

import io
import json
from pathlib import Path

import fake_hub
import numpy as np
import outside
import pytest
import timm
import torch
from PIL import Image

from distill import models
from distill.recipe import Recipe
from distill.training.task import Task
from distill.training.trainer import Trainer
from runtime.images import ArraySet

HERE = Path(__file__).parent
NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Several threads only wait for one another on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared():
    """The folder with real data and published weights; what needs it is skipped without it."""
    return outside.needed()


def made_pixels(count: int, size: int = 16, classes: int = 4, seed: int = 0):
    """(x, y): noise with a bright stripe whose place is the class, so that a few steps learn something."""
    random = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = random.integers(0, 100, (count, size, size, 3)).astype(np.uint8)
    stripe = size // classes
    for image, label in zip(x, y, strict=True):
        image[:, label * stripe : (label + 1) * stripe] += 150
    return x, y


@pytest.fixture(scope="session")
def made():
    """made(count, size=16, classes=4, seed=0) -> (x, y)."""
    return made_pixels


@pytest.fixture
def images():
    """images(count, seed=0) -> an ImageSet in memory with four classes of 16 x 16 pixels."""

    def make(count=32, seed=0, size=16):
        x, y = made_pixels(count, size, seed=seed)
        return ArraySet(f"made:{seed}", x, y, NAMES)

    return make


@pytest.fixture
def npz(tmp_path):
    """npz(train=32, val=16, names=NAMES) -> "npz:FOLDER" with both splits."""

    def make(train=32, val=16, names=tuple(NAMES), folder="set"):
        root = tmp_path / folder
        root.mkdir()
        for split, count, seed in (("train", train, 0), ("val", val, 1)):
            x, y = made_pixels(count, classes=len(names), seed=seed)
            np.savez(root / f"{split}.npz", x=x, y=y, class_names=np.array(names))
        return f"npz:{root}"

    return make


@pytest.fixture
def tree(tmp_path):
    """tree(per_class=4) -> folder of train/ and val/ with one sub-folder of PNGs per class."""

    def make(per_class=4, names=("ant", "bee"), folder="tree", size=16):
        root = tmp_path / folder
        for split, seed in (("train", 0), ("val", 1)):
            x, y = made_pixels(per_class * len(names), size, len(names), seed)
            for number, (image, label) in enumerate(zip(x, y, strict=True)):
                place = root / split / names[label]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place / f"{number}.png")
        return root

    return make


TINY = {
    "data": "made",
    "student": "resnet20",
    "student_args": ("width=0.25",),
    "teacher": "none",
    "img_size": 16,
    "batch": 8,
    "epochs": 1,
    "eval_batch": 16,
    "warmup_epochs": 0.0,
    "opt": "sgd",
    "lr": 0.05,
    "device": "cpu",
    "scale": (0.5, 1.0),
}
"""A training that takes a fraction of a second."""


@pytest.fixture(scope="session")
def recipe():
    """recipe(**settings) -> a Recipe of tiny size."""
    return lambda **settings: Recipe(**TINY | settings)


@pytest.fixture
def trainer(tmp_path, images, recipe):
    """trainer(folder, teacher, train, val, role, **settings) -> a Trainer on images in memory."""

    def make(folder="run", teacher=None, train=None, val=None, role="student", **settings):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        mine = recipe(**settings)
        preprocess = models.preprocess_of(mine.student, mine.img_size)
        return Trainer(
            Task(
                role,
                mine,
                place,
                train or images(32),
                val or images(16, seed=1),
                preprocess,
                torch.device("cpu"),
                teacher,
            )
        )

    return make


@pytest.fixture
def teacher(recipe):
    """teacher(seed=1, **more) -> a Teacher with random weights, four classes, the student's own
    preprocessing.
    """
    from distill.teacher import Teacher

    def make(seed=1, **more):
        torch.manual_seed(seed)
        spec = models.preprocess_of("resnet20", 16)
        model = models.build("resnet20", 4, {"width": 0.25})
        return Teacher(model, more.pop("preprocess", spec), spec, torch.device("cpu"), **more)

    return make


@pytest.fixture(scope="session")
def same_weights():
    """same_weights(a, b): every tensor of two state dicts equal to the bit."""

    def check(a, b):
        assert list(a) == list(b)
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, f"{len(different)} of {len(a)} tensors differ, first {different[0]}"

    return check


@pytest.fixture
def broken(tree):
    """An image folder whose file train/bee/3.png is cut."""
    root = tree(per_class=8)
    file = root / "train" / "bee" / "3.png"
    file.write_bytes(file.read_bytes()[:60])
    return root, file


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine in place of huggingface.co, with an empty cache."""
    from huggingface_hub import constants

    with fake_hub.serving() as served:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{served.host}")
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"http://{served.host}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield served


@pytest.fixture
def mine(hub):
    """The repository me/mine: timm's smallest network with three classes, weights as torch writes them."""
    torch.manual_seed(0)
    weights = io.BytesIO()
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), weights)
    config = {
        "architecture": "test_resnet",
        "num_classes": 3,
        "pretrained_cfg": {
            "tag": "of_mine",
            "input_size": [3, 96, 80],
            "interpolation": "bilinear",
            "crop_pct": 0.9,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.3, 0.4],
            "classifier": "fc",
            "first_conv": "conv1.0",
            "num_classes": 3,
        },
    }
    hub.files["me/mine"] = {
        "config.json": json.dumps(config).encode(),
        "pytorch_model.bin": weights.getvalue(),
    }
    return hub
