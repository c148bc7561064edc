"""requirements.lock: the tested versions of [cpu], each with a hash."""

from __future__ import annotations

import re

import pytest
from locked import ROOT, lines
from lowest_versions import REQUIREMENT, tomllib

LINE = re.compile(r"([\w.-]+)==([\w.]+) --hash=sha256:[0-9a-f]{64}")


def normal(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


@pytest.fixture
def locked():
    """Name -> version."""
    text = (ROOT / "requirements.lock").read_text()
    found = [LINE.fullmatch(line) for line in text.splitlines() if not line.startswith("#")]
    assert all(found), "a line without a version and a hash"
    return {normal(match[1]): match[2] for match in found}


def test_it_names_every_dependency_at_a_version_that_is_allowed(locked):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    assert len(wanted) >= 4
    for each in wanted:
        bound = REQUIREMENT.fullmatch(each)
        assert numbers(locked[normal(bound["name"])]) >= numbers(bound["version"]), each


def test_a_report_of_pip_becomes_a_line_for_each_package_but_this_one():
    def package(name, **about):
        return {"metadata": {"name": name, "version": "1.2"}, "download_info": about}

    hashes = {"hash": "sha256=ab", "hashes": {"sha256": "ab"}}
    found = [package("Zeta", archive_info=hashes), package("alpha", archive_info=hashes)]
    found.append(package("large2small", dir_info={}))
    assert lines({"install": found}) == ["alpha==1.2 --hash=sha256:ab", "Zeta==1.2 --hash=sha256:ab"]
