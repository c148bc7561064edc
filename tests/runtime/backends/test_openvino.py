"""OpenVINO: the same answers as ONNX Runtime, int8 in integer kernels, many threads, and what is refused."""

import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runtime
from runtime import ArtifactError, MissingError, UsageError
from runtime.backends.openvino import OpenVinoBackend, _plugin
from runtime.backends.ort import OrtBackend

pytest.importorskip("openvino")

CHANNELS = 16


def convnet(path, quantized: bool, classes: int = 5):
    """Two 3x3 convolutions, ReLU between, mean over the image; as Q/DQ with uint8 activations where
    quantized.

    The scales are powers of two, so that both engines' integer sums are exact and only roundings of halves
    can differ.
    """
    rng = np.random.default_rng(0)
    nodes, constants = [], {}

    def constant(name, value):
        constants[name] = numpy_helper.from_array(value, name)
        return name

    def pair(name, scale, zero):
        if not quantized:
            return name
        ends = [constant(f"{name}_scale", np.float32(scale)), constant(f"{name}_zero", np.uint8(zero))]
        nodes.append(helper.make_node("QuantizeLinear", [name, *ends], [f"{name}_u8"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_u8", *ends], [f"{name}_dq"]))
        return f"{name}_dq"

    def conv(name, source, rows, columns):
        weights = rng.integers(-127, 128, (rows, columns, 3, 3)).astype(np.int8)
        if quantized:
            ends = [
                constant(f"{name}_w8", weights),
                constant(f"{name}_w_scale", np.full(rows, 2.0**-9, np.float32)),
                constant(f"{name}_w_zero", np.zeros(rows, np.int8)),
            ]
            nodes.append(helper.make_node("DequantizeLinear", ends, [f"{name}_w"], axis=0))
        else:
            constant(f"{name}_w", weights.astype(np.float32) * np.float32(2.0**-9))
        nodes.append(helper.make_node("Conv", [source, f"{name}_w"], [name], pads=[1, 1, 1, 1]))
        return name

    hidden = conv("first", pair("image", 2.0**-6, 128), CHANNELS, 3)
    nodes.append(helper.make_node("Relu", [hidden], ["relu"]))
    last = conv("second", pair("relu", 2.0**-6, 0), classes, CHANNELS)
    nodes.append(helper.make_node("GlobalAveragePool", [pair(last, 2.0**-5, 128)], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "convnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        list(constants.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def batch(n=4, seed=1):
    return np.random.default_rng(seed).standard_normal((n, 3, 16, 16)).astype(np.float32)


def layers(backend):
    """{layer type: set of precisions it runs in}, of the graph that OpenVINO made."""
    found: dict[str, set[str]] = {}
    for node in backend._compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        found.setdefault(info["layerType"].astype(str), set()).add(info["runtimePrecision"].astype(str))
    return found


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_fp32_is_computed_in_fp32_also_where_the_cpu_has_bf16(tmp_path, hint):
    path = convnet(tmp_path / "net.onnx", quantized=False)
    backend = OpenVinoBackend(path, threads=1, hint=hint)
    assert layers(backend)["Convolution"] == {"f32"}
    assert backend.provider == f"OpenVINO CPU f32, {hint} hint"
    np.testing.assert_allclose(backend.run(batch()), OrtBackend(path, threads=1).run(batch()), atol=1e-5)


def test_int8_runs_in_integer_kernels_and_agrees_with_onnx_runtime(tmp_path):
    path = convnet(tmp_path / "net.int8.onnx", quantized=True)
    backend, other = OpenVinoBackend(path, threads=1), OrtBackend(path, threads=1)
    assert layers(backend)["Convolution"] <= {"u8", "i8"}
    found, expected = backend.run(batch(64)), other.run(batch(64))
    step = (
        2.0**-5
    )  # of the last quantization; the mean of 256 pixels moves by step / 256 for one pixel rounded otherwise
    assert np.abs(found - expected).max() <= 4 * step / 256
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    float_net = OpenVinoBackend(convnet(tmp_path / "net.onnx", quantized=False), threads=1).run(batch(64))
    assert 1e-4 < np.abs(found - float_net).max() < 0.2  # quantized, and still the same network


def test_any_batch_size_after_another(tmp_path):
    path = convnet(tmp_path / "net.onnx", quantized=False)
    backend, images = OpenVinoBackend(path, threads=1), batch(7)
    whole = backend.run(images)
    assert (whole.shape, whole.dtype) == ((7, 5), np.float32)
    for n in (1, 3, 7, 2):
        np.testing.assert_allclose(backend.run(images[:n]), whole[:n], atol=1e-6)


def test_results_stay_what_they_were_when_the_next_batch_runs(tmp_path):
    backend = OpenVinoBackend(convnet(tmp_path / "net.onnx", quantized=False), threads=1)
    first = backend.run(batch(seed=1))
    before = first.copy()
    backend.run(batch(seed=2))
    assert np.array_equal(first, before)


@pytest.mark.parametrize(
    "form",
    [lambda x: x[:, :, ::-1], lambda x: x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)],
    ids=["flipped", "channels last in memory"],
)
def test_a_batch_that_is_not_contiguous_gives_the_same_answer(tmp_path, form):
    backend = OpenVinoBackend(convnet(tmp_path / "net.onnx", quantized=False), threads=1)
    view = form(batch())
    assert not view.flags.c_contiguous
    np.testing.assert_array_equal(backend.run(view), backend.run(np.ascontiguousarray(view)))


def test_a_read_only_batch_is_taken(tmp_path):
    backend = OpenVinoBackend(convnet(tmp_path / "net.onnx", quantized=False), threads=1)
    images = batch()
    expected = backend.run(images)
    images.flags.writeable = False
    np.testing.assert_array_equal(backend.run(images), expected)


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_eight_threads_get_the_same_results_as_one(tmp_path, hint):
    backend = OpenVinoBackend(convnet(tmp_path / "net.onnx", quantized=False), threads=2, hint=hint)
    batches = [batch(2, seed) for seed in range(8)]
    expected = [backend.run(each) for each in batches]
    wrong, start = [], threading.Barrier(8)

    def work(i):
        start.wait()
        for _ in range(50):
            if not np.allclose(backend.run(batches[i]), expected[i], atol=1e-6):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert 1 <= backend._requests.qsize() <= 8  # requests are kept and shared, not made for every call


def test_out_takes_the_logits(tmp_path):
    backend = OpenVinoBackend(convnet(tmp_path / "net.onnx", quantized=False), threads=1)
    out = np.full((4, 5), np.nan, np.float32)
    assert backend.run(batch(), out) is out
    np.testing.assert_array_equal(out, backend.run(batch()))


@pytest.mark.parametrize(
    "out", [np.zeros((4, 4), np.float32), np.zeros((4, 5)), [0.0]], ids=["shape", "float64", "a list"]
)
def test_a_wrong_out_is_refused_and_the_next_call_works(tmp_path, out):
    backend = OpenVinoBackend(convnet(tmp_path / "net.onnx", quantized=False), threads=1)
    with pytest.raises(UsageError, match=r"expected a writeable float32 array \(4, 5\)"):
        backend.run(batch(), out)
    assert backend.run(batch()).shape == (4, 5)


def test_load_opens_it_with_metadata_and_the_same_answers(student):
    pixels = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    with (
        runtime.load(student, backend="openvino", threads=1) as ours,
        runtime.load(student, threads=1) as other,
    ):
        assert ours.metadata == other.metadata and ours.class_names == ["blue", "green", "red"]
        assert ours.engine.startswith("openvino 20") and ours.threads == 1 and ours.device == "cpu"
        assert ours.input_shape == [None, 3, 8, 8]
        np.testing.assert_allclose(ours.logits(pixels), other.logits(pixels), atol=1e-6)
        with pytest.raises(UsageError, match="expected float32"):
            ours.logits(np.zeros((1, 3, 9, 8), np.float32))


def test_the_threads_in_use_are_reported(student):
    import os

    assert OpenVinoBackend(student, threads=1).threads == 1
    assert 1 <= OpenVinoBackend(student).threads <= os.cpu_count()


def test_a_fixed_batch_size_is_known(tiny, tmp_path):
    assert OpenVinoBackend(tiny.write(tmp_path / "fixed.onnx", batch=4), threads=1).input_shape == [
        4,
        3,
        8,
        8,
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hint": "speed"}, "expected latency or throughput"),
        ({"threads": 0}, "expected 1 or more"),
        ({"device": "cuda"}, "OpenVINO takes cpu, gpu"),
        ({"device": "cpu:0"}, "OpenVINO takes"),
        ({"device": ""}, "OpenVINO takes"),
        ({"device": "gpu", "threads": 2}, "only the CPU has threads"),
    ],
)
def test_settings_that_make_no_sense_are_refused(student, changes, words):
    with pytest.raises(UsageError, match=words):
        OpenVinoBackend(student, **changes)


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        OpenVinoBackend(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("device", "available", "name"),
    [
        ("cpu", ["CPU"], "CPU"),
        ("GPU", ["CPU", "GPU"], "GPU"),
        ("gpu", ["CPU", "GPU.0", "GPU.1"], "GPU"),
        ("gpu:0", ["CPU", "GPU"], "GPU.0"),
        ("gpu:1", ["CPU", "GPU.0", "GPU.1"], "GPU.1"),
        ("npu", ["CPU", "NPU"], "NPU"),
    ],
)
def test_a_device_that_openvino_lists_is_chosen(device, available, name):
    assert _plugin(device, available) == name


@pytest.mark.parametrize(
    ("device", "available"),
    [
        ("gpu", ["CPU"]),
        ("npu", ["CPU", "GPU"]),
        ("gpu:1", ["CPU", "GPU"]),
        ("gpu:2", ["CPU", "GPU.0", "GPU.1"]),
    ],
)
def test_a_device_that_is_not_here_is_missing(device, available):
    with pytest.raises(MissingError, match="OpenVINO finds CPU"):
        _plugin(device, available)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"not a model at all" * 9,
        lambda content: content[: len(content) // 2],
    ],
    ids=["empty", "junk", "cut short"],
)
def test_a_damaged_file_is_an_artifact_error_on_one_line(student, damage):
    student.write_bytes(damage(student.read_bytes()))
    with pytest.raises(ArtifactError, match=r"student\.onnx") as found:
        OpenVinoBackend(student)
    assert "\n" not in str(found.value)


def test_a_network_that_takes_no_image_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "no_image",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, 2])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9),
        str(tmp_path / "m.onnx"),
    )
    with pytest.raises(ArtifactError, match=r"inputs are x: int64.*expected one float32 input"):
        OpenVinoBackend(tmp_path / "m.onnx")


def test_a_layer_that_openvino_does_not_have_is_an_artifact_error(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Nonsense", ["x"], ["y"], domain="nowhere")],
        "unknown",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])],
    )
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(tmp_path / "m.onnx"))
    with pytest.raises(ArtifactError, match=r"m\.onnx: OpenVINO.*Nonsense") as found:
        OpenVinoBackend(tmp_path / "m.onnx")
    assert "\n" not in str(found.value)


def test_without_the_package_the_extra_is_named(student):
    code = (
        "import sys; sys.modules['openvino'] = None\nimport runtime\n"
        f"try: runtime.load({str(student)!r}, backend='openvino')\n"
        "except runtime.MissingError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "large2small[openvino]"' in done.stdout


SIGNAL_AFTERWARDS = """
import gc, os, signal, sys, threading
signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
from runtime.backends.openvino import OpenVinoBackend
networks = [OpenVinoBackend(sys.argv[1], threads=1) for _ in range(int(sys.argv[2]))]
{how}
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
print("alive")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGUSR1")
@pytest.mark.parametrize(
    "count, how",
    [
        (2, "while networks: del networks[0]"),
        (1, "other = threading.Thread(target=networks.clear); other.start(); other.join()"),
    ],
    ids=["in the order they came", "in another thread"],
)
def test_a_signal_is_handled_after_networks_have_gone(tmp_path, count, how):
    path = convnet(tmp_path / "net.onnx", quantized=False)
    words = [sys.executable, "-c", SIGNAL_AFTERWARDS.format(how=how), str(path), str(count)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["handled", "alive"]), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_an_openvino_of_its_own(tmp_path):
    path = convnet(tmp_path / "net.onnx", quantized=False)
    expected = OpenVinoBackend(path, threads=1).run(batch())
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(answer_of, (path,)).get(timeout=60)
    np.testing.assert_array_equal(found, expected)


def answer_of(path):
    return OpenVinoBackend(path, threads=1).run(batch())
