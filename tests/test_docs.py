"""README and docs: every command in them runs, on a small folder of photographs made here."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import outside
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
FASTER = {
    "train": ["--img-size", "32", "--epochs", "1", "--batch", "8"],
    "bench latency": ["--iterations", "5", "--warmup", "1"],
    "bench table": ["--iterations", "5", "--warmup", "1"],
}
"""Flags added to a documented command so that it runs in seconds; the command itself stays as printed."""


def commands(page: Path, languages: str = "bash") -> list[str]:
    """Every `distill ...` line in the page's ```bash blocks, continuation lines joined.

    ```sh blocks hold commands that cannot be run here, such as those that need a GPU.
    """
    blocks = re.findall(rf"```(?:{languages})\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("distill ")]


def run(line: str, folder: Path, *more: str) -> subprocess.CompletedProcess:
    words = shlex.split(line, comments=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", *words, *more], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with what the README's reader has: photos/ (train, val; three classes), teacher.pth and
    teacher.onnx.
    """
    folder = tmp_path_factory.mktemp("workshop")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for index, name in enumerate(("cat", "dog", "owl")):
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (48, 40, 3), dtype=np.uint8)
                pixels[..., index] += 120  # each class has its colour
                Image.fromarray(pixels).save(folder / "photos" / split / name / f"{i}.jpg", quality=95)
    for line in (
        "distill train --teacher none --student convnext_atto --data photos --output runs/teacher",
        "distill export onnx runs/teacher/best.pth --output teacher.onnx",
    ):
        done = run(line, folder, *(FASTER["train"] if " train " in line else []))
        assert done.returncode == 0, done.stderr
    (folder / "runs" / "teacher" / "best.pth").rename(folder / "teacher.pth")
    return folder


def run_documented(line: str, folder: Path) -> None:
    """Run a documented command with flags that make it fast; it must exit 0."""
    extra = next((flags for name, flags in FASTER.items() if line.startswith(f"distill {name}")), [])
    if " --int8" in line:
        extra = ["--max-drop", "100"]  # one epoch on noise has no accuracy to lose
    done = run(line, folder, *extra)
    assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.slow
def test_the_readme_shows_four_commands_and_they_run(workshop):
    lines = commands(ROOT / "README.md")
    assert [line.split()[1] for line in lines[:4]] == ["train", "export", "bench", "bench"]
    for line in lines:
        run_documented(line, workshop)


@pytest.mark.slow
def test_the_commands_of_the_guide_run(workshop):
    lines = commands(ROOT / "docs" / "guide.md")
    assert len(lines) >= 5
    for line in lines:
        run_documented(line, workshop)


@pytest.mark.slow
def test_the_commands_of_the_int8_pages_run_on_what_readme_and_guide_made(workshop):
    for page in ("int8.md", "qat.md"):
        lines = commands(ROOT / "docs" / page)
        assert len(lines) >= 2
        for line in lines:
            run_documented(line, workshop)


@pytest.mark.slow
@outside.needs("data", "cifar10")
@outside.needs("data", "weights")
def test_the_commands_of_the_cifar10_page_run_on_a_few_of_its_images(tmp_path):
    sys.path.insert(0, str(ROOT / "measurements" / "data"))
    from cifar10_npz import tiles

    labels = np.load(outside.path("data") / "cifar10" / "labels.npz")
    (tmp_path / "cifar10").mkdir()
    for split, sheet, count in (("train", "train_0", 600), ("test", "test", 300)):
        x = tiles(outside.path("data") / "cifar10" / f"{sheet}.webp")[:count]
        np.savez(
            tmp_path / "cifar10" / f"{split}.npz",
            x=x,
            y=labels[f"y_{split}"][:count],
            class_names=labels["class_names"],
        )
    for file in (outside.path("data") / "weights").glob("*.th"):
        (tmp_path / file.name).symlink_to(file)
    lines = commands(ROOT / "docs" / "cifar10.md")
    assert len(lines) >= 4
    for line in lines:
        run_documented(line, tmp_path)


@pytest.mark.slow
def test_the_runtime_example_of_the_readme_runs(workshop):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert blocks
    (workshop / "cat.jpg").write_bytes((workshop / "photos" / "val" / "cat" / "0.jpg").read_bytes())
    code = blocks[0].replace("student.int8.onnx", "teacher.onnx")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=workshop,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"(cat|dog|owl) 0\.\d+|(cat|dog|owl) 1\.0", done.stdout)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_tells_anyone_to_type_the_shell_builtin(page):
    for block in re.findall(
        r"```(?:bash|sh|console)?\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL
    ):
        assert not re.search(r"^\s*\$?\s*export (onnx|trt|triton)", block, flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_documented_flag_exists(page):
    from runtime.cli.flags import check_flags

    for line in commands(page, "bash|sh"):
        words = shlex.split(line, comments=True)[1:]
        name = " ".join(words[:2]) if words[0] in ("export", "bench") else words[0]
        check_flags(options_of("train --qat" if "--qat" in words else name), words, f"distill {name}")


def options_of(name: str) -> type:
    from runtime.cli.front_door import COMMANDS

    assert name in COMMANDS, f"a page documents an unknown command: {name}"
    return importlib.import_module(COMMANDS[name]).Options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
