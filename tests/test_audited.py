"""While files from strangers are read, no process is started, nothing is connected to, and nothing outside of
their folder is opened: an audit hook of Python looks, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AUDITED = Path(__file__).parent / "helpers" / "audited.py"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What tests/helpers/audited.py saw."""
    folder = tmp_path_factory.mktemp("audited")
    done = subprocess.run([sys.executable, AUDITED], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


pytestmark = pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")


def test_hostile_files_start_nothing_and_open_nothing_elsewhere(seen):
    assert len(seen["ends"]) >= 60
    assert seen["refused"] == []
    assert "PWNED" not in seen["left"]


def test_hostile_files_are_refused_in_one_line_or_read_as_data(seen):
    ends = [(name, end) for name, each in seen["ends"].items() for end in each]
    assert [each for each in ends if each[1].startswith(("CRASH", "exit 70"))] == []


def test_the_hook_sees_what_it_has_to_see(seen):
    assert seen["controls"] == 3
