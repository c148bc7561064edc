"""Every script under measurements/ runs from a command line, on small input made here.

How fast or good something is depends on the machine and is not asserted; asserted is that what a script
prints agrees with itself and with what it was given.
"""

import csv
import io
import json
import os
import re
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from stirring import stirred

from distill import checkpoint, models
from distill.models import depthwise
from runtime.images import open_images

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "measurements").rglob("*.py"))
slow = pytest.mark.slow


def run(script, *words, codes=(0,)):
    """`python SCRIPT WORDS`, which must end with one of `codes` and without a traceback."""
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "150"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in codes, done.stderr + done.stdout
    return done


def run_inside(script, *words, codes=(0,)):
    """The same in this process, which has imported torch already: for what is not measured."""
    out, err, code, threads = io.StringIO(), io.StringIO(), 0, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [str(ROOT / script), *map(str, words)])
        patch.syspath_prepend((ROOT / script).parent)
        patch.setenv("COLUMNS", "150")
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
    torch.set_num_threads(threads)
    assert code in codes, err.getvalue() + out.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())


def test_every_script_is_run_here():
    text = Path(__file__).read_text(encoding="utf-8")
    assert len(SCRIPTS) >= 12
    for script in SCRIPTS:
        name = re.escape(f'("{script.relative_to(ROOT).as_posix()}"')
        assert re.search(f"run(_inside)?{name}", text.replace("(\n        ", "("))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_has_a_help(script):
    assert run_inside(script, "--help").stdout.startswith(f"usage: {script.name}")


# inputs


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    """npz:FOLDER of 32 x 32 images, 64 to train and 32 to validate, whose class is the bright stripe."""
    folder = tmp_path_factory.mktemp("striped")
    random = np.random.default_rng(0)
    for split, count in (("train", 64), ("val", 32)):
        y = np.arange(count) % 4
        x = random.integers(0, 100, (count, 32, 32, 3)).astype(np.uint8)
        for image, label in zip(x, y, strict=True):
            image[:, label * 8 : label * 8 + 8] += 150
        np.savez(folder / f"{split}.npz", x=x, y=y, class_names=np.array(["ant", "bee", "cat", "dog"]))
    return f"npz:{folder}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A narrow ResNet-20 for the classes of `striped`, as a checkpoint."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "narrow.pth"
    network = models.build("resnet20", 4, {"width": 0.25})
    checkpoint.save(
        checkpoint.Checkpoint(
            model="resnet20",
            model_args={"width": 0.25},
            state_dict=network.state_dict(),
            preprocess=models.preprocess_of("resnet20"),
            class_names=["ant", "bee", "cat", "dog"],
            role="plain",
        ),
        path,
    )
    return path


@pytest.fixture(scope="module")
def one_conv(tmp_path_factory):
    """An .onnx file of one convolution with an input `images` (N, 3, 8, 8)."""
    kernel = numpy_helper.from_array(np.ones((2, 3, 3, 3), np.float32), "kernel")
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "one_conv",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [kernel],
    )
    path = tmp_path_factory.mktemp("graph") / "one_conv.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


# measurements


def test_runtime_overhead_adds_up_and_its_exit_code_is_the_verdict():
    done = run("measurements/runtime_overhead.py", "--calls", 20, codes=(0, 1))
    rows = re.findall(r"logits p50 ([\d.]+)  bare p50 ([\d.]+)  overhead ([+-][\d.]+) us", done.stdout)
    assert len(rows) == 2
    for logits, bare, more in rows:
        assert float(more) == pytest.approx(float(logits) - float(bare), abs=0.16)  # three rounded numbers
    worst = float(re.search(r"largest overhead ([+-][\d.]+) us, accepted up to 25 us", done.stdout)[1])
    assert worst == max(0.0, *(float(row[2]) for row in rows))
    assert done.returncode == (0 if worst <= 25 else 1)


def test_runtime_overhead_measures_the_file_it_is_given(one_conv):
    done = run("measurements/runtime_overhead.py", one_conv, "--calls", 5, codes=(0, 1))
    assert done.stdout.startswith("one_conv.onnx  batch 1  1 threads")


@slow
def test_imports_are_timed_and_the_exit_code_is_the_verdict():
    done = run("measurements/import_time.py", "--runs", 1, codes=(0, 1))
    times = dict(re.findall(r"^(\w[\w. ,]+?) +(\d+\.\d) ms", done.stdout, flags=re.MULTILINE))
    assert set(times) == {"numpy", "PIL.Image", "runtime, beside numpy", "large2small, beside numpy"}
    slow = [name for name, value in times.items() if "beside" in name and float(value) > 20]
    assert done.returncode == (1 if slow else 0) and ("missed" if slow else "met") in done.stdout


def test_the_loader_is_timed_beside_timms_and_in_parts():
    words = ("--images", 8, "--batch", 4, "--rounds", 2, "--size", 32, "--jpeg", 64, 48, "--json")
    found = json.loads(run_inside("measurements/loader.py", *words).stdout)
    names = ["ours", "timm", "on the device", "decode", "crop and resize", "policy, flip"]
    assert list(found["images_per_second"]) == names
    assert all(rate > 0 for rate in found["images_per_second"].values())
    ratio = found["ours_over_timm"]
    assert ratio["lowest"] <= ratio["median"] <= ratio["highest"] and found["settings"]["rounds"] == 2
    refused = run_inside("measurements/loader.py", "--images", 4, "--batch", 8, codes=(2,))
    assert "--batch 8: expected 2 to --images 4" in refused.stderr


def test_a_training_step_is_timed_beside_a_plain_loop():
    out = run("measurements/kd_step.py", "--batch", 8, "--rounds", 2).stdout
    assert re.search(r"^large2small +median +[\d.]+ ms.*\nhand-written +median +[\d.]+ ms", out)
    assert re.search(r"ratio  median [\d.]+  \(batch 8, n=2 rounds", out)


@slow
def test_every_calibrator_sees_the_same_tensors(one_conv):
    words = ("--model", one_conv, "--side", 8, "--timed", 16, "--images", 20, "--rounds", 1, "--json")
    found = json.loads(run("measurements/calibration.py", *words).stdout)
    assert [row["calibrator"] for row in found["rows"][:3]] == [
        f"onnxruntime {method}" for method in ("minmax", "percentile", "entropy")
    ]
    assert {row["tensors"] for row in found["rows"]} == {2}  # images and map
    assert [row["images"] for row in found["rows"]] == [16] * 8 + [20]
    seconds = {row["calibrator"]: row["seconds_per_image"] for row in found["rows"][:8]}
    assert found["entropy_times_faster"] == pytest.approx(
        seconds["onnxruntime entropy"] / seconds["large2small entropy"]
    )


def test_calibration_on_too_few_images_is_refused():
    done = run_inside("measurements/calibration.py", "--timed", 8, codes=(2,))
    assert "--timed 8: expected 16 or more" in done.stderr


@slow
def test_int8_is_timed_against_onnx_runtimes_own():
    words = ("--models", "resnet20", "--rounds", 3, "--seconds", 1, "--json")
    found = json.loads(run_inside("measurements/int8_speed.py", *words).stdout)["models"]["resnet20"]
    assert found["rounds"] == 3
    assert {"fp32", "ours cpu", "ours tensorrt", "ORT u8s8", "ORT s8s8"} <= set(found["contenders"])
    assert found["contenders"]["fp32"]["ratio_to_fp32"] == 1
    assert all(0 < row["fastest_ms"] <= row["median_ms"] for row in found["contenders"].values())


@slow
def test_int8_accuracy_is_counted_beside_onnx_runtimes_own(striped, weights):
    words = ("--methods", "minmax", "--placements", "cpu", "--calib-size", 16, "--images", 16, "--json")
    done = run_inside(
        "measurements/int8_accuracy.py", *words, "--on", striped, weights, weights.with_name("none.pth")
    )
    found = json.loads(done.stdout)
    assert list(found["skipped"]) == [str(weights.with_name("none.pth"))]
    result = found["models"][str(weights)]
    assert (result["images"], result["calibrated_on"]) == (16, 16)
    assert [(row["tool"], row["method"]) for row in result["rows"]] == [
        ("ours cpu", "minmax"),
        ("ONNX Runtime", "MinMax"),
        ("ONNX Runtime", "Entropy"),
    ]
    for row in result["rows"]:
        lost, won = map(int, row["flips"].split("/"))
        assert row["drop"] == pytest.approx(100 * (lost - won) / 16)
        assert row["top1"] == pytest.approx(result["fp32_top1"] - row["drop"])


@slow
def test_large_kernels_are_timed_and_compute_the_same(monkeypatch):
    small, build = {"dims": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}, models.build
    monkeypatch.setattr(models, "build", lambda name, classes: build(name, classes, small))
    words = ("--batch", 1, "--rounds", 1, "--img-size", 64, "--skip-layers")
    out = run_inside("measurements/large_kernel.py", *words).stdout
    assert "slak_tiny, 64 pixels, batch 1, fp32" in out
    errors = [float(cell) for cell in re.findall(r"(\de[+-]\d+) │$", out, flags=re.MULTILINE)]
    assert len(errors) == 4 and max(errors) < 1e-3


@slow
def test_large_kernels_on_a_gpu_are_rehearsed_under_the_interpreter(tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed: it comes with torch on Linux alone")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    path = tmp_path / "rehearsal.json"
    run("measurements/large_kernel_gpu.py", "--device", "cpu", "--minutes", 60, "--json", path)
    found = json.loads(path.read_text())
    assert found["measured"] is False and found["gpu"] is None
    steps = ("layers", "backward", "accuracy", "networks", "training", "distillation", "compiled")
    rows = [row for name in steps for row in found[name]]
    assert len(rows) == 10 + 9 + 1 + 1 + 1 + 1 + 2
    assert not re.search(r"seconds|\bus\b|faster|floor|percent|wanted", path.read_text())
    for row in found["layers"]:  # the interpreter cuts, and does not round
        assert row["errors"]["ours"] < 2 * row["errors"]["cudnn"] + 2e-3
    for row in found["backward"]:
        assert max(row["errors"]["ours"]) < 2 * max(row["errors"]["cudnn"]) + 2e-3
    table = path.with_suffix(".md").read_text()
    assert "nothing was measured" in table and table.count("| ran |") == len(rows)
    assert not re.search(r"\d us|images/s|met|missed", table)


@pytest.fixture
def of_a_gpu(monkeypatch):
    """The script that measures on a GPU, as a module."""
    monkeypatch.syspath_prepend(ROOT / "measurements")
    import large_kernel_gpu

    return large_kernel_gpu


def test_a_step_that_fails_is_recorded_and_the_others_are_kept(of_a_gpu, monkeypatch, tmp_path, capsys):
    def memory_runs_out(scale):
        before = json.loads(path.read_text())  # already on disk
        assert before["layers"] == [{"layer": "a", "errors": {"ours": 0.5}}] and "networks" not in before
        raise torch.OutOfMemoryError("out of\nmemory")

    path = tmp_path / "found.json"
    rows = [{"layer": "a", "errors": {"ours": 0.5}, "us": {"ours": 7.25}, "times_faster": 7.25}]
    for name, step in (("layers", lambda scale: rows), ("networks", memory_runs_out)):
        monkeypatch.setitem(of_a_gpu.STEPS, name, step)
    monkeypatch.setitem(of_a_gpu.STEPS, "training", lambda scale: [{"network": "b", "us": {"ours": 7.25}}])
    words = ["--device", "cpu", "--only", "layers", "networks", "training", "--json", str(path)]
    with pytest.raises(SystemExit, match=r"^error: networks failed: OutOfMemoryError: out of memory$"):
        of_a_gpu.main(words)
    found = json.loads(path.read_text())
    assert found["networks"] == "failed: OutOfMemoryError: out of memory"
    assert found["training"] == [{"network": "b"}]
    table = path.with_suffix(".md").read_text()
    assert "| networks | failed: OutOfMemoryError: out of memory |" in table and "| training | b |" in table
    with pytest.raises(SystemExit, match="networks failed"):
        of_a_gpu.main(words[:-2])
    out = capsys.readouterr().out
    assert "7.25" not in out and '"b"' in out  # a rehearsal has no times


def test_what_does_not_begin_in_time_is_recorded(of_a_gpu, monkeypatch):
    monkeypatch.setitem(of_a_gpu.STEPS, "layers", lambda scale: pytest.fail("began"))
    scale = of_a_gpu.Scale(torch.device("cpu"), 1, 2, 2, 32)
    assert of_a_gpu.measured(scale, ["layers"], -1)["layers"] == "not run: out of time"
    minutes = re.search(r"--minutes ([\d.]+)\]", of_a_gpu.__doc__)[1]
    assert f'"--minutes", type=float, default={minutes},' in Path(of_a_gpu.__file__).read_text()


def test_rows_that_fail_or_are_out_of_time_do_not_take_the_others_with_them(of_a_gpu, monkeypatch, capsys):
    """The ninth layer does not fit, and the time is over after it; of the network nothing began."""

    def row(layer, scale, rate):
        if layer.kernel == (7, 7):
            monkeypatch.setattr(of_a_gpu.time, "monotonic", lambda: float("inf"))
            raise torch.OutOfMemoryError("out of memory")
        return {"layer": of_a_gpu.words_of(layer), "errors": {}}

    monkeypatch.setattr(of_a_gpu, "forward_row", row)
    monkeypatch.setattr(of_a_gpu, "copy_bytes_per_ms", lambda scale: 1.0)
    with pytest.raises(SystemExit, match=r"^error: layers failed: OutOfMemoryError: out of memory$"):
        of_a_gpu.main(["--device", "cpu", "--only", "layers", "networks"])
    found = json.loads(capsys.readouterr().out.split("\n# ")[0])
    states = [each.get("state") for each in found["layers"]]
    assert states == [None] * 8 + ["failed: OutOfMemoryError: out of memory", "not run: out of time"]
    assert found["networks"] == "not run: out of time"


def test_compiled_networks_are_compared_with_compiled_ones(of_a_gpu, monkeypatch):
    compiled, timed = [], {}

    class Compiled(torch.nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            compiled.append(self)

    def interleaved(contenders, scale):
        timed.update(contenders)
        return {"cudnn": 4.0, "cudnn_last": 5.0, "ours": 2.0, "cudnn_eager": 8.0, "cudnn_last_eager": 7.0}

    def forward_of(net, *way):
        return isinstance(net, Compiled), way[1:]

    monkeypatch.setattr(of_a_gpu, "compiled", lambda net, scale: Compiled(net))
    monkeypatch.setattr(of_a_gpu, "interleaved", interleaved)
    monkeypatch.setattr(of_a_gpu, "forward_of", forward_of)
    scale = of_a_gpu.Scale(torch.device("cpu"), 1, 2, 2, 32)
    row = of_a_gpu.network_row("slak_tiny", scale, 3.6, is_compiled=True)
    assert [name for name in timed if timed[name][0]] == ["cudnn", "cudnn_last", "ours"]
    for name in ("cudnn", "cudnn_last"):
        assert timed[name][1] == timed[name + "_eager"][1]  # the same way
    assert (row["times_faster"], row["times_faster_than_eager"]) == (2.0, 3.5)
    assert not of_a_gpu.is_met(row) and of_a_gpu.is_met(row | {"wanted": 3.5})
    assert of_a_gpu.cells(row, True)[1:5] == [
        "500 images/s",
        "1,000 images/s",
        "2.0",
        "3.6 x cuDNN not compiled, is 3.5",
    ]


def test_a_compiled_distillation_is_compared_with_a_compiled_one(of_a_gpu, monkeypatch):
    calls = []

    def trained(scale, folder, is_compiled, has_teacher=True, **on_cuda):
        return lambda: calls.append((is_compiled, has_teacher, depthwise._forced))

    def interleaved(contenders, scale):
        for name in ("cudnn", "ours", "no_teacher", "cudnn_eager"):
            contenders[name]()
        return dict.fromkeys(contenders, 2.0) | {"cudnn": 4.0, "cudnn_eager": 5.0}

    monkeypatch.setattr(of_a_gpu, "trained", trained)
    monkeypatch.setattr(of_a_gpu, "written_by_hand", lambda scale, is_compiled: print)
    monkeypatch.setattr(of_a_gpu, "interleaved", interleaved)
    scale = of_a_gpu.Scale(torch.device("cpu"), 1, 2, 2, 32)
    row = of_a_gpu.distillation_row(scale, 5.5, is_compiled=True)
    assert calls == [
        (True, True, "conv2d"),
        (True, True, "toeplitz"),
        (True, False, "auto"),
        (False, True, "conv2d"),
    ]
    assert (row["times_faster"], row["times_faster_than_eager"]) == (2.0, 2.5)


def test_what_a_gpu_is_asked_for_is_judged_by_the_rows_themselves(of_a_gpu):
    script = of_a_gpu
    us = {"cudnn": 300.0, "cudnn_last": 250.0, "ours": 10.0}
    found = {
        "measured": True,
        "note": "",
        "gpu": "some GPU",
        "torch": "2",
        "rounds": 7,
        "layers": [
            {"layer": "a", "us": us, "times_faster": 25.0, "wanted": 25},
            {"layer": "b", "us": us, "times_faster": 24.9, "wanted": 25},
            {"layer": "c", "us": us, "times_faster": 25.0, "times_floor": 8.1, "floor_wanted": 8},
        ],
        "accuracy": [{"network": "n", "errors": {"cudnn": 1e-3, "ours": 1.1e-3}, "wanted": "not above"}],
        "distillation": [
            {
                "network": "t",
                "images_per_second": {"cudnn": 500.0, "ours": 2100.0},
                "times_faster": 4.2,
                "wanted": 4.0,
                "overhead_percent": 2.5,
                "overhead_wanted": 2.0,
            }
        ],
        "compiled": "not run: out of time",
    }
    lines = script.to_markdown(found).splitlines()[6:]
    assert [line.split(" | ")[-1].strip(" |") for line in lines[:5]] == ["met"] + ["missed"] * 4
    assert "250 us | 10 us | 25.0" in lines[0] and "is 8.1" in lines[2] and "out of time" in lines[5]


@slow
def test_without_a_gpu_the_measurement_says_how_to_rehearse():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for words in (
        ("measurements/large_kernel_gpu.py",),
        ("measurements/large_kernel.py", "--device", "cuda"),
        ("measurements/large_kernel.py", "--device=cuda"),
        ("measurements/large_kernel.py", "--dev=cuda", "--json", "none.json"),
    ):
        assert "--device cpu" in run_inside(*words, codes=(2,)).stderr


@slow
def test_simulated_comparisons_are_shares_of_the_runs():
    words = ("--runs", 2, "--kinds", "drifting", "--json")
    found = json.loads(run_inside("measurements/compare_coverage.py", *words).stdout)
    assert (found["runs"], list(found["machines"])) == (2, ["drifting"])
    shares = [value for name, value in found["machines"]["drifting"].items() if name.endswith("_percent")]
    assert len(shares) == 4 and set(shares) <= {0, 50, 100}
    table = run_inside("measurements/compare_coverage.py", "--runs", 1, "--kinds", "drifting").stdout
    assert "1 runs, a true difference of 5 %" in table and "drifting" in table


@slow
def test_large_kernel_layers_are_timed_and_compute_the_same():
    words = ("--batch", 1, "--rounds", 1, "--channels", 8, "--skip-network")
    out = run_inside("measurements/large_kernel.py", *words).stdout
    rows = [line.split("│")[1:-1] for line in out.splitlines() if "fwd" in line]
    assert len(rows) == 26  # 13 layers, forward and with backward
    assert all(float(row[10]) < 1e-4 for row in rows if row[3].strip() == "fwd")


def test_passes_over_the_maps_of_branches_are_those_counted_by_hand():
    """RepLKNet: 2 convolutions of 2, 2 norms of 3 and a sum of 3 are 13; backward 2 x (5 + 2 + 2) + 3 = 21.
    SLaK's strips together: 3 + 2 for the convolutions, 3 norms of 3, 2 sums of 3; backward 3 norms of 5, 3
    and 2 for the gradients of x and a sum of 3, 3 gradients of weights of 2: 20 and 29. A pass of SLaK-T's
    first stage is 49.8 MB, 15 us at 3,350 GB/s; the products are 187 GFLOP.
    """
    out = run_inside("measurements/branch_passes.py").stdout
    rows = [line.split("│")[1:-1] for line in out.splitlines() if "│" in line]
    figures = [[int(cell) for cell in row[2:]] for row in rows]
    assert figures[0] == [21, 33, 54, 802, 189]
    assert figures[5] == [13, 21, 34, 505, 126] and figures[2][:3] == [20, 29, 49]
    assert figures[1][:3] == [13, 27, 40] and figures[6][:3] == [9, 19, 28]  # as TorchInductor counts
    assert figures[3][:3] == [12, 25, 37]  # too


@slow
def test_plans_are_built_where_a_builder_is():
    pytest.importorskip("tensorrt_rtx_bindings")
    words = ("--models", "resnet20", "--precisions", "int8", "--flavor", "rtx", "--json")
    rows = json.loads(run_inside("measurements/engines.py", *words).stdout)["engines"]
    assert [(row["precision"], row["batch"]) for row in rows] == [("int8", "static"), ("int8", "dynamic")]
    assert all(row["error"] is None and row["seconds"] > 0 and row["plan_mb"] > 0 for row in rows)


@slow
def test_without_a_builder_every_plan_says_why_not():
    try:
        import tensorrt
    except ImportError:
        tensorrt = None
    if tensorrt:
        pytest.skip("TensorRT is installed here")
    words = ("--models", "resnet20", "--precisions", "fp32", "--flavor", "tensorrt")
    done = run_inside("measurements/engines.py", *words, codes=(1,))
    assert "TensorRT" in done.stdout.split("convolutions")[1]


@slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU these steps take half an hour")
def test_without_a_gpu_every_step_says_why_not(tmp_path):
    steps = ("cuda", "onnxruntime", "tensorrt", "rtx", "training")
    done = run("measurements/gpu.py", "--output", tmp_path / "here", "--only", "environment", *steps)
    found = json.loads((tmp_path / "here.json").read_text())["steps"]
    assert found["environment"]["status"] == "ok" and found["environment"]["env"]
    for step in steps:
        assert found[step]["status"] == "not run" and len(found[step]["reason"]) > 10
        assert f"{step}: not run {found[step]['reason']}" in done.stderr
        assert f"| {step} | not run | {found[step]['reason']} |" in (tmp_path / "here.md").read_text()


# data


def test_tile_sheets_become_arrays(tmp_path):
    sheets, random = tmp_path / "sheets", np.random.default_rng(0)
    sheets.mkdir()
    tiles = random.integers(0, 256, (6, 2, 3, 32, 32, 3), np.uint8)  # six sheets of 2 x 3 tiles
    for name, sheet in zip([*(f"train_{i}" for i in range(5)), "test"], tiles, strict=True):
        rows = [np.concatenate(list(row), axis=1) for row in sheet]
        Image.fromarray(np.concatenate(rows, axis=0)).save(sheets / f"{name}.webp", lossless=True)
    names = np.array(["ant", "bee"])
    np.savez(sheets / "labels.npz", y_train=np.arange(30) % 2, y_test=np.arange(6) % 2, class_names=names)
    run_inside("measurements/data/cifar10_npz.py", sheets, tmp_path / "out")
    train, val = (open_images(f"npz:{tmp_path / 'out'}", split) for split in ("train", "val"))
    assert (len(train), len(val), train.class_names) == (30, 6, ["ant", "bee"])
    assert np.array_equal(train.x, tiles[:5].reshape(30, 32, 32, 3))
    assert np.array_equal(val.x, tiles[5].reshape(6, 32, 32, 3))


def test_photographs_become_arrays_of_their_middle(tmp_path):
    (tmp_path / "images").mkdir()
    rows = []
    for index, source in enumerate(["imagenet_train", "nips17", "imagenet_train"]):
        pixels = np.zeros((300, 400, 3), np.uint8)
        pixels[:, 100:300] = 80 * (index + 1)  # the middle 300 x 300 is seen, the black edges mostly not
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.jpg", quality=95)
        rows.append({"file": f"{index}.jpg", "class_index": index * 100, "source": source})
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    run_inside("measurements/data/photographs_npz.py", tmp_path, tmp_path / "out")
    train, val = (open_images(f"npz:{tmp_path / 'out'}", split) for split in ("train", "val"))
    assert train.labels.tolist() == [0, 200] and val.labels.tolist() == [100]
    assert train.x.shape == (2, 288, 288, 3) and len(val.class_names) == 1000
    assert abs(int(val.x[0, 144, 144, 0]) - 160) <= 2
    assert train.class_names[0] == "n01440764"  # WordNet, a tench


@slow
def test_int8_steps_and_scales_become_a_mobilenet(tmp_path):
    random, arrays = np.random.default_rng(0), {}
    network = models.build("mobilenetv2_100", 1000, {"pad_type": "same"}).eval()
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)] + [network.classifier]
    for number, layer in enumerate(layers):
        shape = tuple(layer.weight.shape)
        arrays[f"{number}.weight_int8"] = random.integers(-127, 128, shape).astype(np.int8)
        arrays[f"{number}.scale"] = random.uniform(0.5, 1.5, shape[0]).astype(np.float32) / 500
        arrays[f"{number}.bias"] = random.normal(size=shape[0]).astype(np.float32) / 10
    np.savez(tmp_path / "lite.npz", **arrays)
    run("measurements/data/mobilenet_v2_npz.py", tmp_path / "lite.npz", tmp_path / "made.pth")
    found = checkpoint.load_any(str(tmp_path / "made.pth"))
    assert len(found.class_names) == 1000 and found.preprocess.mean == (0.5, 0.5, 0.5)
    checkpoint.load_weights(network, found)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with (
        torch.no_grad()
    ):  # the first layer by hand: TensorFlow pads an even map by nothing before, one behind
        steps = torch.from_numpy(arrays["0.weight_int8"].astype(np.float32))
        kernel = steps * torch.from_numpy(arrays["0.scale"])[:, None, None, None]
        padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
        expected = torch.nn.functional.conv2d(padded, kernel, torch.from_numpy(arrays["0.bias"]), stride=2)
        assert torch.allclose(network.bn1(network.conv_stem(x)), expected.clamp(0, 6), atol=1e-5)


def test_the_fragile_student_computes_the_same_in_float(tmp_path):
    torch.manual_seed(0)
    published = stirred(models.build("resnet20", 10))
    state = {f"module.{key}": value for key, value in published.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "published.th")
    run("measurements/data/fragile_student.py", tmp_path / "published.th", tmp_path / "made.pth", 64)
    fragile = models.build("resnet20", 10).eval()
    fragile.load_state_dict(torch.load(tmp_path / "made.pth", weights_only=True))
    norms = [
        [m.weight for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for net in (published, fragile)
    ]
    grown = {float((b / a).max().detach()) for a, b in zip(*norms, strict=True)}
    assert grown == {64.0}
    with torch.no_grad():
        x = torch.randn(4, 3, 32, 32)
        assert torch.equal(fragile(x), published(x))


def test_scale_is_what_its_formulas_give_by_hand():
    """One machine, no jitter and no latency: 25.557 M gradients of 4 bytes over links of 100 GB/s."""
    words = ["--students", "resnet50", "no_such", "--gpus", 1, 2, "--nvlink", 100, "--achieved", 1]
    rest = ["--latency", 0, "--jitter", 0, "--batch", 64, "--rate", "resnet50=1000", "--teacher-rate", 500]
    found = json.loads(run_inside("measurements/scale.py", *words, *rest, "--json").stdout)
    alone, two, stored, stored_two = found["rows"]
    assert found["not_measured"] == ["no_such"]
    assert (alone["step_ms"], stored["step_ms"]) == (pytest.approx(192), pytest.approx(64))
    assert two["sent_mb"] == pytest.approx(102.228, abs=1e-3) == two["gradients_mb"]
    assert two["sending_ms"] == pytest.approx(1.02228, abs=1e-5)
    assert two["waiting_ms"] == pytest.approx(1.02228 / 5, abs=1e-5)  # the last of 5 buckets
    assert stored_two["efficiency_percent"] == pytest.approx(100 * 64 / (64 + two["waiting_ms"]))
    assert stored_two["limit"] == "GPUs" and stored_two["labels_mb_per_s"] == pytest.approx(
        50 * stored_two["images_per_s"] / 1e6
    )


def test_the_table_of_the_page_about_scale_is_what_the_command_prints():
    """The command is the one that stands above the table."""
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    (words,) = re.findall(r"^python measurements/scale.py (.*)$", page, re.MULTILINE)
    for line in run_inside("measurements/scale.py", *words.split()).stdout.splitlines():
        assert line in page


@pytest.mark.parametrize("words", ["--card 0", "--gpus 0", "--rate resnet50", "--jitter nan"])
def test_scale_refuses_what_cannot_be(words):
    done = run_inside("measurements/scale.py", *words.split(), codes=(2,))
    assert "expected" in done.stderr
