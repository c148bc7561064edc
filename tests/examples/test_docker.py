"""docker/Dockerfile by its text: what it copies, installs and runs exists, nothing is left to chance. Docker
is not needed.
"""

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker" / "Dockerfile"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """(instruction, rest) with continuation lines joined and comments dropped."""
    text = re.sub(r"^\s*#.*\n", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def project() -> dict:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def arguments(steps) -> dict[str, str]:
    return {
        name: value.strip('"')
        for word, rest in steps
        if word == "ARG"
        for name, _, value in [rest.partition("=")]
    }


def rests(steps, word: str) -> list[str]:
    return [rest for name, rest in steps if name == word]


def test_every_build_argument_has_a_default_an_explanation_and_a_use(steps):
    text = FILE.read_text(encoding="utf-8")
    assert set(arguments(steps)) == {"PYTHON", "BASE", "TENSORRT", "CUDA_BINDINGS", "EXTRAS"}
    for name, value in arguments(steps).items():
        assert value, f"{name} has no default"
        assert re.search(rf"^# .+\nARG {name}=", text, flags=re.MULTILINE), f"{name} is not explained"
        uses = "\n".join(rest for word, rest in steps if not (word == "ARG" and rest.startswith(f"{name}=")))
        assert f"${{{name}" in uses, f"{name} is never used"


def test_an_argument_before_from_is_not_used_after_it(steps):
    """Docker forgets it there."""
    at = [word for word, _ in steps].index("FROM")
    early = set(arguments(steps[:at]))
    later = "\n".join(rest for _, rest in steps[at + 1 :])
    assert not [name for name in early if f"${{{name}" in later]


def test_no_image_or_package_is_whatever_is_newest(steps):
    values = arguments(steps)
    base = values["BASE"].replace("${PYTHON}", values["PYTHON"])
    assert re.fullmatch(r"python:3\.1\d-slim-\w+", base)
    assert "latest" not in FILE.read_text(encoding="utf-8")
    assert re.search(r"tensorrt\S*>=11,<12", values["TENSORRT"]) and re.search(
        r"==\d", values["CUDA_BINDINGS"]
    )
    (install,) = [rest for rest in rests(steps, "RUN") if "pip install" in rest]
    packages = [
        word
        for word in shlex.split(install.split("&&")[0].split("pip install")[1])
        if not word.startswith("--")
    ]
    assert [word for word in packages if not re.search(r"[=<>]=?\d|\$\{|^/src\[", word)] == []


def test_tensorrt_10_and_the_vendors_image_are_documented_builds():
    for page in (FILE, ROOT / "examples" / "README.md"):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ").replace("#", "")
        assert re.search(
            r"\sTENSORRT='tensorrt-cu12>=10\.3,<11'\s+--build-arg\s+CUDA_BINDINGS='cuda-bindings==12\.", text
        )
        assert re.search(
            r"--build-arg\s+BASE=nvcr\.io/nvidia/tensorrt:\d\d\.\d\d-py3\s+--build-arg\s+TENSORRT=\s", text
        )
        known = set(re.findall(r"--build-arg\s+(\w+)=", text))
        assert known <= {"BASE", "TENSORRT", "CUDA_BINDINGS", "EXTRAS", "PYTHON"}


def test_the_extras_exist_and_none_of_them_compiles(steps, project):
    extras = project["project"]["optional-dependencies"]
    chosen = arguments(steps)["EXTRAS"].split(",")
    assert set(chosen) <= set(extras)
    assert not [
        line for name in chosen for line in extras[name] if "pycuda" in line
    ]  # a slim image has no compiler
    minimum = project["project"]["requires-python"].removeprefix(">=").split(".")
    assert tuple(map(int, arguments(steps)["PYTHON"].split("."))) >= tuple(map(int, minimum))


def test_every_package_folder_is_copied_and_nothing_else_reaches_the_image(steps, project):
    copied = {word for rest in rests(steps, "COPY") for word in rest.split()[:-1]}
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    metadata = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == packages | metadata
    assert all((ROOT / name).exists() for name in copied)
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*" and {line[1:] for line in lines if line.startswith("!")} == copied


def test_it_runs_the_command_as_a_user_without_rights(steps, project):
    (user,), (entry,) = rests(steps, "USER"), rests(steps, "ENTRYPOINT")
    assert user.isdigit() and int(user) > 0
    created = "\n".join(rests(steps, "RUN"))
    assert f"useradd --uid {user} " in created
    assert entry == '["distill"]' and "distill" in project["project"]["scripts"]
    after = [word for word, _ in steps][[word for word, _ in steps].index("USER") :]
    assert "RUN" not in after and "COPY" not in after


def test_no_cache_stays_in_the_image(steps):
    for rest in rests(steps, "RUN"):
        assert "pip install" not in rest or "--no-cache-dir" in rest
        assert "apt-get" not in rest or "rm -rf /var/lib/apt/lists" in rest
