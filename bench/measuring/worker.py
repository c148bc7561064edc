"""A process that opens one artifact and does what it is asked: one JSON object a line, in and out.

In:  on stdin a `Setup`, then requests: {"turn": [calls, untimed calls]}, {"answers": {data, split, limit}},
{"memory": true}.
Out: on stdout `ready` with the description, then an answer to each; {"error": [class, message]} where one
fails.
Elsewhere: who asks (bench.measuring.elsewhere), what is timed (bench.measuring.setup).

The interpreter may be another one than who asks, with other versions of an engine, so nothing is pickled.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from runtime import files
from runtime.errors import Large2SmallError

STATUS = Path("/proc/self/status")


def main() -> int:
    """Serve until stdin ends. What else is printed goes to stderr, whoever prints it."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        _serve(sys.stdin, answers)
    except Large2SmallError as error:
        _say(answers, {"error": [type(error).__name__, str(error)]})
    return 0


def _serve(asked: IO[str], answers: IO[str]) -> None:
    line = asked.readline()
    if not line:
        return
    before = memory_bytes()
    from ..comparing.race import Here
    from ..subject import describe, open_artifact
    from .setup import Setup, called

    setup = Setup.from_dict(json.loads(line))
    with open_artifact(setup.path, setup.on) as predictor:
        fed, call = called(predictor, setup)
        call()
        first = time.monotonic_ns()  # of the system, as the one who started this process reads it
        here = Here(describe(predictor, setup.on), fed, call)
        about = {"description": here.description.to_dict(), "fed": here.fed, "first_answer_ns": first}
        _say(answers, {"ready": about})
        for line in asked:
            request = json.loads(line)
            if "turn" in request:
                _say(answers, {"ns": here.turn(*request["turn"]).tolist()})
            elif "answers" in request:
                _say(answers, _answers(predictor, **request["answers"]))
            else:
                _say(answers, {"before": before, "now": memory_bytes(), "peak": peak_bytes()})


def _answers(predictor: Any, data: str, split: str, limit: int | None) -> dict[str, Any]:
    from runtime.images import open_images

    from .. import accuracy

    result = accuracy.evaluate(predictor, open_images(data, split), limit=limit, split=split)
    return accuracy.Answers.of(result).to_dict()


def _say(answers: IO[str], values: dict[str, Any]) -> None:
    answers.write(files.json_text(values) + "\n")
    answers.flush()


def memory_bytes() -> int | None:
    """Resident memory of this process now; None where the system does not say."""
    return _of_status("VmRSS")


def _of_status(field: str) -> int | None:
    """A size that Linux tells of this process, bytes."""
    try:
        words = STATUS.read_text().split(f"{field}:", 1)[1].split()
    except (OSError, IndexError):
        return None
    return int(words[0]) * 1024


def peak_bytes() -> int | None:
    """The most resident memory that this process ever had; None where the system does not say.

    Linux says it in /proc: its `ru_maxrss` also counts the process that started this one.
    """
    if (peak := _of_status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    raise SystemExit(main())
