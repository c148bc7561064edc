"""Files are written whole or not at all: crashes, full disks, folders that cannot be written."""

import ctypes
import errno
import hashlib
import json
import math
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from runtime import ArtifactError, MissingError, UsageError, files

WRITE_AND_DIE = """
import os, signal, sys
from runtime import files
with files.replacing(sys.argv[1]) as temporary:
    temporary.write(b"new" * 1000)
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
        temporary.write(b"new")
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
    with (
        pytest.raises(MissingError, match="no space left"),
        files.replacing(tmp_path / "a.bin"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
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


def test_a_link_of_the_temporary_name_is_not_written_through(tmp_path, monkeypatch):
    (tmp_path / "victim").write_bytes(b"precious")
    names = iter([".a.tmp-1-000000000000", ".a.tmp-1-000000000001"])
    monkeypatch.setattr(files, "temporary_beside", lambda path: path.with_name(next(names)))
    (tmp_path / ".a.tmp-1-000000000000").symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match="cannot be written"):
        files.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "a").exists()


def test_temporary_names_cannot_be_foreseen_and_are_never_too_long(tmp_path):
    assert files.temporary_beside(tmp_path / "a") != files.temporary_beside(tmp_path / "a")
    name = "é" * 127 + "x"  # 255 bytes
    files.write_bytes(tmp_path / name, b"long")
    assert os.listdir(tmp_path) == [name]


def test_two_threads_write_one_file(tmp_path):
    failures = []

    def write(content):
        for _ in range(60):
            try:
                files.write_bytes(tmp_path / "a", content)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(letter * 999,)) for letter in (b"a", b"b")]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failures == []
    assert (tmp_path / "a").read_bytes() in (b"a" * 999, b"b" * 999)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="modes and links")
def test_a_mode_stays_and_ones_own_link_is_followed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o600)
    (tmp_path / "link").symlink_to("a")
    files.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="users")
def test_a_link_of_somebody_else_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("victim")
    monkeypatch.setattr(files, "_user", lambda: os.geteuid() + 1)
    files.write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="devices")
def test_a_device_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("replaced"))
    for write in (files.require_writable, lambda path: files.write_bytes(path, b"")):
        with pytest.raises(UsageError, match="not a regular file"):
            write("/dev/null")


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_leftovers_of_living_processes_links_and_other_names_stay(tmp_path):
    kept = [".b.tmp-dir", ".tmp-1", "a.tmp-1-0123456789ab"]
    for name in (*kept, ".a.tmp-1", ".a.tmp-99-0123456789ab"):
        (tmp_path / name).mkdir() if name.endswith("dir") else (tmp_path / name).touch()
    (tmp_path / ".a.tmp-7-0123456789ab").mkdir()
    (tmp_path / ".c.tmp-1").symlink_to("a.tmp-1-0123456789ab")
    with files.replacing(tmp_path / "d") as living:
        living.write(b"x")
        found = {path.name for path in files.remove_leftovers(tmp_path)}
        assert found == {".a.tmp-1", ".a.tmp-99-0123456789ab", ".a.tmp-7-0123456789ab"}
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, ".c.tmp-1", "d"])


@pytest.fixture
def windows(monkeypatch):
    """Windows as far as leftovers go: no locks, no folder that can be opened, nothing open that can be
    deleted; the process 99 has ended.
    """
    real_open, real_close, real_unlink, held = os.open, os.close, Path.unlink, {}

    def opened(path, *args, **named):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        handle = real_open(path, *args, **named)
        held[handle] = os.fspath(path)
        return handle

    def closed(handle):
        held.pop(handle, None)
        real_close(handle)

    def unlinked(path, *args, **named):
        if os.fspath(path) in held.values():
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))
        real_unlink(path, *args, **named)

    monkeypatch.setattr(files, "fcntl", None)
    monkeypatch.setattr(files, "_lives", lambda process: process != 99)
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "close", closed)
    monkeypatch.setattr(Path, "unlink", unlinked)
    monkeypatch.setattr("shutil.rmtree", lambda folder: os.rmdir(folder))  # the real one opens folders here
    return opened


def test_windows_removes_leftovers_of_processes_that_have_ended(tmp_path, windows):
    for number in (7, 99):
        (tmp_path / f".a.tmp-{number}-0123456789ab").touch()
        (tmp_path / f".b.tmp-{number}-0123456789ab").mkdir()
    (tmp_path / ".c.tmp-99-0123456789ab").symlink_to(".a.tmp-7-0123456789ab")
    (tmp_path / ".d.tmp-99-0123456789ab").touch()
    windows(tmp_path / ".d.tmp-99-0123456789ab", os.O_RDONLY)
    found = files.remove_leftovers(tmp_path)
    assert [path.name for path in found] == [".a.tmp-99-0123456789ab", ".b.tmp-99-0123456789ab"]
    assert sorted(os.listdir(tmp_path)) == [
        ".a.tmp-7-0123456789ab",
        ".b.tmp-7-0123456789ab",
        ".c.tmp-99-0123456789ab",
        ".d.tmp-99-0123456789ab",
    ]


@pytest.mark.parametrize(("handle", "error", "lives"), [(None, 87, False), (None, 5, True), (8, 0, True)])
def test_windows_is_asked_for_a_process_with_the_least_right(monkeypatch, handle, error, lives):
    """87: there is no such process; 5: it is another user's."""
    asked, closed = [], []

    class Kernel:
        class OpenProcess:
            def __new__(cls, *words):
                asked.append(words)
                return handle

        class CloseHandle:
            def __new__(cls, given):
                closed.append(given.value)

    monkeypatch.setattr(ctypes, "WinDLL", lambda name, use_last_error: Kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    assert files._lives(99) is lives
    assert asked == [(0x1000, False, 99)] and closed == ([8] if handle else [])


def test_a_disk_without_modes_leaves_no_file_and_no_handle(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"old")
    opened, real_fdopen = [], os.fdopen

    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def kept(*args):
        opened.append(real_fdopen(*args))
        return opened[-1]

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "supports_fd", {refuse})
    monkeypatch.setattr(os, "fdopen", kept)
    for write in (files.require_writable, lambda path: files.write_bytes(path, b"new")):
        with pytest.raises(UsageError, match="cannot be written"):
            write(tmp_path / "a")
    assert [file.closed for file in opened] == [True, True]
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="folders that can be opened")
def test_a_folder_that_cannot_be_held_is_not_left_behind(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many"), files.temporary_folder(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_names_no_flag_that_the_command_may_lack(tmp_path):
    (tmp_path / "a").mkdir()
    for call in (files.require_writable, lambda path: files.refuse_existing(path, False)):
        with pytest.raises(UsageError, match="hoose another name") as found:
            call(tmp_path / "a")
        assert "--output" not in str(found.value)
    full = files.explained(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "a")
    assert isinstance(full, MissingError) and "--output" not in str(full)


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_a_write_removes_what_a_killed_one_of_the_same_file_left(tmp_path):
    (tmp_path / ".a.tmp-99-0123456789ab").touch()
    (tmp_path / ".b.tmp-99-0123456789ab").touch()
    files.write_bytes(tmp_path / "a", b"new")
    assert sorted(os.listdir(tmp_path)) == [".b.tmp-99-0123456789ab", "a"]


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_a_scratch_folder_is_private_and_clears_what_was_left(tmp_path):
    (tmp_path / ".large2small.tmp-99-0123456789ab").mkdir()
    with files.scratch_folder(tmp_path) as one, files.scratch_folder(tmp_path) as two:
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
        assert sorted(os.listdir(tmp_path)) == sorted([one.name, two.name])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    files.put_in_place(tmp_path / "new", tmp_path / "old")
    assert os.listdir(tmp_path / "old") == ["new"] and os.listdir(tmp_path / "new") == ["old"]
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_a_folder_is_held_by_one_process_while_it_lives(tmp_path):
    run = tmp_path / "runs" / "a"
    with files.only_one(run, "is training"):
        for _ in range(2):  # the refused one takes nothing away
            with (
                pytest.raises(UsageError, match="another process is training there"),
                files.only_one(run, "is training"),
            ):
                pass
            assert os.listdir(run) == []
        files.write_text(run / "x", "kept")
    assert os.listdir(run) == ["x"]
    with files.only_one(run / "b" / "c", "is training"):
        pass
    assert os.listdir(run) == ["x"]


@pytest.mark.skipif(os.name == "nt", reason="flock")
@pytest.mark.parametrize("again", [False, True])
def test_nothing_is_written_into_a_folder_that_was_removed(tmp_path, again):
    run, said = tmp_path / "run", r"was removed or renamed meanwhile, so last\.pth is not written"
    with files.only_one(run, "is training"), pytest.raises(UsageError, match=said):
        files.write_text(run / "last.pth", "1")
        files.write_text(tmp_path / "elsewhere", "1")
        shutil.rmtree(run)
        if again:
            run.mkdir()
        files.write_text(run / "last.pth", "2")
    assert os.listdir(tmp_path) == ["elsewhere"]


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices")
def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "zero", "loop", ".", "n" * 300, "a\0b"):
        with pytest.raises(UsageError):
            files.read_small(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        files.read_small(tmp_path / "gone")
    (tmp_path / "large").write_bytes(b"12345")
    assert files.read_small(tmp_path / "large", 5) == b"12345"
    with pytest.raises(ArtifactError, match="larger than 4 bytes"):
        files.read_small(tmp_path / "large", 4)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ArtifactError, match="not text in UTF-8"):
        files.read_text(tmp_path / "latin")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[" * 66 + "]" * 66,
        '{"a": 1e999}',
        '{"a": 9223372036854775808}',
        b"\xff",
        "9" * 5000,
    ],
)
def test_json_that_no_file_of_ours_has_is_refused(text):
    with pytest.raises(ArtifactError, match=r"x\.json: "):
        files.from_json(text, "x.json")


def test_the_place_of_a_number_that_is_too_large_is_named():
    with pytest.raises(ArtifactError, match=r"x: a\.b\.1 is a number that is too large \(inf\)"):
        files.from_json('{"a": {"b": [0, 1e999]}}', "x")


def test_json_is_read_as_it_was_written():
    value = {"a": [1.5, -(2**63), 2**63 - 1, None, True, "é"], "b": {}}
    assert files.from_json(files.json_text(value), "x") == value
    assert files.from_json('{"a": NaN, "b": [-Infinity]}', "x") == {"a": None, "b": [None]}
