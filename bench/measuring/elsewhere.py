"""An artifact in a new process, of this interpreter or of another environment's.

In:  a `Setup`; the interpreter, such as OTHER_VENV/bin/python.
Out: a contestant (bench.comparing.race) that also tells its memory, its first answer and its answers to
images.
Elsewhere: what that process does (bench.measuring.worker).

Another environment needs numpy, Pillow, rich and an engine, but not this project: the same code measures on
both sides, from copies of `bench` and `runtime` that are put where it looks for modules.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from runtime import errors, files
from runtime.cli import child
from runtime.errors import MissingError

from ..accuracy import Answers
from ..subject import Description
from .setup import Setup

PATIENCE = 10.0
"""Seconds that a process has to end by itself."""
PACKAGES = Path(__file__).resolve().parents[2]
"""The folder that holds bench and runtime."""


@dataclass(frozen=True)
class Memory:
    """Resident memory of a new process, bytes; interpreter and libraries included."""

    before: int | None
    """With nothing opened."""
    now: int | None
    peak: int | None


class Elsewhere:
    """A contestant in a process of its own. Used by one thread."""

    def __init__(
        self, process: subprocess.Popen[str], began_ns: int, python: str, log: IO[str], setup: Setup
    ) -> None:
        """began_ns: of the monotonic clock, before the process was started."""
        self._process, self._python, self._log, self._setup = process, python, log, setup
        about = self._ask(setup.to_dict(), "ready")["ready"]
        self.description = Description(**about["description"])
        self.fed: str = about["fed"]
        self.cold_ms = (about["first_answer_ns"] - began_ns) / 1e6
        """From the start of the process to its first answer."""

    def turn(self, calls: int, settle: int) -> np.ndarray:
        """Durations (calls,) int64 ns, after `settle` untimed calls. Raises what was raised there."""
        return np.array(self._ask({"turn": [calls, settle]}, "ns")["ns"], np.int64)

    def answers(self, data: str, split: str, limit: int | None) -> Answers:
        """What it says to labeled images."""
        return Answers.from_dict(
            self._ask({"answers": {"data": data, "split": split, "limit": limit}}, "classes")
        )

    def memory(self) -> Memory:
        """Of the process until now."""
        return Memory(**self._ask({"memory": True}, "peak"))

    def _ask(self, request: dict[str, Any], wanted: str) -> dict[str, Any]:
        """The answer, which has the key `wanted`."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(files.json_text(request) + "\n")
            self._process.stdin.flush()
        except OSError:  # it has ended; what it said last tells why
            pass
        line = self._process.stdout.readline()
        found = _object(line)
        if "error" not in found and wanted not in found:
            raise MissingError(self._said(line) if line else self._ended())
        if "error" in found:
            kind, text = found["error"]
            raise getattr(errors, kind, MissingError)(f"in {self._python}: {text}")
        return found

    def _said(self, line: str) -> str:
        self._process.kill()
        return (
            f"{self._python} printed {files.short(line.strip())!r} where the answer of a measurement was"
            " expected. Let nothing be printed when it starts, such as by a sitecustomize.py"
        )

    def _ended(self) -> str:
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:  # it has closed its output, and goes on
            self._process.kill()
            code = self._process.wait()
        self._log.seek(0)
        said = [line for line in self._log.read().splitlines() if line.strip()]
        return (
            f"{self._python} ended with code {code} while it measured {self._setup.path.name}"
            f" ({said[-1][:200] if said else 'without a word'}). It needs numpy, Pillow, rich and an engine:"
            ' pip install "large2small[cpu]"'
        )


@contextmanager
def elsewhere(setup: Setup, python: Path | None = None) -> Iterator[Elsewhere]:
    """The artifact in a new process of this interpreter or of `python`, until the block ends.

    Raises MissingError where that cannot run, or lacks a package.
    """
    interpreter = str(python or sys.executable)
    with (
        files.scratch_folder() as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
    ):
        places = PACKAGES if python is None else copied(folder)
        began = time.monotonic_ns()
        process = _start(interpreter, places, log)
        try:
            yield Elsewhere(process, began, interpreter, log, setup)
        finally:
            _end(process)


def _object(line: str) -> dict[str, Any]:
    """The JSON object that a line is; empty where it is not one."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def copied(folder: Path) -> Path:
    """The folder with bench and runtime in it, and nothing else of where they are installed."""
    for name in ("bench", "runtime"):
        shutil.copytree(PACKAGES / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _start(interpreter: str, places: Path, log: IO[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            [interpreter, *child.words("bench.measuring.worker")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child.environment([str(places)]),
            text=True,
        )
    except OSError as error:
        raise MissingError(
            f"--python {interpreter}: cannot be started ({error.strerror}). Expected the interpreter of an"
            " environment, such as other/bin/python"
        ) from None


def _end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe:
                pipe.close()
        except OSError:  # what was not sent any more
            continue
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
