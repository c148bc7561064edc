"""Plans through `runtime.load` and `bench latency`, on TEST DOUBLES of TensorRT and the CUDA driver
(tests/doubles).

What happens inside one process is in trt_cases.py, run once; here is what needs a process of its own: bad
plans, missing parts, exits.
"""

import json
import re
import subprocess
import sys

import doubles
import pytest
import trt_cases as cases

from runtime.env import versions

NAMES = [name for name in dir(cases) if name.startswith("case_")]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return doubles.compiled(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def results(compiled, tmp_path_factory):
    ran = run(compiled, [cases.__file__, str(tmp_path_factory.mktemp("cases"))])
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


def run(compiled, arguments, timeout=120, **settings):
    return subprocess.run(
        [sys.executable, *arguments],
        env=doubles.environment(compiled, **settings),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=doubles.ROOT,
    )


@pytest.mark.parametrize("name", NAMES)
def test_in_one_process(results, name):
    assert results[name] is None, results[name]


@pytest.fixture
def plan(tmp_path):
    return cases.write(tmp_path)[0]


def latency(compiled, plan, *flags, **settings):
    command = [
        "-m",
        "bench",
        "latency",
        "--engine",
        str(plan),
        "--device",
        "cuda",
        "--iterations",
        "3",
        "--warmup",
        "1",
    ]
    return run(compiled, [*command, *flags], **settings)


def refused(ran, code, *words):
    """One line on stderr that holds the words, nothing on stdout."""
    assert ran.returncode == code, (ran.returncode, ran.stderr)
    assert ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1 and ran.stdout == "", ran.stderr
    assert all(word in ran.stderr for word in words), ran.stderr


def test_bench_measures_a_plan(compiled, plan):
    ran = latency(compiled, plan, "--json", "--batch", "2")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (
        found["engine"] == "tensorrt 10.3.0"
        and "Test Double GPU" in found["provider"]
        and found["compute"]["n"] == 3
    )


@pytest.mark.parametrize("version", ["10.3", "11.4"])
def test_plan_runs_on_the_version_that_wrote_it(compiled, tmp_path, version):
    plan, _ = cases.write(tmp_path, version=version)
    assert latency(compiled, plan, version=version).returncode == 0
    other = {"10.3": "11.4", "11.4": "10.3"}[version]
    full = {"10.3": "10.3.0", "11.4": "11.4.0.106"}
    refused(
        latency(compiled, plan, version=other),
        4,
        f"built by TensorRT {full[version]}",
        f"here is {full[other]}",
        f"distill export trt --rebuild {plan}",
    )


def _cut(plan):
    plan.write_bytes(plan.read_bytes()[:-100])


def _one_byte(plan):
    content = bytearray(plan.read_bytes())
    content[-50] ^= 1
    plan.write_bytes(content)


def _other_sidecar(plan):
    other, _ = cases.write(plan.parent, name="other", onnx=plan.with_suffix(".onnx"), verbosity="NONE....")
    cases.artifact.sidecar_of(other).rename(cases.artifact.sidecar_of(plan))


def _edit_sidecar(plan):
    path = cases.artifact.sidecar_of(plan)
    path.write_text(path.read_text().replace("mean_color", "mean-color"))


def _no_plan_in_sidecar(plan):
    cases.artifact.sidecar_of(plan).write_bytes(cases.artifact.sidecar_bytes(cases.tiny.metadata()))


def _other_system(plan):
    meta = cases.tiny.metadata(
        engine=doubles.about(plan.read_bytes(), plan.with_suffix(".onnx"), platform="Windows AMD64")
    )
    cases.artifact.sidecar_of(plan).write_bytes(cases.artifact.sidecar_bytes(meta))


DAMAGE = {
    "empty": (lambda plan: plan.write_bytes(b""), "empty"),
    "not a plan": (lambda plan: plan.write_bytes(b"PK\3\4" + bytes(100)), "not a TensorRT plan"),
    "an ONNX file": (
        lambda plan: plan.write_bytes(plan.with_suffix(".onnx").read_bytes()),
        "not a TensorRT plan",
    ),
    "20 bytes": (lambda plan: plan.write_bytes(plan.read_bytes()[:20]), "cut short (20 bytes)"),
    "cut short": (_cut, "cut short, or the metadata is of another plan"),
    "longer": (lambda plan: plan.write_bytes(plan.read_bytes() + b"\0"), "longer than it was written"),
    "one byte changed": (_one_byte, "its SHA-256 is not the one in student.plan.json"),
    "sidecar missing": (
        lambda plan: cases.artifact.sidecar_of(plan).unlink(),
        "student.plan.json is not beside it",
    ),
    "sidecar of another plan": (_other_sidecar, "the metadata is of another plan"),
    "sidecar edited": (_edit_sidecar, "student.plan.json: changed since it was written"),
    "sidecar garbage": (
        lambda plan: cases.artifact.sidecar_of(plan).write_text("{"),
        "not metadata of a plan",
    ),
    "sidecar of an ONNX file": (_no_plan_in_sidecar, "does not describe a plan"),
    "of another system": (_other_system, "built on Windows AMD64"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_plan_is_refused_before_tensorrt_sees_it(compiled, plan, kind):
    damage, words = DAMAGE[kind]
    damage(plan)
    ran = latency(compiled, plan, driver=False, tensorrt=False)  # so that it cannot
    refused(ran, 4, words, "distill export ")


def test_plan_for_another_gpu(compiled, plan):
    refused(
        latency(compiled, plan, LIBCUDA_DOUBLE_CAPABILITY=86),
        4,
        "built for compute capability 9.0",
        "Test Double GPU has 8.6",
        f"--rebuild {plan}",
    )


def test_tensorrt_missing(compiled, plan):
    refused(latency(compiled, plan, tensorrt=False), 3, 'pip install "large2small[tensorrt]"')


def test_driver_missing(compiled, plan):
    refused(latency(compiled, plan, driver=False), 3, "driver")


def test_plan_of_tensorrt_for_rtx_without_a_driver(compiled, tmp_path):
    here = versions(("tensorrt_rtx_cu13_bindings",)).get("tensorrt_rtx_cu13_bindings")
    engine = {"flavor": "rtx", "version": here or "1.7.1.116"}
    plan, _ = cases.write(tmp_path, version="rtx-1.7", engine=engine)
    code, said = (
        (3, "[rtx]") if here is None else (3, "driver") if here.startswith("1.7.") else (4, "RTX 1.7")
    )
    refused(latency(compiled, plan, driver=False), code, said)


def test_no_gpu(compiled, plan):
    refused(latency(compiled, plan, LIBCUDA_DOUBLE_GPUS=0), 3, "driver")


def test_index_of_a_gpu_that_is_not_there(compiled, plan):
    refused(
        latency(compiled, plan, "--device", "cuda:2", LIBCUDA_DOUBLE_GPUS=2),
        2,
        "cuda:2: this machine has 2 GPUs",
    )
    assert latency(compiled, plan, "--device", "cuda:1", LIBCUDA_DOUBLE_GPUS=2).returncode == 0


def test_batch_over_the_profile(compiled, plan):
    refused(latency(compiled, plan, "--batch", "9"), 2, "takes batches of 1 to 8 images, given 9")


def test_the_double_ends_a_process_that_touches_a_runtime_without_a_driver(compiled):
    code = """
import tensorrt as trt
class Log(trt.ILogger):
    def __init__(self): trt.ILogger.__init__(self)
    def log(self, severity, message): print(message)
trt.Runtime(Log())"""
    assert run(compiled, ["-c", code], driver=False).returncode == -6
    assert run(compiled, ["-c", code]).returncode == 0


EXIT = """
import atexit, os, sys, threading
sys.setdlopenflags(os.RTLD_LAZY)
import trt_cases as cases, runtime
atexit.register(lambda: print(cases.alive()))
engine = runtime.load({plan!r}, contexts=2, cuda_graph={graph})
engine.logits(cases.images(2))
{more}
"""

MORE = {
    "plain": "",
    "held by a cycle": "engine.again = engine; del engine",
    "after an exception": (
        "try:\n    engine.logits(cases.images(99))\nexcept runtime.UsageError as error:\n    kept = error"
    ),
    "busy in another thread": (
        """
def work():
    try:
        while True:
            engine.logits(cases.images(1))
    except runtime.UsageError:
        pass
threading.Thread(target=work, daemon=True).start()"""
    ),
    "with an error": "sys.exit(7)",
}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("more", MORE)
def test_exit_without_closing_frees_everything(compiled, plan, graph, more):
    code = EXIT.format(plan=str(plan), graph=graph, more=MORE[more])
    ran = run(compiled, ["-c", code], timeout=60)
    assert ran.stderr == "" and ran.returncode == (7 if more == "with an error" else 0)
    assert set(re.findall(r"\d+", ran.stdout)) == {"0"}
