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
import voice
from PIL import Image

from runtime.cli import front_door

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.usefixtures("exports_once"),
    pytest.mark.timeout(1800),
]  # the first test that needs them waits for seven commands
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FASTER = {
    "train": ["--img-size", "32", "--epochs", "1", "--batch", "16"],
    "label": ["--img-size", "32", "--epochs", "1", "--batch", "16"],
    "bench latency": ["--iterations", "5", "--warmup", "1"],
    "bench table": ["--iterations", "5", "--warmup", "1"],
}
"""Flags added to a command of docs/ so that it runs in seconds (those of the README run exactly as
printed)."""


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


def here(line: str, folder: Path, *more: str) -> int:
    """The exit code of a command in this process: each import of torch takes longer than most commands."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return front_door.main([*shlex.split(line, comments=True)[1:], *more])
    finally:
        os.chdir(before)


@pytest.fixture
def run_here(capfd):
    """run_here(line, folder, *more): what a command that ends with 0 says on stderr."""

    def run_one(line: str, folder: Path, *more: str) -> str:
        code = here(line, folder, *more)
        said = capfd.readouterr().err
        assert code == 0, f"{line}\n{said}"
        return said

    return run_one


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """A folder with what the README's reader has: photos/ (train, val; three classes) and cat.jpg."""
    folder = tmp_path_factory.mktemp("workshop")
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 8)):
        for index, name in enumerate(("cat", "dog", "owl")):
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (48, 40, 3), dtype=np.uint8)
                pixels[..., index] += 120  # each class has its color
                Image.fromarray(pixels).save(folder / "photos" / split / name / f"{i}.jpg", quality=95)
    (folder / "cat.jpg").write_bytes((folder / "photos" / "val" / "cat" / "0.jpg").read_bytes())
    return folder


@pytest.fixture(scope="module")
def toured(workshop, exports_once) -> Path:
    """The same folder after the README's seven commands, exactly as printed, the first and the last in a
    process of their own; teacher.pth is the teacher.
    """
    first, *others, last = commands(ROOT / "README.md")
    for line in (first, last):
        done = run(line, workshop)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if line == first:
            assert [here(each, workshop) for each in others] == [0] * len(others)
    (workshop / "printed.txt").write_text(done.stdout)
    (workshop / "teacher.pth").write_bytes((workshop / "runs" / "teacher" / "best.pth").read_bytes())
    return workshop


@pytest.mark.slow
def test_the_commands_on_your_own_images_run(workshop, tmp_path, run_here):
    """Exactly as printed but for the size and length of the training: class folders alone, and a file of
    1,000 classes without names.
    """
    import torch

    from distill import models

    for name in ("cat", "dog", "owl"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for split in ("train", "val"):
            for file in (workshop / "photos" / split / name).iterdir():
                (tmp_path / "photos" / name / f"{split}{file.name}").write_bytes(file.read_bytes())
    torch.save(models.build("mobilenetv2_100", 1000).state_dict(), tmp_path / "mobilenetv2.pth")
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").split("## On your own images")[1].split("\n## ")[0]
    )
    lines = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].replace("\\\n", " ").splitlines()
    assert [line.split()[1] for line in lines] == ["check", "train", "train", "export", "predict"]
    for line in lines:
        more = ["--img-size", "32", "--epochs", "1"] if " train " in line else []
        more += ["--max-drop", "100"] if " --int8 " in line else []
        said = run_here(line, tmp_path, *more)
        if "--recipe finetune" in line:
            assert "classifier classifier: 1000 classes -> new, 3 classes" in said
    assert len((tmp_path / "runs" / "small" / "val-split.csv").read_text().splitlines()) == 61
    assert (tmp_path / "runs" / "small" / "report.html").is_file()


@pytest.fixture
def run_documented(run_here):
    """run_documented(line, folder): a command with flags that make it fast must end with 0."""

    def run_one(line: str, folder: Path) -> None:
        extra = next((flags for name, flags in FASTER.items() if line.startswith(f"distill {name}")), [])
        if " --int8" in line:
            extra = ["--max-drop", "100"]  # one epoch on noise has no accuracy to lose
        run_here(line, folder, *extra)

    return run_one


@pytest.mark.slow
def test_the_seven_commands_of_the_readme_lead_from_photos_to_the_table_as_printed(toured):
    lines = commands(ROOT / "README.md")
    assert [line.split()[1] for line in lines] == ["train"] * 2 + ["export"] * 4 + ["bench"]
    last = (toured / "printed.txt").read_text()
    first_column = "".join(re.findall(r"^ (\S+(?: \S+)?)", last, flags=re.MULTILINE)).replace(" ", "")
    rows = ("teacherfp32teacher", "controlfp32control", "studentfp32student", "studentint8student.int8")
    assert re.search(".*".join(re.escape(f"{row}.onnx") for row in rows), first_column), last


def test_the_seven_commands_of_the_readme_are_those_of_the_demo():
    from distill.commands.demo import Options, commands_of

    printed = [shlex.split(line)[1:] for line in commands(ROOT / "README.md")]
    demo = commands_of(Options())
    assert [words[:2] if words[0] != "train" else words[:1] for words in printed] == [
        words[:2] if words[0] != "train" else words[:1] for words in demo
    ]
    assert [{"--int8", "--control"} & set(words) for words in printed] == [
        {"--int8", "--control"} & set(words) for words in demo
    ]


@pytest.mark.slow
def test_the_commands_of_the_guide_run(toured, run_documented):
    lines = commands(ROOT / "docs" / "guide.md")
    assert len(lines) >= 5
    for line in lines:
        run_documented(line, toured)


@pytest.mark.slow
def test_the_commands_of_the_int8_pages_run_on_what_readme_and_guide_made(toured, run_documented):
    for page in ("int8.md", "qat.md"):
        lines = commands(ROOT / "docs" / page)
        assert len(lines) >= 2
        for line in lines:
            run_documented(line, toured)


@pytest.mark.slow
def test_the_commands_of_the_page_about_large_kernels_run(toured, run_documented):
    lines = commands(ROOT / "docs" / "large_kernels.md")
    assert [line.split()[1] for line in lines] == ["train", "erf"]
    for line in lines:
        run_documented(line, toured)


@pytest.mark.slow
def test_the_commands_of_the_page_about_reports_run(toured, run_documented):
    lines = commands(ROOT / "docs" / "report.md")
    assert [line.split()[1] for line in lines] == ["report", "report"]
    for line in lines:
        run_documented(line, toured)
    assert (toured / "runs" / "student" / "report.html").is_file() and (toured / "compared.html").is_file()


def test_every_page_with_commands_is_run_by_a_test_here():
    run_here = {"README.md", "guide.md", "int8.md", "qat.md", "large_kernels.md", "cifar10.md", "report.md"}
    assert {page.name for page in PAGES if commands(page)} == run_here


@pytest.mark.slow
@outside.needs("data", "cifar10")
@outside.needs("data", "weights")
def test_the_commands_of_the_cifar10_page_run_on_a_few_of_its_images(tmp_path, run_documented):
    sys.path.insert(0, str(ROOT / "measurements" / "data"))
    from cifar10_npz import tiles

    labels = np.load(outside.path("data") / "cifar10" / "labels.npz")
    (tmp_path / "cifar10").mkdir()
    for split, sheet, count in (("train", "train_0", 200), ("test", "test", 100)):
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
def test_the_runtime_example_of_the_readme_runs_as_printed(toured):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", blocks[0]],
        cwd=toured,
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    text = re.sub(r"```(?!bash|sh).*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    folders = "runtime|distill|export|bench|large2small|tests|docs|measurements|examples|docker"
    named = set(re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.-]*[\w/])", text))
    lost = {name for name in named if "NAME" not in name and not (ROOT / name).exists()}
    assert lost - {"runtime/NAME"} == set()


def is_there(dotted: str) -> bool:
    """Whether a module has this name, or holds it."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        file = ROOT.joinpath(*parts[:count])
        module = next((f for f in (file.with_suffix(".py"), file / "__init__.py") if f.is_file()), None)
        if module:
            rest = parts[count:]
            words = re.findall(r"\w+", module.read_text(encoding="utf-8"))
            return not rest or (len(rest) == 1 and rest[0] in words)
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:runtime|distill|export|bench)(?:\.[A-Za-z_]\w*)+)", text))
    assert {name for name in named if not is_there(name)} == set()


def test_a_module_that_moved_is_missed():
    assert is_there("runtime.load") and is_there("distill.models.merge.reparameterize")
    assert not is_there("distill.models.merge.absent_there") and not is_there("export.absent_there")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_only_in_blocks_whose_flags_are_checked(page):
    blocks = re.findall(
        r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert not [block for tag, block in blocks if tag not in ("bash", "sh") and re.search("^distill ", block)]


def test_the_readme_says_what_every_extra_is_for():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Install")[2].partition("\n## ")[0]
    named = {name for found in re.findall(r"large2small\[([\w,-]+)\]", table) for name in found.split(",")}
    for_developers = {"dev", "compare"}
    assert named == set(project["optional-dependencies"]) - for_developers


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", index))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_in_american_english_and_the_fields_words(page):
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert voice.wrong(text, voice.WORDS | {r"\bheld[- ]out\b": "evaluation images"}) == set()


def test_the_picture_of_the_readme_is_an_image_with_words_for_those_who_do_not_see_it():
    from xml.etree import ElementTree

    picture = re.search(r"!\[([^\]]+)\]\(([^)]+\.svg)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    root = ElementTree.parse(ROOT / picture.group(2)).getroot()
    drawn = " ".join(root.itertext())
    for step in ("teacher", "student", "ONNX", "int8", "plan", "table"):
        assert step in picture.group(1) and step in drawn
    assert root.get("role") == "img" and root.find("{*}title").text and root.find("{*}desc").text
