"""SECURITY.md names tests beside each promise: they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMISES = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| **")]


def names_in(path: Path) -> set[str]:
    """Names of the test functions in a file."""
    return {each.name for each in ast.parse(path.read_text()).body if isinstance(each, ast.FunctionDef)}


def test_each_promise_names_tests_that_exist():
    assert len(PROMISES) > 10
    for line in PROMISES:
        named = re.findall(r"\[`(test_\w+)`\]\((tests/[\w/]+\.py)\)", line.rsplit(" | ", 1)[1])
        assert named, line
        assert [(name, file) for name, file in named if name not in names_in(ROOT / file)] == []


def test_every_link_beside_a_promise_is_one_to_a_test():
    """None is spelled so that the check above overlooks it."""
    for line in PROMISES:
        tests = line.rsplit(" | ", 1)[1].removesuffix(" |").split("<br>")
        assert all(re.fullmatch(r"\[`test_\w+`\]\(tests/[\w/]+\.py\)", each) for each in tests), line
