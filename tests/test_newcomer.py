"""The lists of CONTRIBUTING.md suffice: each is followed in a copy of the tree, and its toy is used."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "distill", "export", "bench", "large2small")


def lists() -> dict[str, list[str]]:
    """Heading -> the files that its numbered list names first, in order."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Which files to edit")[2]
    sections = re.split(r"^### ", text.partition("\n## ")[0], flags=re.MULTILINE)[1:]
    return {
        section.partition("\n")[0]: re.findall(r"^\d+\. `([^`]+)`", section, flags=re.MULTILINE)
        for section in sections
    }


class Copy:
    """A copy of the packages in which only the files of one list can be edited."""

    def __init__(self, folder: Path, heading: str) -> None:
        self.folder, self.listed = folder, lists()[heading]
        for package in PACKAGES:
            shutil.copytree(
                ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*")
            )

    def add(self, file: str, text: str) -> None:
        """A new file; the list names it with NAME."""
        assert file.replace("toy", "NAME") in self.listed
        assert not (self.folder / file).exists()
        (self.folder / file).write_text(text, encoding="utf-8")

    def change(self, file: str, before: str, after: str) -> None:
        assert file in self.listed
        text = (self.folder / file).read_text(encoding="utf-8")
        assert len(re.findall(before, text)) == 1, f"{file} has not exactly one {before}"
        (self.folder / file).write_text(re.sub(before, after, text), encoding="utf-8")

    def run(self, *words: str, code: int = 0) -> str:
        """stdout of `python WORDS` with the copy in place of the repository."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    def images(self) -> str:
        """npz:FOLDER with 8 images of two classes for training and as many for validation."""
        random, labels = np.random.default_rng(0), np.arange(8) % 2
        for split in ("train", "val"):
            x = random.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
            np.savez(self.folder / f"{split}.npz", x=x, y=labels, class_names=np.array(["ant", "bee"]))
        return "npz:."


@pytest.fixture
def copy(tmp_path):
    return lambda heading: Copy(tmp_path, heading)


TRAINED = [
    *("--batch", "8", "--epochs", "1", "--warmup-epochs", "0", "--img-size", "16"),
    *("--device", "cpu", "--workers", "0", "--output", "run"),
]


def test_there_is_a_list_for_each_task_with_at_most_three_files_that_exist():
    assert set(lists()) == {
        "Add a logit loss",
        "Add a runtime engine",
        "Add a command",
        "Add a student network",
        "Change a default",
        "Change an error text",
    }
    for heading, files in lists().items():
        assert 1 <= len(files) <= 3, heading
        for file in files:
            known = ROOT / file
            assert known.parent.is_dir() if "NAME" in file else known.is_file(), f"{heading}: {file}"


@pytest.mark.slow
def test_a_logit_loss_can_be_added_and_trained_with(copy):
    tree = copy("Add a logit loss")
    tree.add(
        "distill/losses/logit/toy.py",
        '"""A toy: every step costs `height`.\n\nIn:  logits.\nOut: a constant.\nElsewhere: nothing.\n"""\n'
        "def loss(student, teacher, target, *, height: float = 1.0):\n"
        "    return 0 * (student.logits - teacher.logits).sum() + height\n",
    )
    tree.change("distill/losses/__init__.py", r"\nLOGIT = \{\n", '\nLOGIT = {\n    "toy": "toy:loss",\n')
    assert "toy" in tree.run("-m", "distill", "train", "--help")
    tree.run(
        "-c",
        "import torch; from distill import models;"
        "torch.save(models.build('resnet20', 2, {'width': 0.25}).state_dict(), 'teacher.pth')",
    )
    command = (
        "-m distill train --student resnet20 --student-args width=0.25 --teacher resnet20 --teacher-args"
    )
    words = [*command.split(), "width=0.25", "--teacher-ckpt", "teacher.pth", "--data", tree.images()]
    tree.run(*words, *TRAINED, "--kd-loss", "toy", "--kd-args", "height=7", "--task-loss-weight", "0")
    epoch = json.loads((tree.folder / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert epoch["train_loss"] == pytest.approx(7)


def test_a_runtime_engine_can_be_added_and_opened(copy):
    tree = copy("Add a runtime engine")
    tree.add(
        "runtime/backends/toy.py",
        '"""A toy: 3 and 1 for every image.\n\nIn:  a file.\nOut: logits.\nElsewhere: nothing.\n"""\n'
        "import numpy as np\n"
        "from ..artifact import Metadata\n"
        "from . import Engine, Library, known_batch_sizes\n"
        "class ToyBackend:\n"
        "    engine, version, provider, device, threads = 'toy', '1', 'toy', 'cpu', 1\n"
        "    input_shape = [None, 3, 2, 2]\n"
        "    batch_sizes = known_batch_sizes(input_shape)\n"
        "    def __init__(self, path):\n"
        "        self.path = path\n"
        "    def run(self, batch, out=None):\n"
        "        return np.tile(np.float32([3, 1]), (len(batch), 1))\n"
        "    def close(self):\n"
        "        self.path = None\n"
        "def opened(path, settings):\n"
        "    return ToyBackend(path), Metadata(class_names=['ant', 'bee'])\n"
        "LIBRARIES = (Library('toy', 'The toy', 'pip install toy'),)\n"
        "ENGINE = Engine('toy', 'Toy', 'a toy', ('.toy',), (), opened, libraries=LIBRARIES)\n",
    )
    (tree.folder / "student.toy").write_bytes(b"x")
    found = tree.run(
        "-c",
        "import numpy as np, runtime\n"
        "images, spec = np.zeros((1, 9, 9, 3), np.uint8), runtime.Preprocess((3, 2, 2))\n"
        "for words in ({}, {'backend': 'toy'}):\n"
        "    with runtime.load('student.toy', preprocess=spec, **words) as student:\n"
        "        print(student.classify(images, top=1)[0][0].label, student.engine)",
    )
    assert found.splitlines() == ["ant toy 1"] * 2
    assert "toy" in tree.run("-m", "distill", "bench", "latency", "--help")
    machine = json.loads(tree.run("-m", "distill", "env", "--json"))
    (running,) = [each for each in machine["capabilities"] if "toy" in each["name"]]
    assert machine["toy"] == {"version": None, "error": "not installed", "details": []}
    assert running == {
        "name": "run .toy on Toy",
        "available": False,
        "missing": ["toy"],
        "install": ["pip install toy"],
    }


def test_a_command_can_be_added_and_called(copy):
    tree = copy("Add a command")
    tree.add(
        "distill/commands/toy.py",
        '"""`distill toy`: a toy.\n\nIn:  flags.\nOut: a line.\nElsewhere: nothing.\n"""\n'
        "from dataclasses import dataclass\n"
        'SUMMARY = "say ant several times"\n'
        'DESCRIPTION = "example:\\n  {prog} --times 2"\n'
        "@dataclass(frozen=True)\n"
        "class Options:\n"
        '    """Flags of `distill toy`."""\n'
        "    times: int = 1\n"
        '    """Number of ants."""\n'
        "def run(options):\n"
        "    print('ant ' * options.times)\n"
        "    return 1 if options.times > 2 else None\n",
    )
    tree.change(
        "runtime/cli/front_door.py", r"\nCOMMANDS = \{\n", r'\g<0>    "toy": "distill.commands.toy",\n'
    )
    assert re.search(
        r"^  toy +say ant several times$", tree.run("-m", "distill", "--help"), flags=re.MULTILINE
    )
    helped = tree.run("-m", "distill", "toy", "--help")
    assert "--times" in helped and "Number of ants" in helped and "distill toy --times 2" in helped
    assert tree.run("-m", "distill", "toy", "--times", "2").split() == ["ant"] * 2
    tree.run("-m", "distill", "toy", "--times", "3", code=1)


@pytest.mark.slow
def test_a_student_network_can_be_added_and_trained(copy):
    tree = copy("Add a student network")
    tree.add(
        "distill/models/toy.py",
        '"""A toy: one convolution.\n\nIn:  images.\nOut: logits.\nElsewhere: nothing.\n"""\n'
        "from timm.models import register_model\n"
        "from torch import nn\n"
        "@register_model\n"
        "def toy_net(pretrained=False, num_classes=1000, **kwargs):\n"
        "    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                            nn.Linear(4, num_classes))\n"
        "    network.num_classes = num_classes\n"
        "    return network\n",
    )
    tree.change("distill/models/__init__.py", r"\nfrom \. import cifar, ", "\nfrom . import toy, cifar, ")
    words = ["-m", "distill", "train", "--teacher", "none", "--student", "toy_net", "--data", tree.images()]
    tree.run(*words, *TRAINED)
    result = json.loads((tree.folder / "run" / "result.json").read_text())
    assert "toy_net" in json.dumps(result) + (tree.folder / "run" / "args.yaml").read_text()
    assert (tree.folder / "run" / "best.pth").is_file()


def test_a_default_can_be_changed(copy):
    tree = copy("Change a default")
    before = tree.run("-m", "distill", "train", "--help-all")
    tree.change(
        "distill/recipe/groups.py", r"(?m)^(    epochs: [^=\n]*(?:\([^\n]*\))?[^=\n]*) = 100$", r"\1 = 7"
    )
    after = tree.run("-m", "distill", "train", "--help-all")
    assert (before.count("100"), after.count("100")) == (before.count("100"), before.count("100") - 1)
    assert tree.run("-c", "from distill.recipe import Recipe; print(Recipe().epochs)").strip() == "7"


def test_an_error_text_can_be_changed(copy):
    tree, before = copy("Change an error text"), "are unknown to this version"
    (file,) = tree.listed
    command = ["grep", "-rl", "--include=*.py", before, *PACKAGES]
    found = subprocess.run(command, cwd=tree.folder, capture_output=True, text=True)
    assert found.stdout.split() == [file]
    code = "import runtime; runtime.Preprocess.from_dict({'size': 1})"
    assert f"['size'] {before}" in tree.run("-c", code, code=1)
    tree.change(file, before, "mean nothing here")
    assert "['size'] mean nothing here" in tree.run("-c", code, code=1)
