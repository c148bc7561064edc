"""Labels for the images of a camera or a folder, from an exported artifact. Needs numpy, pillow and the
artifact's engine.

In:  an artifact (.onnx or .plan), and `--folder DIR [--watch]` or `--camera N`.
Out: one line for every image on stdout (`--json`: one JSON object), warnings and statistics on stderr.
Elsewhere: the queues and threads (pipeline), folder and camera (sources).

    python edge_app.py student.int8.onnx --folder incoming --watch
    python edge_app.py student.plan --camera 0 --batch 4 --json

Ctrl-C or SIGTERM ends it: no new images, those already taken are labeled, statistics, exit code 0 where
stopping is the only end (camera, --watch), 130 where images were left. A second Ctrl-C ends it at once.
Exit codes: 2 for wrong arguments, 3 when a package, engine or camera is missing, 4 when the artifact cannot
be used here.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import sources
from pipeline import Arrival, BoundedQueue, Pipeline, Result

import runtime
from runtime import ArtifactError, Large2SmallError, UsageError
from runtime.errors import Interrupted

LOOK_S = 0.1
"""Seconds between two looks whether a signal came."""
RELEASE_S = 3.0
"""Seconds that a source has to end once it is asked to, so that its camera is given back; one that hangs is
left behind."""


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one line, like every other error here."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See {self.prog} --help")


def positive(kind: type) -> Any:
    """A number above 0, for argparse."""

    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: expected more than 0, and finite")
        return value

    number.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return number


def read_arguments(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog="edge_app.py", description="Label the images of a camera or a folder.")
    parser.add_argument("artifact", type=Path, help="student.onnx, student.int8.onnx or student.plan")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folder", type=Path, help="label the images in this folder")
    source.add_argument(
        "--camera", help="a V4L2 camera by number or path, or a video file or URL; needs OpenCV"
    )
    parser.add_argument("--watch", action="store_true", help="go on with images that appear in the folder")
    parser.add_argument("--backend", help="onnxruntime or openvino for .onnx; by default onnxruntime")
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:INDEX; by default cpu for .onnx and cuda for .plan"
    )
    parser.add_argument("--threads", type=positive(int), help="CPU threads of the engine")
    parser.add_argument(
        "--decoders", type=positive(int), default=2, help="threads that decode and resize (default 2)"
    )
    parser.add_argument(
        "--batch", type=positive(int), default=1, help="most images in one call of the engine (default 1)"
    )
    parser.add_argument(
        "--max-wait-ms",
        type=positive(float),
        default=5.0,
        help="milliseconds that the first image of a batch waits for others (default 5)",
    )
    parser.add_argument(
        "--capacity", type=positive(int), default=8, help="images that may wait to be decoded (default 8)"
    )
    parser.add_argument(
        "--when-full",
        choices=["drop-oldest", "wait"],
        help="by default drop-oldest for a camera, wait for a folder",
    )
    parser.add_argument("--top", type=positive(int), default=1, help="guesses for every image (default 1)")
    parser.add_argument(
        "--json", action="store_true", help="JSON lines on stdout, the last one holds the statistics"
    )
    given = parser.parse_args(words)
    if given.watch and given.camera is not None:
        parser.error("--watch is for --folder")
    return given


def as_text(result: Result) -> str:
    return "\t".join([result.name, *(f"{guess.label} {guess.probability:.4f}" for guess in result.guesses)])


def as_json(result: Result) -> str:
    return json.dumps(
        {
            "image": result.name,
            "predictions": [guess._asdict() for guess in result.guesses],
            "latency_ms": round(result.latency_ms, 3),
        },
        allow_nan=False,
    )


def warn(name: str, reason: str) -> None:
    print(
        f"warning: skipped {reason if name in reason else f'{name}: {reason}'}", file=sys.stderr, flush=True
    )


class Signals:
    """Remembers the first Ctrl-C or SIGTERM; the next one does what it does without us.

    A flag and no threading.Event: its lock could be held by the very thread that the signal interrupts.
    """

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: Any) -> None:
        self.came = True
        signal.signal(number, signal.SIG_DFL)


class Feeder(threading.Thread):
    """Runs the source; `done` is set when it has no more images, `failure` when it ended in an error."""

    def __init__(self, given: argparse.Namespace, arrivals: BoundedQueue[Arrival]) -> None:
        super().__init__(name="feed", daemon=True)  # a camera that hangs must not keep the process alive
        self.done, self.stop, self.failure = threading.Event(), threading.Event(), None
        self._given, self._arrivals = given, arrivals

    def run(self) -> None:
        try:
            if self._given.folder is not None:
                sources.folder(self._given.folder, self._offer, self.stop, self._given.watch)
            else:
                sources.camera(self._given.camera, self._offer, self.stop)
        except BaseException as error:  # the main thread raises it
            self.failure = error
        finally:
            self.done.set()

    def _offer(self, name: str, image: Any) -> bool:
        return self._arrivals.put(Arrival(name, image, time.monotonic()))


def label_all(given: argparse.Namespace, predictor: runtime.Predictor) -> int:
    if predictor.preprocess is None:
        raise ArtifactError(
            f"{given.artifact}: carries no preprocessing. Export it with distill export onnx CKPT"
        )
    shown = as_json if given.json else as_text
    drop = (given.when_full or ("wait" if given.folder else "drop-oldest")) == "drop-oldest"
    pipeline = Pipeline(
        predictor,
        lambda results: print("\n".join(map(shown, results)), flush=True),
        warn,
        capacity=given.capacity,
        drop_oldest=drop,
        batch=given.batch,
        max_wait_ms=given.max_wait_ms,
        decoders=given.decoders,
        top=given.top,
    )
    signals = Signals()
    pipeline.start()
    feeder = Feeder(given, pipeline.arrivals)
    feeder.start()
    while not (feeder.done.wait(LOOK_S) or signals.came or pipeline.failure):
        pass
    cut_off = not feeder.done.is_set()
    feeder.stop.set()
    pipeline.arrivals.close()
    try:
        pipeline.join()
    finally:
        feeder.done.wait(RELEASE_S)
    failure = None if cut_off else feeder.failure  # after it was asked to stop a source may say what it likes
    if pipeline.counts.images or not failure:
        report(pipeline.counts.summary(pipeline.arrivals.dropped), given.json)
    if failure:
        raise failure
    return Interrupted.exit_code if cut_off and given.folder and not given.watch else 0


def report(summary: dict[str, Any], as_json_line: bool) -> None:
    if as_json_line:
        print(json.dumps({"statistics": summary}, allow_nan=False), flush=True)
    else:
        words = ", ".join(f"{name} {'-' if value is None else value}" for name, value in summary.items())
        print(f"statistics: {words}", file=sys.stderr)


def main(words: list[str]) -> int:
    try:
        given = read_arguments(words)
        with runtime.load(
            given.artifact, given.device, backend=given.backend, threads=given.threads
        ) as predictor:
            return label_all(given, predictor)
    except Large2SmallError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `edge_app.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(
        errors="surrogateescape"
    )  # a file name need not be text; it is given back as it was
    sys.exit(main(sys.argv[1:]))
