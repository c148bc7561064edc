"""Files are written whole or not at all: crashes, full disks, folders that cannot be written."""

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime import MissingError, UsageError, files

WRITE_AND_DIE = """
import os, signal, sys
from runtime import files
with files.replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"new" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_written_file_has_its_content_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    files.write_text(path, "Größe\n")
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(path)])
    assert done.returncode == -9
    assert path.read_bytes() == b"old"
    leftovers = files.remove_leftovers(tmp_path)
    assert len(leftovers) == 1
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_error_in_the_middle_leaves_the_old_file_and_no_leftover(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        raise ZeroDivisionError
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["a.bin"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path, monkeypatch, code):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MissingError, match=r"a\.bin: no space left") as found:
        files.write_bytes(path, b"new")
    assert found.value.exit_code == 3
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["a.bin"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
def test_a_really_full_device_is_said_too(tmp_path):
    with pytest.raises(MissingError, match="no space left"), files.replacing(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"")
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_a_file_is_a_usage_error(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be written"):
        files.write_bytes(tmp_path / "a" / "b.txt", b"")


def test_a_target_that_is_a_folder_is_a_usage_error(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be written"):
        files.write_bytes(tmp_path / "a", b"")
    assert os.listdir(tmp_path) == ["a"]


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: order.append(name) or real(*args))
    files.write_bytes(tmp_path / "a.bin", b"new")
    assert order == ["fsync", "replace", "fsync"] or os.name == "nt"


def test_sha256_of_a_file_larger_than_a_block(tmp_path):
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "a.bin").write_bytes(content)
    assert files.sha256(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()


def test_an_existing_file_is_refused_unless_overwrite(tmp_path):
    path = tmp_path / "a.bin"
    files.refuse_existing(path, overwrite=False)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="--overwrite"):
        files.refuse_existing(path, overwrite=False)
    files.refuse_existing(path, overwrite=True)


def strict(text):
    """The value as a reader takes it that knows JSON alone."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def test_json_has_null_where_a_number_is_not_finite_at_any_depth():
    value = {"a": [1.5, math.nan, (math.inf, {"b": -math.inf, "c": np.float64("nan")})], "d": float("1e999")}
    assert strict(files.json_text(value)) == {"a": [1.5, None, [None, {"b": None, "c": None}]], "d": None}
    with pytest.raises(ValueError, match="NaN"):
        strict(json.dumps(value))  # the reader does refuse


def test_json_of_anything_else_is_what_python_writes():
    value = {"z": [0.1, -0.0, 1e308, 2**70, True, None, "é\n"], "a": {}, "m": (1, [])}
    assert files.json_text(value) == json.dumps(value)
    assert files.json_text(value, indent=2, sort_keys=True) == json.dumps(value, indent=2, sort_keys=True)


def test_what_is_there_instead_of_a_file_is_said(tmp_path):
    run, empty = tmp_path / "run", tmp_path / "empty"
    for folder in (run, empty):
        folder.mkdir()
    (run / "best.pth").write_bytes(b"PK")
    said = {
        (call.__name__, path.name): str(call(path)).removeprefix(f"{path}: ")
        for call in (files.no_checkpoint, files.no_artifact)
        for path in (run, empty, tmp_path / "gone", Path(os.devnull))
    }
    assert said["no_checkpoint", "gone"] == "no such checkpoint"
    assert said["no_artifact", "gone"] == "no such file"
    assert said["no_checkpoint", "empty"].startswith("is a folder without a best.pth. Expected a checkpoint")
    assert said["no_artifact", "empty"] == "is a folder. Expected an .onnx or .plan file"
    assert said["no_artifact", "run"].startswith("is the folder of a run. Export its network: distill export")
    assert said["no_artifact", "null"] == said["no_checkpoint", "null"] == "is not a regular file"
