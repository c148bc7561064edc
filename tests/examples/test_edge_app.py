"""examples/python: labels for a folder and a camera, with torch and all but the runtime blocked; queues,
signals, bad images.
"""

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import runtime
from runtime import UsageError

FOLDER = Path(__file__).parents[2] / "examples" / "python"
ROOT = FOLDER.parents[1]
BLOCK = (
    "import runpy, sys\nfor name in ('torch', 'timm', 'onnx', 'rich', 'tyro', 'yaml', 'sklearn', 'cv2'):\n"
    "    if name not in {allowed}: sys.modules[name] = None\n"
    "sys.argv = ['edge_app.py', *sys.argv[1:]]\nsys.path.insert(0, {folder!r})\n"
    "runpy.run_path({folder!r} + '/edge_app.py', run_name='__main__')\n"
)


def start(*words, path=(), allowed=()) -> subprocess.Popen:
    """The application in a process of its own, with every package blocked that an edge device does
    not have.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *map(str, path)]),
    }
    code = BLOCK.format(folder=str(FOLDER), allowed=tuple(allowed))
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(*words, **more) -> tuple[int, str, str]:
    process = start(*words, **more)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


def records(out: str) -> tuple[dict[str, str], dict]:
    """{file name: best label}, and the statistics of the last line."""
    lines = [json.loads(line) for line in out.splitlines()]
    return {Path(line["image"]).name: line["predictions"][0]["label"] for line in lines[:-1]}, lines[-1][
        "statistics"
    ]


@pytest.fixture
def student(tiny, tmp_path):
    return tiny.write(tmp_path / "student.onnx", meta=tiny.metadata())


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """Four images of every color, and one that is none."""
    made = tmp_path / "incoming"
    made.mkdir()
    for name, color in tiny.COLORS.items():
        for i in range(4):
            Image.new("RGB", (10, 8), color).save(made / f"{name}_{i}.png")
    (made / "broken.jpg").write_bytes(b"junk")
    (made / "notes.txt").write_text("no image")
    return made


@pytest.mark.parametrize(
    "words",
    [[], ["--batch", "5", "--decoders", "3", "--capacity", "2"], ["--backend", "openvino"]],
    ids=["one by one", "batches", "openvino"],
)
def test_a_folder_is_labeled_and_a_bad_image_does_not_stop_it(student, folder, words):
    if "openvino" in words:
        pytest.importorskip("openvino")
    code, out, errors = run(student, "--folder", folder, "--json", *words)
    labels, statistics = records(out)
    assert code == 0
    assert labels == {f"{name}_{i}.png": name for name in ("blue", "green", "red") for i in range(4)}
    assert errors.count("\n") == 1 and errors.startswith("warning: skipped") and "broken.jpg" in errors
    assert (statistics["images"], statistics["unreadable"], statistics["dropped"]) == (12, 1, 0)
    assert statistics["images_per_s"] > 0
    assert 0 < statistics["latency_p50_ms"] <= statistics["latency_p95_ms"]
    assert statistics["mean_batch"] >= (1.5 if "--batch" in words else 1)


def test_lines_for_people_and_statistics_on_stderr(student, folder):
    code, out, errors = run(student, "--folder", folder, "--top", "2")
    lines = dict(line.split("\t", 1) for line in out.splitlines())
    assert code == 0 and len(lines) == 12
    assert lines[str(folder / "red_0.png")] == "red 0.5761\tblue 0.2119"  # e / (e + 2) and 1 / (e + 2)
    assert "images 12" in errors.splitlines()[-1] and "dropped 0" in errors.splitlines()[-1]


def test_an_artifact_of_fixed_batch_is_filled_up(tiny, folder, tmp_path):
    fixed = tiny.write(tmp_path / "fixed.onnx", meta=tiny.metadata(), batch=4)
    code, out, _ = run(fixed, "--folder", folder, "--json", "--batch", "3")
    assert code == 0 and len(records(out)[0]) == 12
    code, _, errors = run(fixed, "--folder", folder, "--batch", "5")
    assert code == 2 and "--batch 4" in errors


def wait_for_lines(process: subprocess.Popen, count: int) -> list[str]:
    return [process.stdout.readline() for _ in range(count)]


def rest(process: subprocess.Popen) -> tuple[str, str]:
    """What is left on stdout and stderr; communicate() would lose the lines that readline() has buffered."""
    with process.stdout, process.stderr:
        out, errors = process.stdout.read(), process.stderr.read()
    process.wait(timeout=10)
    return out, errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watched_folder_goes_on_until_a_signal_and_ends_cleanly(student, folder, number):
    process = start(student, "--folder", folder, "--watch", "--json")
    first = wait_for_lines(process, 12)
    Image.new("RGB", (10, 8), (0, 255, 0)).save(folder / "late.png")
    (late,) = wait_for_lines(process, 1)
    Image.new("RGB", (9, 8), (255, 0, 0)).save(folder / "late.png")  # written anew: arrives again
    (again,) = wait_for_lines(process, 1)
    process.send_signal(number)
    out, errors = rest(process)
    labels, statistics = records("".join([*first, late, again]) + out)
    assert process.returncode == 0
    assert (json.loads(late)["predictions"][0]["label"], labels["late.png"], statistics["images"]) == (
        "green",
        "red",
        14,
    )
    assert "Traceback" not in errors


def test_a_folder_that_a_signal_cut_short_ends_with_code_130_and_what_was_taken_is_labeled(student, folder):
    for i in range(3000):
        os.link(folder / "red_0.png", folder / f"z{i}.png")
    process = start(student, "--folder", folder, "--json")
    first = wait_for_lines(process, 5)
    process.send_signal(signal.SIGTERM)
    out, errors = rest(process)
    labels, statistics = records("".join(first) + out)
    assert process.returncode == 130
    assert 5 <= statistics["images"] == len(labels) < 3012
    assert "Traceback" not in errors


def test_a_reader_that_goes_away_ends_it_quietly(student, folder):
    process = start(student, "--folder", folder, "--watch")
    process.stdout.readline()
    process.stdout.close()
    for i in range(50):
        Image.new("RGB", (8, 8)).save(folder / f"more_{i}.png")
    assert process.wait(timeout=20) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["no.onnx", "--folder", "."], 2, "no such file"),
        (["{student}", "--folder", "nowhere"], 2, "not a folder that can be read"),
        (["{student}"], 2, "--folder --camera is required"),
        (["{student}", "--folder", ".", "--camera", "0"], 2, "not allowed with"),
        (["{student}", "--camera", "0", "--watch"], 2, "--watch is for --folder"),
        (["{student}", "--folder", ".", "--batch", "0"], 2, "expected more than 0"),
        (["{student}", "--folder", ".", "--batch", "x"], 2, "invalid int value"),
        (["{student}", "--folder", ".", "--when-full", "explode"], 2, "invalid choice"),
        (["{student}", "--folder", ".", "--device", "gpu"], 2, "device"),
        (["{student}", "--camera", "0"], 3, "opencv-python-headless"),
        (["{broken}", "--folder", "."], 4, "not an ONNX file, or cut short"),
        (["{foreign}", "--folder", "."], 4, "carries no preprocessing"),
    ],
    ids=lambda value: None if isinstance(value, (str, int)) else " ".join(value),
)
def test_what_cannot_work_is_one_line_and_the_projects_exit_code(
    tiny, student, tmp_path, words, code, expected
):
    (tmp_path / "broken.onnx").write_bytes(b"junk" * 50)
    files = {
        "student": student,
        "broken": tmp_path / "broken.onnx",
        "foreign": tiny.write(tmp_path / "foreign.onnx"),
    }
    found, out, errors = run(*(word.format(**files) for word in words))
    assert (found, out) == (code, "")
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert expected in line and "Traceback" not in errors


CAMERA = '''
"""A TEST DOUBLE of the few words of OpenCV that the application uses: FRAMES frames, a new one
every PERIOD seconds.
"""
import os, time
import numpy as np
CAP_V4L2, CAP_ANY = 200, 0
class VideoCapture:
    def __init__(self, device, api):
        film = os.environ.get("URL", "film.mp4")
        assert (device, api) == ((0, CAP_V4L2) if os.environ["KIND"] == "camera" else (film, CAP_ANY))
        self.left = int(os.environ["FRAMES"])
    def isOpened(self):
        return self.left > 0
    def read(self):
        time.sleep(float(os.environ["PERIOD"] if self.left else os.environ.get("LAST", os.environ["PERIOD"])))
        self.left -= 1
        return (True, np.full((8, 10, 3), (255, 0, 0), np.uint8)) if self.left >= 0 else (False, None)
    def release(self):
        time.sleep(float(os.environ.get("RELEASE", "0")))
        print("released", flush=True, file=__import__("sys").stderr)
'''


@pytest.fixture
def camera(tmp_path, monkeypatch):
    """Makes `import cv2` find the test double."""
    (tmp_path / "double").mkdir()
    (tmp_path / "double" / "cv2.py").write_text(CAMERA)

    def settings(kind: str, frames: int, period: float = 0.0) -> Path:
        for name, value in {"KIND": kind, "FRAMES": frames, "PERIOD": period}.items():
            monkeypatch.setenv(name, str(value))
        return tmp_path / "double"

    return settings


def test_every_frame_of_a_film_is_labeled_when_asked_to_wait_and_its_colors_are_in_order(student, camera):
    path = camera("film", 30)
    code, out, errors = run(
        student, "--camera", "film.mp4", "--json", "--when-full", "wait", path=[path], allowed=["cv2"]
    )
    labels, statistics = records(out)
    assert (code, errors) == (0, "released\n")
    assert labels == {f"frame {i}": "blue" for i in range(30)}  # (255, 0, 0) in OpenCV's order
    assert (statistics["images"], statistics["dropped"]) == (30, 0)


def test_a_camera_that_is_faster_than_the_engine_drops_frames_and_counts_them(student, camera):
    path = camera("film", 3000)
    code, out, _ = run(
        student, "--camera", "film.mp4", "--json", "--capacity", "1", path=[path], allowed=["cv2"]
    )
    labels, statistics = records(out)
    assert code == 0
    assert statistics["dropped"] > 0 and statistics["images"] + statistics["dropped"] == 3000
    assert "frame 2999" in labels  # the freshest is never the one that is dropped


def test_a_camera_that_stops_or_cannot_be_opened_is_an_error(student, camera):
    code, out, errors = run(student, "--camera", "0", "--json", path=[camera("camera", 3)], allowed=["cv2"])
    assert code == 3 and "delivers no frames any more (3 so far)" in errors
    assert records(out)[1]["images"] == 3
    path = camera("camera", 0)
    code, out, errors = run(student, "--camera", "0", path=[path], allowed=["cv2"])
    assert (code, out) == (3, "") and "cannot be opened" in errors


def test_a_stream_that_stops_is_lost(student, camera, monkeypatch):
    monkeypatch.setenv("URL", "rtsp://somewhere/1")
    code, out, errors = run(
        student, "--camera", "rtsp://somewhere/1", "--json", path=[camera("film", 3)], allowed=["cv2"]
    )
    assert code == 3 and "delivers no frames any more (3 so far)" in errors and records(out)[1]["images"] == 3


def test_a_file_name_that_is_not_text_comes_back_as_it_was(student, folder, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    os.rename(next(folder.glob("*.png")), os.fsencode(folder) + b"/caf\xe9.png")
    process = start(student, "--folder", folder)
    out, _ = process.stdout.buffer.read(), process.wait(60)
    assert process.returncode == 0 and b"caf\xe9.png\t" in out


def test_a_camera_ends_with_code_0_at_a_signal_and_is_given_back(student, camera, monkeypatch):
    monkeypatch.setenv("RELEASE", "0.5")  # a driver takes its time; the process must not end before
    process = start(student, "--camera", "0", "--json", path=[camera("camera", 10**6, 0.01)], allowed=["cv2"])
    wait_for_lines(process, 3)
    process.send_signal(signal.SIGINT)
    out, errors = rest(process)
    assert process.returncode == 0 and errors == "released\n"
    assert "statistics" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("last", "expected"), [("1.5", "released\n"), ("1000", "")], ids=["loses its stream", "hangs"]
)
def test_a_camera_that_fails_after_the_signal_ends_with_code_0_too(
    student, camera, monkeypatch, last, expected
):
    monkeypatch.setenv("LAST", last)  # seconds until the frame after the third one, which never arrives
    process = start(student, "--camera", "0", "--json", path=[camera("camera", 3)], allowed=["cv2"])
    wait_for_lines(process, 3)
    process.send_signal(signal.SIGINT)
    out, errors = rest(process)
    assert process.returncode == 0 and errors == expected
    assert json.loads(out.splitlines()[-1])["statistics"]["images"] == 3


# ---- the parts themselves, in this process


@pytest.fixture
def pipeline(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("pipeline")
    del sys.modules["pipeline"]


@pytest.fixture
def sources(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module("sources")
    del sys.modules["sources"]


def test_a_file_has_arrived_when_two_looks_find_it_the_same_and_again_when_it_is_another(
    sources, monkeypatch
):
    small, whole, rewritten = (5, 1), (9, 2), (9, 3)  # size, time of change
    looks = [
        {"old": whole},
        {"old": whole, "new": small},
        {"old": whole, "new": whole},
        {"new": whole},
        {"new": rewritten},
        {"new": rewritten},
        {"new": rewritten},
        {},
        {"new": rewritten},
        {"new": rewritten},
    ]
    stop, offered, number = threading.Event(), [], iter(range(len(looks)))

    def look(_path):
        sources.now = next(number)
        if sources.now == len(looks) - 1:
            stop.set()
        return looks[sources.now]

    monkeypatch.setattr(sources, "_look", look)
    monkeypatch.setattr(sources, "LOOK_S", 0)
    for name in sources._arrived(Path("any"), stop):
        offered.append((sources.now, name))
    assert offered == [(1, "old"), (3, "new"), (5, "new"), (9, "new")]


def test_a_full_queue_drops_its_oldest_item_or_makes_the_producer_wait(pipeline):
    dropping = pipeline.BoundedQueue(2, drop_oldest=True)
    assert [dropping.put(i) for i in range(5)] == [True] * 5
    assert (dropping.dropped, dropping.get(), dropping.get(), dropping.get(timeout=0.01)) == (3, 3, 4, None)
    waiting, done = pipeline.BoundedQueue(1), threading.Event()
    waiting.put("first")
    thread = threading.Thread(target=lambda: (waiting.put("second"), done.set()))
    thread.start()
    assert not done.wait(0.1)
    assert waiting.get() == "first" and done.wait(5)
    assert (waiting.get(), waiting.dropped) == ("second", 0)
    thread.join()


def test_a_closed_queue_gives_what_it_holds_takes_nothing_and_wakes_those_who_wait(pipeline):
    queue, answers = pipeline.BoundedQueue(1), []
    queue.put(1)
    thread = threading.Thread(target=lambda: answers.append(queue.put(2)))
    thread.start()
    time.sleep(0.05)
    queue.close()
    thread.join(5)
    assert answers == [False] and queue.put(3) is False
    assert queue.get() == 1
    with pytest.raises(pipeline.Closed):
        queue.get()


class Slow:
    """A predictor whose engine waits for a permission, to hold the pipeline at a known place."""

    def __init__(self, student) -> None:
        self._real = runtime.load(student, threads=1)
        self.go, self.batches = threading.Semaphore(0), []
        self.preprocess, self.input_shape, self.path = (
            self._real.preprocess,
            self._real.input_shape,
            self._real.path,
        )
        self.predictions, self.batch_sizes = self._real.predictions, self._real.batch_sizes

    fit, logits_in_batches = runtime.Predictor.fit, runtime.Predictor.logits_in_batches

    def logits(self, batch: np.ndarray) -> np.ndarray:
        assert self.go.acquire(timeout=20)
        self.batches.append(len(batch))
        return self._real.logits(batch)


def wait_until(condition):
    end = time.monotonic() + 30  # however slow the machine
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def make(pipeline, student, results, least=None, **changes):
    slow = Slow(student)
    if least:
        slow.batch_sizes = [(least, 8)]
    settings = {
        "capacity": 3,
        "drop_oldest": True,
        "batch": 1,
        "max_wait_ms": 5,
        "decoders": 1,
        "top": 1,
    } | changes
    made = pipeline.Pipeline(slow, results.extend, lambda name, reason: None, **settings)
    slow.go.release()  # the warm-up of start()
    made.start()
    return slow, made


def test_behind_a_stuck_engine_at_most_the_capacities_wait_and_the_rest_is_counted(pipeline, student):
    results = []
    slow, made = make(pipeline, student, results)
    image = np.full((8, 8, 3), (255, 0, 0), np.uint8)
    for i in range(50):
        made.arrivals.put(pipeline.Arrival(f"{i}", image, time.monotonic()))
        if i < 5:  # until the engine, the decoder and the queue between them are full
            wait_until(lambda: not made.arrivals._items)
    made.arrivals.close()
    slow.go.release(50)
    made.join()
    # one in the engine, 3 decoded, one in the decoder's hand, 3 that arrived last
    assert len(results) == 8 and made.arrivals.dropped == 42
    assert [result.name for result in results][-3:] == ["47", "48", "49"]
    assert made.counts.summary(made.arrivals.dropped)["images"] == 8


def test_a_batch_is_what_came_before_its_deadline(pipeline, student):
    results = []
    slow, made = make(pipeline, student, results, batch=4, max_wait_ms=150, drop_oldest=False, capacity=8)
    image = np.zeros((8, 8, 3), np.uint8)
    slow.go.release(10)
    for i in range(4):
        made.arrivals.put(pipeline.Arrival(f"{i}", image, time.monotonic()))
    wait_until(lambda: len(results) >= 4)
    lone = time.monotonic()
    made.arrivals.put(pipeline.Arrival("lone", image, lone))
    wait_until(lambda: len(results) >= 5)
    waited = time.monotonic() - lone
    made.arrivals.close()
    made.join()
    assert slow.batches == [4, 4, 1]  # the warm-up, a full one at once, one that waited in vain
    assert 140 < results[-1].latency_ms <= 1e3 * waited


def test_a_plan_whose_profile_begins_above_one_image_gets_as_many(pipeline, student):
    results = []
    slow, made = make(pipeline, student, results, least=4)
    slow.go.release(1)
    made.arrivals.put(pipeline.Arrival("one", np.full((8, 8, 3), (255, 0, 0), np.uint8), time.monotonic()))
    made.arrivals.close()
    made.join()
    assert slow.batches == [4, 4]
    assert [(result.name, result.guesses[0].label) for result in results] == [("one", "red")]


@pytest.mark.parametrize("page", ["examples/README.md", "docs/jetson.md"])
def test_every_documented_command_of_the_application_parses(page, sources, pipeline, monkeypatch):
    edge_app = importlib.import_module("edge_app")
    monkeypatch.delitem(sys.modules, "edge_app")
    lines = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    commands = [
        shlex.split(line, comments=True)[2:]
        for line in lines
        if line.startswith("python examples/python/edge_app.py")
    ]
    assert commands
    for words in commands:
        edge_app.read_arguments(words)


def test_an_engine_that_fails_ends_everything_with_its_error(pipeline, student):
    slow, made = make(pipeline, student, [], drop_oldest=False)
    slow.logits = lambda batch: (_ for _ in ()).throw(UsageError("the engine is gone"))
    for i in range(20):  # more than fit: the producer must not wait for ever
        made.arrivals.put(pipeline.Arrival(f"{i}", np.zeros((8, 8, 3), np.uint8), 0.0))
    with pytest.raises(UsageError, match="the engine is gone"):
        made.join()


def test_percentiles_are_of_the_latest_latencies_and_nothing_measured_is_none(pipeline):
    counts = pipeline.Counts()
    assert set(counts.summary(7).values()) == {0, None, 7}
    counts.images, counts.batches, counts.first_arrival, counts.last_label = 20000, 10000, 100.0, 110.0
    counts.latencies_ms.extend([1000.0] * 10_000 + list(np.linspace(0, 100, 10_000)))
    summary = counts.summary(0)
    assert (summary["images_per_s"], summary["latency_p50_ms"], summary["latency_p95_ms"]) == (2000, 50, 95)
    assert (summary["latency_n"], summary["mean_batch"]) == (10_000, 2)
