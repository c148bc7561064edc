"""From what a command raises to one line on stderr and an exit code.

In:  a function that runs a command.
Out: the exit code; on failure one line on stderr, and with --json the same as an object on stdout. Or the
failure as an error of this project (`as_ours`), for who calls a command from Python.
Elsewhere: the errors and their codes (runtime.errors).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from .. import files
from ..errors import Large2SmallError, MissingError, UsageError
from . import terminal

STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end a command; Ctrl-C does so anyway."""
INTERNAL_ERROR = 70
"""Exit code of a bug of ours."""


def run(command: Callable[[], int | None], as_json: bool = False) -> int:
    """Run a command; every failure becomes one line on stderr (with as_json also an object on stdout) and an
    exit code.
    """
    try:
        with _stoppable():
            return _printed(command)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, _Stopped) else signal.SIGINT
        said = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        return _report(said, 128 + number, as_json)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_stdout_closed():  # `distill ... | head`
            _print_nowhere()
            return 0
        _drop_what_cannot_be_printed()
        ours = as_ours(error)
        return _report(str(ours), ours.exit_code, as_json) if ours else _internal(error, as_json)


def _printed(command: Callable[[], int | None]) -> int:
    """The command's exit code, once what it printed is where it belongs: a full disk or a reader that has
    gone would otherwise be noticed when the interpreter ends.
    """
    try:
        code = command() or 0
    except SystemExit as stop:  # --help of a command
        code = int(stop.code or 0)
    sys.stdout.flush()
    return code


def _drop_what_cannot_be_printed() -> None:
    """What stdout still holds and cannot be written, so that nobody stumbles over it again."""
    try:
        sys.stdout.flush()
    except OSError:
        _print_nowhere()


def _print_nowhere() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Stopped(KeyboardInterrupt):
    """A signal that ends a command as Ctrl-C does: what it started is ended, temporary files go."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise meanwhile, where nobody listens to them or ignores them; once, so that a
    second one does not stop the tidying.
    """
    owner = os.getpid()
    before: dict[int, Any] = {}

    def stop(number: int, _: Any) -> None:
        if os.getpid() != owner:  # a process that was forked meanwhile
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped(number)

    try:
        for each in STOPS:
            if signal.getsignal(each) == signal.SIG_DFL:
                before[each] = signal.signal(each, stop)
    except ValueError:  # not in the main thread: signals are someone else's
        pass
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _is_stdout_closed() -> bool:
    """Does nobody read stdout any more? Then the pipe that broke is taken for this one."""
    try:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)
        return any(
            event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in watched.poll(0)
        )
    except (OSError, ValueError, AttributeError):  # no file, or Windows
        return True


def as_ours(error: Exception) -> Large2SmallError | None:
    """The failure as one of runtime.errors, whoever raised it; None for a bug of ours."""
    if isinstance(error, Large2SmallError):
        return error
    if isinstance(error, ImportError) and (extra := _extra_for(error.name or "")):
        return MissingError(
            f'this command needs {error.name}. Install it: pip install "large2small[{extra}]"'
        )
    if isinstance(error, ImportError) and "map segment" in str(error):
        return MissingError(
            f"out of memory while libraries are loaded ({error}). Give this process more: ulimit -v"
        )
    if isinstance(error, OSError) and error.errno in files.NO_SPACE:  # raised outside of runtime.files
        return MissingError(f"no space left on the disk ({error}). Free space or choose another place")
    if isinstance(error, OSError) and error.errno in NOT_TO_BE_OPENED and error.filename is not None:
        return UsageError(f"{_short(os.fsdecode(error.filename))}: cannot be opened ({error.strerror})")
    if type(error).__name__ == "OutOfMemoryError":  # torch's; torch itself is not imported here
        return MissingError(
            "out of GPU memory. Give a smaller --batch (in training with --grad-accum for the same step)"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the second is torch's
        return MissingError("out of memory. Give a smaller --batch, or fewer --workers")
    lost = _lost_worker(str(error))
    return MissingError(lost) if lost else None


NOT_TO_BE_OPENED = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
"""What a path that was typed may be, where no reader looked for it first."""


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:40]}...{name[-20:]}"


LOST_WORKER = r"DataLoader worker .*(killed by signal|exited unexpectedly)|Pin memory thread exited"


def _lost_worker(said: str) -> str | None:
    """What to do when a process that reads images has ended, from what torch says of it; else None.

    Not where images are read: torch raises it from a signal handler, wherever the program is at the time.
    """
    if not re.search(LOST_WORKER, said):
        return None
    if re.search("bus error|shared memory", said, re.IGNORECASE):
        return (
            "a process that reads images found no room in shared memory (/dev/shm). Give --workers 0, or more"
            " of it (in Docker: --shm-size 8g or --ipc host)"
        )
    signal_name = re.search(r"killed by signal: ([\w ]+)", said)
    how = signal_name[1].strip() if signal_name else "it exited"
    why = "mostly because memory ran out" if how in ("Killed", "it exited") else "mostly at a damaged image"
    return (
        f"a process that reads images has ended ({how}), {why}. Give fewer --workers (0: images are read"
        " without such processes) or a smaller --batch"
    )


def _extra_for(module: str) -> str | None:
    root = module.split(".")[0]
    if root in ("torch", "timm", "torchvision", "yaml"):
        return "train"
    if root in ("onnx", "onnxscript", "onnxslim"):
        return "export"
    return {
        "onnxruntime": "cpu",
        "sklearn": "demo",
        "tensorboard": "tensorboard",
        "wandb": "wandb",
        "mlflow": "mlflow",
        "webdataset": "webdataset",
        "matplotlib": "report",
        "jinja2": "report",
    }.get(root)


def _internal(error: BaseException, as_json: bool) -> int:
    if os.environ.get("L2S_TRACEBACK"):
        traceback.print_exc()
    text = " ".join(str(error).split())
    return _report(
        f"internal error: {type(error).__name__}: {text[:500]}. "
        "Set L2S_TRACEBACK=1 for the traceback and report it",
        INTERNAL_ERROR,
        as_json,
    )


def _report(message: str, code: int, as_json: bool) -> int:
    if not terminal.may_say_errors():
        return code
    print(f"error: {terminal.printable(message)}", file=sys.stderr)
    if as_json:
        try:
            print(files.json_text({"error": message, "exit_code": code}), flush=True)
        except OSError:  # a full disk may be what went wrong
            _print_nowhere()
    return code
