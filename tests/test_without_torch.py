"""What `pip install large2small[cpu]` gives: the commands of a machine that only predicts and measures.

Every installed package that this installation would not bring is blocked, so that none is needed by accident.
"""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import large2small
from runtime.cli import front_door

ROOT = Path(__file__).parents[1]
COLORS = {"blue": (30, 30, 220), "green": (30, 220, 30), "red": (220, 30, 30)}

OURS = {"runtime", "distill", "export", "bench", "large2small"}

BLOCKER = """
import sys

class Blocker:
    finders = list(sys.meta_path)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            return None
        specs = (finder.find_spec(name, path, target) for finder in self.finders)
        return next(filter(None, specs), None)

sys.meta_path[:] = [Blocker()]
"""


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def brought_by(extra: str) -> set[str]:
    """The distributions that `large2small[EXTRA]` installs, with what they need themselves."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    waiting = [name_of(each) for each in project["dependencies"] + project["optional-dependencies"][extra]]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        waiting += [name_of(each) for each in needs if "extra ==" not in each]
    return found


def blocked(extra: str) -> set[str]:
    """The modules of every other distribution."""
    kept = brought_by(extra)
    return {
        module
        for module, names in metadata.packages_distributions().items()
        if not {name_of(name) for name in names} & kept and module not in sys.stdlib_module_names
    } - OURS


@pytest.fixture(scope="module")
def edge(tmp_path_factory, exports_once) -> Path:
    """A folder with photos/ (train, val; three classes) and a student: its run, fp32 and int8 files."""
    folder = tmp_path_factory.mktemp("edge")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 8)):
        for name, color in COLORS.items():
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(generator.normal(color, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    trained = large2small.train(
        teacher="none", student="resnet20", student_args={"width": 0.25}, data=folder / "photos",
        img_size=32, batch=12, epochs=4, lr=0.01, warmup_epochs=0, output=folder / "run", quiet=True,
    )  # fmt: skip
    for int8 in (False, True):
        output = folder / ("int8.onnx" if int8 else "fp32.onnx")
        large2small.export_onnx(trained.checkpoint, int8=int8, max_drop=100, output=output, quiet=True)
    (folder / "blocking").mkdir()
    (folder / "blocking" / "sitecustomize.py").write_text(BLOCKER.format(blocked=blocked("cpu")))
    return folder


def python(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Python with these words, in which what the extra does not bring cannot be imported."""
    path = os.pathsep.join([str(folder / "blocking"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_packages_of_training_and_export_are_blocked_and_those_of_cpu_are_not(edge):
    others = {"torch", "timm", "torchvision", "onnx", "onnxslim", "yaml", "sklearn", "openvino", "pytest"}
    assert others <= blocked("cpu") and {"numpy", "PIL", "rich", "onnxruntime"} & blocked("cpu") == set()
    code = "import numpy, PIL, rich, onnxruntime\ntry: import torch\nexcept ImportError: print('none')"
    assert python(edge, "-c", code).stdout == "none\n"


@pytest.mark.parametrize("command", sorted(front_door.COMMANDS))
def test_every_command_explains_itself(edge, command):
    done = python(edge, "-m", "distill", *command.split(), "--help")
    assert done.returncode == 0 and "--help-all" not in done.stderr, done.stderr
    assert f"distill {command}" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        "bench latency --engine int8.onnx --iterations 3 --warmup 0",
        "bench latency --engine fp32.onnx --data photos --iterations 3 --warmup 0 --json",
        "bench accuracy --engine int8.onnx --data photos --reference fp32.onnx",
        "bench table --data photos --teacher fp32.onnx int8.onnx --iterations 3",
        "env",
        "predict int8.onnx photos/val --csv",
        "check photos",
        "inspect int8.onnx",
    ],
)
def test_what_needs_only_an_engine_works(edge, words):
    done = python(edge, "-m", "distill", *words.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_accuracy_is_that_of_the_training_run(edge):
    done = python(
        edge, *["-m", "distill", "bench", "accuracy", "--engine", "fp32.onnx", "--data", "photos", "--json"]
    )
    kept = json.loads((edge / "run" / "result.json").read_text())["best"]["top1_percent"]
    assert json.loads(done.stdout)["top1_percent"] == pytest.approx(kept)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("train --teacher none --student resnet20 --data photos", "train"),
        ("eval run/best.pth", "train"),
        ("export onnx run/best.pth --output other.onnx", "export"),
        ("inspect run", "train"),
        ("models --ours", "train"),
        ("parity run/best.pth fp32.onnx --data photos", "train"),
        ("bench accuracy --engine fp32.onnx --data digits", "demo"),
        ("bench latency --engine fp32.onnx --engine-backend openvino", "openvino"),
    ],
)
def test_what_needs_more_names_the_extra_and_leaves_nothing_behind(edge, words, extra):
    before = sorted(edge.rglob("*"))
    done = python(edge, "-m", "distill", *words.split())
    assert done.returncode == 3, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1 and re.search(rf"large2small\[[\w,]*{extra}", done.stderr)
    assert sorted(edge.rglob("*")) == before


def test_from_python_too(edge):
    code = (
        "import large2small, sys\n"
        "with large2small.load('int8.onnx') as p: print(p.classify('photos/val/red/0.png')[0][0].label)\n"
        "print(large2small.bench_latency('int8.onnx', iterations=3, warmup=0).timings['compute'].summary.n)\n"
        "try: large2small.train(teacher='none', data='photos')\n"
        "except large2small.MissingError as error: print(error)\n"
    )
    done = python(edge, "-c", code)
    assert done.returncode == 0, done.stderr
    label, count, error = done.stdout.splitlines()
    assert label in COLORS and count == "3" and 'pip install "large2small[train]"' in error
