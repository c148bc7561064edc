"""Build a plan in a process of its own: a crash or a lack of memory inside TensorRT becomes one line, and
Ctrl-C ends it cleanly.

In:  an ONNX file, `Settings`, where the timing cache is.
Out: `Finished`: the plan, what was built where, the layers' summary; on stderr the builder's progress.
Elsewhere: the child (export.trt.worker), the TensorRT calls (export.trt.build).
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from runtime import errors, files
from runtime.cli import child
from runtime.cli.terminal import console, hidden, is_live, loading
from runtime.errors import MissingError

from .build import Settings

PATIENCE_S = 30.0
"""Seconds a canceled builder is given to stop by itself."""

KEPT_LINES = 5
"""Last lines of a crashed builder's stderr that are shown."""


@dataclass(frozen=True)
class Finished:
    """A plan and what is known about it."""

    plan: bytes
    about: dict[str, Any]
    """version, gpu, compute_capability, driver, cuda, inputs, outputs, layers, warnings, seconds,
    timing_cache, peak_mib."""


def build(onnx: Path, settings: Settings, timing_cache: str = "none") -> Finished:
    """Build `onnx` and wait. timing_cache: a folder, "" for the default one, "none" to keep nothing.

    Raises what the child raised (ArtifactError, MissingError, UsageError), MissingError when it was killed or
    crashed, KeyboardInterrupt when the user stopped it.
    """
    with files.scratch_folder() as folder:
        target = folder / "plan"
        task = {
            "onnx": str(onnx),
            "target": str(target),
            "settings": asdict(settings),
            "timing_cache": timing_cache,
        }
        with open(folder / "stderr", "w+b") as noise, _child(noise) as process, _display() as display:
            about = _follow(process, task, display, noise)
        return Finished(target.read_bytes(), about)


@contextlib.contextmanager
def _child(noise: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    where = child.environment(filter(None, sys.path))
    command = [sys.executable, *child.words("export.trt.worker")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True, env=where
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _follow(
    process: subprocess.Popen[str], task: dict[str, Any], display: Any, noise: IO[bytes]
) -> dict[str, Any]:
    """Pass events on until the child says it is done; returns its last word."""
    assert process.stdin is not None and process.stdout is not None
    try:
        _say(process.stdin, task)
        for line in process.stdout:
            event, *values = json.loads(line)
            if event == "done":
                return values[0]
            if event == "error":
                raise getattr(errors, values[0])(values[1])
            getattr(display, event)(*values)
    except KeyboardInterrupt:
        _stop(process)
        raise
    process.wait()
    noise.seek(0)
    lines = [line.strip() for line in noise.read().decode(errors="replace").splitlines() if line.strip()]
    said = " | ".join(lines[-KEPT_LINES:]) or "it said nothing"
    raise MissingError(
        f"the builder {_how_it_ended(process.returncode)} before it was done ({said}). "
        "Give a smaller --workspace, --opt-level or batch, or look at the driver"
    )


def _say(stream: IO[str], value: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # a child that is gone is noticed by what it did not say
        stream.write(files.json_text(value) + "\n")
        stream.flush()


def _stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    _say(process.stdin, "stop")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_S)


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed, as happens when memory runs out,"
    return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"


class _Plain:
    """No terminal: nothing is shown."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        return

    def step(self, phase: str, step: int) -> None:
        return

    def finish(self, phase: str) -> None:
        return


class _Bars(_Plain):
    """One bar for each phase that is going on, indented below the phase it belongs to."""

    def __init__(self, bars: Any) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}
        self.depth: dict[str | None, int] = {}

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self.finish(phase)  # names come again
        self.depth[phase] = self.depth.get(parent, -1) + 1
        self.tasks[phase] = self.bars.add_task("  " * self.depth[phase] + phase, total=steps)

    def step(self, phase: str, step: int) -> None:
        if phase in self.tasks:
            self.bars.update(self.tasks[phase], completed=step + 1)

    def finish(self, phase: str) -> None:
        if phase in self.tasks:
            self.bars.remove_task(self.tasks.pop(phase))


@contextlib.contextmanager
def _display() -> Iterator[_Plain]:
    if not is_live(sys.stderr):
        with loading("building the plan"):
            yield _Plain()
        return
    screen = console()
    with (
        hidden(),
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=screen,
            transient=True,
        ) as bars,
    ):
        yield _Bars(bars)
