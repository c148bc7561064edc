"""`distill export trt`: flags, files, metadata and errors; plans are built by TensorRT for RTX, which needs
no GPU.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runtime
from export import __main__ as cli
from export.graph import from_torch
from export.int8 import quantize
from export.int8.calibrate import calibrate
from export.options.trt import parse_size
from export.trt import process
from export.trt.build import Profile, Settings
from runtime.artifact import Metadata, check_file, read_sidecar, sidecar_bytes, sidecar_of
from runtime.backends.tensorrt.plan import preflight
from runtime.errors import ArtifactError, MissingError
from runtime.records import FileHash, Quantization

pytestmark = pytest.mark.usefixtures("exports_once")
rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed"
)
FAST = (
    "--calib-size",
    "64",
    "--accuracy-size",
    "200",
    "--verify-size",
    "32",
    "--calib-cache",
    "none",
    "--flavor",
    "rtx",
    "--max-drop",
    "5",
)


def export(*words) -> int:
    return cli.main(["trt", *map(str, words)])


def error_of(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1 and lines[-1].startswith(
        "error: "
    )
    return lines[-1]


@pytest.fixture
def fp32_file(student_onnx, preprocess, tmp_path):
    path = tmp_path / "student.onnx"
    path.write_bytes(
        from_torch.write_metadata(
            student_onnx,
            Metadata(
                precision="fp32", model="resnet20", preprocess=preprocess, class_names=list("0123456789")
            ),
        )
    )
    return path


@pytest.fixture
def int8_file(student_onnx, digits_batch, preprocess, tmp_path):
    def write(placement="tensorrt"):
        plan = quantize.lay_out(student_onnx, placement)
        made = quantize.quantize(
            student_onnx,
            plan,
            calibrate(student_onnx, plan.tensors, [digits_batch], "minmax", unsigned=placement == "cpu"),
        )
        path = tmp_path / "student.int8.onnx"
        path.write_bytes(
            from_torch.write_metadata(
                made,
                Metadata(
                    precision="int8",
                    model="resnet20",
                    preprocess=preprocess,
                    class_names=list("0123456789"),
                    quantization=Quantization(placement=placement),
                ),
            )
        )
        return path

    return write


@rtx
def test_checkpoint_becomes_plan_with_its_onnx_file_and_metadata(student_file, tmp_path, capsys):
    copy = tmp_path / "best.pth"
    copy.write_bytes(student_file.read_bytes())
    assert export("--int8", copy, *FAST, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    plan, portable = tmp_path / "best.int8.plan", tmp_path / "best.int8.onnx"
    assert set(os.listdir(tmp_path)) == {
        "best.pth",
        "best.int8.onnx",
        "best.int8.plan",
        "best.int8.plan.json",
    }
    meta = read_sidecar(plan)
    built = meta.engine
    assert plan.read_bytes()[:4] == b"vtrt"
    assert built.plan_sha256 == said["sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert built.onnx == FileHash(
        file=portable.name, sha256=hashlib.sha256(portable.read_bytes()).hexdigest()
    )
    assert built.state == said["state"] == "built, not run" and built.gpu is None and built.flavor == "rtx"
    assert built.inputs == [{"name": "images", "dtype": "float32", "shape": [1, 3, 32, 32]}]
    assert built.outputs == [{"name": "logits", "dtype": "float32", "shape": [1, 10]}]
    assert built.profiles == [{"min": 1, "opt": 1, "max": 1}]
    assert built.layers["convolutions"] == {"int8": 19} and built.warnings == []
    assert (
        meta.precision == "int8"
        and meta.class_names == list("0123456789")
        and meta.preprocess.input_size == (3, 32, 32)
    )
    assert meta.quantization.placement == "tensorrt" and meta.verification.lowered
    with runtime.load(portable) as student:
        assert student.metadata.lineage["checkpoint"] == meta.lineage["checkpoint"]


@rtx
def test_onnx_file_with_several_batch_sizes(int8_file, capsys):
    path = int8_file()
    assert (
        export(
            path, "--flavor", "rtx", "--dynamic", "1,2,4", "8,8,8", "--workspace", "256MiB", "--opt-level", 1
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "1 to 4, tuned for 2; 8" in printed and "19 int8" in printed and "built, not run" in printed
    built = read_sidecar(path.with_suffix(".plan")).engine
    assert built.profiles == [{"min": 1, "opt": 2, "max": 4}, {"min": 8, "opt": 8, "max": 8}]
    assert built.inputs[0]["shape"] == [-1, 3, 32, 32]
    assert built.flags.workspace_bytes == 256 * 2**20 and built.flags.opt_level == 1


@rtx
def test_plan_elsewhere_gets_its_onnx_file_beside_it(fp32_file, tmp_path):
    plan = tmp_path / "device" / "a.plan"
    assert export(fp32_file, "--flavor", "rtx", "--output", plan) == 0
    assert (plan.parent / fp32_file.name).read_bytes() == fp32_file.read_bytes()
    assert check_file(sidecar_of(plan))


@rtx
def test_rebuild_elsewhere_replaces_nothing_unasked(fp32_file, tmp_path, capsys):
    assert export(fp32_file, "--flavor", "rtx") == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "student.plan").write_bytes(b"another plan")
    assert export("--rebuild", fp32_file.with_suffix(".plan"), "--output", other / "student.plan") == 2
    assert "exists already" in error_of(capsys) and (other / "student.plan").read_bytes() == b"another plan"
    (other / "student.plan").unlink()
    (other / "student.onnx").write_bytes(b"another network")
    assert export("--rebuild", fp32_file.with_suffix(".plan"), "--output", other / "student.plan") == 2
    assert "student.onnx exists already" in error_of(capsys) and os.listdir(other) == ["student.onnx"]
    assert (
        export("--rebuild", fp32_file.with_suffix(".plan"), "--output", other / "student.plan", "--overwrite")
        == 0
    )
    assert (other / "student.onnx").read_bytes() == fp32_file.read_bytes()


@rtx
@pytest.mark.parametrize("change", [{"tf32": None}, {"opt_level": None}])
def test_rebuild_of_a_plan_of_another_version_of_ours(fp32_file, capsys, change):
    plan = fp32_file.with_suffix(".plan")
    assert export(fp32_file, "--flavor", "rtx") == 0
    meta = read_sidecar(plan)
    engine = replace(meta.engine, flags=replace(meta.engine.flags, **change))
    sidecar_of(plan).write_bytes(sidecar_bytes(replace(meta, engine=engine)))
    assert export("--rebuild", plan) == 4
    assert "does not say all of how the plan was built" in error_of(capsys)


@rtx
def test_failed_build_from_a_checkpoint_leaves_the_plan_and_the_onnx_file_that_were_there(
    student_file, tmp_path, monkeypatch
):
    plan = tmp_path / "s.plan"
    flags = ("--output", plan, "--data", "digits", "--verify-size", 32, "--flavor", "rtx")
    assert export(student_file, *flags) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert {"s.plan", "s.onnx", "s.plan.json"} <= set(before)
    with monkeypatch.context() as patch:
        patch.setattr(process, "build", lambda *given: (_ for _ in ()).throw(MissingError("no memory")))
        assert export(student_file, *flags, "--overwrite", "--opset", 20) == 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert export(student_file, *flags, "--overwrite", "--opset", 20) == 0
    assert (tmp_path / "s.onnx").read_bytes() != before["s.onnx"] and preflight(plan)
    assert set(before) == {path.name for path in tmp_path.iterdir()}


@rtx
def test_rebuild_takes_the_settings_it_was_built_with(fp32_file, capsys):
    plan = fp32_file.with_suffix(".plan")
    assert export(fp32_file, "--flavor", "rtx", "--dynamic", "1,2,4", "--opt-level", 2) == 0
    first = read_sidecar(plan).engine
    plan.write_bytes(b"of another version")
    assert export("--rebuild", plan) == 0
    again = preflight(plan).engine
    assert all(
        getattr(again, key) == getattr(first, key)
        for key in ("flavor", "profiles", "flags", "onnx", "inputs", "layers")
    )
    assert again.flags.opt_level == 2 and again.profiles == [{"min": 1, "opt": 2, "max": 4}]
    assert export("--rebuild", plan, "--batch", 3) == 0
    assert read_sidecar(plan).engine.profiles == [{"min": 3, "opt": 3, "max": 3}]
    assert export("--rebuild", plan, "--dynamic", "1,1,2", "--opt-level", 3) == 0  # also back to the defaults
    built = read_sidecar(plan).engine
    assert built.profiles == [{"min": 1, "opt": 1, "max": 2}] and built.flags.opt_level == 3
    capsys.readouterr()
    fp32_file.write_bytes(fp32_file.read_bytes() + b" ")
    assert export("--rebuild", plan) == 4 and "SHA-256 differs" in error_of(capsys)
    fp32_file.unlink()
    assert export("--rebuild", plan) == 4 and "is not beside it" in error_of(capsys)
    sidecar_of(plan).unlink()
    assert export("--rebuild", plan) == 4 and "student.plan.json is not beside it" in error_of(capsys)


@rtx
def test_parser_names_the_node_and_nothing_is_left(tmp_path, capsys):
    path = tmp_path / "odd.onnx"
    model = small_model(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], "first"),
            helper.make_node("Det", ["a"], ["b"], "the_odd_one"),
            helper.make_node("Flatten", ["b"], ["y"], "flatten", axis=1),
        ]
    )
    onnx.save(model, path)
    assert export(path, "--flavor", "rtx") == 4
    said = error_of(capsys)
    assert "cannot parse it" in said and "the_odd_one" in said and "(Det)" in said
    assert os.listdir(tmp_path) == ["odd.onnx"]


@rtx
@pytest.mark.parametrize(
    ("batch", "flags", "words"),
    [
        (4, (), "its batch size is fixed at 4. Give --batch 4"),
        (None, ("two inputs",), "its inputs are x: float32"),
    ],
)
def test_graph_that_no_plan_of_these_sizes_can_hold(tmp_path, capsys, batch, flags, words):
    path = tmp_path / "a.onnx"
    model = small_model(
        [helper.make_node("Conv", ["x", "w"], ["a"], "c"), helper.make_node("Flatten", ["a"], ["y"], "f")],
        batch or "N",
    )
    if flags:
        model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, 3, 8, 8]))
    onnx.save(model, path)
    assert export(path, "--flavor", "rtx") == 4
    assert words in error_of(capsys)


FLAT = [helper.make_node("GlobalAveragePool", ["x"], ["a"]), helper.make_node("Flatten", ["a"], ["f"])]
FOREIGN = {
    "labels": (
        [*FLAT, helper.make_node("ArgMax", ["f"], ["y"], axis=1, keepdims=0)],
        (TensorProto.INT64, ["N"]),
        "its outputs are y: int64 (any); expected logits first",
    ),
    "a map": (
        [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
        (TensorProto.FLOAT, ["N", 3, 1, 1]),
        "its outputs are y: float32 (any, 3, 1, 1); expected logits, (N, classes): end it with",
    ),
    "probabilities": (
        [*FLAT, helper.make_node("Softmax", ["f"], ["y"], axis=1)],
        (TensorProto.FLOAT, ["N", 3]),
        "its last layer is Softmax",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_a_classifier_is_named_before_the_build(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(process, "build", None)  # nothing is built
    nodes, output, words = FOREIGN[case]
    onnx.save(small_model(nodes, output=output), tmp_path / "a.onnx")
    assert export(tmp_path / "a.onnx", "--flavor", "rtx") == 4
    assert words in error_of(capsys)
    assert os.listdir(tmp_path) == ["a.onnx"]


def small_model(nodes, batch="N", output=(TensorProto.FLOAT, None)):
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])
    logits = helper.make_tensor_value_info("y", *output)
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    return helper.make_model(
        helper.make_graph(nodes, "g", [images], [logits], [weight]),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )


@rtx
def test_file_that_is_not_onnx(tmp_path, capsys):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"nothing of the kind")
    assert export(path, "--flavor", "rtx") == 4 and "not an ONNX file" in error_of(capsys)


def test_cpu_placement_is_refused_with_the_command_that_helps(int8_file, capsys):
    assert export(int8_file("cpu"), "--flavor", "rtx") == 4
    assert "--placement tensorrt" in error_of(capsys)


def test_changed_onnx_file_is_refused(fp32_file, capsys):
    content = bytearray(fp32_file.read_bytes())
    content[len(content) // 2] ^= 1
    fp32_file.write_bytes(content)
    assert export(fp32_file, "--flavor", "rtx") == 4
    assert "seal" in error_of(capsys)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dynamic", "1,2"], "--dynamic 1,2: expected MIN,OPT,MAX"),
        (["--dynamic", "4,2,8"], "batch sizes 4,2,8"),
        (["--accuracy-size", "0"], "--accuracy-size 0: expected 1 or more"),
        (["--max-drop", "-1"], "--max-drop -1.0: expected 0"),
        (["--batch", "0"], "--batch 0: expected 1 or more"),
        (["--batch", "2", "--dynamic", "1,2,4"], "Give one of them"),
        (["--opt-level", "6"], "--opt-level 6: expected 0 to 5"),
        (["--workspace", "much"], "--workspace much"),
        (["--workspace", "0GiB"], "expected a size above 0"),
        (["--workspace", "0.5"], "expected a size above 0"),
        (["--output", "a.engine"], "expected a name that ends in .plan"),
        (["--int8"], "has its precision already"),
        (["--calib", "digits"], "--calib is only read for a checkpoint"),
        (["--hardware-compat", "ampere_plus"], "choose their kernels"),
        (["--flavour", "rtx"], "did you mean --flavor?"),
        (["--rebuild"], "expected a .plan file"),
    ],
)
def test_flags_that_cannot_be(fp32_file, capsys, flags, words):
    before = sorted(os.listdir(fp32_file.parent))
    assert export(fp32_file, "--flavor", "rtx", *flags) == 2
    assert words in error_of(capsys)
    assert sorted(os.listdir(fp32_file.parent)) == before


def test_file_that_is_not_there(tmp_path, capsys):
    assert export(tmp_path / "a.pth", "--flavor", "rtx") == 2 and "no such checkpoint" in error_of(capsys)


def test_plan_that_cannot_be_written_is_named_before_it_is_built(fp32_file, monkeypatch, capsys):
    monkeypatch.setattr(process, "build", lambda *given: pytest.fail("built"))
    assert export(
        fp32_file, "--flavor", "rtx", "--output", fp32_file / "a.plan"
    ) == 2 and "cannot be written" in error_of(capsys)
    assert os.listdir(fp32_file.parent) == [fp32_file.name]


def test_existing_plan_is_kept(fp32_file, capsys):
    plan = fp32_file.with_suffix(".plan")
    plan.write_bytes(b"mine")
    assert export(fp32_file, "--flavor", "rtx") == 2 and "exists already" in error_of(capsys)
    assert plan.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * 2**30),
        ("512MiB", 512 * 2**20),
        ("1.5G", 3 * 2**29),
        ("64k", 2**16),
        ("1000", 1000),
        (None, None),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


def test_neither_flavor_installed(fp32_file, monkeypatch, capsys):
    for name in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    assert export(fp32_file) == 3
    said = error_of(capsys)
    assert "large2small[tensorrt]" in said and "large2small[rtx]" in said


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "was killed, as happens when memory runs out",
        ),
        (
            "import os, sys; print('all of it', file=sys.stderr); sys.stderr.flush(); os._exit(7)",
            "ended with code 7 before it was done (all of it)",
        ),
        ("raise ImportError('libnvinfer.so.10: cannot open')", "libnvinfer.so.10: cannot open"),
    ],
)
def test_crash_inside_tensorrt_is_one_line(fp32_file, tmp_path, monkeypatch, code, words):
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tensorrt_rtx_bindings.py").write_text(code)
    monkeypatch.syspath_prepend(str(modules))
    with pytest.raises(MissingError) as error:
        process.build(fp32_file, Settings(flavor="rtx"))
    assert words in str(error.value) and "\n" not in str(error.value)


@rtx
def test_builder_that_gives_nothing_passes_its_reason_on(fp32_file):
    with pytest.raises(
        ArtifactError, match=r"cannot build it: .*lean"
    ):  # version compatibility needs a library that is not here
        process.build(fp32_file, Settings(flavor="rtx", profiles=(Profile(1, 1, 1),), version_compat=True))


@rtx
@pytest.mark.slow
def test_ctrl_c_leaves_no_plan_and_no_process(tmp_path):
    path = tmp_path / "large.onnx"
    deep = [
        helper.make_node("Conv", [f"t{i}" if i else "x", "w"], [f"t{i + 1}"], f"conv{i}") for i in range(1500)
    ]
    onnx.save(small_model([*deep, helper.make_node("Flatten", ["t1500"], ["y"], "f")]), path)
    process = subprocess.Popen(
        [sys.executable, "-m", "distill", "export", "trt", str(path), "--flavor", "rtx"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )
    worker = wait_for_child(process.pid)
    time.sleep(2.0)
    assert process.poll() is None, "built before it could be stopped"
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.strip().splitlines()[-1] == "error: interrupted"
    assert os.listdir(tmp_path) == ["large.onnx"]
    assert not os.path.exists(f"/proc/{worker}")


def hear_ctrl_c():
    """In the child: tests that were started in the background are deaf to it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_child(pid):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = file.read().split()
        if children:
            return int(children[0])
        time.sleep(0.05)
    raise AssertionError("no builder was started")
