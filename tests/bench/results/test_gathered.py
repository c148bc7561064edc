"""Saved results in one table: what may stand together, and what is marked or refused."""

import json

import pytest

from bench import __main__ as cli
from bench import tables
from bench.results import gathered, saved
from runtime import ArtifactError, UsageError

MACHINE = {"cpu": "A CPU", "cores": 4, "system": "Linux", "gpu": None, "packages": {"openvino": "1"}}
ABOUT = {
    "large2small_result": 1,
    "made": "2026-01-02T03:04:05+00:00",
    "warnings": [],
    "fingerprint": MACHINE,
    "engine": "onnxruntime 1.32.0",
    "provider": "CPUExecutionProvider",
    "device": "cpu",
    "threads": 4,
}


@pytest.fixture
def kept(tmp_path):
    """kept(name, kind, **values): a saved result that was read again."""

    def write(name, kind, **values):
        path = tmp_path / name
        about = {"kind": kind, "command": f"distill bench {kind}", "name": name, "file": f"{name}.onnx"}
        path.write_text(json.dumps(ABOUT | about | values))
        return saved.read(path)

    return write


def latency(p50, **changes):
    compute = {"latency_p50_ms": p50, "latency_p99_ms": 2 * p50, "throughput_images_per_s": 1000 / p50}
    return {"batch": 1, "compute": compute, "end_to_end": None} | changes


def accuracy(top1, **changes):
    return {"data": "photos", "split": "val", "n": 100, "skipped": 0, "top1_percent": top1} | changes


def test_latency_and_accuracy_of_one_file_are_one_row(kept):
    made = gathered.gather(
        [
            kept("a", "latency", sha256="1", role="student", **latency(5.0)),
            kept("b", "accuracy", sha256="1", role="student", **accuracy(80.0)),
            kept("c", "latency", sha256="2", role="teacher", **latency(20.0)),
            kept("d", "accuracy", sha256="2", role="teacher", **accuracy(90.0)),
        ],
        mixed=False,
    )
    teacher, student = made.rows
    assert (teacher.role, teacher.latency_p50_ms, teacher.top1_percent) == ("teacher", 20.0, 90.0)
    assert (student.speedup, student.delta_teacher_points, student.group) == (4.0, -10.0, None)
    assert teacher.delta_teacher_points is None and teacher.speedup == 1.0
    text = tables.to_markdown(made)
    assert "measured on cpu A CPU, cores 4" in text and "distill bench latency" in text
    assert "were not measured in turn" in text


def test_other_machines_are_refused_or_marked(kept):
    results = [
        kept("a", "latency", role="teacher", **latency(20.0)),
        kept("b", "latency", **latency(5.0), fingerprint=MACHINE | {"cpu": "Another"}),
    ]
    with pytest.raises(UsageError, match=r"not measured alike: cpu A CPU against Another.*--mixed"):
        gathered.gather(results, mixed=False)
    made = gathered.gather(results, mixed=True)
    assert [row.group for row in made.rows] == [1, 2] and made.rows[1].speedup is None
    text = tables.to_markdown(made)
    assert "(`a.onnx`) [1]" in text and "[2] measured on cpu Another" in text


def test_another_engine_is_another_environment(kept):
    results = [kept("a", "latency", **latency(1)), kept("b", "latency", **latency(1), engine="openvino 1")]
    with pytest.raises(UsageError, match=r"engine onnxruntime 1\.32\.0 against openvino 1"):
        gathered.gather(results, mixed=False)


EIGHT = {"threads": 8, "provider": "CUDAExecutionProvider", "device": "cuda"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threads": 1}, "with CPUExecutionProvider, device cpu, 4 threads against .*, 1 thread"),
        ({"provider": "CUDAExecutionProvider"}, "with .* against CUDAExecutionProvider"),
        ({"device": "cuda"}, "with .* against CPUExecutionProvider, device cuda"),
        ({"hint": "throughput"}, "hint None against throughput"),
        ({"contexts": 2}, "with .* against .*, 2 contexts"),
        ({"cuda_graph": True}, "with .* against .*, CUDA graph"),
    ],
)
def test_another_setting_of_the_engine_is_not_alike(kept, changes, said):
    results = [
        kept("a", "latency", sha256="1", **latency(10.0)),
        kept("b", "latency", **latency(2.0) | changes),
    ]
    with pytest.raises(UsageError, match=f"not measured alike: {said}"):
        gathered.gather(results, mixed=False)


def test_an_accuracy_belongs_to_the_file_however_many_threads_had_it(kept):
    one, two = latency(10.0, sha256="1"), latency(2.0, sha256="1") | EIGHT
    right = accuracy(80.0, sha256="1", threads=16)
    made = gathered.gather([kept("a", "latency", **one), kept("c", "accuracy", **right)], mixed=False)
    assert [(row.latency_p50_ms, row.top1_percent) for row in made.rows] == [(10.0, 80.0)]
    results = [kept("a", "latency", **one), kept("b", "latency", **two), kept("c", "accuracy", **right)]
    made = gathered.gather(results, mixed=True)
    found = [(row.latency_p50_ms, row.top1_percent, row.group) for row in made.rows]
    assert found == [(10.0, 80.0, 1), (2.0, 80.0, 2)]
    alone = gathered.gather([kept("d", "accuracy", **accuracy(70.0, sha256="2")), *results], mixed=True)
    assert [(row.top1_percent, row.group) for row in alone.rows] == [(70.0, 1), (80.0, 1), (80.0, 2)]


@pytest.mark.parametrize("turned", [False, True])
def test_what_was_measured_last_counts_in_any_order(kept, turned):
    results = [
        kept("a", "latency", sha256="1", made="2026-01-02T03:04:05+00:00", **latency(10.0)),
        kept("b", "latency", sha256="1", made="2026-02-02T03:04:05+00:00", **latency(2.0)),
    ]
    made = gathered.gather(results[::-1] if turned else results, mixed=False)
    assert [row.latency_p50_ms for row in made.rows] == [2.0]


@pytest.mark.parametrize(
    ("first", "second"),
    [(latency(1.0), latency(1.0, batch=8)), (accuracy(1.0), accuracy(1.0, n=99))],
)
def test_no_mark_makes_other_images_or_batches_comparable(kept, first, second):
    kind = "latency" if "batch" in first else "accuracy"
    results = [kept("a", kind, **first), kept("b", kind, **second)]
    with pytest.raises(UsageError, match="results of different"):
        gathered.gather(results, mixed=True)


@pytest.mark.parametrize(
    "damage",
    [
        {"file": None},
        {"fingerprint": []},
        {"parameters": "many"},
        {"role": 3},
        {"compute": {"latency_p50_ms": [1]}},
        {"batch": True},
        {"warnings": 5},
    ],
)
def test_a_value_of_another_type_is_refused(kept, damage):
    with pytest.raises(ArtifactError, match="Measure again with --save"):
        gathered.gather([kept("a", "latency", **latency(1.0) | damage)], mixed=False)


def test_a_comparison_is_not_a_row(kept):
    with pytest.raises(UsageError, match=r"a result of bench compare\. Expected one of bench latency"):
        gathered.gather([kept("a", "compare")], mixed=False)


def test_a_saved_table_is_shown_again_and_nothing_measured(tiny, student, photos, tmp_path, capsys):
    teacher = tiny.write(tmp_path / "teacher.onnx", meta=tiny.metadata(role="teacher"))
    argv = ["table", str(student), "--data", str(photos), "--teacher", str(teacher), "--iterations", "3"]
    kept = tmp_path / "kept.json"
    assert cli.main([*argv, "--warmup", "0", "--threads", "1", "--save", str(kept), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert cli.main(["table", str(kept), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["rows"] == [
        row | {"delta_teacher_points": row["delta_teacher_points"]} for row in first["rows"]
    ]
    durations = json.loads(kept.read_text())["samples_ms"][str(student)]
    assert len(durations["compute"]) == len(durations["end_to_end"]) == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["student.onnx"], "--data photos"),
        (["student.onnx", "--data", "photos"], "--teacher teacher.onnx"),
        (["a.json", "student.onnx"], "a saved result"),
        (["a.json", "--data", "photos"], "a saved result"),
        (["a.json"], "a.json: no such file"),
    ],
)
def test_files_and_measuring_are_not_mixed(more, said, capsys):
    assert cli.main(["table", *more]) in (2, 4)
    assert said in capsys.readouterr().err
