"""Commands in processes of their own: what fails there, or takes all memory, does not end the search.

In:  the words of a command; a file for what it says; the time it may take.
Out: `Finished`: its exit code, the JSON object it printed, why it failed.
Elsewhere: the other process (large2small.searching.worker).
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import ArtifactError, errors, files
from runtime.cli import child

PATIENCE = 60.0
"""Seconds that a process has to save and end by itself."""
LAST = 2**14
"""Bytes at the end of what a process said, in which the reason of its failure is looked for."""
FAILURES: Mapping[int, type[errors.Large2SmallError]] = {
    kind.exit_code: kind
    for kind in (errors.GateError, errors.UsageError, errors.MissingError, errors.ArtifactError)
}


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int | None
    """Its exit code, negative for a signal that killed it; None where its time was up."""
    printed: Mapping[str, Any]
    """The JSON object on its stdout; empty where it printed none."""
    reason: str
    """Why it failed, in one line; empty where it did not."""
    seconds: float

    def raise_failure(self, what: str) -> None:
        """Raise what the command raised, where it failed."""
        if self.code != 0:
            raise FAILURES.get(self.code or 0, errors.MissingError)(f"{what}: {self.reason}")


def run(words: Sequence[str], log: Path, seconds: float = math.inf) -> Finished:
    """Run a command, which has ended when this returns or raises. log: what it prints on stderr is added to
    it.

    Raises KeyboardInterrupt where it is interrupted, and ends the command then.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with files.scratch_folder() as folder, open(log, "ab") as said, open(folder / "stdout", "w+b") as out:
        said.write(f"$ distill {' '.join(words)}\n".encode(errors="backslashreplace"))
        said.flush()
        start = said.tell()
        code = _code(words, out, said, seconds)
        out.seek(0)
        printed = _object(out.read())
    reason = "" if code == 0 else _reason(code, log, start)
    return Finished(code, printed, reason, time.monotonic() - began)


def _code(words: Sequence[str], out: Any, said: Any, seconds: float) -> int | None:
    command = [sys.executable, *child.words("large2small.searching.worker"), str(os.getpid()), *words]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=said,
        env=child.environment(filter(None, sys.path)),
    )
    try:
        code = process.wait(None if math.isinf(seconds) else max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)
    if code in (128 + signal.SIGINT, -signal.SIGINT):  # Ctrl-C reaches all processes of a terminal
        raise KeyboardInterrupt
    return code


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()  # a training saves first
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _object(printed: bytes) -> Mapping[str, Any]:
    """The JSON object that was printed, if it is one."""
    try:
        found = files.from_json(printed, "the output")
    except ArtifactError:
        return {}
    return found if isinstance(found, dict) else {}


def _reason(code: int | None, log: Path, start: int) -> str:
    """The line that says why, or what can be said without one."""
    if code is None:
        return "its time was up"
    with open(log, "rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - LAST))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors_ = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors_:
        return files.short(errors_[-1])
    if code == -signal.SIGKILL:
        return "it was killed, mostly because memory ran out"
    how = f"by signal {-code}" if code < 0 else f"with code {code}"
    return f"it ended {how} ({files.short(lines[-1]) if lines else 'without a word'})"
