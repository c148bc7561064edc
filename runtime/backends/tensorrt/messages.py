"""What TensorRT says: its calls only return None or False when they fail, and tell a logger why.

In:  TensorRT's module.
Out: the one logger of this process; the last lines, or all lines while a block runs; what they mean.
Elsewhere: whether a plan fits this machine (runtime.backends.tensorrt.plan).
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from collections.abc import Iterator
from types import ModuleType
from typing import Any

KEPT = 40
"""Lines of TensorRT's log that are kept for messages."""

SHOWN = 3
"""Of them, errors that a message ends with."""

MEANINGS = (
    (r"version tag|version of TensorRT|library version", "it was written by another TensorRT version"),
    (
        r"incompatible device|expecting compute|hardware-compatible engine",
        "it was built for another kind of GPU",
    ),
    (r"platform specific tag", "it was built on another operating system or processor"),
    (r"magic tag|empty memory buffer|checksum", "the file is damaged, or not a plan"),
    (
        r"getEngineHostCodeAllowed",
        "it brings a runtime of its own, which only runs when the metadata beside it says so",
    ),
    (
        r"out of memory|OutOfMemory|insufficient memory|alloc",
        "GPU memory does not suffice: give fewer contexts",
    ),
)
"""What TensorRT's logger says -> what that means; the wordings are those of the library (strings in
libnvinfer 10 and 11)."""

LAYER_DUMP = "Layers:\n"
"""How TensorRT for RTX begins the log message that lists the finished engine's layers."""


def explain(reason: str) -> str:
    """TensorRT's own line, and what it means where that is known."""
    meaning = next((words for pattern, words in MEANINGS if re.search(pattern, reason, re.IGNORECASE)), None)
    return f"{meaning} ({reason})" if meaning else reason


class Log:
    """The last warnings and errors of TensorRT, and the list of an engine's layers, which TensorRT for RTX
    logs.
    """

    def __init__(self) -> None:
        self.lines: deque[tuple[str, str]] = deque(maxlen=KEPT)
        self.count = 0
        """Lines ever added."""
        self.layer_dump: str | None = None
        self._adding = threading.Lock()

    def add(self, severity: str, text: str) -> None:
        if severity in ("INTERNAL_ERROR", "ERROR", "WARNING"):
            with self._adding:
                self.lines.append((severity, " ".join(text.split())))
                self.count += 1
        elif text.startswith(LAYER_DUMP):
            self.layer_dump = text

    def of(self, *severities: str, since: int = 0) -> list[str]:
        """Different lines of these severities, oldest first; since: only those after `count` was that."""
        with self._adding:
            lines = list(self.lines)[-(self.count - since) :] if self.count > since else []
        return list(dict.fromkeys(text for severity, text in lines if severity in severities))

    def reason(self, since: int = 0) -> str:
        """The last errors in one line."""
        return (
            "; ".join(self.of("INTERNAL_ERROR", "ERROR", since=since)[-SHOWN:]) or "TensorRT gave no reason"
        )


RECENT = Log()
"""What TensorRT said last in this process; calls that must be fast note its `count` before and ask it only
when they fail."""

_LISTENING: list[Log] = [RECENT]
_LOGGERS: dict[str, Any] = {}
_CHANGING = threading.Lock()


@contextlib.contextmanager
def logged() -> Iterator[Log]:
    """Everything TensorRT says while the block runs, in any thread: its calls only return None or False when
    they fail.
    """
    log = Log()
    with _CHANGING:
        _LISTENING.append(log)
    try:
        yield log
    finally:
        with _CHANGING:
            _LISTENING[:] = [each for each in _LISTENING if each is not log]


def logger(trt: ModuleType) -> Any:
    """The one logger of this process: TensorRT ignores every other, and keeps it for ever."""
    with _CHANGING:
        if trt.__name__ not in _LOGGERS:
            _LOGGERS[trt.__name__] = _new_logger(trt)
        return _LOGGERS[trt.__name__]


def _new_logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]  # a class of a module found at run time
        """TensorRT's callback; it may come from several threads."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            for log in tuple(_LISTENING):
                log.add(severity.name, message)

    return Logger()
