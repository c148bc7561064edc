"""The fuzzer finds what it is there to find: hangs, crashes, exceptions, wrong answers of sealed files."""

from __future__ import annotations

import random
from types import SimpleNamespace

import fuzzer
import pytest

READER = """
import json, sys, time
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    content = open(line.strip(), "rb").read()
    if content == b"good":
        print(json.dumps("same"), flush=True)
    elif content[:1] == b"h":
        time.sleep(60)
    elif content[:1] == b"c":
        sys.exit(3)
    else:
        print(json.dumps(content.decode()), flush=True)
"""
"""A reader that does what a file says."""


@pytest.fixture
def ends(tmp_path, monkeypatch):
    """ends(contents, target) -> how often a reader ended in each way, and what was kept."""
    (tmp_path / "reader.py").write_text(READER)
    monkeypatch.setattr(fuzzer, "READER", tmp_path / "reader.py")
    monkeypatch.setattr(fuzzer, "SECONDS", 0.3)
    (tmp_path / "good.txt").write_bytes(b"good")

    def run(*contents: bytes, target: str = "list"):
        waiting, found = list(contents), tmp_path / "found"
        clock = iter([0.0] * (len(contents) + 1) + [10.0])
        monkeypatch.setattr(fuzzer, "mutated", lambda *_: waiting.pop(0))
        monkeypatch.setattr(fuzzer, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        counted = fuzzer.fuzz(target, tmp_path / "good.txt", 5.0, 0, found)
        kept = [each.read_bytes() for each in sorted(found.iterdir())] if found.exists() else []
        return dict(counted), kept

    return run


def test_a_hang_and_a_crash_are_kept_and_the_next_file_is_read(ends):
    assert ends(b"hang", b"good", b"crash", b"good") == ({"fault": 2, "same": 2}, [b"hang", b"crash"])


def test_an_exception_is_a_fault_and_a_refusal_is_none(ends):
    assert ends(b"KeyError: 1", b"refused") == ({"fault": 1, "refused": 1}, [b"KeyError: 1"])


@pytest.mark.parametrize(("target", "name"), [("checkpoint", "fault"), ("png", "other")])
def test_another_answer_is_a_fault_where_a_hash_covers_the_file(ends, target, name):
    assert ends(b"other", target=target)[0] == {name: 1}


def test_files_are_the_same_for_a_seed_and_differ():
    made = [fuzzer.mutated(bytes(100), random.Random(seed)) for seed in range(50)]
    assert made == [fuzzer.mutated(bytes(100), random.Random(seed)) for seed in range(50)]
    assert len(set(made)) > 25
