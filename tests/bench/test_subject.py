"""On what an artifact runs: which engine, with which settings, and which flags are refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import runtime
from bench import __main__ as cli
from bench import accuracy, subject
from bench.commands.latency import Options as LatencyOptions
from bench.commands.table import Options as TableOptions
from bench.subject import RunOptions
from runtime import Metadata, MissingError, Predictor, UsageError
from runtime.backends import registry
from runtime.images import open_images

ONNX, PLAN = Path("student.onnx"), Path("student.plan")


@pytest.fixture
def loaded(monkeypatch):
    """What `runtime.load` was given, by calls that open nothing."""
    calls = []
    monkeypatch.setattr(runtime, "load", lambda path, device, **settings: calls.append((device, settings)))
    return calls


@pytest.mark.parametrize(
    ("path", "flags", "device", "settings"),
    [
        (ONNX, {}, None, {"backend": "onnxruntime"}),
        (PLAN, {}, None, {"backend": "tensorrt", "cuda_graph": False}),
        (
            ONNX,
            {"engine_backend": "openvino", "hint": "throughput", "threads": 2},
            None,
            {"backend": "openvino", "threads": 2, "hint": "throughput"},
        ),
        (ONNX, {"provider": "tensorrt"}, "cuda", {"backend": "onnxruntime", "provider": "tensorrt"}),
        (
            ONNX,
            {"provider": "cuda", "device": "cuda:1"},
            "cuda:1",
            {"backend": "onnxruntime", "provider": "cuda"},
        ),
        (ONNX, {"provider": "cuda", "device": "cpu"}, "cpu", {"backend": "onnxruntime", "provider": "cuda"}),
        (
            PLAN,
            {"contexts": 3, "cuda_graph": True, "device": "cuda:1"},
            "cuda:1",
            {"backend": "tensorrt", "contexts": 3, "cuda_graph": True},
        ),
    ],
)
def test_every_engine_gets_what_it_reads_and_nothing_else(loaded, path, flags, device, settings):
    subject.open_artifact(path, RunOptions(**flags))
    assert loaded == [(device, settings)]


@pytest.mark.parametrize(
    ("paths", "flags", "words"),
    [
        (
            [ONNX],
            {"hint": "latency"},
            "--hint is read by openvino only, and student.onnx runs on onnxruntime",
        ),
        ([ONNX], {"engine_backend": "openvino", "provider": "cpu"}, "--provider is read by onnxruntime only"),
        ([ONNX], {"contexts": 2}, "--contexts is read by tensorrt only"),
        ([ONNX], {"cuda_graph": True}, "--cuda-graph is read by"),
        (
            [PLAN],
            {"provider": "tensorrt"},
            "--provider is read by onnxruntime only, and student.plan runs on tensorrt",
        ),
        ([PLAN], {"engine_backend": "openvino"}, "student.plan is a plan, which runs on TensorRT only"),
        ([PLAN], {"engine_backend": "onnxruntime"}, "which runs on TensorRT only"),
        (
            [PLAN, ONNX],
            {"engine_backend": "tensorrt"},
            "student.onnx is not a plan. Build one: distill export trt student.onnx",
        ),
        (
            [PLAN],
            {"threads": 2},
            "--threads is read by onnxruntime and openvino only, and student.plan runs on tensorrt",
        ),
        ([PLAN], {"threads": 0}, "--threads is read by"),
        ([PLAN], {"contexts": 0}, "expected 1 or more"),
        ([PLAN], {"contexts": -1}, "expected 1 or more"),
    ],
)
def test_a_flag_that_none_of_the_engines_reads_is_refused(paths, flags, words):
    with pytest.raises(UsageError, match=words):
        RunOptions(**flags).require_read(paths)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"engine_backend": "openvino", "hint": "latency"},
        {"contexts": 2, "threads": 1},
        {"provider": "cpu"},
    ],
)
def test_in_a_mixed_table_a_flag_is_for_those_that_read_it(flags):
    RunOptions(**flags).require_read([ONNX, PLAN])
    assert RunOptions(**flags).backend(PLAN).name == "tensorrt"


def test_the_commands_check_their_flags_before_anything_is_opened():
    with pytest.raises(UsageError, match="--hint"):
        LatencyOptions(engine=ONNX, hint="latency")
    with pytest.raises(UsageError, match="--cuda-graph"):
        TableOptions(students=(ONNX,), data="digits", teacher=Path("teacher.onnx"), cuda_graph=True)


def test_openvino_is_measured_and_reported_as_what_ran(student, capsys):
    pytest.importorskip("openvino")
    argv = [
        "latency",
        "--engine",
        str(student),
        "--engine-backend",
        "openvino",
        "--hint",
        "throughput",
        "--threads",
        "1",
    ]
    assert cli.main([*argv, "--iterations", "2", "--warmup", "0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["backend"], result["device"], result["threads"], result["hint"]) == (
        "openvino",
        "cpu",
        1,
        "throughput",
    )
    assert result["provider"] == "OpenVINO CPU f32, throughput hint"
    assert result["contexts"] is None and result["cuda_graph"] is None


def test_accuracy_on_openvino_equals_that_on_onnx_runtime(student, photos, capsys):
    pytest.importorskip("openvino")
    argv = ["accuracy", "--engine", str(student), "--data", str(photos), "--threads", "1", "--json"]
    assert cli.main([*argv, "--engine-backend", "openvino"]) == 0
    ours = json.loads(capsys.readouterr().out)
    assert cli.main(argv) == 0
    other = json.loads(capsys.readouterr().out)
    assert (ours["backend"], other["backend"]) == ("openvino", "onnxruntime")
    assert ours["top1_percent"] == other["top1_percent"] == 100
    assert ours["loss_nats"] == pytest.approx(other["loss_nats"], abs=1e-6)


def test_a_provider_that_is_not_here_exits_3(student, capsys):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here")
    assert cli.main(["latency", "--engine", str(student), "--provider", "cuda"]) == 3
    assert "needs CUDAExecutionProvider" in capsys.readouterr().err


class PlanBackend:
    """A backend as runtime.backends.tensorrt.backend offers it: device and engine of its own, no threads, a
    mean over the image.
    """

    engine, version, provider, device, threads = "tensorrt", "10.3.0.30", "TensorRT on A GPU", "cuda", None
    input_shape = (2, 3, 8, 8)

    def __init__(self, path, batch_sizes=((2, 2),)):
        self.path, self.batch_sizes = path, batch_sizes

    def run(self, batch, out=None):
        return batch.mean((2, 3))[:, ::-1].copy()

    def close(self):
        pass


@pytest.fixture
def plan(monkeypatch, tiny, tmp_path):
    """student.plan, opened as a `PlanBackend` of fixed batch size 2."""
    path = tmp_path / "student.plan"
    path.write_bytes(b"a plan")
    opens = replace(
        registry.engines()["tensorrt"], open=lambda path, given: (PlanBackend(path), tiny.metadata())
    )
    monkeypatch.setitem(registry.engines(), "tensorrt", opens)
    return path


def test_a_plan_is_measured_where_it_ran(plan, capsys):
    argv = [
        "latency",
        "--engine",
        str(plan),
        "--batch",
        "2",
        "--iterations",
        "2",
        "--warmup",
        "0",
        "--contexts",
        "2",
        "--cuda-graph",
    ]
    assert cli.main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["engine"], result["backend"], result["device"]) == (
        "tensorrt 10.3.0.30",
        "tensorrt",
        "cuda",
    )
    assert (result["threads"], result["contexts"], result["cuda_graph"], result["hint"]) == (
        None,
        2,
        True,
        None,
    )
    assert cli.main(argv) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "tensorrt 10.3.0.30, TensorRT on A GPU, device cuda, 2 contexts, CUDA graph; warm-up 0" in out


def test_accuracy_of_a_plan_of_fixed_batch_size_against_its_onnx_file(plan, student, photos, capsys):
    assert (
        cli.main(
            ["accuracy", "--engine", str(plan), "--data", str(photos), "--reference", str(student), "--json"]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert (result["n"], result["top1_percent"], result["agreement_percent"]) == (12, 100, 100)
    assert (result["backend"], result["reference"]["backend"]) == ("tensorrt", "onnxruntime")


def test_accuracy_of_a_plan_is_measured_in_batches_that_it_takes(tiny, tmp_path, photos, monkeypatch):
    given, run = [], PlanBackend.run
    monkeypatch.setattr(PlanBackend, "run", lambda self, batch: given.append(len(batch)) or run(self, batch))
    monkeypatch.setattr(PlanBackend, "input_shape", (None, 3, 8, 8))
    predictor = Predictor(PlanBackend(tmp_path / "student.plan", [(3, 5)]), tiny.metadata())
    assert accuracy.evaluate(predictor, open_images(str(photos), "val")).top1 == 100
    assert given == [5, 5, 3]  # of 12 images; the last two with one of them again


def test_a_table_of_plans_and_onnx_files_says_which_ran_where(plan, student, photos, capsys):
    argv = [
        "table",
        "--data",
        str(photos),
        "--teacher",
        str(student),
        str(plan),
        "--batch",
        "2",
        "--iterations",
        "2",
        "--warmup",
        "0",
        "--threads",
        "1",
    ]
    assert cli.main([*argv, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["ran_on"].split()[0] for row in result["rows"]] == ["onnxruntime", "tensorrt"]
    assert (
        result["conditions"]["engine"] == result["conditions"]["device"] == "differs, see ran_on of the rows"
    )
    assert cli.main(argv) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "student.onnx on onnxruntime" in out and "student.plan on tensorrt 10.3.0.30" in out


def test_a_description_names_the_engine_in_use(tmp_path):
    (tmp_path / "student.plan").write_bytes(b"plan")
    predictor = Predictor(PlanBackend(tmp_path / "student.plan"), Metadata())
    about = subject.describe(predictor, RunOptions())
    assert about.contexts == 1 and about.cuda_graph is False
    assert about.ran_on == "tensorrt 10.3.0.30, TensorRT on A GPU, device cuda"
    assert np.array_equal(predictor.logits(np.ones((2, 3, 8, 8), np.float32)), np.ones((2, 3), np.float32))


def test_without_tensorrt_a_plan_exits_with_one_line(tmp_path, capsys):
    (tmp_path / "student.plan").write_bytes(b"no plan")
    assert cli.main(["latency", "--engine", str(tmp_path / "student.plan")]) in (MissingError.exit_code, 4)
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
