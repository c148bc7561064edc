"""ONNX Runtime: which provider runs, what is asked of it, and what is refused. GPU providers by a test double
of the module.
"""

import sys
import types

import numpy as np
import onnxruntime
import pytest

from runtime import ArtifactError, MissingError, UsageError
from runtime.backends.ort import OrtBackend
from runtime.files import sha256

GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


class DoubleOptions:
    """Keeps what was set."""

    def __init__(self):
        self.entries = {}

    def add_session_config_entry(self, key, value):
        self.entries[key] = value


@pytest.fixture
def double(monkeypatch):
    """A TEST DOUBLE of onnxruntime with GPU providers: `loads` names those that work, `takes_all` says if
    every layer runs there.

    As the real one does, it comes down to the CPU where a provider does not load, and raises where that is
    forbidden.
    """
    module = types.ModuleType("onnxruntime")
    module.__version__, module.SessionOptions, module.get_available_providers = (
        "9.9",
        DoubleOptions,
        lambda: GPU,
    )
    module.loads, module.takes_all, module.opened = set(GPU), True, []

    class Session:
        def __init__(self, path, settings, providers):
            ((name, options),) = providers
            module.opened.append((name, options, settings))
            works = name in module.loads
            if settings.entries.get("session.disable_cpu_ep_fallback") == "1" and not (
                works and module.takes_all
            ):
                raise RuntimeError(
                    "This session contains graph nodes that are assigned to the default CPU EP,\n but"
                    " fallback to CPU EP has been explicitly disabled by the user."
                )
            self.providers = [name, "CPUExecutionProvider"] if works else ["CPUExecutionProvider"]

        def get_providers(self):
            return self.providers

        def disable_fallback(self):
            pass

        def get_inputs(self):
            return [types.SimpleNamespace(name="image", type="tensor(float)", shape=["N", 3, 8, 8])]

        def get_outputs(self):
            return [types.SimpleNamespace(name="logits", type="tensor(float)", shape=["N", 10])]

    module.InferenceSession = Session
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


@pytest.mark.parametrize(
    ("asked", "device", "name"),
    [
        ({}, "cpu", "CPUExecutionProvider"),
        ({"device": "cpu"}, "cpu", "CPUExecutionProvider"),
        ({"provider": "cpu"}, "cpu", "CPUExecutionProvider"),
        ({"device": "cuda"}, "cuda", "CUDAExecutionProvider"),
        ({"provider": "cuda"}, "cuda", "CUDAExecutionProvider"),
        ({"provider": "tensorrt"}, "cuda", "TensorrtExecutionProvider"),
        ({"provider": "tensorrt", "device": "cuda:1"}, "cuda:1", "TensorrtExecutionProvider"),
    ],
)
def test_the_provider_asked_for_is_the_only_one_given(double, student, asked, device, name):
    backend = OrtBackend(student, **asked)
    assert (backend.provider, backend.device) == (name, device)
    assert [opened[0] for opened in double.opened] == [name]


def test_a_gpu_provider_may_not_leave_layers_to_the_cpu(double, student):
    OrtBackend(student, provider="cuda")
    OrtBackend(student)
    gpu, cpu = (settings.entries for _, _, settings in double.opened)
    assert gpu["session.disable_cpu_ep_fallback"] == "1"
    assert "session.disable_cpu_ep_fallback" not in cpu


def test_the_index_of_the_device_reaches_the_provider(double, student):
    OrtBackend(student, "cuda:3")
    assert double.opened[0][1] == {"device_id": "3"}


def test_a_provider_that_does_not_load_is_missing(double, student):
    double.loads = set()
    with pytest.raises(
        MissingError, match=r"asked for CUDAExecutionProvider, ONNX Runtime uses CPUExecutionProvider"
    ) as found:
        OrtBackend(student, "cuda")
    assert found.value.exit_code == 3 and "\n" not in str(found.value)


def test_a_layer_that_the_provider_does_not_have_is_the_files_fault(double, student):
    double.takes_all = False
    with pytest.raises(
        ArtifactError, match=r"cannot open it with TensorrtExecutionProvider.*fallback to CPU EP"
    ) as found:
        OrtBackend(student, provider="tensorrt")
    assert found.value.exit_code == 4 and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("precision", "int8", "fp16"),
    [("fp32", "0", "0"), ("int8", "1", "0"), ("fp16", "0", "1"), ("int8+fp16", "1", "1")],
)
def test_tensorrt_gets_the_files_precision_and_a_folder_of_its_own(
    double, tiny, tmp_path, monkeypatch, precision, int8, fp16
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tiny.write(tmp_path / "m.onnx", meta=tiny.metadata(precision=precision))
    OrtBackend(path, provider="tensorrt")
    options = double.opened[0][1]
    assert (options["trt_int8_enable"], options["trt_fp16_enable"]) == (int8, fp16)
    folder = tmp_path / "cache" / "large2small" / "onnxruntime-tensorrt" / sha256(path)[:16]
    assert folder.is_dir()
    assert options["trt_engine_cache_enable"] == "1" and options["trt_engine_cache_path"] == str(folder)
    assert options["trt_timing_cache_path"] == str(folder)


def test_a_cache_folder_that_cannot_be_made_is_a_usage_error(double, student, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="XDG_CACHE_HOME"):
        OrtBackend(student, provider="tensorrt")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            {"device": "cpu", "provider": "cuda"},
            "provider cuda does not run on device cpu. Give --device cuda",
        ),
        ({"device": "cpu", "provider": "tensorrt"}, "Give --device cuda"),
        (
            {"device": "cuda", "provider": "cpu"},
            "provider cpu does not run on device cuda. Give --device cpu",
        ),
        ({"provider": "rocm"}, "provider 'rocm': expected cpu, cuda, tensorrt"),
        ({"provider": ""}, "expected cpu, cuda, tensorrt"),
        ({"device": ""}, "expected cpu, cuda or cuda:INDEX"),
        ({"device": "cpu:0"}, "expected cpu, cuda or cuda:INDEX"),
        ({"threads": 0}, "threads 0: expected 1 or more"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(double, student, asked, words):
    with pytest.raises(UsageError, match=words):
        OrtBackend(student, **asked)
    assert double.opened == []


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_this_onnx_runtime_lacks_is_missing(student, provider):
    if len(onnxruntime.get_available_providers()) > 2:
        pytest.skip("this ONNX Runtime has GPU providers")
    with pytest.raises(
        MissingError, match=r"ExecutionProvider; this ONNX Runtime has .*CPU.*large2small\[gpu\]"
    ):
        OrtBackend(student, provider=provider)


def test_what_really_runs_on_a_cpu_is_reported(student):
    backend = OrtBackend(student, threads=1)
    assert (backend.provider, backend.device, backend.threads) == ("CPUExecutionProvider", "cpu", 1)
    assert backend.session.get_session_options().intra_op_num_threads == 1


def test_out_takes_the_logits(student):
    backend, pixels = (
        OrtBackend(student, threads=1),
        np.random.default_rng(0).random((4, 3, 8, 8), np.float32),
    )
    out = np.full((4, 3), np.nan, np.float32)
    assert backend.run(pixels, out) is out
    np.testing.assert_array_equal(out, backend.run(pixels))


def read_only():
    out = np.zeros((1, 3), np.float32)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    "out",
    [np.zeros((2, 3), np.float32), np.zeros((1, 3)), [0.0], read_only()],
    ids=["shape", "float64", "a list", "read-only"],
)
def test_a_wrong_out_is_refused(student, out):
    with pytest.raises(UsageError, match=r"expected a writeable float32 array \(1, 3\)"):
        OrtBackend(student, threads=1).run(np.zeros((1, 3, 8, 8), np.float32), out)


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        OrtBackend(tmp_path / "none.onnx")
