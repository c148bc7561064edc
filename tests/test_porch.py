"""What meets a newcomer beside the documentation: make targets, the commit hook, citation, classifiers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

ROOT = Path(__file__).parents[1]


def make(*words: str) -> str:
    # as typed in a shell, also where these tests were started by make, which speaks to makes below it
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *words], cwd=ROOT, check=True, capture_output=True, text=True, env=mine
    ).stdout  # -n prints what would run


def test_make_help_has_a_line_for_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE).group(1).split())
    shown = set(re.findall(r"^make ([a-z-]+) ", make("help"), flags=re.MULTILINE))
    assert shown == targets and {"test", "quick", "lint", "demo"} <= targets


def test_make_test_with_a_path_runs_that_path_without_the_lint():
    alone, everything = make("-n", "test", "T=tests/test_porch.py"), make("-n", "test")
    assert "pytest" in alone and alone.rstrip().endswith("tests/test_porch.py") and "ruff" not in alone
    assert "pytest" in everything and "ruff check" in everything
    assert "-m 'not slow'" in make("-n", "quick") and "ruff" not in make("-n", "quick")


@pytest.mark.parametrize(
    ("subject", "code"),
    [
        ("x" * 72, 0),
        ("x" * 73, 1),
        ("é" * 72, 0),
        ("# a comment of git that is longer than seventy-two characters, and no subject\nshort", 0),
        ("short\n\n" + "a long line in the body is the author's business " * 3, 0),
    ],
)
def test_the_hook_refuses_a_subject_of_more_than_72_characters(tmp_path, subject, code):
    (tmp_path / "message").write_text(subject + "\n", encoding="utf-8")
    done = subprocess.run([ROOT / ".githooks" / "commit-msg", tmp_path / "message"], capture_output=True)
    assert done.returncode == code
    assert (b"73 characters" in done.stderr) == bool(code)


def test_pre_commit_runs_only_what_make_setup_installs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [repo["repo"] for repo in config["repos"]] == ["local"] and len(hooks) >= 3
    for hook in hooks:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system"
        assert program.startswith(".venv/bin/") or os.access(ROOT / program, os.X_OK), program


@pytest.mark.skipif(tomllib is None, reason="tomllib is in Python 3.11 and later")
def test_version_and_license_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "2305.19412" in citation["references"][0]["url"] + project["urls"]["Paper"]
